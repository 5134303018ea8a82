"""Lock the folder of a run, a fold or a study, so that only one process works in it.

On one machine, the kernel's lock on the file `lock` decides. It always ends with the process, and it does not depend on
process ids, which may be reused. Some file servers do not share locks between machines. Then the content of the file
decides: its owner, and the time of the owner's last heartbeat.
"""

# This module does not use filelock (4.2), which has these parts in separate classes. `FileLock` is the kernel's lock
# without a heartbeat. `SoftFileLease` has a heartbeat and ignores the kernel's lock; after 30 s without a heartbeat, it
# gives the lock away even if the holder is only suspended.

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
STALE_SECONDS = 60.0  # s without a heartbeat after which a process of another machine counts as dead
# s since the last heartbeat after which a process counts as dead at once; many, because clocks may differ
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
        boot: the id of the machine's boot, which identifies it regardless of container names.
        born: start time of the process, because the process id may be reused.
        since: time when the process took the lock, s since 1970.
        beat: last heartbeat of the process, s since 1970.
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
        """Return whether both owners are the same process."""
        return other is not None and (self.process, self.boot, self.born) == (other.process, other.boot, other.born)


@contextmanager
def run_lock(folder: Path, patience: float = 0.0, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the folder's lock until the `with` block or the process ends; take over the lock of a dead process.

    Args:
        folder: folder of a run or a fold.
        patience: maximum wait, in seconds, for another process to release the lock.
        say: function that receives log lines while the function waits.

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
    """Hold the folder's lock like `run_lock`; do nothing if this process already holds the lock.

    Raises:
        MaskfoldError: as for `run_lock`.
    """
    with nullcontext() if folder.resolve() in _held else run_lock(folder, patience, say):
        yield


@contextmanager
def lock_if_free(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock if the lock is free and the folder is writable; yield whether the lock is held."""
    with ExitStack() as stack:
        try:
            stack.enter_context(ensure_lock(folder, say=lambda _: None))
        except MaskfoldError:
            yield False
        else:
            yield True


def is_free(folder: Path) -> bool:
    """Return whether no process works in the folder."""
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
    """Read the last owner of a folder's lock without taking the lock; return None if the owner released it.

    A killed process does not release its lock; see `is_alive`.
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
    """Return whether a lock's owner still runs: on this machine by its process, elsewhere by its last heartbeat."""
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
            say(f"takes over the lock of {owner}, which has ended")
            return
        alive = locked is False or has_heartbeat  # the owner is on another machine, so wait for a heartbeat
        if alive and now - start > max(patience, PROBE_SECONDS):
            raise MaskfoldError(
                f"{folder} is in use by {owner or 'another process'}.", "Wait until that process has ended, or stop it."
            )
        if not logged and (patience or not alive) and now - start > 2 * POLL_SECONDS:
            logged = True
            say(
                f"waiting until {owner or 'another process'} releases the folder"
                if alive
                else f"waiting up to {STALE_SECONDS:.0f} s for a heartbeat of {owner}"
            )
        time.sleep(POLL_SECONDS)


def _try_lock(descriptor: int) -> bool | None:
    """Try to take the kernel's lock; return True if taken, False if another process has it, None if unsupported."""
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
    """Return whether a lock's last owner has certainly ended; the kernel's lock must be free or unsupported."""
    if owner.is_local:
        return has_kernel_lock or _start_time(owner.process) != owner.born
    return time.time() - owner.beat > DEAD_SECONDS


def _heartbeat(descriptor: int, me: LockOwner, path: Path, released: threading.Event) -> None:
    """Write heartbeats; end this process if another process took the lock, e.g. while this machine was suspended."""
    while not released.wait(HEARTBEAT_SECONDS):
        owner = _read(descriptor)
        if owner is not None and not owner.is_same_process(me):
            print(f"error: {path} is now owned by {owner}; this process stops.", file=sys.stderr, flush=True)
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
    """Read the owner from the file; None if the file is empty or has other content."""
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
