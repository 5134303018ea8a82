"""Lock the folder of a run, a fold or a study, so that only one process works in it.

On one machine, the folder is locked by the kernel's lock on the file `lock`. This lock always ends with the process,
and it does not depend on process ids, which may be reused.

Some file servers do not share such locks between machines. In this case, the content of the file is used: it names the
process that owns the lock, and the time of its last heartbeat (a repeated sign of life).
"""

# This module does not use filelock (4.2), each of whose classes has only one of the two parts. `FileLock` uses the
# kernel's lock, without a heartbeat. `SoftFileLease` has a heartbeat, but ignores the kernel's lock. After 30 s without
# a heartbeat, it gives the lock to another process even if the owner is only suspended.

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from competition.errors import MaskfoldError
from competition.io import as_disk_error

HEARTBEAT_SECONDS = 10.0  # s between two heartbeats
STALE_SECONDS = 60.0  # if no heartbeat is seen during this time (s), a process on another machine is taken for dead
# If the last heartbeat is older than this time (s), the process is taken for dead without waiting for a heartbeat. The
# time is long, because the clocks of two machines may differ.
DEAD_SECONDS = 600.0
POLL_SECONDS = 0.2  # s between two checks
PROBE_SECONDS = 1.0  # s; a call of `is_free` may hold the lock this long
FILE_BYTES = 512  # bytes; the size is constant, so that a heartbeat needs no additional disk space

_open: set[int] = set()  # file descriptors of the locks that this process holds
_held: set[Path] = set()  # folders of these locks
# A forked child would keep the lock after its parent's death; `exec` closes the descriptors anyway.
os.register_at_fork(after_in_child=lambda: _close_inherited_locks())


@dataclass(frozen=True)
class LockOwner:
    """Describe the owner of a lock: the content of the lock file.

    Attributes:
        process: the process id.
        host: the machine's name.
        boot: id that the kernel made when the machine started; it identifies the machine even if containers on it have
            other names.
        born: start time of the process in seconds since 1970. It distinguishes processes that had the same process id.
        since: time at which the process took the lock, in seconds since 1970.
        beat: time of the last heartbeat of the process, in seconds since 1970.
    """

    process: int
    host: str
    boot: str
    born: float
    since: float
    beat: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        seconds = max(0.0, time.time() - self.beat)
        return f"process {self.process} on {self.host} (since {since}, last heartbeat {seconds:.0f} s ago)"

    @property
    def is_local(self) -> bool:
        """Whether the owner is a process that was started on this machine since its last boot."""
        return self.boot == _boot_id()

    def is_same_process(self, other: LockOwner | None) -> bool:
        """Return whether this owner and `other` are the same process; False if `other` is None."""
        return other is not None and (self.process, self.boot, self.born) == (other.process, other.boot, other.born)


