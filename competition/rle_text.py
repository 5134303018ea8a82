"""The texts of run lengths: numbers between spaces, COCO's compressed counts, zlib with base64, JSON lists."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

from competition.config.errors import MaskfoldError

Numbers = NDArray[np.int64]

_BLOCK = 1 << 16  # pairs written at a time


class RleError(MaskfoldError):
    """A text that is not a mask of this shape and format, or an array that is not a mask."""


def text_to_numbers(text: str) -> Numbers:
    """Whole numbers between white space."""
    if text.encode("utf-8", "replace").translate(None, b"0123456789 "):  # a sign, other white space, or a wrong word
        words = text.split()
        for at, word in enumerate(words, start=1):
            digits = word.removeprefix("-")
            if not (digits.isascii() and digits.isdigit()):
                raise RleError(
                    f"Word {at} of the run lengths ({word[:40]}) is not a number.",
                    "Write whole numbers between single spaces, or set `empty` to the text of an empty mask.",
                )
        text = " ".join(words)
    return np.fromstring(text, dtype=np.int64, sep=" ")


@cache
def _digits(count: int, tail: str) -> NDArray[np.uint32]:
    """Table of 2 · 10**count texts of 4 bytes: numbers without, then with leading zeros, each followed by `tail`.

    Places of missing leading zeros are NUL bytes, and so is all of the first entry's number.
    """
    bare = ["" if number == 0 else str(number) for number in range(10**count)]
    full = [f"{number:0{count}d}" for number in range(10**count)]
    text = "".join(word.rjust(count, "\0") + tail for word in bare + full)
    return np.frombuffer(text.encode("ascii"), np.uint32)


def pairs_to_text(pairs: Numbers) -> str:
    """`1 2 3 4` for [[1, 2], [3, 4]]; numbers are 0 or more, and only the first may be 0."""
    if len(pairs) < 64:  # the tables below pay off later
        return " ".join(map(str, pairs.ravel().tolist()))
    return " ".join(_block_to_text(pairs[low : low + _BLOCK]) for low in range(0, len(pairs), _BLOCK))


def _block_to_text(pairs: Numbers) -> str:
    """Writes numbers as columns of 4-byte words looked up in tables, then drops the places that hold nothing."""
    columns: list[NDArray[np.uint32]] = []
    for numbers in (pairs[:, 1], pairs[:, 0]):  # from the last word of a line to its first
        rest = numbers // 1000  # by a constant, which NumPy does far faster than divmod
        columns.append(_digits(3, " ")[numbers - 1000 * rest + 1000 * (rest > 0)])
        while rest.any():
            numbers, rest = rest, rest // 10_000
            columns.append(_digits(4, "")[numbers - 10_000 * rest + 10_000 * (rest > 0)])
    text = np.stack(columns[::-1], axis=1).tobytes().translate(None, b"\0").decode("ascii")
    return ("0" if pairs[0, 0] == 0 else "") + text[:-1]


def counts_to_text(starts: Numbers, ends: Numbers, size: int) -> str:
    """COCO's compressed counts of runs `starts[i]:ends[i]` among `size` pixels.

    The counts are the lengths of background and foreground in turns. From the fourth on, each is written as its
    difference to the one two places before, in groups of five bits, the lowest first, one character per group
    (`rleToString` in https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c).
    """
    edges = np.empty(2 * len(starts) + 1, np.int64)
    edges[0:-1:2], edges[1:-1:2], edges[-1] = starts, ends, size
    counts = np.diff(edges, prepend=0)
    if len(counts) > 1 and counts[-1] == 0:  # the last run reaches the last pixel
        counts = counts[:-1]
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    groups: list[NDArray[np.uint8]] = []
    more = np.ones(len(rest), np.bool_)
    while more.any():
        bits = rest & 31
        rest >>= 5
        open_before, more = more, more & (rest != np.where(bits & 16, -1, 0))
        groups.append(np.where(open_before, bits + 32 * more + 48, 0).astype(np.uint8))
    return np.stack(groups, axis=1).tobytes().translate(None, b"\0").decode("ascii")


def text_to_runs(text: str, size: int, strict: bool) -> tuple[Numbers, Numbers]:
    """Runs `starts[i]:ends[i]` of COCO's compressed counts.

    Raises:
        RleError: a character is none of COCO's, the text breaks off, or the counts do not add up to `size`.
    """
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    wrong = (codes < 0) | (codes > 63)
    if wrong.any():
        raise RleError(
            f"Character {int(wrong.argmax()) + 1} of the COCO counts is none that COCO writes.",
            "Check the format's `container`.",
        )
    last = (codes & 32) == 0
    if not last[-1]:
        raise RleError("The COCO counts break off in the middle of a number.", "Look for a text that was cut.")
    ends = np.flatnonzero(last)
    begins = np.append(0, ends[:-1] + 1)
    place = 5 * (np.arange(len(codes)) - np.repeat(begins, ends - begins + 1))
    if place.max() > 50:
        raise RleError("The COCO counts hold a number of more than 50 bits.", "Check the format's `container`.")
    counts = np.add.reduceat((codes & 31) << place, begins)
    counts -= np.where(codes[ends] & 16, np.int64(32) << place[ends], 0)  # the sign
    for odd in (1, 2):
        counts[odd::2] = np.cumsum(counts[odd::2])
    if (counts < 0).any():
        at = int((counts < 0).argmax())
        raise RleError(
            f"Count {at + 1} of the COCO counts ({counts[at]}) is negative.", "Check the format's `container`."
        )
    edges = np.cumsum(np.minimum(counts, size + 1))
    if strict and edges[-1] != size:
        raise RleError(
            f"The COCO counts add up to {edges[-1]} pixels, but the mask has {size}.", "Check the shape of the mask."
        )
    edges = np.minimum(edges, size)
    edges = edges if len(edges) % 2 == 0 else edges[:-1]
    kept = edges[1::2] > edges[::2]
    return edges[::2][kept], edges[1::2][kept]


def pack(text: str) -> str:
    """zlib and base64 around COCO counts, as the HuBMAP vasculature competition wanted them."""
    return base64.b64encode(zlib.compress(text.encode("ascii"), zlib.Z_BEST_COMPRESSION)).decode("ascii")


def unpack(text: str, size: int) -> str:
    """Undoes `pack`; a mask of `size` pixels never needs more than 11 characters a pixel, and no more are unpacked."""
    limit = 11 * (size + 2)
    try:
        raw = base64.b64decode(text, validate=True)
        unpacked = zlib.decompressobj().decompress(raw, limit + 1)
        if len(unpacked) > limit:
            raise RleError(
                f"The COCO counts are longer than any mask of {size} pixels.", "Check the shape of the mask."
            )
        return unpacked.decode("ascii")
    except (binascii.Error, zlib.error, UnicodeError, ValueError) as error:
        raise RleError(
            f"The run lengths are not base64 of zlib of COCO counts ({error}).", "Check the format's `container`."
        ) from error


def json_lists(text: str) -> list[Numbers]:
    """The numbers of lists such as `[1, 3, 10, 5];[20, 2]`."""
    lists = []
    for at, part in enumerate(text.split(";"), start=1):
        try:
            numbers = json.loads(part)
        except ValueError as error:
            raise RleError(
                f"List {at} of the run lengths ({part[:40]}) is not JSON.",
                "Write each object as `[start, length, …]`, with `;` between objects.",
            ) from error
        wrong = [] if isinstance(numbers, list) else [part]
        wrong = wrong or [word for word in numbers if type(word) is not int or abs(word) > 2**62]
        if wrong:
            raise RleError(
                f"List {at} of the run lengths holds {str(wrong[0])[:40]}, which is not a whole number.",
                "Write each object as `[start, length, …]`.",
            )
        lists.append(np.array(numbers, np.int64))
    return lists
