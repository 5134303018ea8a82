"""Define the text formats of run-length encoded masks (RLE), and convert runs to text and back.

A run is a range of foreground pixels. `starts[i]:ends[i]` are the positions of run i in the flattened mask, counted
from 0 in the pixel order of the RLE format. `competition.rle` converts masks to runs and back.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from competition.errors import MaskfoldError
from competition.text import format_count

IntArray = NDArray[np.int64]
_BLOCK = 1 << 16  # number of pairs that are formatted at a time
_FEW_NUMBERS = 128  # for fewer numbers, a loop is faster than NumPy
_RLE_KEYS = "the RLE format (submission.rle or train.rle_format in the YAML)"
_CONTAINER_HINT = "Check submission.profile in the YAML, which sets the form of the text (`container` of the format)."


class RleError(MaskfoldError):
    """Report invalid RLE: a text that does not fit the mask's shape or format, or an array that is not a mask."""


@dataclass(frozen=True)
class RleFormat:
    """Describe the RLE format of a competition.

    Attributes:
        order: order in which pixels are numbered. With `column`, the first axis varies fastest (Fortran order, as in
            most of Kaggle's competitions). With `row`, the last axis varies fastest. In a volume (X, Y, Z), the fastest
            axis is X for `column` and Z for `row`.
        base: number of the first pixel.
        relative: whether each start is the distance from the end of the previous run (as in SIIM-ACR). The first start
            is then the distance from the first pixel, and `base` is ignored.
        empty: text that stands for a mask without foreground, such as `-1` or `1 0`.
        container: form of the text. `pairs` are numbers separated by spaces. `coco` is the compressed counts of
            pycocotools. `coco_zlib` is `coco`, zlib-compressed and in base64 (HuBMAP). `json` is one list such as `[1,
            3, 10, 5]` per object, joined by `;`.
    """

    order: Literal["row", "column"] = "column"
    base: Literal[0, 1] = 1
    relative: bool = False
    empty: str = ""
    container: Literal["pairs", "coco", "coco_zlib", "json"] = "pairs"

    def __post_init__(self) -> None:
        for key, known in (
            ("order", ("row", "column")),
            ("base", (0, 1)),
            ("container", ("pairs", "coco", "coco_zlib", "json")),
        ):
            if getattr(self, key) not in known:
                raise RleError(
                    f"RLE format, {key}: found {getattr(self, key)!r}, expected {' or '.join(map(repr, known))}.",
                    f"Correct `{key}` of the RLE format.",
                    status=2,
                )
        if self.container.startswith("coco") and (self.order != "column" or self.relative):
            raise RleError(
                f"RLE format: container {self.container} requires order='column' and relative=False, found {self}.",
                "Set `order: column` and `relative: false`.",
                status=2,
            )


# Runs and text


def runs_to_text(starts: IntArray, ends: IntArray, size: int, fmt: RleFormat) -> str:
    """Convert runs to text.

    Args:
        starts: (n,) starts of the runs, sorted. The runs do not overlap.
        ends: (n,) ends of the runs: the position after the last pixel of each run.
        size: number of pixels of the mask.
        fmt: the RLE format.

    Returns:
        The text; `fmt.empty` if there are no runs.
    """
    if len(starts) == 0 and (fmt.empty or not fmt.container.startswith("coco")):
        return fmt.empty
    if fmt.container.startswith("coco"):
        text = format_counts(starts, ends, size)
        return compress_counts(text) if fmt.container == "coco_zlib" else text
    pairs = np.empty((len(starts), 2), np.int64)
    np.subtract(starts, np.append(0, ends[:-1]) if fmt.relative else -fmt.base, out=pairs[:, 0])
    np.subtract(ends, starts, out=pairs[:, 1])
    text = format_pairs(pairs)
    return f"[{text.replace(' ', ', ')}]" if fmt.container == "json" else text


