"""Files and folders that appear whole or not at all: written under a name beside the final one, then renamed."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from competition.config.errors import MaskfoldError

ABANDONED_SECONDS = 24 * 3600  # after which a temporary name of another host is nobody's any more
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOCK = 60.0  # s by which a process may seem younger than what it wrote: clocks are set
SHUT = (errno.EROFS, errno.EACCES, errno.EPERM)
# `temporary`, and what modules that may not import this one write beside a file: `.name.process.part`.
TEMPORARY = re.compile(r"\..+~(?P<host>[^~]+)~(?P<process>\d+)~[0-9a-f]{8}\.tmp|\..+\.(?P<alone>\d+)\.part")


class FullDisk(MaskfoldError):
    """The disk is full, or nothing may be written to it: retrying with the next case would not help."""


def refusal(error: OSError, path: Path | str | None, needed: int = 0) -> FullDisk | None:
    """What a user is told of a disk that takes no more; None where the error means something else.

    Args:
        error: what the system said.
        path: of the file that was being written; None: the error's own.
        needed: bytes of the file, or of what was to be added to it; 0: not known.
    """
    path = _final(Path(path if path is not None else error.filename or "a file"))
    size = f"{needed:,} bytes" if needed else "a few bytes"
    if error.errno == errno.EDQUOT:
        return FullDisk(f"The disk quota is used up: {path} needs {size}.",
                        "Free some of your space, or ask for more; then type the same command again.")
    if error.errno == errno.ENOSPC:
        return FullDisk(f"The disk is full: {path} needs {size}.",
                        "Free some space, or put the run on another disk; then type the same command again.")
    if error.errno in SHUT:
        return FullDisk(f"{path} ({size}) cannot be written: {error.strerror}.",
                        "Give write access, or work in another folder; then type the same command again.")
    return None


def _final(path: Path) -> Path:
    """What a file will be called: nobody knows it by its temporary name."""
    names = []
    for name in path.parts:
        while TEMPORARY.fullmatch(name):
            name = name[1:].rsplit("~", 3)[0] if name.endswith(".tmp") else name[1:].rsplit(".", 2)[0]
        names.append(name)
    return Path(*names)


def write_whole(path: Path, write: Callable[[IO[bytes]], object], needed: int = 0) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one.

    Args:
        path: where the file belongs.
        write: writes the content to an open binary file.
        needed: bytes of the content, for the message; 0: as many as were written until there was no room.

    Raises:
        FullDisk: the disk is full, or cannot be written; the old file is as it was.
        MaskfoldError: the disk fails in another way.
    """
    beside = temporary(path)
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        size = needed or (beside.stat().st_size if beside.exists() else 0)
        raise refusal(error, path, size) or MaskfoldError(
            f"{path} cannot be written after {size:,} bytes: {error.strerror or error}.",
            "Look after the disk, then type the same command again.") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def append_whole(path: Path, line: bytes) -> None:
    """Add a line to a file, all of it or nothing.

    Raises:
        FullDisk: the disk is full, or cannot be written; the file is as it was.
        OSError: the disk fails in another way.
    """
    with room(path, len(line)), open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(before)
            raise


def write_array(path: Path, shape: tuple[int, ...], dtype: Any, parts: Iterable[np.ndarray]) -> None:
    """Writes a .npy file from its parts along axis 0, one at a time, so that memory never holds the whole.

    Plain writes, not a memory map: on a full disk a map kills the process where a write raises.

    Raises:
        FullDisk: there is no room for it.
        ValueError: the parts do not add up to the shape.
    """
    dtype = np.dtype(dtype)
    needed = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    written = 0
    with whole_file(path, needed) as stream:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            block = np.ascontiguousarray(part, dtype)
            stream.write(block.reshape(-1).view(np.uint8).data)
            written += block.nbytes
    if written != needed:
        raise ValueError(f"{path}: {written} bytes of parts for an array of {needed}")


def writable(folder: Path) -> None:
    """Makes a folder, and a file in it that is gone again: before hours go by. What dead processes left goes as well.

    Raises:
        MaskfoldError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep_all(folder)
        beside = temporary(folder / "probe")
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise MaskfoldError(f"Nothing can be written to the folder {folder}: {error.strerror or error}.",
                            "Name another folder, or correct its permissions.") from error


@contextmanager
def whole_file(path: Path, needed: int = 0) -> Iterator[Any]:
    """A binary file open for writing that is on the disk when the block ends.

    Args:
        path: where.
        needed: bytes, for the message.

    Raises:
        FullDisk: there is no room for it.
    """
    with room(path, needed), open(path, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def room(path: Path, needed: int = 0) -> Iterator[None]:
    """Turns a disk that takes no more, inside of the block, into `FullDisk` with the path and the bytes needed."""
    try:
        yield
    except OSError as error:
        if (refused := refusal(error, path, needed)) is None:
            raise
        raise refused from error


def temporary(final: Path) -> Path:
    """A free name beside `final` that says who uses it: host, process and a random number."""
    return final.with_name(f".{final.name}~{socket.gethostname()}~{os.getpid()}~{secrets.token_hex(4)}.tmp")


def sweep(folder: Path, name: str) -> None:
    """Removes what dead processes left under temporary names of `name` in `folder`."""
    for path in [path for path in folder.iterdir() if path.name.startswith(f".{name}~") and path.suffix == ".tmp"]:
        if _abandoned(path):
            _remove(path)


def sweep_all(folder: Path, mine: bool = False) -> None:
    """Removes what dead processes left under temporary names in `folder`, whatever the files were to be.

    Args:
        folder: not what is below its folders, unless it is this process's own; it may be missing.
        mine: this process holds the folder's lock: whoever wrote there before is gone, whatever its number says.
    """
    with suppress(OSError):  # gone meanwhile, or a folder that cannot be written: then nothing else will work either
        for path in [path for path in (folder.rglob(".*") if mine else folder.iterdir()) if TEMPORARY.fullmatch(path.name)]:
            if mine or _abandoned(path):
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    found = TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    try:
        written = path.stat().st_mtime
        if found["alone"] is None and found["host"] != socket.gethostname():
            return time.time() - written > ABANDONED_SECONDS
        return not _lives(int(found["alone"] or found["process"]), written)
    except OSError:  # gone meanwhile
        return False


def _lives(process: int, written: float) -> bool:
    """Whether the process that wrote something at a time (s since 1970) lives: numbers are given again."""
    import psutil

    try:
        return bool(psutil.Process(process).create_time() <= written + CLOCK)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # a living process of another user
        return True


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
