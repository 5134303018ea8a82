"""Counts and names as a sentence writes them."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 26  # characters of an id that is written whole beside others


def many(count: int, word: str) -> str:
    """`1 case`, `1,200 cases`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def have(count: int) -> str:
    """The verb after that many: `has` or `have`."""
    return "has" if count == 1 else "have"


def dot(dimensions: int) -> str:
    """What an image is made of: a pixel, or a voxel."""
    return "pixel" if dimensions == 2 else "voxel"


def joined(names: Sequence[str]) -> str:
    """`red, green and blue`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def short(case_id: str) -> str:
    """An id; of a long one its beginning and end."""
    return case_id if len(case_id) <= LONGEST else f"{case_id[:12]}…{case_id[-12:]}"


def beside(case_id: str, path: str) -> str:
    """One of several cases in a sentence: with its file, unless the id is long, which the file would only repeat."""
    return f"{case_id} ({path})" if len(case_id) <= LONGEST else short(case_id)


def alone(case_id: str, path: str) -> str:
    """The only case in a sentence: its whole id, with its file unless that would repeat a long one."""
    return case_id if len(case_id) > LONGEST and case_id in path else f"{case_id} ({path})"
