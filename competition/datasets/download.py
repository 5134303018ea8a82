"""Download and unpack an archive.

An interrupted download resumes. The MD5 of the archive is verified, and the folder appears only when it is complete.
"""

# This module uses no library, because none of these resumes a partial download, which is important for a tar of 27 GB.
# pooch's HTTPDownloader opens its temporary file with `w+b` and sends no Range header, and `pooch.retrieve` deletes the
# file after a failure. `monai.apps.download_url` restarts as well, needs space in the system's temporary folder, and
# treats a denied permission as success. tarfile's filter="data" checks each member only before writing it, when other
# members are written already; it also accepts links and absolute paths, and it does not exist for zip archives.

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from competition.errors import MaskfoldError
from competition.io import (
    disk_full_as_error,
    ensure_writable,
    make_temporary_path,
    open_synced,
    remove_stale_temp,
    sync_folder,
)

ProgressWrapper = Callable[[Iterator[Any], int], Iterator[Any]]


@dataclass(frozen=True)
class RemoteFile:
    """Describe a file on the network.

    Attributes:
        url: address of the file.
        size: approximate size of the file in bytes.
        expected_md5: MD5 of the file, 32 hexadecimal digits.
    """

    url: str
    size: int
    expected_md5: str


def download_and_unpack(
    source: RemoteFile,
    folder: Path,
    new_progress: Callable[[str], ProgressWrapper],
    say: Callable[[str], None],
    *,
    pause: float = 1.0,
) -> int:
    """Download an archive and unpack it.

    If the user has put the archive next to the folder, the function unpacks this file and does not delete it. It
    deletes an archive that it has downloaded.

    Args:
        source: the archive.
        folder: the folder to create; it must not exist, or must be empty.
        new_progress: function that receives a label, and returns a function that shows the progress of an iteration.
        say: function that receives lines for the user.
        pause: seconds before the second attempt, if the first fails.

    Returns:
        Number of unpacked files.

    Raises:
        MaskfoldError: as for `download` and `unpack_archive`; or the checksum of the user's archive is wrong.
    """
    with created_parent(folder):
        return _fetch(source, folder, new_progress, say, pause)


def _fetch(
    source: RemoteFile,
    folder: Path,
    new_progress: Callable[[str], ProgressWrapper],
    say: Callable[[str], None],
    pause: float,
) -> int:
    check_free_space(folder, _needed_space(source, folder))
    archive, part = _archive_path(source, folder), _part_path(source, folder)
    if archive.exists():
        say(f"{archive} exists; checking its MD5")
        actual_md5 = compute_md5(archive)
        if actual_md5 != source.expected_md5:
            raise MaskfoldError(
                f"The archive {archive} is damaged: found the MD5 {actual_md5}, expected {source.expected_md5}.",
                "Delete this archive and run the same command again, which then downloads the archive.",
            )
        return unpack_archive(archive, folder, new_progress("files unpacked"))
    if part.exists() and part.stat().st_size:
        say(f"resuming the download after {format_size(part.stat().st_size)}")
    download(source, part, new_progress("MiB"), pause=pause)
    count = unpack_archive(part, folder, new_progress("files unpacked"))
    part.unlink()
    return count


def _archive_path(source: RemoteFile, folder: Path) -> Path:
    """Return the path at which the user can put an archive, so that it is not downloaded."""
    return folder.parent / Path(urlsplit(source.url).path).name


def _part_path(source: RemoteFile, folder: Path) -> Path:
    """Return the path of the partial download."""
    archive = _archive_path(source, folder)
    return archive.with_name(f".{archive.name}.part")


def _needed_space(source: RemoteFile, folder: Path) -> int:
    """Return the disk space in bytes that the rest of the download and the unpacked content need."""
    paths = (_archive_path(source, folder), _part_path(source, folder))
    downloaded = sum(path.stat().st_size for path in paths if path.exists())
    return max(0, source.size - downloaded) + source.size


@contextmanager
def created_parent(folder: Path) -> Iterator[None]:
    """Create the parents of `folder`. If the `with` block fails, remove the created folders that are still empty.

    Raises:
        MaskfoldError: the parent cannot be written.
    """
    parent = folder.absolute().parent
    created = [path for path in (parent, *parent.parents) if not path.exists()]  # innermost folder first
    try:
        ensure_writable(folder.parent)
        yield
    except BaseException:
        with suppress(OSError):  # stop at the first folder that is not empty, e.g. one with a partial download
            for path in created:
                path.rmdir()
        raise


