"""Run lengths: a mask as text and back, for loading a host's table and for writing one.

A mask is flattened in the format's order; each run of foreground becomes two numbers, its start and its length:

    >>> import numpy as np
    >>> encode(np.array([[0, 1], [1, 1]]), RleFormat(order="column", base=1))
    '2 3'
    >>> decode("2 3", (2, 2), RleFormat()).astype(int)
    array([[0, 1],
           [1, 1]])

How it is fast: the mask is never transposed. Changes are found between neighbours along the slow axis of memory, where
NumPy compares long rows at once, and only the few positions of changes are brought into the format's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from competition import rle_text
from competition.rle_text import Numbers, RleError

__all__ = ["RleError", "RleFormat", "decode", "decode_labels", "encode", "encode_labels"]

Mask = NDArray[np.bool_]

_CHUNK = 1 << 20  # values compared at a time: small enough for a core's cache


@dataclass(frozen=True)
class RleFormat:
    """How one competition writes run lengths.

    Attributes:
        order: `column` runs down the first axis first (Fortran order, most of Kaggle), `row` along the last axis first.
            Over a volume (X, Y, Z): `column` is X fastest, `row` is Z fastest.
        base: the number of the first pixel.
        relative: each start is counted from the end of the run before it, the first from pixel 0 (SIIM-ACR); `base`
            then plays no part.
        empty: the text of a mask without foreground, such as `-1` or `1 0`.
        container: `pairs` are numbers between spaces; `coco` is pycocotools' compressed counts; `coco_zlib` the same,
            zlib-compressed, in base64 (HuBMAP); `json` one list such as `[1, 3, 10, 5]` per object, joined by `;`.
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
                    f"The format's {key} is {getattr(self, key)!r}.", f"Use {' or '.join(map(repr, known))}.", status=2
                )
        if self.container.startswith("coco") and (self.order != "column" or self.relative):
            raise RleError(
                f"COCO run lengths are column by column and absolute, but the format says {self}.",
                "Set `order: column` and `relative: false`.",
                status=2,
            )


def encode(mask: NDArray[Any], fmt: RleFormat = RleFormat()) -> str:
    """Writes one mask.

    Args:
        mask: any shape and memory order; bool or integers, where anything but 0 is foreground.
        fmt: the format.

    Returns:
        The text; `fmt.empty` for a mask without foreground.

    Raises:
        RleError: the array holds fractions, so that it is not a mask yet.
    """
    mask = _as_mask(mask)
    edges = _changes(mask if fmt.order == "column" else mask.T)
    if len(edges) % 2:  # the last run reaches the last pixel
        edges = np.append(edges, mask.size)
    return _write(edges[::2], edges[1::2], mask.size, fmt)


def decode(text: str, shape: Sequence[int], fmt: RleFormat = RleFormat(), strict: bool = True) -> Mask:
    """Reads one mask.

    Args:
        text: what `encode` or a host wrote. `fmt.empty` and a text without any word are a mask without foreground.
        shape: the shape of the mask.
        fmt: the format.
        strict: False is for tables whose own host broke the rules: runs in any order are united, runs of no length are
            skipped, and runs are clipped at the end.

    Returns:
        bool array of `shape`, in Fortran memory order when `fmt.order` is `column`.

    Raises:
        RleError: says which word of the text breaks which rule; words are counted from 1.
    """
    size = int(np.prod(shape, dtype=np.int64))
    starts, ends = _read(text, size, fmt, strict)
    edges = np.empty(2 * len(starts) + 1, np.int64)
    edges[0:-1:2], edges[1:-1:2], edges[-1] = starts, ends, size
    flat = np.repeat(np.arange(len(edges)) % 2 == 1, np.diff(edges, prepend=0))
    return flat.reshape(shape, order="F" if fmt.order == "column" else "C")


