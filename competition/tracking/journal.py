"""New lines of a `metrics.jsonl` that another process is writing, and sometimes rewrites."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from competition.data.records import journal_line

MOST_BYTES = 2_000_000  # at a time
SEAL_BYTES = 512

logger = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one metric; the time is the journal's own, in ms, so that a repeated delivery repeats it."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Place:
    """How far a journal was read.

    Attributes:
        offset: bytes.
        seal: a digest of the last bytes before the offset; another one means that the file was rewritten.
        head: a digest of the first line; another one means that the fold began afresh.
    """

    offset: int = 0
    seal: str = ""
    head: str = ""


@dataclass(frozen=True)
class News:
    """What a look at the journal found.

    Attributes:
        points: new values, in the file's order.
        place: how far the journal is read now.
        afresh: the journal's first line is not the one that was read before: another training wrote it.
        more: whether lines are left for another look.
    """

    points: list[Point]
    place: Place
    afresh: bool = False
    more: bool = False


def read_news(path: Path, place: Place) -> News:
    """Read the whole lines after a place; a line that is still being written is left for later.

    A resumed fold drops the lines after its checkpoint and writes them anew. The file is then shorter, or has other
    bytes before the offset, and is read from its beginning.
    """
    with open(path, "rb") as file:
        rewritten = place.offset > 0 and _seal(file, place.offset) != place.seal
        start = 0 if rewritten else place.offset
        file.seek(start)
        block = file.read(MOST_BYTES)
        whole = block[: block.rfind(b"\n") + 1]
        end = start + len(whole)
        now = Place(end, _seal(file, end), _digest(_first_line(file)))
    return News(
        points=[point for line in whole.split(b"\n")[:-1] for point in _points(line, path)],
        place=now,
        afresh=rewritten and now.head != place.head,
        more=len(block) == MOST_BYTES and bool(whole),
    )


def _seal(file: BinaryIO, offset: int) -> str:
    file.seek(max(0, offset - SEAL_BYTES))
    return _digest(b"%d " % offset + file.read(min(offset, SEAL_BYTES)))


def _first_line(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.readline()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _points(line: bytes, path: Path) -> list[Point]:
    """A line's metrics; infinities are nan, which MLflow leaves out of a chart that 1.8e308 would flatten."""
    found = journal_line(line)
    if found is None:
        logger.warning("%s has a line that cannot be read; it is left out: %.80r", path, line[:200])
        return []
    return [Point(name, value, round(1000 * found.time), found.step) for name, value in found.metrics.items()]
