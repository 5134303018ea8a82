"""Write files atomically, and report a full or unwritable disk with a clear error.

A file is written under a temporary name that identifies the writing process, synced, and renamed. If a process is
killed, its temporary files stay; later commands find and remove them.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from competition.errors import MaskfoldError

ABANDONED_SECONDS = 24 * 3600  # age after which a temporary file of another host counts as abandoned
CLOCK_TOLERANCE = 60.0  # s; after a correction of the clock, a process may seem to have started after it wrote a file
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
# Temporary names are made by `make_temporary_path`. Modules that must not import this module use `.name.process.part`.
TEMPORARY_NAME = re.compile(r"\..+~(?P<host>[^~]+)~(?P<process>\d+)~[0-9a-f]{8}\.tmp|\..+\.(?P<part_process>\d+)\.part")
MAX_NAME_BYTES = 255  # maximum length of a file name in the file systems of Linux and macOS
JOINED_BYTES = 2**15  # parts of an array below this size are written together
# Maximum number of bytes that a temporary name adds: dots, a host (64 bytes, see gethostname(2)), a process id and a
# random number.
WRITER_BYTES = 1 + (1 + 64) + (1 + 10) + (1 + 8) + len(".tmp")


# Atomic writes


def atomic_write(path: Path, write: Callable[[IO[bytes]], object], needed: int = 0) -> None:
    """Write a file atomically: if the process is killed, the file has either its old or its new content.

    Args:
        path: the final path.
        write: function that writes the content to an open binary file.
        needed: size of the content in bytes, for the error message. With 0, the message reports the number of bytes
            that were written before the error.

    Raises:
        DiskFullError: the disk is full or cannot be written; the old file is unchanged.
        MaskfoldError: the disk fails in another way.
    """
    partial = make_temporary_path(path)
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        size = needed or (partial.stat().st_size if partial.exists() else 0)
        raise as_disk_error(error, path, size) or MaskfoldError(
            f"{path} cannot be written; writing failed after {size:,} bytes: {error.strerror or error}.",
            "Check that the folder still exists, and that its disk is connected and intact. Then repeat the command.",
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def atomic_append(path: Path, line: bytes) -> None:
    """Append a line to a file; after an error, no part of the line is in the file.

    Raises:
        DiskFullError: the disk is full or cannot be written; the file is unchanged.
        OSError: the disk fails in another way.
    """
    with disk_full_as_error(path, len(line)), open(path, "ab", buffering=0) as file:
        size_before = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size_before)
            raise


def write_array(path: Path, shape: tuple[int, ...], dtype: Any, parts: Iterable[np.ndarray]) -> None:
    """Write a .npy file part by part along axis 0, so that the whole array is never in memory.

    The file is not memory-mapped: on a full disk, a memory map kills the process, whereas a write raises an error. The
    file is not synced to the disk.

    Args:
        path: path of the file.
        shape: shape of the whole array.
        dtype: dtype of the file; the parts are converted to it.
        parts: the parts, in order.

    Raises:
        DiskFullError: the disk is full or cannot be written.
        ValueError: the parts together have another number of bytes than an array with this shape and dtype.
    """
    dtype = np.dtype(dtype)
    needed = math.prod(shape) * dtype.itemsize
    header = array_header(tuple(shape), dtype)
    written = -len(header)
    with disk_full_as_error(path, needed), open(path, "wb", buffering=JOINED_BYTES) as stream:
        written += stream.write(header)
        for part in parts:
            written += stream.write(np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8).data)
    if written != needed:
        raise ValueError(f"{path}: the parts have {written} bytes together, expected {needed} bytes")


@lru_cache(maxsize=64)
def array_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return the header of a C-ordered .npy file (NumPy's format 1.0)."""
    stream = BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