def text_to_runs(text: str, size: int, fmt: RleFormat, strict: bool) -> tuple[IntArray, IntArray]:
    """Parse a text to runs.

    Args:
        text: the text; `fmt.empty` and blank text mean that there are no runs.
        size: number of pixels of the mask.
        fmt: the RLE format.
        strict: whether the text must follow all rules, as for `competition.rle.decode`.

    Returns:
        Starts and ends, each (n,) int64. Runs are sorted, do not overlap and end at `size` at the latest.

    Raises:
        RleError: the text breaks a rule of the format.
    """
    empty = np.empty(0, np.int64)
    if not isinstance(text, str):
        raise RleError(
            f"RLE: found {text!r}, expected a text.",
            "Read the table with pandas.read_csv(…, keep_default_na=False), because an empty cell means an empty mask.",
        )
    text = text.strip()
    if text in ("", fmt.empty.strip()):
        return empty, empty
    if fmt.container.startswith("coco"):
        compressed = fmt.container == "coco_zlib"
        return parse_counts(decompress_counts(text, size) if compressed else text, size, strict)
    if fmt.container == "pairs":
        return _pairs_to_runs(parse_numbers(text), size, fmt, strict)
    lists = [
        _pairs_to_runs(numbers, size, fmt, strict, f"RLE list {index}")
        for index, numbers in enumerate(parse_json_lists(text), start=1)
    ]
    if len(lists) == 1:
        return lists[0]
    starts, ends = zip(*lists, strict=True)
    return _merge_runs(np.concatenate(starts), np.concatenate(ends))


def _pairs_to_runs(
    numbers: IntArray, size: int, fmt: RleFormat, strict: bool, where: str = "RLE"
) -> tuple[IntArray, IntArray]:
    """Check the start-length pairs of one object, and convert the pairs to runs; error messages begin with `where`."""
    if len(numbers) % 2:
        raise RleError(
            f"{where}: found {format_count(len(numbers), 'value')}, expected an even number. Value {len(numbers)} "
            f"({numbers[-1]}) is a start without a length.",
            "Write the start and the length of each run. If this text stands for an empty mask, set it as "
            f"`empty` of {_RLE_KEYS}.",
        )

    def check(invalid: NDArray[np.bool_], first: int, expected: str, hint: str) -> None:
        """Raise an error if an item of `invalid` is true.

        Item i belongs to value number `first + 2 * i` of the text, counted from 1.
        """
        if invalid.any():
            index = first + 2 * int(invalid.argmax())
            raise RleError(f"{where}, value {index}: found {numbers[index - 1]}, expected {expected}.", hint)

    raw_starts, lengths = numbers[::2], numbers[1::2]
    base = 0 if fmt.relative else fmt.base
    if strict and not fmt.relative and _are_valid(numbers, base, size):  # a fast exit for the most common case
        starts = raw_starts - base
        return starts, starts + lengths
    check(raw_starts < base, 1, f"a start of at least {base}", f"Check `base` and `relative` of {_RLE_KEYS}.")
    check(lengths < 0, 2, "a length of at least 1", f"Check `relative` of {_RLE_KEYS}, and submission.profile.")
    if fmt.relative:
        # Clip the numbers, because sums of huge numbers would overflow.
        edges = np.cumsum(np.minimum(numbers, size + 1))
        starts, ends = edges[::2], edges[1::2]
    else:
        starts = raw_starts - base
        ends = np.minimum(starts, size) + np.minimum(lengths, size + 1)
    if not strict:
        return _merge_runs(np.minimum(starts, size), np.minimum(ends, size))
    check(lengths == 0, 2, "a length of at least 1", "Remove runs without pixels.")
    swapped = f"Check the size of the mask (are height and width exchanged?), and `base` of {_RLE_KEYS}."
    check(starts >= size, 1, f"a start within the mask of {size} pixels", swapped)
    check(
        ends > size,
        2,
        f"a run within the mask of {size} pixels",
        f"Check the size of the mask, and `base` of {_RLE_KEYS}.",
    )
    if not fmt.relative:
        check(starts[1:] < starts[:-1], 3, "a start after that of the previous run", "Sort the runs by their start.")
        check(starts[1:] < ends[:-1], 3, "a start after the end of the previous run", "Merge overlapping runs.")
    return starts, ends


def _are_valid(numbers: IntArray, base: int, size: int) -> bool:
    """Return whether the start-length pairs obey all rules of the format.

    If they do not, the caller searches for the broken rule.
    """
    if len(numbers) < _FEW_NUMBERS:
        end = base
        values = iter(numbers.tolist())
        for start, length in zip(values, values, strict=True):
            if start < end or length < 1:
                return False
            end = start + length
        return end <= size + base
    # As unsigned integers, negative numbers exceed any size. If no number exceeds the size, no sum overflows.
    if numbers.view(np.uint64).max() > size:
        return False
    starts, lengths = numbers[::2], numbers[1::2]
    ends = starts + lengths
    return bool(starts[0] >= base and ends[-1] <= size + base and lengths.all() and (starts[1:] >= ends[:-1]).all())


