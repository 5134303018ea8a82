"""From a source to a folder: room, download, checksum, unpacking, rename."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from competition.config.errors import MaskfoldError
from competition.data.fetch.archive import unpack
from competition.data.fetch.download import Source, Watch, download, md5
from competition.data.fetch.size import readable
from competition.data.files import writable


def is_there(folder: Path) -> bool:
    """Whether something is in the folder already.

    Raises:
        MaskfoldError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise MaskfoldError(f"{folder} is a file, not a folder.", "Remove it, or name another folder with -o.", status=2)
    return folder.is_dir() and next(folder.iterdir(), None) is not None


def check_room(folder: Path, needed: int) -> None:
    """Raises:
    MaskfoldError: the disk of a folder that may not be there yet has less than `needed` bytes.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise MaskfoldError(f"{readable(needed)} are needed below {folder.parent}, and {readable(free)} are free.",
                            "Free some space, or name a folder on another disk with -o.")


@contextmanager
def folder_above(folder: Path) -> Iterator[None]:
    """Makes the folder that `folder` is to be in; when the work fails, what was made for it and is empty goes again.

    Raises:
        MaskfoldError: nothing can be written there.
    """
    above = folder.absolute().parent
    made = [one for one in (above, *above.parents) if not one.exists()]  # the innermost first
    try:
        writable(folder.parent)
        yield
    except BaseException:
        with suppress(OSError):  # the first that holds something, such as the beginning of a download
            for one in made:
                one.rmdir()
        raise


def needed_room(source: Source, folder: Path) -> int:
    """Bytes for the archive, as far as it is not there, and for what it unpacks to."""
    have = sum(path.stat().st_size for path in (archive_of(source, folder), part_of(source, folder)) if path.exists())
    return max(0, source.size - have) + source.size


def fetch_archive(source: Source, folder: Path, watch: Callable[[str], Watch], say: Callable[[str], None], *,
                  pause: float = 1.0) -> int:
    """Downloads an archive and unpacks it.

    An archive that lies beside the folder under its own name, put there by hand, is used in place of the network and
    kept; a downloaded one is removed when it is unpacked.

    Args:
        source: the archive.
        folder: what it becomes; not there yet, or empty.
        watch: gives a bar for what it is told to count.
        say: takes lines for the user.
        pause: seconds before another try.

    Returns:
        How many files.

    Raises:
        MaskfoldError: see `download` and `unpack`; or the archive that lies there has another checksum.
    """
    with folder_above(folder):
        return _fetch(source, folder, watch, say, pause)


def _fetch(source: Source, folder: Path, watch: Callable[[str], Watch], say: Callable[[str], None], pause: float) -> int:
    check_room(folder, needed_room(source, folder))
    by_hand, part = archive_of(source, folder), part_of(source, folder)
    if by_hand.exists():
        say(f"{by_hand} is there already and is checked")
        if (found := md5(by_hand)) != source.md5:
            raise MaskfoldError(f"{by_hand} has the MD5 {found}, and {source.md5} is expected.",
                                "Remove it, and the same command downloads it.")
        return unpack(by_hand, folder, watch("files unpacked"))
    if part.exists() and part.stat().st_size:
        say(f"going on after {readable(part.stat().st_size)}")
    download(source, part, watch("MiB"), pause=pause)
    count = unpack(part, folder, watch("files unpacked"))
    part.unlink()
    return count


def archive_of(source: Source, folder: Path) -> Path:
    """Where a user may put the archive."""
    return folder.parent / Path(urlsplit(source.url).path).name


def part_of(source: Source, folder: Path) -> Path:
    """Where it is downloaded to."""
    archive = archive_of(source, folder)
    return archive.with_name(f".{archive.name}.part")