@contextmanager
def open_synced(path: Path, needed: int = 0) -> Iterator[Any]:
    """Open a binary file for writing, and sync it to the disk when the `with` block ends.

    The file is written under the name `path`. A caller that needs an atomic write passes a temporary path.

    Args:
        path: path of the file.
        needed: size of the file in bytes, for the error message; 0 means unknown.

    Raises:
        DiskFullError: the disk is full or cannot be written.
    """
    with disk_full_as_error(path, needed), open(path, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def ensure_writable(folder: Path) -> None:
    """Create a folder if needed, remove stale temporary files, and check that files can be written.

    Raises:
        MaskfoldError: no file can be written in this folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_all_stale_temp(folder)
        probe = make_temporary_path(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MaskfoldError(
            f"No file can be written to the folder {folder}: {error.strerror or error}.",
            "Choose another folder, or grant write access to this folder.",
        ) from error


def sha256_of_file(path: Path | str) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(path: Path | str) -> None:
    """Sync a closed file to the disk.

    Raises:
        DiskFullError: the disk is full or cannot be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise as_disk_error(error, path, os.fstat(descriptor).st_size) or error from error
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk, so that a file renamed in this folder survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Errors of a full or unwritable disk


class DiskFullError(MaskfoldError):
    """Report that the disk is full or not writable, or that a file name is too long for the disk."""


def as_disk_error(error: OSError, path: Path | str | None, needed: int = 0) -> DiskFullError | None:
    """Return a `DiskFullError` if the disk is full or not writable, or a name is too long; otherwise None.

    Args:
        error: the system's error.
        path: the file that was being written; None means the path that `error` contains.
        needed: number of bytes of the file or of the appended text; 0 means unknown.
    """
    path = _final_name(Path(path if path is not None else error.filename or "a file"))
    size = f"{needed:,} bytes" if needed else "a few bytes"
    if error.errno == errno.EDQUOT:
        return DiskFullError(
            f"The disk quota is used up: {path} needs {size}.",
            "Free some space, or request a larger quota. Then repeat the command.",
        )
    if error.errno == errno.ENOSPC:
        return DiskFullError(
            f"The disk is full: {path} needs {size}.",
            "Free some space, or move the run to another disk. Then repeat the command.",
        )
    if error.errno == errno.ENAMETOOLONG:
        return DiskFullError(
            f"A name is too long for the disk: {path.name} has {len(os.fsencode(path.name))} bytes, and the "
            f"whole path has {len(os.fsencode(path))} bytes. Most disks allow {MAX_NAME_BYTES} bytes for a "
            "name, and 4,096 bytes for a path.",
            "Choose a shorter name, or a folder with a shorter path.",
        )
    if error.errno in UNWRITABLE:
        return DiskFullError(
            f"{path} ({size}) cannot be written: {error.strerror}.",
            "Grant write access, or use another folder. Then repeat the command.",
        )
    return None


class disk_full_as_error:
    """Convert an OSError of a full or unwritable disk in the `with` block to `DiskFullError`; see `as_disk_error`."""

    def __init__(self, path: Path, needed: int = 0) -> None:
        self.path, self.needed = path, needed

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            disk_error = as_disk_error(error, self.path, self.needed)
            if disk_error is not None:
                raise disk_error from error


def _final_name(path: Path) -> Path:
    """Return a path for use in messages: each temporary name in the path is replaced by the name it stands for."""
    names = []
    for name in path.parts:
        while TEMPORARY_NAME.fullmatch(name):
            name = name[1:].rsplit("~", 3)[0] if name.endswith(".tmp") else name[1:].rsplit(".", 2)[0]
        names.append(name)
    return Path(*names)


# Temporary files, and their removal after a killed process


def make_temporary_path(final: Path) -> Path:
    """Return an unused path in the folder of `final`, whose name identifies the process that writes the file.

    The name consists of the final name, the host, the process id and a random number. If the name would be too long,
    it contains a shortened form of the final name.
    """
    return final.with_name(
        f"{_temporary_start(final.name)}~{socket.gethostname()}~{os.getpid()}~{secrets.token_hex(4)}.tmp"
    )


def _temporary_start(name: str) -> str:
    """Return the beginning of the temporary names of a file.

    It contains the file's name. For a long name, it contains the beginning of the name and a checksum of the name.
    """
    if len(os.fsencode(name)) <= MAX_NAME_BYTES - WRITER_BYTES:
        return f".{name}"
    part = os.fsencode(name)[: MAX_NAME_BYTES - WRITER_BYTES - 9].decode("utf-8", "ignore")
    return f".{part}-{zlib.crc32(os.fsencode(name)):08x}"


def remove_stale_temp(folder: Path, name: str) -> None:
    """Remove the temporary files of `name` that dead processes left in `folder`."""
    start = f"{_temporary_start(name)}~"
    for path in [path for path in folder.iterdir() if path.name.startswith(start) and path.suffix == ".tmp"]:
        if _is_abandoned(path):
            _remove(path)


@contextmanager
def temporary_folder(final: Path, *, sweep: bool = True) -> Iterator[Path]:
    """Make a temporary folder next to `final`, named after `final`, and delete it after the `with` block.

    Args:
        final: a path whose parent folder exists; the path itself is not created.
        sweep: whether to remove temporary folders of `final` that dead processes left. This lists the parent folder, so
            a caller that makes many temporary folders next to many files should do it only once.
    """
    with suppress(OSError):
        if sweep:
            remove_stale_temp(final.parent, final.name)
    folder = make_temporary_path(final)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_all_stale_temp(folder: Path, locked: bool = False) -> None:
    """Remove all temporary files that dead processes left in `folder`.

    Args:
        folder: the folder, which may be missing. Subfolders are searched only if `locked` is True.
        locked: whether this process holds the folder's lock. If so, every other process that wrote there has ended, and
            all temporary files are removed. This includes files whose process id now belongs to a new process.
    """
    with suppress(OSError):  # the folder was just deleted or is not writable; later writes report this
        paths = folder.rglob(".*") if locked else folder.iterdir()
        for path in [path for path in paths if TEMPORARY_NAME.fullmatch(path.name)]:
            if locked or _is_abandoned(path):
                _remove(path)


def find_stale_temp(folder: Path, deep: bool = True) -> list[Path]:
    """Return the files and folders with temporary names in `folder` whose processes have died.

    Args:
        folder: the folder; it need not exist.
        deep: whether to search the subfolders of `folder`.
    """
    found = []
    for parent, folders, files in os.walk(folder):
        temporary = [name for name in (*folders, *files) if name.startswith(".") and TEMPORARY_NAME.fullmatch(name)]
        found += [path for name in temporary if _is_abandoned(path := Path(parent, name))]
        folders[:] = [name for name in folders if name not in temporary] if deep else []
    return sorted(found)


def remove_folder(folder: Path) -> None:
    """Remove a folder.

    The folder is first renamed to a temporary name. So if the process is killed, no incomplete folder has the original
    name.

    Raises:
        OSError: the folder cannot be renamed or removed.
    """
    doomed = make_temporary_path(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    match = TEMPORARY_NAME.fullmatch(path.name)
    if match is None:
        return False
    try:
        written = path.stat().st_mtime
        if match["part_process"] is None and match["host"] != socket.gethostname():
            return time.time() - written > ABANDONED_SECONDS
        return not _is_alive(int(match["part_process"] or match["process"]), written)
    except OSError:  # the file was just deleted
        return False


def _is_alive(process: int, written: float) -> bool:
    """Return whether the process that wrote a file is still alive.

    Args:
        process: the process id in the file's name.
        written: modification time of the file, in seconds since 1970. A process that started later is not the writer,
            but a new process with the same id.
    """
    import psutil

    try:
        return bool(psutil.Process(process).create_time() <= written + CLOCK_TOLERANCE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # a living process of another user
        return True