def _merge_runs(starts: IntArray, ends: IntArray) -> tuple[IntArray, IntArray]:
    """Sort runs, merge runs that overlap or touch, and drop runs of length 0."""
    kept = ends > starts
    order = np.argsort(starts[kept], kind="stable")
    starts, ends = starts[kept][order], ends[kept][order]
    max_ends = np.maximum.accumulate(ends)
    is_first = np.append(True, starts[1:] > max_ends[:-1])[: len(starts)]  # a gap before the run: a merged run begins
    is_last = np.append(is_first[1:], True)[: len(starts)]
    return starts[is_first], max_ends[is_last]


# Container `pairs`: numbers separated by spaces


def parse_numbers(text: str) -> IntArray:
    """Parse whole numbers separated by white space to an int64 array.

    Raises:
        RleError: a word is not a whole number.
    """
    unusual = text.encode("utf-8", "replace").translate(None, b"0123456789 ")
    if unusual:  # a sign, other white space, or an invalid value
        values = text.split()
        for index, value in enumerate(values, start=1):
            digits = value.removeprefix("-")
            if not (digits.isascii() and digits.isdigit()):
                raise RleError(
                    f"RLE, value {index}: found {value[:40]}, expected a whole number.",
                    "Write whole numbers separated by single spaces. If this text stands for an empty mask, set it as "
                    f"`empty` of {_RLE_KEYS}.",
                )
        text = " ".join(values)
    return np.fromstring(text, dtype=np.int64, sep=" ")


def format_pairs(pairs: IntArray) -> str:
    """Format [[1, 2], [3, 4]] as `1 2 3 4`; no number may be negative, and only the first may be 0."""
    if len(pairs) < 64:  # the tables are faster only for longer texts
        return " ".join(map(str, pairs.ravel().tolist()))
    return " ".join(_block_to_text(pairs[low : low + _BLOCK]) for low in range(0, len(pairs), _BLOCK))


def _block_to_text(pairs: IntArray) -> str:
    """Format a block of pairs as text.

    The digits of each number are divided into groups. `_digits` gives the text of a group as 4 bytes, in which NUL
    bytes replace missing digits. The NUL bytes are removed last.
    """
    columns: list[NDArray[np.uint32]] = []
    for numbers in (pairs[:, 1], pairs[:, 0]):  # from the last column to the first
        rest = numbers // 1000  # NumPy divides by a constant much faster than it computes divmod
        columns.append(_digits(3, " ")[numbers - 1000 * rest + 1000 * (rest > 0)])
        while rest.any():
            numbers, rest = rest, rest // 10_000
            columns.append(_digits(4, "")[numbers - 10_000 * rest + 10_000 * (rest > 0)])
    text = np.stack(columns[::-1], axis=1).tobytes().translate(None, b"\0").decode("ascii")
    return ("0" if pairs[0, 0] == 0 else "") + text[:-1]


@cache
def _digits(count: int, tail: str) -> NDArray[np.uint32]:
    """Return the texts of the numbers below 10**count, each as 4 bytes (a uint32): the digits, then `tail`.

    The first 10**count entries have no leading zeros: NUL bytes stand in their place, and the number 0 consists of NUL
    bytes only. The next 10**count entries are the same numbers with leading zeros.
    """
    without_zeros = ["" if number == 0 else str(number) for number in range(10**count)]
    with_zeros = [f"{number:0{count}d}" for number in range(10**count)]
    text = "".join(digits.rjust(count, "\0") + tail for digits in without_zeros + with_zeros)
    return np.frombuffer(text.encode("ascii"), np.uint32)


# Containers `coco` and `coco_zlib`: pycocotools' compressed counts


def format_counts(starts: IntArray, ends: IntArray, size: int) -> str:
    """Format the runs `starts[i]:ends[i]` of a mask with `size` pixels as COCO's compressed counts.

    The counts are the lengths of background and foreground runs, in turn. From the fourth count on, the text stores the
    difference between a count and the count two positions before. A number is written in groups of five bits, lowest
    first, with one character per group (`rleToString` in
    https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c).
    """
    edges = np.empty(2 * len(starts) + 1, np.int64)
    edges[0:-1:2], edges[1:-1:2], edges[-1] = starts, ends, size
    counts = np.diff(edges, prepend=0)
    if len(starts) and counts[-1] == 0:  # the last run reaches the last pixel
        counts = counts[:-1]
    remaining = counts.copy()
    remaining[3:] -= counts[1:-2]
    groups: list[NDArray[np.uint8]] = []
    more = np.ones(len(remaining), np.bool_)
    while more.any():
        bits = remaining & 31
        remaining >>= 5
        has_group, more = more, more & (remaining != np.where(bits & 16, -1, 0))
        groups.append(np.where(has_group, bits + 32 * more + 48, 0).astype(np.uint8))
    return np.stack(groups, axis=1).tobytes().translate(None, b"\0").decode("ascii")


