"""Archives, unpacked without leaving their folder, whole or not at all."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from competition.config.errors import MaskfoldError
from competition.data.fetch.download import Watch
from competition.data.files import sweep, sync_folder, temporary, whole_file

JUNK = ("._", ".DS_Store")  # what macOS adds to archives; `._case.nii.gz` is no volume


@dataclass(frozen=True)
class Member:
    """A file in an archive: its path below the folder, its size in bytes, and what the archive opens it by."""

    path: PurePosixPath
    size: int
    key: Any


def unpack(archive: Path, folder: Path, watch: Watch) -> int:
    """Unpacks a tar or zip archive to a folder that is not there yet.

    Every member is checked before the first is written. The files are written under a name beside `folder`, which is
    renamed when all are there. Where the archive holds one folder, `folder` is that one. What macOS adds is left out.

    Args:
        archive: .tar, .tar.gz or .zip, told by its content.
        folder: is made; an empty one is replaced.
        watch: wraps the members, given how many there are.

    Returns:
        How many files.

    Raises:
        MaskfoldError: a member would leave the folder, or is a link or a device; the archive is damaged; there is not
            enough room for what it unpacks to.
    """
    sweep(folder.parent, folder.name)
    beside = temporary(folder)
    try:
        with _opened(archive) as (members, read):
            free = shutil.disk_usage(folder.parent).free
            needed = sum(member.size for member in members)
            if needed > free:
                raise MaskfoldError(f"{archive} unpacks to {needed:,} bytes, and {folder.parent} has {free:,}.",
                                    "Free some space, or name another folder with -o.")
            beside.mkdir()
            for member in watch(iter(members), len(members)):
                _write(member, read, beside)
        inner = _only_folder(beside)
        sync_folder(inner)
        if folder.is_dir():
            folder.rmdir()  # an empty one
        inner.rename(folder)
        sync_folder(folder.parent)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise MaskfoldError(f"{archive} is damaged: {error}.", "Remove it and type the same command again.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return len(members)


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[Member], Any]]:
    """The members of an archive, all of them checked, and a function that opens one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield _files([_zip_member(one, archive) for one in file.infolist()], archive), file.open
    else:
        with tarfile.open(archive) as tar:
            yield _files([_tar_member(one, archive) for one in tar], archive), tar.extractfile


def _tar_member(one: tarfile.TarInfo, archive: Path) -> Member | None:
    """A file; None for a folder, which is made by the files in it."""
    if not (one.isfile() or one.isdir()):
        what = "a link" if one.issym() or one.islnk() else "a device or pipe"
        raise _unsafe(archive, one.name, f"is {what}")
    path = _inside(one.name, archive)
    return None if one.isdir() else Member(path, one.size, one)


def _zip_member(one: zipfile.ZipInfo, archive: Path) -> Member | None:
    kind = stat.S_IFMT(one.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(archive, one.filename, "is a link or a device")
    path = _inside(one.filename, archive)
    return None if one.is_dir() else Member(path, one.file_size, one)


def _inside(name: str, archive: Path) -> PurePosixPath:
    """The path of a member, which must stay below the folder, on Windows too."""
    path = PurePosixPath(name)
    parts = name.replace("\\", "/").split("/")
    if path.is_absolute() or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name:
        raise _unsafe(archive, name, "leads out of its folder")
    return path


def _files(members: list[Member | None], archive: Path) -> list[Member]:
    """The files that are wanted; a path that is there twice, or that is a file and a folder, is refused."""
    files = [member for member in members if member is not None and not member.path.name.startswith(JUNK)]
    paths = {member.path for member in files}
    above = {parent for path in paths for parent in path.parents}
    if len(paths) < len(files) or paths & above or not files:
        what = "holds no files" if not files else "holds one path twice"
        raise MaskfoldError(f"{archive} {what}.", "Remove it and type the same command again.")
    return files


def _write(member: Member, read: Any, folder: Path) -> None:
    path = folder / member.path
    path.parent.mkdir(parents=True, exist_ok=True)
    source: IO[bytes]
    with read(member.key) as source, whole_file(path, member.size) as stream:
        shutil.copyfileobj(source, stream, 2**20)
    if path.stat().st_size != member.size:
        raise tarfile.ReadError(f"{member.path} has {path.stat().st_size:,} of {member.size:,} bytes")


def _only_folder(folder: Path) -> Path:
    """The one folder in a folder, or the folder itself."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _unsafe(archive: Path, name: str, what: str) -> MaskfoldError:
    return MaskfoldError(f"{archive} is not unpacked: its member {name!r} {what}.",
                         "Do not use this archive; nothing of it was written.")