def encode_labels(labels: NDArray[Any], fmt: RleFormat = RleFormat()) -> dict[int, str]:
    """Writes every object of a label image in one pass.

    Args:
        labels: integers of any shape, 0 for background.
        fmt: the format.

    Returns:
        One text per object, by its label, in rising order of labels.
    """
    if labels.dtype.kind not in "bui":
        raise RleError(f"The labels are {labels.dtype} and not whole numbers.", "Convert them with `astype`.")
    flowing = labels if fmt.order == "column" else labels.T
    starts = _changes(flowing)
    ends = np.append(starts[1:], labels.size)
    names = flowing[np.unravel_index(starts, flowing.shape, order="F")] if len(starts) else starts
    order = np.argsort(names, kind="stable")
    found, first = np.unique(names[order], return_index=True)
    parts = np.split(order, first[1:]) if len(found) else []
    return {
        int(name): _write(starts[part], ends[part], labels.size, fmt)
        for name, part in zip(found, parts, strict=True)
        if name != 0
    }


def decode_labels(
    texts: Sequence[str], shape: Sequence[int], fmt: RleFormat = RleFormat(), strict: bool = True
) -> NDArray[np.int32]:
    """Reads the objects of one image.

    Args:
        texts: one text per object.
        shape: the shape of the image.
        fmt: the format.
        strict: as in `decode`.

    Returns:
        int32 array of `shape`: 1 for the first text's object, 2 for the second's; a later object covers an earlier one.
    """
    flat = np.zeros(int(np.prod(shape, dtype=np.int64)), np.int32)
    for name, text in enumerate(texts, start=1):
        for start, end in zip(*(edge.tolist() for edge in _read(text, flat.size, fmt, strict)), strict=True):
            flat[start:end] = name
    return flat.reshape(shape, order="F" if fmt.order == "column" else "C")


