"""Prevent constructors (of networks, losses, …) from writing files, opening connections or starting processes.

`competition.config.arguments` refuses arguments that name files, addresses, caches or hubs. `ConstructionGuard` is the
second check. It stops what the first check misses, such as files named by a constructor's default values or by
arguments whose names the first check does not know. It is a Python audit hook that is active only while a constructor
runs, and only in the constructor's thread. It is not a sandbox: C extensions can write files without an audit event,
and Python raises no event for `_posixsubprocess.fork_exec`, which `multiprocessing` uses to start processes (`spawn`,
`forkserver`).
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from competition.config.arguments import allows_any_below, check_argument_values
from competition.config.instantiate import is_wholly_trusted
from competition.errors import MaskfoldError

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events (https://docs.python.org/3/library/audit_events.html), and how many of their arguments are paths.
FILE_EVENTS = {
    "open": 1,
    "os.chflags": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.removexattr": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.setxattr": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "sqlite3.connect": 1,
}
CONNECTION_EVENTS = frozenset(
    (
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.sendmsg",
        "socket.sendto",
        "urllib.Request",
    )
)
PROCESS_EVENTS = frozenset(
    (
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.kill",
        "os.killpg",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "pty.spawn",
        "subprocess.Popen",
    )
)
# Events that affect the whole process: loading a library's code, and changing the working folder.
STATE_EVENTS = {"ctypes.dlopen": "load the library", "os.chdir": "change the working folder to"}
# `torch.load(weights_only=True)` does not raise this event, because it has its own reader.
UNPICKLING_EVENT = "pickle.find_class"
# The classes in a state dictionary of tensors; libraries unpickle some of the files that `encoder_weights` downloads.
TENSOR_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor(_v2)?|parameter)|torch\.\w*Storage|torch\.storage\.\w*Storage"
    r"|torch\.Size|torch\.(b?float|u?int|complex)\d+|torch\.device"
)
WATCHED_EVENTS = CONNECTION_EVENTS | PROCESS_EVENTS | {UNPICKLING_EVENT, *FILE_EVENTS, *STATE_EVENTS}
_active = threading.local()
_install_lock = threading.Lock()
_installed = False


class ConstructionGuard:
    """Prevent the constructor of a class from writing files, opening connections or starting processes.

    The constructor is called in a `with` block of this class. The constructor's arguments are checked on entry. In the
    block, an error is raised if this thread tries to write, rename or delete a file, to connect to another machine, to
    start a process or to unpickle. If the library catches this error, the guard raises it again at the end of the
    block. Module imports are exempt, because they write bytecode caches and query the machine's properties. Classes of
    packages that the user trusts are exempt as well.

    Args:
        cls: the class.
        args: the arguments of the class in the YAML.
        key: the key of these arguments in the YAML, e.g. `model.args`.
        trust: additional trusted packages; see `competition.config.instantiate.trusted_packages`.
        downloads: whether the user set `encoder_weights`. If so, connections, pickled tensors, and files in the caches
            of torch and Hugging Face and in the system's temporary folder are allowed.

    Raises:
        MaskfoldError (exit status 2): an argument is refused, or the constructor tried a forbidden action.

    Example:
        >>> import torch
        >>> with ConstructionGuard(torch.nn.ReLU, {}, "model.args"):
        ...     torch.nn.ReLU()
        ReLU()
    """

    def __init__(
        self, cls: Any, args: Mapping[str, Any], key: str, trust: Sequence[str] = (), *, downloads: bool = False
    ) -> None:
        self.cls, self.args, self.key, self.trust, self.downloads = cls, args, key, trust, downloads
        self.is_active = not is_wholly_trusted(str(getattr(cls, "__module__", "")).split(".")[0], trust)
        self.allowed = allows_any_below(key)
        self.violation: MaskfoldError | None = None
        # Determined before the guard is active, because the first call of gettempdir writes a test file.
        self._temporary = Path(os.path.realpath(tempfile.gettempdir())) if downloads else None
        self._frame: FrameType | None = None
        self._collects_garbage = False
        self._outer: ConstructionGuard | None = None

    def __enter__(self) -> ConstructionGuard:
        if self.is_active:
            check_argument_values(f"{self.cls.__module__}.{self.cls.__name__}", self.args, self.key, self.trust)
            _install_hook()
            self._frame = sys._getframe(1)
            self._collects_garbage = gc.isenabled()
            gc.disable()  # the collector could run the finalizer of another object, which may delete its files
            self._outer = getattr(_active, "guard", None)
            _active.guard = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_active:
            _active.guard, self._frame = self._outer, None
            if self._collects_garbage:
                gc.enable()
        if self.violation is not None and error is not self.violation:
            raise self.violation from error

    def judge(self, event: str, args: tuple[Any, ...], frame: FrameType) -> None:
        """Raise an error if an audit event is not allowed while the constructor runs.

        Args:
            event: the event's name.
            args: the event's arguments.
            frame: the frame that caused the event.

        Raises:
            MaskfoldError (exit status 2): the event is not allowed.
        """
        action = self._describe(event, args)
        if action is None or self._is_importing(frame):
            return
        package = self.cls.__module__.split(".")[0]
        option = f"--trust {package}" if event in PROCESS_EVENTS or event in STATE_EVENTS else f"--allow {self.key}"
        self.violation = MaskfoldError(
            f"{self.key}: {self.cls.__name__} tried to {action} while Maskfold constructed it. A class that a "
            "YAML names must not do this.",
            f"Change {self.key}. To load pretrained weights, set `encoder_weights`. If you trust the YAML, add "
            f"{option} to the command.",
            status=2,
        )
        raise self.violation

    def _describe(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Return what an event does, e.g. `write the file a.txt`, for the message; None if the event is allowed."""
        if event in PROCESS_EVENTS:
            verb = "send a signal to" if event.startswith("os.kill") else "start"
            return f"{verb} a process ({_shown(args)})"
        if event in STATE_EVENTS:
            return None if event == "ctypes.dlopen" and not _shown(args) else f"{STATE_EVENTS[event]} {_shown(args)}"
        if self.allowed:
            return None
        if event in CONNECTION_EVENTS:
            return None if self.downloads else f"connect to {_shown(args)}"
        if event == UNPICKLING_EVENT:
            name = ".".join(map(str, args[:2]))
            return None if self.downloads and TENSOR_GLOBALS.fullmatch(name) else f"unpickle {name}"
        if event == "open" and not _is_opened_for_writing(args):
            return None
        if event == "sqlite3.connect" and args and args[0] in (":memory:", ""):
            return None
        for path in args[: FILE_EVENTS[event]]:
            # A file that is already open was checked when it was opened.
            if isinstance(path, int) or self._may_write(path, event):
                continue
            return f"write the file {os.fsdecode(path)}"
        return None

    def _may_write(self, path: Any, event: str) -> bool:
        real = Path(os.path.realpath(os.fsdecode(path)))
        if self._temporary is None:
            return real == Path(os.devnull)
        folders = (Path(os.devnull), self._temporary, *_download_folders())
        is_parent = event == "os.mkdir" and any(folder.is_relative_to(real) for folder in folders)
        return is_parent or any(real.is_relative_to(folder) for folder in folders)

    def _is_importing(self, frame: FrameType) -> bool:
        """Return whether the event comes from a module import inside the guarded block."""
        current: FrameType | None = frame
        while current is not None and current is not self._frame:
            if current.f_code.co_filename.startswith("<frozen importlib"):
                return True
            current = current.f_back
        return False


def _install_hook() -> None:
    """Add the audit hook to this process, unless it has one; Python cannot remove an audit hook."""
    global _installed
    with _install_lock:
        if not _installed:
            sys.addaudithook(_hook)
            _installed = True


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event not in WATCHED_EVENTS:
        return
    guard: ConstructionGuard | None = getattr(_active, "guard", None)
    if guard is not None:
        guard.judge(event, args, sys._getframe(1))


def _is_opened_for_writing(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & WRITE_FLAGS) if isinstance(flags, int) else True


def _download_folders() -> Iterator[Path]:
    """Yield the folders in which the imported libraries store downloads.

    A library that is not imported cannot download, so its folder is not needed.
    """
    torch_hub, constants = sys.modules.get("torch.hub"), sys.modules.get("huggingface_hub.constants")
    if torch_hub is not None:
        yield Path(os.path.realpath(torch_hub.get_dir()))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE"):
        if (folder := getattr(constants, name, None)) is not None:
            yield Path(os.path.realpath(folder))


def _shown(args: tuple[Any, ...]) -> str:
    texts = (str(value) for value in args if isinstance(value, str | bytes | list | tuple | int))
    return ", ".join(texts)[:100]
