"""Files and folders that appear whole or not at all: written under a name beside the final one, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.errors import MaskfoldError

ABANDONED_SECONDS = 24 * 3600  # after which a temporary name of another host is nobody's any more


class FullDisk(MaskfoldError):
    """No room left on the disk: retrying with the next case would not help."""


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
    """Makes a folder, and a file in it that is gone again: before hours go by.

    Raises:
        MaskfoldError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    """Turns a full disk inside of the block into `FullDisk` with the path and the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size = f"{needed:,} bytes" if needed else "a few bytes"
        raise FullDisk(f"The disk is full: {path} needs {size}.",
                       "Free some space, or put the run on another disk.") from error


def temporary(final: Path) -> Path:
    """A free name beside `final` that says who uses it: host, process and a random number."""
    return final.with_name(f".{final.name}~{socket.gethostname()}~{os.getpid()}~{secrets.token_hex(4)}.tmp")


def sweep(folder: Path, name: str) -> None:
    """Removes what dead processes left under temporary names of `name` in `folder`."""
    for path in [path for path in folder.iterdir() if path.name.startswith(f".{name}~") and path.suffix == ".tmp"]:
        if not _abandoned(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    _, host, process, _ = path.name.rsplit("~", 3)
    try:
        if host != socket.gethostname():
            return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
        os.kill(int(process), 0)  # sends nothing: asks whether the process lives
    except ProcessLookupError:
        return True
    except OSError:  # gone meanwhile, or a living process of another user
        return False
    return False


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