def is_nonempty_folder(folder: Path) -> bool:
    """Return whether the folder exists and is not empty.

    Raises:
        MaskfoldError: the path is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise MaskfoldError(
            f"{folder} is a file, expected a folder.", "Delete the file, or give another folder with -o.", status=2
        )
    return folder.is_dir() and next(folder.iterdir(), None) is not None


def check_free_space(folder: Path, needed: int) -> None:
    """Check the free disk space for a folder that may not exist yet.

    Raises:
        MaskfoldError: the disk has less than `needed` bytes free.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise MaskfoldError(
            f"There is too little disk space in {folder.parent}: found {format_size(free)}, expected "
            f"{format_size(needed)}.",
            "Free some disk space, or give a folder on another disk with -o.",
        )


def format_size(size: int) -> str:
    """Format a size with decimal units, which disks and hosts use.

    Example:
        >>> format_size(950), format_size(28_000_000), format_size(1_600_000_000)
        ('950 bytes', '28 MB', '1.6 GB')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            value = size / unit
            return f"{value:.0f} {name}" if value >= 10 or value == int(value) else f"{value:.1f} {name}"
    return f"{size} bytes"


def suggest_next_command(name: str, folder: Path, experiments: Path = Path("experiments")) -> list[str]:
    """Return lines that suggest the next command: `maskfold cv` with an experiment for the data set.

    If there is no such experiment, return one line that says which YAML to write.

    Args:
        name: name of the data set.
        folder: folder of the data set.
        experiments: folder with YAML files, one subfolder per competition.
    """
    for file in sorted(experiments.glob("*/competition.yaml"), key=lambda path: path.parent.name != name):
        comp = _read_yaml(file)
        root = Path(str(comp.get("root", "")))
        experiment_files = sorted(
            path
            for path in file.parent.glob("*.yaml")
            if path != file and {"competition", "base"} & _read_yaml(path).keys()
        )
        if not experiment_files or name not in (file.parent.name, comp.get("name"), root.name):
            continue
        unets = [path for path in experiment_files if path.stem.startswith("unet")]
        experiment = (unets or experiment_files)[0]
        override = "" if root.absolute() == folder.absolute() else f" competition.root={folder}"
        lines = [f"Next: maskfold cv {experiment.as_posix()}{override}"]
        sample = (comp.get("submission") or {}).get("sample")
        if sample and not (folder / sample).exists():
            lines.append(
                f"note: this archive contains no {sample}. To submit without it: maskfold submit "
                f"{experiment.as_posix()}{override} competition.submission.sample=null"
            )
        return lines
    return [(f"Next: write experiments/{name}/competition.yaml with `root: {folder}`; docs/yaml.md describes all keys")]


def _read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file; return {} if the file cannot be read.

    The command that trains with the file reports the error.
    """
    import yaml

    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


# Resumable download

BLOCK_BYTES = 2**20
MAX_TRIES = 4  # maximum number of consecutive attempts that receive no byte
RETRY_STATUS = {408, 429, 500, 502, 503, 504}  # HTTP errors that may be temporary


def download(
    source: RemoteFile, part: Path, progress: ProgressWrapper, *, pause: float = 1.0, timeout: float = 60.0
) -> None:
    """Download a file to `part`. If `part` exists, download only the missing rest.

    Args:
        source: the file on the network.
        part: path of the partial file, which remains if the network fails or the process is killed.
        progress: function that wraps the iterator of blocks of 1 MiB; it also receives the number of blocks.
        pause: seconds before the second attempt; doubled for each further attempt.
        timeout: seconds without data after which the connection is closed.

    Raises:
        MaskfoldError: the host cannot be reached, refuses the request, or sends a file with another checksum; or
            another process is downloading the file.
        DiskFullError: the disk is full.
    """
    with _download_lock(part):
        resumed = part.stat().st_size > 0
        _download(source.url, part, progress, pause, timeout)
        if compute_md5(part) == source.expected_md5:
            return
        if resumed:  # the partial file may belong to another version of the file, so restart once
            os.truncate(part, 0)
            _download(source.url, part, progress, pause, timeout)
        actual_md5 = compute_md5(part)
        if actual_md5 != source.expected_md5:
            size = part.stat().st_size
            part.unlink()
            raise MaskfoldError(
                f"The download of {source.url} ({size:,} bytes) is damaged: found the MD5 {actual_md5}, "
                f"expected {source.expected_md5}.",
                "Run the same command again. If the error repeats, the host or a proxy has changed the file.",
            )