@contextmanager
def run_lock(folder: Path, patience: float = 0.0, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the lock of a folder until the `with` block or the process ends.

    If the lock belongs to a process that has ended without releasing it, the calling process takes the lock over.

    Args:
        folder: folder of a run, a fold or a study.
        patience: maximum time in seconds to wait for another process to release the lock.
        say: function that receives messages while the function waits.

    Raises:
        MaskfoldError: another process holds the lock, or the folder is not writable.
    """
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise as_disk_error(error, path, FILE_BYTES) or error from error
    try:
        _wait_for_lock(descriptor, folder, patience, say)
        process, now = os.getpid(), time.time()
        owner = LockOwner(process, socket.gethostname(), _boot_id(), _start_time(process) or 0.0, now, now)
        _write(descriptor, owner, path)
        _open.add(descriptor)
        _held.add(folder.resolve())
        released = threading.Event()
        thread = threading.Thread(target=_heartbeat, args=(descriptor, owner, path, released), daemon=True, name="lock")
        thread.start()
        try:
            yield
        finally:
            released.set()
            thread.join()
            with suppress(OSError):
                os.ftruncate(descriptor, 0)  # an empty file tells other machines not to wait for a heartbeat
    finally:
        if descriptor in _open:
            _open.discard(descriptor)
            _held.discard(folder.resolve())
        os.close(descriptor)


@contextmanager
def ensure_lock(folder: Path, patience: float = 0.0, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the lock of a folder like `run_lock`; do nothing if this process already holds the lock.

    Args:
        folder: folder of a run, a fold or a study.
        patience: maximum time in seconds to wait for another process to release the lock.
        say: function that receives messages while the function waits.

    Raises:
        MaskfoldError: another process holds the lock, or the folder is not writable.
    """
    with nullcontext() if folder.resolve() in _held else run_lock(folder, patience, say):
        yield


@contextmanager
def lock_if_free(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder during the `with` block, if possible.

    Yields:
        True if this process holds the lock; False if another process has it, or the folder is not writable.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(ensure_lock(folder, say=lambda _: None))
        except MaskfoldError:
            yield False
        else:
            yield True


def is_free(folder: Path) -> bool:
    """Return whether no process holds the lock of a folder."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        locked = _try_lock(descriptor)
        owner = _read(descriptor)
        return locked is not False and (owner is None or _is_dead(owner, bool(locked)))
    finally:
        os.close(descriptor)


def read_owner(folder: Path) -> LockOwner | None:
    """Return the owner that the lock file of a folder names, without taking the lock.

    Return None if the last owner released the lock, or if there is no lock file. A killed process does not release its
    lock; `is_alive` tells whether the owner still runs.
    """
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def is_alive(owner: LockOwner) -> bool:
    """Return whether the owner of a lock still runs.

    On this machine, the process is looked up. On another machine, the last heartbeat must be at most `STALE_SECONDS`
    old.
    """
    if owner.is_local:
        return _start_time(owner.process) == owner.born
    return time.time() - owner.beat <= STALE_SECONDS


def _wait_for_lock(descriptor: int, folder: Path, patience: float, say: Callable[[str], None]) -> None:
    start = last_change = time.monotonic()
    last_owner: LockOwner | None = None
    logged = has_heartbeat = False
    while True:
        locked, owner, now = _try_lock(descriptor), _read(descriptor), time.monotonic()
        if locked is not False and owner is None:
            return
        if owner is not None and owner != last_owner:
            has_heartbeat = has_heartbeat or owner.is_same_process(last_owner)
            last_owner, last_change = owner, now
        if (
            locked is not False
            and owner is not None
            and (_is_dead(owner, bool(locked)) or now - last_change > STALE_SECONDS)
        ):
            say(f"this process takes over the lock of {owner}, because that process has ended")
            return
        alive = locked is False or has_heartbeat  # the owner is on another machine, so wait for a heartbeat
        if alive and now - start > max(patience, PROBE_SECONDS):
            raise MaskfoldError(
                f"{folder} is in use by {owner or 'another process'}.", "Wait until that process has ended, or stop it."
            )
        if not logged and (patience or not alive) and now - start > 2 * POLL_SECONDS:
            logged = True
            say(
                f"this process waits until {owner or 'another process'} releases {folder}"
                if alive
                else f"this process waits up to {STALE_SECONDS:.0f} s for a heartbeat of {owner}"
            )
        time.sleep(POLL_SECONDS)


def _try_lock(descriptor: int) -> bool | None:
    """Try to take the kernel's lock on an open file.

    Returns:
        True if this process has the lock; False if another process has it; None if the file system does not support
        locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    return True


def _is_dead(owner: LockOwner, has_kernel_lock: bool) -> bool:
    """Return whether the last owner of a lock has certainly ended.

    Args:
        owner: the owner that the lock file names.
        has_kernel_lock: whether this process has just taken the kernel's lock; False if locks are not supported. If
            another process has the kernel's lock, do not call this function.
    """
    if owner.is_local:
        return has_kernel_lock or _start_time(owner.process) != owner.born
    return time.time() - owner.beat > DEAD_SECONDS


def _heartbeat(descriptor: int, me: LockOwner, path: Path, released: threading.Event) -> None:
    """Write a heartbeat to the lock file at regular intervals, until the lock is released.

    If another process has taken over the lock, e.g. while this machine was suspended, end this process at once.

    Args:
        descriptor: file descriptor of the open lock file.
        me: this process as the owner.
        path: path of the lock file.
        released: event that is set when the lock is released.
    """
    while not released.wait(HEARTBEAT_SECONDS):
        owner = _read(descriptor)
        if owner is not None and not owner.is_same_process(me):
            print(f"error: this process lost the lock {path} to {owner}, so it stops.", file=sys.stderr, flush=True)
            os._exit(1)
        with suppress(OSError, MaskfoldError):
            _write(descriptor, LockOwner(**{**asdict(me), "beat": time.time()}), path)


def _write(descriptor: int, owner: LockOwner, path: Path) -> None:
    text = json.dumps(asdict(owner)).encode()
    try:
        os.pwrite(descriptor, text.ljust(FILE_BYTES - 1) + b"\n", 0)
    except OSError as error:
        raise as_disk_error(error, path, FILE_BYTES) or error from error


def _read(descriptor: int) -> LockOwner | None:
    """Return the owner that an open lock file names; None if the file is empty or has other content."""
    try:
        return LockOwner(**json.loads(os.pread(descriptor, FILE_BYTES, 0)))
    except (ValueError, TypeError):
        return None


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _start_time(process: int) -> float | None:
    """Return the start time of a process; None if there is no such process."""
    import psutil

    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return None


def _close_inherited_locks() -> None:
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()
    _held.clear()
