"""A process that imports modules once and forks a child for each task, so that only the first task waits for imports.

`ForkServer` is the side of the command; `python -m competition.fork_server` is the server. The server only imports: it
computes nothing, holds no lock, starts no thread, and never initialises CUDA. A child has the environment, working
folder, output and session of a process that was started afresh; its parent is the server, which ends when the command
does, however that ends.

The server has the environment of its children while it imports, so each library finds there what it would find in a
process that was started afresh: OpenMP and OpenBLAS the same number of threads. OpenBLAS ends its waiting threads
before a fork, by a handler of its own, and starts them again where they are needed.
"""

# Not `multiprocessing.forkserver`: its children have neither an environment, an output nor a session of their own; they
# import the command's main module again; and the server reaps a child before the command knows of its end, so that a
# signal may reach another process with the same id.

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from competition.process import PARENT_VARIABLE

SWITCH = "MASKFOLD_FORKSERVER"  # environment variable: 0 starts each process afresh
POLL_SECONDS = 0.5  # seconds between two looks at whether the command still lives
MAX_REQUEST = 200_000  # bytes
ARROW_ALLOCATOR = "JE_ARROW_MALLOC_CONF"  # pyarrow's allocator would start a thread at import
# Blocked in the server, which ends with its command. A signal for a child that comes before it unblocks them waits.
BLOCKED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# The side of the command


class ServerLost(Exception):
    """Raised if the server has ended; whether a child was started is then unknown, but none survives."""


class ForkedProcess:
    """A child of a server, with those methods of `subprocess.Popen` that wait for a process and end it.

    Args:
        server: the server.
        pid: the child's process id.
    """

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid, self._server = pid, server
        self.returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)  # the server does not reap the child before `poll` asks for its status

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self.returncode if self._has_ended(0.0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM, if it still runs."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, if it still runs."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def _has_ended(self, timeout: float | None) -> bool:
        if self.returncode is None and _is_readable(self._descriptor, timeout):
            self.returncode = self._server.take_status(self.pid)
            os.close(self._descriptor)
        return self.returncode is not None


class ForkServer:
    """Starts a server and asks it for children. Its imports begin at once; the first child waits for them.

    Args:
        modules: to import; a module that fails to import is imported again by the children, which report the error.
        environment: of the server, and of its children.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._lock, self._children = threading.Lock(), 0
        self._channel, self._process = _launch(modules, self.environment)

    @property
    def is_lost(self) -> bool:
        """Whether the server has ended."""
        return self._process.poll() is not None

    @property
    def has_children(self) -> bool:
        """Whether there are children whose exit status nobody has asked for."""
        return self._children > 0

    def start(
        self,
        function: str,
        arguments: Sequence[str],
        output: int,
        descriptors: Mapping[str, int],
        modules: Sequence[str] = (),
    ) -> int:
        """Have a child call a function and end with its result as exit status.

        Args:
            function: `module:name`.
            arguments: its arguments.
            output: the descriptor of the file for standard output and error.
            descriptors: further descriptors; the child finds the number of each in the environment variable of its key.
            modules: to import before, so that later children have them too.

        Returns:
            The child's process id.

        Raises:
            ServerLost: the server has ended.
        """
        request = {
            "function": function,
            "arguments": list(arguments),
            "folder": os.getcwd(),
            "variables": list(descriptors),
            "modules": list(modules),
        }
        pid = self._ask(request, [output, *descriptors.values()])
        self._children += 1
        return pid

    def take_status(self, pid: int) -> int:
        """Return the exit status of a child that has ended; -9 if the server was lost, and the status with it."""
        self._children -= 1
        try:
            return self._ask({"status": pid}, [])
        except ServerLost:
            return -signal.SIGKILL

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        with self._lock:
            try:
                socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
                answer = self._channel.recv(MAX_REQUEST)
            except OSError as error:
                raise ServerLost from error
            except BaseException:  # Ctrl-C: the answer would be taken for that of the next request
                self.close()
                raise
        if not answer:
            raise ServerLost
        return int(json.loads(answer))

    def close(self) -> None:
        """End the server. Children that still run notice the end of their parent."""
        self._channel.close()
        self._process.kill()  # it may be importing, and would look at the channel later
        self._process.wait()

    def forget(self) -> None:
        """Close only this process's end, in a fork of the command."""
        self._channel.close()
        self._process.returncode = 0  # not a child of this process


def _launch(modules: Sequence[str], environment: Mapping[str, str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "competition.fork_server", str(theirs.fileno()), str(os.getpid()), *modules]
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # keeps Ctrl-C from it
            pass_fds=(theirs.fileno(),),
        )
    return ours, process


def is_supported() -> bool:
    """Return whether this platform can fork and signal such processes safely, and `MASKFOLD_FORKSERVER` is not 0."""
    if os.environ.get(SWITCH) == "0" or sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))  # Linux before 5.3 and some sandboxes have none
    except OSError:
        return False
    return True