def compute_md5(path: Path) -> str:
    """Return the MD5 of a file, which detects damage but not manipulation."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _download(url: str, part: Path, progress: ProgressWrapper, pause: float, timeout: float) -> None:
    """Download a file, with several attempts if the connection fails.

    Give up if `MAX_TRIES` attempts in a row receive no byte.
    """
    failures = 0
    while True:
        size_before = part.stat().st_size
        try:
            if _try_download(url, part, progress, timeout):
                return
            reason = "the connection was closed early"
        except urllib.error.HTTPError as error:
            # the host has no more bytes: the file is complete, or it is another version
            if error.code == 416 and size_before:
                if re.fullmatch(rf"bytes \*/{size_before}", error.headers.get("Content-Range", "")):
                    return
                os.truncate(part, 0)
                continue
            reason = f"HTTP status {error.code} {error.reason}"
            if error.code not in RETRY_STATUS:
                raise _download_error(url, reason) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
            if not part.stat().st_size and isinstance(error, urllib.error.URLError):
                raise _download_error(url, reason) from error  # without any connection, retrying does not help
        failures = failures + 1 if part.stat().st_size <= size_before else 1
        if failures >= MAX_TRIES:
            raise _download_error(url, reason)
        time.sleep(pause * 2 ** (failures - 1))


def _try_download(url: str, part: Path, progress: ProgressWrapper, timeout: float) -> bool:
    """Download over one connection; return whether the file is complete."""
    start = part.stat().st_size
    headers = {"User-Agent": "maskfold"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        length = response.headers.get("Content-Length")
        resumes = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if start and not resumes:
            os.truncate(part, 0)  # a server without range support sends the whole file
            start = 0
        expected_size = None if length is None else start + int(length)
        with open(part, "ab") as stream:
            for block in progress(_read_blocks(response), -(-int(length or 0) // BLOCK_BYTES)):
                _write_block(stream, block, part)
    return expected_size is None or part.stat().st_size == expected_size


def _read_blocks(response: Any) -> Iterator[bytes]:
    """Yield the blocks of a response, including the last bytes if the connection is closed too early."""
    while True:
        try:
            block = response.read(BLOCK_BYTES)
        except http.client.IncompleteRead as error:
            block = error.partial
            if block:
                yield block
            return
        if not block:
            return
        yield block


def _write_block(stream: Any, block: bytes, part: Path) -> None:
    try:
        with disk_full_as_error(part, len(block)):
            stream.write(block)
            stream.flush()
    except OSError as error:
        raise MaskfoldError(
            f"{part} cannot be written: {error.strerror or error}.", "Give another folder with -o."
        ) from error


def _download_error(url: str, reason: str) -> MaskfoldError:
    name = Path(urlsplit(url).path).name
    return MaskfoldError(
        f"{url} cannot be downloaded: {reason.rstrip('.')}.",
        "Check the network (the variable https_proxy sets a proxy), and run the same command again. Or "
        f"download {name} in another way, and copy {name} into the folder that -o names (default: data).",
    )


@contextmanager
def _download_lock(part: Path) -> Iterator[None]:
    """Lock the partial file, so that two processes never append to it."""
    with open(part, "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MaskfoldError(
                f"Another process is downloading {part}.", "Wait until that process has finished, or stop it."
            ) from error
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


# Archives

JUNK_PREFIXES = ("._", ".DS_Store")  # names that macOS adds to archives; `._case.nii.gz` is not a volume


@dataclass(frozen=True)
class Member:
    """Describe one file of an archive.

    Attributes:
        path: path of the file, relative to the folder into which the archive is unpacked.
        size: unpacked size in bytes.
        key: object of the library (`ZipInfo` or `TarInfo`) with which the file is opened.
    """

    path: PurePosixPath
    size: int
    key: Any


def unpack_archive(archive: Path, folder: Path, progress: ProgressWrapper) -> int:
    """Unpack a tar or zip archive to a new folder.

    All members are checked before the first is written. The files are written to a temporary folder next to `folder`,
    which is renamed when it is complete. If the archive contains a single folder, this folder becomes `folder`. Files
    that macOS adds are skipped.

    Args:
        archive: .tar, .tar.gz or .zip file, recognised by its content.
        folder: the folder to create; an empty folder is replaced.
        progress: function that wraps the iterator of members; it also receives the number of members.

    Returns:
        Number of unpacked files.

    Raises:
        MaskfoldError: the archive is damaged; a member is a link or a device, or would be written outside of the
            folder; or the disk has too little free space.
    """
    remove_stale_temp(folder.parent, folder.name)
    temporary_folder = make_temporary_path(folder)
    try:
        with _open_archive(archive) as (members, open_member):
            free = shutil.disk_usage(folder.parent).free
            needed = sum(member.size for member in members)
            if needed > free:
                raise MaskfoldError(
                    f"{archive} unpacks to {needed:,} bytes, but {folder.parent} has only {free:,} free bytes.",
                    "Free some space, or give another folder with -o.",
                )
            temporary_folder.mkdir()
            for member in progress(iter(members), len(members)):
                _write_member(member, open_member, temporary_folder)
        root = _only_folder(temporary_folder)
        sync_folder(root)
        if folder.is_dir():
            folder.rmdir()  # raises an error unless the folder is empty
        root.rename(folder)
        sync_folder(folder.parent)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise MaskfoldError(
            f"{archive} is damaged: {error}.", f"Delete {archive}, and run the same command again."
        ) from error
    finally:
        shutil.rmtree(temporary_folder, ignore_errors=True)
    return len(members)


@contextmanager
def _open_archive(archive: Path) -> Iterator[tuple[list[Member], Any]]:
    """Yield the checked members of an archive, and a function that opens a member."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zip_file:
            members = [_zip_member(info, archive) for info in zip_file.infolist()]
            yield _check_members(members, archive), zip_file.open
    else:
        with tarfile.open(archive) as tar:
            members = [_tar_member(info, archive) for info in tar]
            yield _check_members(members, archive), tar.extractfile


