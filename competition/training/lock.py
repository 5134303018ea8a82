"""One process at a time in a folder: of a run, of a fold.

The kernel's lock on the file `lock` is the truth on one machine: it goes with the process, however that dies, and nobody
is fooled by a number that another process has been given since. Not every file server passes locks on to other machines.
There the file's content tells: who holds it, and when that process last gave a sign of life.
"""

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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from competition.config import MaskfoldError
from competition.data.files import refusal

BEAT = 10.0  # s between two signs of life
STALE = 60.0  # s of silence after which a process of another machine is taken for dead
LONG_SILENT = 600.0  # s by this machine's clock, which may differ from the other's: dead without a look at it
GLANCE = 0.2  # s between two looks
PROBE = 1.0  # s that somebody who only asks `is_free` may be in the way
LENGTH = 512  # bytes, always: a sign of life needs no new room on the disk

_open: set[int] = set()  # descriptors of the locks that this process holds
# A child would keep the lock beyond its parent's death. What `exec` starts does not get it in the first place.
os.register_at_fork(after_in_child=lambda: _forget())


@dataclass(frozen=True)
class Holder:
    """What stands in a lock file.

    Attributes:
        process: its number.
        host: its machine's name.
        boot: what tells this start of that machine from all others, whatever containers call themselves.
        born: when the process began: its number alone may be another's by now.
        since: when it took the lock, s since 1970.
        beat: its last sign of life, s since 1970.
    """

    process: int
    host: str
    boot: str
    born: float
    since: float
    beat: float

    def __str__(self) -> str:
        return (
            f"process {self.process} on {self.host} (since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}, "
            f"last sign of life {max(0.0, time.time() - self.beat):.0f} s ago)"
        )

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine since it was started."""
        return self.boot == _boot()

    def same(self, other: Holder | None) -> bool:
        """Whether both are one process."""
        return other is not None and (self.process, self.boot, self.born) == (other.process, other.boot, other.born)


@contextmanager
def alone(folder: Path, patience: float = 0.0, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold the folder's lock until the block ends, or the process does. A dead holder's lock is taken over.

    Args:
        folder: of a run or a fold.
        patience: seconds that another process gets to let go of it.
        say: takes a line for the log where there is something to wait for.

    Raises:
        MaskfoldError: another process holds it, or nothing can be written to the folder.
    """
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise refusal(error, path, LENGTH) or error from error
    try:
        _wait(descriptor, folder, patience, say)
        me = Holder(os.getpid(), socket.gethostname(), _boot(), _born(os.getpid()) or 0.0, time.time(), time.time())
        _write(descriptor, me, path)
        _open.add(descriptor)
        leaving = threading.Event()
        thread = threading.Thread(target=_live, args=(descriptor, me, path, leaving), daemon=True, name="lock")
        thread.start()
        try:
            yield
        finally:
            leaving.set()
            thread.join()
            with suppress(OSError):
                os.ftruncate(descriptor, 0)  # it ends in order: no other machine waits for a sign of life
    finally:
        _open.discard(descriptor)
        os.close(descriptor)


def is_free(folder: Path) -> bool:
    """Whether no process works in the folder."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        taken = _taken(descriptor)
        holder = _read(descriptor)
        return taken is not False and (holder is None or _is_dead(holder, bool(taken)))
    finally:
        os.close(descriptor)


def _wait(descriptor: int, folder: Path, patience: float, say: Callable[[str], None]) -> None:
    """Until the lock is this process's."""
    began = changed = time.monotonic()
    seen: Holder | None = None
    told = moved = False
    while True:
        taken, holder, now = _taken(descriptor), _read(descriptor), time.monotonic()
        if taken is not False and holder is None:
            return
        if holder is not None and holder != seen:
            seen, changed, moved = holder, now, moved or holder.same(seen)
        if taken is not False and holder is not None and (_is_dead(holder, bool(taken)) or now - changed > STALE):
            say(f"takes the place of {holder}, which has ended")
            return
        alive = taken is False or moved  # else it is another machine's: its signs of life tell
        if alive and now - began > max(patience, PROBE):
            raise MaskfoldError(
                f"{folder} is being trained by {holder or 'another process'}.",
                "Wait until it is done, or stop it first.",
            )
        if not told and (patience or not alive) and now - began > 2 * GLANCE:
            told = True
            say(
                f"waits until {holder or 'another process'} lets go of the folder"
                if alive
                else f"waits for a sign of life of {holder}, {STALE:.0f} s at most"
            )
        time.sleep(GLANCE)


def _taken(descriptor: int) -> bool | None:
    """Whether the kernel's lock is this process's now; None where the folder's file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        raise
    return True


def _is_dead(holder: Holder, by_kernel: bool) -> bool:
    """Whether the last holder has surely ended, given that no lock of the kernel is in the way."""
    if holder.is_here:
        return by_kernel or _born(holder.process) != holder.born
    return time.time() - holder.beat > LONG_SILENT


def _live(descriptor: int, me: Holder, path: Path, leaving: threading.Event) -> None:
    """Give signs of life. A machine that slept may wake up to find that another one has taken its place."""
    while not leaving.wait(BEAT):
        now = _read(descriptor)
        if now is not None and not now.same(me):
            print(f"error: {path} belongs to {now} by now. Nothing more is written here.", file=sys.stderr, flush=True)
            os._exit(1)
        with suppress(OSError, MaskfoldError):
            _write(descriptor, Holder(**{**asdict(me), "beat": time.time()}), path)


def _write(descriptor: int, holder: Holder, path: Path) -> None:
    text = json.dumps(asdict(holder)).encode()
    try:
        os.pwrite(descriptor, text.ljust(LENGTH - 1) + b"\n", 0)
    except OSError as error:
        raise refusal(error, path, LENGTH) or error from error


def _read(descriptor: int) -> Holder | None:
    """Who stands in the file; None for nobody, or for what is none of ours."""
    try:
        return Holder(**json.loads(os.pread(descriptor, LENGTH, 0)))
    except (ValueError, TypeError):
        return None


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _born(process: int) -> float | None:
    """When a process began; None where there is none of this number."""
    import psutil

    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return None


def _forget() -> None:
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()