def _as_mask(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """The mask as uint8 0 and 1, without a copy where it is bool already."""
    mask = np.asarray(mask)
    if mask.dtype.kind not in "bui":
        raise RleError(
            f"The mask is {mask.dtype}, which may hold fractions.",
            "Make a mask of it first, for example `probabilities > 0.5`.",
        )
    return (mask if mask.dtype == np.bool_ else mask != 0).view(np.uint8)


def _changes(values: NDArray[Any]) -> Numbers:
    """Positions in Fortran order, rising, whose value is not that of the position before (0 before the first)."""
    if values.size == 0:
        return np.empty(0, np.int64)
    if values.flags.f_contiguous:
        values = values.ravel(order="F")[:, None]  # a view
    values = np.ascontiguousarray(values)
    slow, rest = values.shape[0], values.shape[1:]
    rows = values.reshape(slow, -1)
    width = rows.shape[1]
    step = max(1, _CHUNK // width)
    differs = np.empty((min(step, slow), width), np.bool_)
    found = []
    for low in range(0, slow - 1, step):
        high = min(low + step, slow - 1)
        part = np.not_equal(rows[low + 1 : high + 1], rows[low:high], out=differs[: high - low])
        found.append(np.flatnonzero(part) + (low + 1) * width)
    # From one end of the slow axis to the beginning of the next line.
    line_begins, line_ends = values[0].ravel(order="F"), values[-1].ravel(order="F")
    borders = np.flatnonzero(line_begins[1:] != line_ends[:-1]) + 1
    first = np.zeros(int(line_begins[0] != 0), np.int64)
    if width == 1:
        return np.concatenate([first, *found])
    memory = np.concatenate(found) if found else np.empty(0, np.int64)
    along = memory // width
    line = memory - along * width
    if len(rest) > 1:
        line = np.ravel_multi_index(np.unravel_index(line, rest), rest, order="F")
    positions = np.concatenate([first, borders * slow, along + line * slow])
    positions.sort()
    return positions


def _write(starts: Numbers, ends: Numbers, size: int, fmt: RleFormat) -> str:
    """Text of runs `starts[i]:ends[i]`, positions in the format's order from 0."""
    if len(starts) == 0 and (fmt.empty or not fmt.container.startswith("coco")):
        return fmt.empty
    if fmt.container.startswith("coco"):
        text = rle_text.counts_to_text(starts, ends, size)
        return rle_text.pack(text) if fmt.container == "coco_zlib" else text
    pairs = np.empty((len(starts), 2), np.int64)
    np.subtract(starts, np.append(0, ends[:-1]) if fmt.relative else -fmt.base, out=pairs[:, 0])
    np.subtract(ends, starts, out=pairs[:, 1])
    text = rle_text.pairs_to_text(pairs)
    return f"[{text.replace(' ', ', ')}]" if fmt.container == "json" else text


def _read(text: str, size: int, fmt: RleFormat, strict: bool) -> tuple[Numbers, Numbers]:
    """Runs `starts[i]:ends[i]` of a text: sorted, apart, within `size`."""
    nothing = np.empty(0, np.int64)
    if not isinstance(text, str):
        raise RleError(
            f"The run lengths are {text!r} and not a text.",
            "Read the table with pandas.read_csv(…, keep_default_na=False): an empty cell is an empty mask.",
        )
    text = text.strip()
    if text in ("", fmt.empty.strip()):
        return nothing, nothing
    if fmt.container.startswith("coco"):
        packed = fmt.container == "coco_zlib"
        return rle_text.text_to_runs(rle_text.unpack(text, size) if packed else text, size, strict)
    if fmt.container == "pairs":
        return _runs(rle_text.text_to_numbers(text), size, fmt, strict)
    lists = [
        _runs(numbers, size, fmt, strict, f"list {at}") for at, numbers in enumerate(rle_text.json_lists(text), start=1)
    ]
    return lists[0] if len(lists) == 1 else _united(*(np.concatenate(edges) for edges in zip(*lists, strict=True)))


def _runs(
    numbers: Numbers, size: int, fmt: RleFormat, strict: bool, place: str = "the run lengths"
) -> tuple[Numbers, Numbers]:
    """Checks the pairs of one object, numbers of `place`, and turns them into runs."""
    if len(numbers) % 2:
        raise RleError(
            f"An odd number of words, {len(numbers)}, is in {place}; word {len(numbers)} ({numbers[-1]}) is "
            "a start without a length.",
            "Write start and length of every run, or set `empty` of the format.",
        )

    def refuse(broken: Mask, first: int, rule: str, cure: str) -> None:
        """`broken[i]` is about word `first + 2 * i`, counted from 1."""
        if broken.any():
            word = first + 2 * int(broken.argmax())
            raise RleError(f"Word {word} of {place} ({numbers[word - 1]}) is {rule}.", cure)

    given, lengths = numbers[::2], numbers[1::2]
    base = 0 if fmt.relative else fmt.base
    refuse(given < base, 1, f"a start below {base}", "Check `base` and `relative` of the format.")
    refuse(lengths < 0, 2, "a negative length", "Lengths are 1 or more.")
    if fmt.relative:
        edges = np.cumsum(np.minimum(numbers, size + 1))  # clipped first, or sums of huge numbers would wrap around
        starts, ends = edges[::2], edges[1::2]
    else:
        starts = given - base
        ends = np.minimum(starts, size) + np.minimum(lengths, size + 1)
    if not strict:
        return _united(np.minimum(starts, size), np.minimum(ends, size))
    end = f"past the end of the mask, which has {size} pixels"
    refuse(lengths == 0, 2, "a length of zero", "Leave out runs without pixels.")
    refuse(starts >= size, 1, f"a start {end}", "Check the shape (height and width swapped?) and `base` of the format.")
    refuse(ends > size, 2, f"a length that runs {end}", "Check the shape and `base` of the format.")
    if not fmt.relative:
        refuse(starts[1:] < starts[:-1], 3, "a start before that of the run before it", "Sort the runs by their start.")
        refuse(starts[1:] < ends[:-1], 3, "a start inside the run before it", "Unite overlapping runs.")
    return starts, ends


def _united(starts: Numbers, ends: Numbers) -> tuple[Numbers, Numbers]:
    """Sorts runs and unites those that overlap or touch; runs of no length are dropped."""
    kept = ends > starts
    order = np.argsort(starts[kept], kind="stable")
    starts, ends = starts[kept][order], ends[kept][order]
    reach = np.maximum.accumulate(ends)
    opens = np.append(True, starts[1:] > reach[:-1])[: len(starts)]
    closes = np.append(opens[1:], True)[: len(starts)]
    return starts[opens], reach[closes]