def _tar_member(info: tarfile.TarInfo, archive: Path) -> Member | None:
    """Convert an entry of a tar archive to a member; None for a folder, because unpacking its files creates it."""
    if not (info.isfile() or info.isdir()):
        kind = "a link" if info.issym() or info.islnk() else "a device or a pipe"
        raise _unsafe_member(archive, info.name, f"is {kind}")
    path = _check_path(info.name, archive)
    return None if info.isdir() else Member(path, info.size, info)


def _zip_member(info: zipfile.ZipInfo, archive: Path) -> Member | None:
    file_type = stat.S_IFMT(info.external_attr >> 16)
    if file_type not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe_member(archive, info.filename, "is a link or a device")
    path = _check_path(info.filename, archive)
    return None if info.is_dir() else Member(path, info.file_size, info)


def _check_path(name: str, archive: Path) -> PurePosixPath:
    """Return the path of a member; raise an error if the path leaves the folder on POSIX or on Windows."""
    path = PurePosixPath(name)
    parts = name.replace("\\", "/").split("/")
    if path.is_absolute() or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name:
        raise _unsafe_member(archive, name, "would lie outside the folder")
    return path


def _check_members(members: list[Member | None], archive: Path) -> list[Member]:
    """Check the members of an archive, and return them without the files that macOS adds.

    Raise an error if a path occurs twice or is both a file and a folder, or if there are no files.
    """
    files = [member for member in members if member is not None and not member.path.name.startswith(JUNK_PREFIXES)]
    paths = {member.path for member in files}
    folders = {parent for path in paths for parent in path.parents}
    problem = (
        "contains no files"
        if not files
        else "contains one path twice"
        if len(paths) < len(files)
        else "contains one path as a file and as a folder"
        if paths & folders
        else None
    )
    if problem is not None:
        raise MaskfoldError(f"{archive} {problem}.", "Delete the archive, and run the same command again.")
    return files


def _write_member(member: Member, open_member: Any, folder: Path) -> None:
    path = folder / member.path
    path.parent.mkdir(parents=True, exist_ok=True)
    source: IO[bytes]
    with open_member(member.key) as source, open_synced(path, member.size) as stream:
        shutil.copyfileobj(source, stream, 2**20)
    size = path.stat().st_size
    if size != member.size:
        raise tarfile.ReadError(f"{member.path}: found {size:,} bytes, expected {member.size:,}")


def _only_folder(folder: Path) -> Path:
    """Return the subfolder if a folder contains nothing else, otherwise the folder itself."""
    contents = list(folder.iterdir())
    return contents[0] if len(contents) == 1 and contents[0].is_dir() else folder


def _unsafe_member(archive: Path, name: str, problem: str) -> MaskfoldError:
    return MaskfoldError(
        f"{archive} was not unpacked: its member {name!r} {problem}.", "Do not use this archive. No file was written."
    )