_shared: ForkServer | None = None


def shared_server(modules: Sequence[str], environment: Mapping[str, str]) -> ForkServer | None:
    """Return this process's server for an environment; the same one for all tasks that have the same environment.

    Args:
        modules: see `ForkServer`.
        environment: of the children. Libraries read it when they are imported, so another one needs another server.

    Returns:
        The server; None if the former one, for another environment, still has children.
    """
    global _shared
    environment = {name: value for name, value in environment.items() if name != PARENT_VARIABLE}
    if "PYTHONPATH" in environment:  # the server may have been started in another folder than a child
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(
            os.path.abspath(folder) for folder in folders
        )  # empty: the working folder
    if _shared is not None and (_shared.is_lost or _shared.environment != environment):
        if _shared.has_children and not _shared.is_lost:
            return None
        close_shared_server()
    if _shared is None:
        _shared = ForkServer(modules, environment)
    return _shared


def close_shared_server() -> None:
    """End this process's server, which holds the memory of its imports; the next task starts another one."""
    global _shared
    server, _shared = _shared, None
    if server is not None:
        server.close()


def _forget_shared_server() -> None:
    global _shared
    server, _shared = _shared, None
    if server is not None:
        server.forget()


atexit.register(close_shared_server)
os.register_at_fork(after_in_child=_forget_shared_server)


def _is_readable(descriptor: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))


# The server


def serve(channel: socket.socket, command: int, modules: Sequence[str]) -> tuple[dict[str, Any], list[int]]:
    """Import the modules, then fork a child for each request until the command ends; returns only in a child.

    Args:
        channel: the connection to the command.
        command: its process id.
        modules: see `ForkServer`.

    Returns:
        The request, and the descriptors that came with it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    if quiet := ARROW_ALLOCATOR not in os.environ:
        os.environ[ARROW_ALLOCATOR] = "background_thread:false"
    _import(modules)
    if quiet:
        del os.environ[ARROW_ALLOCATOR]
    while True:
        readable = _is_readable(channel.fileno(), POLL_SECONDS)
        if os.getppid() != command:
            os._exit(0)
        if not readable:
            continue
        text, descriptors, _, _ = socket.recv_fds(channel, MAX_REQUEST, 8)
        if not text:
            os._exit(0)
        request = json.loads(text)
        if "status" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["status"], 0)[1])
        else:
            _import(request["modules"])
            server = os.getpid()
            answer = os.fork()
            if answer == 0:
                channel.close()
                os.environ[PARENT_VARIABLE] = str(server)
                return request, descriptors
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(json.dumps(answer).encode())


def _import(modules: Sequence[str]) -> None:
    if new := [name for name in modules if name not in sys.modules]:
        for name in new:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        # Objects that the garbage collector never visits are never copied in a child.
        gc.collect()
        gc.freeze()


def run_child(request: Mapping[str, Any], descriptors: Sequence[int]) -> int | None:
    """Take the place of a process that was started afresh, and call the request's function; return its result."""
    os.setsid()
    output, *others = descriptors
    for target in (1, 2):
        os.dup2(output, target)
    os.close(output)
    os.environ.update({name: str(number) for name, number in zip(request["variables"], others, strict=True)})
    os.chdir(request["folder"])
    importlib.invalidate_caches()  # folders may have changed since the server looked into them
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python reseeds its own generator after a fork, but not NumPy's
    module, _, name = request["function"].partition(":")
    sys.argv = [module, *request["arguments"]]
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    result: int | None = getattr(importlib.import_module(module), name)(*request["arguments"])
    return result


def end_with(work: Callable[[], int | None]) -> NoReturn:
    """Call a function, and end as an interpreter does, but without taking all modules apart: that takes seconds."""
    status: object = 1
    interrupted = False
    try:
        status = work()
    except SystemExit as end:
        status = end.code
    except BaseException as error:  # noqa: BLE001 - as an interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
        interrupted = isinstance(error, KeyboardInterrupt)
    if not isinstance(status, int | None):  # the text of `sys.exit("text")`
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((status or 0) & 0xFF)


def _main(descriptor: int, command: int, modules: Sequence[str]) -> NoReturn:
    request, descriptors = serve(socket.socket(fileno=descriptor), command, modules)
    end_with(lambda: run_child(request, descriptors))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