def parse_counts(text: str, size: int, strict: bool) -> tuple[IntArray, IntArray]:
    """Parse COCO's compressed counts to the runs `starts[i]:ends[i]` of a mask with `size` pixels.

    Raises:
        RleError: a character or a count is invalid, the text is truncated, or `strict` is True and the sum of the
            counts is not `size`.
    """
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    invalid = (codes < 0) | (codes > 63)
    if invalid.any():
        raise RleError(
            f"COCO counts: character {int(invalid.argmax()) + 1} of the text is not allowed, expected ASCII characters "
            "from `0` to `o`.",
            _CONTAINER_HINT,
        )
    last = (codes & 32) == 0
    if not last[-1]:
        raise RleError(
            "COCO counts: the last number is incomplete, so the text may be cut off.",
            "Check whether the text is complete.",
        )
    ends = np.flatnonzero(last)
    begins = np.append(0, ends[:-1] + 1)
    shift = 5 * (np.arange(len(codes)) - np.repeat(begins, ends - begins + 1))
    if shift.max() > 50:
        raise RleError("COCO counts: found a number of more than 50 bits.", _CONTAINER_HINT)
    counts = np.add.reduceat((codes & 31) << shift, begins)
    counts -= np.where(codes[ends] & 16, np.int64(32) << shift[ends], 0)  # the sign
    for first in (1, 2):  # from the fourth count on, counts are differences to the count two positions before
        counts[first::2] = np.cumsum(counts[first::2])
    if (counts < 0).any():
        index = int((counts < 0).argmax())
        raise RleError(f"COCO counts, count {index + 1}: found {counts[index]}, expected at least 0.", _CONTAINER_HINT)
    edges = np.cumsum(np.minimum(counts, size + 1))
    if strict and edges[-1] != size:
        raise RleError(
            f"COCO counts: found a sum of {format_count(sum(counts.tolist()), 'pixel')}, expected {size}.",
            "Check the size of the mask.",
        )
    edges = np.minimum(edges, size)
    edges = edges if len(edges) % 2 == 0 else edges[:-1]
    kept = edges[1::2] > edges[::2]
    return edges[::2][kept], edges[1::2][kept]


def compress_counts(text: str) -> str:
    """Compress COCO counts by zlib and base64, as the HuBMAP vasculature competition requires."""
    return base64.b64encode(zlib.compress(text.encode("ascii"), zlib.Z_BEST_COMPRESSION)).decode("ascii")


def decompress_counts(text: str, size: int) -> str:
    """Decompress the result of `compress_counts` for a mask of `size` pixels.

    Raises:
        RleError: the text is not base64 of zlib-compressed data, is truncated, or is too long for `size` pixels.
    """
    limit = 11 * (size + 2)  # a pixel needs at most 11 characters; more would be a decompression bomb
    try:
        raw = base64.b64decode(text, validate=True)
        decompressor = zlib.decompressobj()
        counts = decompressor.decompress(raw, limit + 1)
        if len(counts) > limit:
            pixels = "1 pixel" if size == 1 else f"{size} pixels"
            raise RleError(
                f"COCO counts: found more than {limit} characters, expected at most {limit} for {pixels}.",
                "Check the size of the mask.",
            )
        if not decompressor.eof:
            raise RleError(
                "RLE: expected zlib-compressed COCO counts in base64, but the data are cut off.",
                "Check whether the text is complete.",
            )
        return counts.decode("ascii")
    except (binascii.Error, zlib.error, UnicodeError, ValueError) as error:
        raise RleError(
            f"RLE: the text is not zlib-compressed COCO counts in base64 ({error}).", _CONTAINER_HINT
        ) from error


# Container `json`


def parse_json_lists(text: str) -> list[IntArray]:
    """Parse lists such as `[1, 3, 10, 5];[20, 2]`, one int64 array per list.

    Raises:
        RleError: a part is not a JSON list of whole numbers.
    """
    lists = []
    for index, part in enumerate(text.split(";"), start=1):
        try:
            numbers = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise RleError(
                f"RLE list {index}: found {part[:40]}, expected JSON.",
                "Write each object as `[start, length, …]`, with `;` between two objects.",
            ) from error
        if isinstance(numbers, list):
            invalid = [value for value in numbers if type(value) is not int or abs(value) > 2**62]
        else:
            invalid = [part]
        if invalid:
            raise RleError(
                f"RLE list {index}: found {str(invalid[0])[:40]}, expected a list of whole numbers from -2**62 to "
                "2**62.",
                "Write each object as `[start, length, …]`.",
            )
        lists.append(np.array(numbers, np.int64))
    return lists
