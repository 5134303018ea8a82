"""Detect the pixel order of run lengths (column-major or row-major) from the data.

Competition pages sometimes state the wrong order. In the right order, the runs of an object touch each other in
neighbouring lines. If the image is not square, the wrong order scatters the runs. If the image is square, the wrong
order only transposes the mask. In this case the image decides: the outline of the right mask follows the image's
edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.data.patterns import CaseFiles
from competition.data.readers import read_header, read_image
from competition.errors import MaskfoldError
from competition.rle import decode
from competition.rle_text import RleFormat, parse_numbers

Order = Literal["row", "column"]
Opinion = tuple[Order, bool]  # the order that one case indicates, and whether this case alone is clear evidence

MIN_CASES = 5  # number of cases that must indicate an order before the data may contradict the YAML
MIN_SHARE = 0.9  # share of these cases that must indicate the same order
_MAX_HEADERS = 200  # number of cases whose size is read
_MAX_CASES, _MAX_TEXTS = 24, 10  # number of cases whose masks are decoded, and of masks per case
_SCATTER_RATIO = 1.5  # ratio of pieces above which an order counts as wrong
_EDGE_RATIO = 1.05  # ratio of edge strengths; a smaller ratio counts as noise
_CLEAR_SCATTER, _CLEAR_EDGES = 4.0, 2.0  # the same ratios for clear evidence: one such case may contradict the YAML


@dataclass(frozen=True)
class OrderVote:
    """Hold the more likely pixel order of run lengths, and the number of cases that indicate this order.

    A case votes for an order if its masks are plausible in this order only.

    Attributes:
        order: the order with more votes; None if no case votes.
        votes: number of cases that vote for `order`.
        cases: number of cases that vote for either order.
        strong: number of cases that vote for `order` and whose data are clear evidence.
    """

    order: Order | None
    votes: int
    cases: int
    strong: int = 0

    @property
    def confidence(self) -> float:
        """Share of the voting cases that vote for `order`; 0 if no case votes."""
        return self.votes / self.cases if self.cases else 0.0

    @property
    def clear(self) -> bool:
        """Whether the evidence is strong enough to contradict the YAML."""
        enough = self.cases >= MIN_CASES or (self.strong > 0 and self.votes == self.cases)
        return enough and self.confidence >= MIN_SHARE


def count_votes(opinions: Iterable[Order | None], clear: Iterable[Order] = ()) -> OrderVote:
    """Count the cases that indicate each pixel order of run lengths.

    Args:
        opinions: the order that each case indicates; None for a case that indicates no order.
        clear: the order that each case with clear evidence indicates.
    """
    votes = [vote for vote in opinions if vote is not None]
    if not votes:
        return OrderVote(None, 0, 0)
    columns = votes.count("column")
    order: Order = "column" if 2 * columns >= len(votes) else "row"
    return OrderVote(order, max(columns, len(votes) - columns), len(votes), list(clear).count(order))


def detect_order(
    comp: Competition,
    cases: Mapping[str, CaseFiles],
    rows: Mapping[str, list[list[Any]]],
    texts: Mapping[int, str],
    fmt: RleFormat,
    grid: tuple[int, int] | None = None,
) -> OrderVote:
    """Detect the pixel order of the run lengths from a sample of the cases of `train.rle`.

    Cases whose images are not square are used first, because reading their headers is enough. The result is cached for
    this sample of paths and run lengths.

    Args:
        comp: the competition.
        cases: the first channel's files, by id.
        rows: [line, class, slice] of each row that is not empty, by case id; see
            `competition.data.rle.tables.assign_rows`.
        texts: the run lengths in each line of the table.
        fmt: the RLE format that the YAML or its profile sets.
        grid: (H, W) of the masks; None means the size of each image.
    """
    if fmt.container != "pairs":  # the other containers of run lengths define their order
        return count_votes([])
    samples = []
    for case_id in _evenly_spaced([case_id for case_id in sorted(rows) if rows[case_id]], _MAX_HEADERS):
        slice_index = rows[case_id][0][2]
        files = cases[case_id].files
        path = Path(comp.root) / (files if isinstance(files, str) else files[slice_index or 0])
        lines = [line for line, _, index in rows[case_id] if index == slice_index]
        # A mask of a whole stack would require the headers of all slices.
        if isinstance(files, str) or slice_index is not None:
            samples.append((path, tuple(texts[line] for line in _evenly_spaced(lines, _MAX_TEXTS))))
    dimensions = 2 if any(case.slices for case in cases.values()) else comp.dimensions
    return _probe(dimensions, tuple(samples), fmt, grid, comp.applies_exif)


@lru_cache(maxsize=8)
def _probe(
    dimensions: int,
    samples: tuple[tuple[Path, tuple[str, ...]], ...],
    fmt: RleFormat,
    grid: tuple[int, int] | None,
    exif: bool,
) -> OrderVote:
    """Detect the pixel order of run lengths from samples, each of which is an image file and its run lengths."""
    not_square: list[tuple[Path, tuple[int, ...], tuple[str, ...]]] = []
    square: list[tuple[Path, tuple[int, ...], tuple[str, ...]]] = []
    for path, texts in samples:
        try:
            shape = grid or read_header(path, dimensions, exif=exif).shape
        except MaskfoldError:  # the check of the case reports the error
            continue
        (not_square if shape[0] != shape[-1] else square).append((path, shape, texts))
    opinions: list[Opinion | None] = []
    for _, shape, texts in _evenly_spaced(not_square, _MAX_CASES):
        opinions.append(_vote(texts, shape, fmt))
    if len([opinion for opinion in opinions if opinion is not None]) < MIN_CASES:
        for path, shape, texts in _evenly_spaced(square, _MAX_CASES):
            opinions.append(_vote(texts, shape, fmt, path, exif))
    return count_votes(
        [opinion and opinion[0] for opinion in opinions],
        [opinion[0] for opinion in opinions if opinion is not None and opinion[1]],
    )


def _vote(
    texts: Sequence[str], shape: tuple[int, ...], fmt: RleFormat, path: Path | None = None, exif: bool = False
) -> Opinion | None:
    """Return the pixel order that one case indicates, and whether its evidence is clear.

    Return None if the case indicates no order, or cannot be read.

    Args:
        texts: run lengths of the case's masks.
        shape: shape of the masks.
        fmt: the RLE format that the YAML or its profile sets.
        path: the image, which is needed only if the masks are square.
        exif: whether the image is rotated by its EXIF orientation.
    """
    try:
        image = None
        if path is not None and len(shape) == 2:
            image = read_image(path, 2, exif).array[:3].mean(axis=0, dtype=np.float32)  # without alpha
        return _compare_orders(texts, shape, fmt, image)
    except MaskfoldError:
        return None


def _evenly_spaced(values: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` of the values, evenly spaced."""
    if len(values) <= count:
        return list(values)
    return [values[index * len(values) // count] for index in range(count)]


def likely_order(
    texts: Sequence[str], shape: Sequence[int], fmt: RleFormat, image: NDArray[np.generic] | None = None
) -> Order | None:
    """Return the pixel order in which the masks of one case are plausible.

    Args:
        texts: one or several masks of the case, as pairs of start and length.
        shape: the shape of the masks.
        fmt: the format; only `base`, `relative` and `empty` are used.
        image: grey image (*shape), required only if all sides are equal.

    Returns:
        The order; None if the masks are about equally plausible in both orders.

    Raises:
        RleError: a text is not a list of numbers.
    """
    opinion = _compare_orders(texts, shape, fmt, image)
    return None if opinion is None else opinion[0]


def _compare_orders(
    texts: Sequence[str], shape: Sequence[int], fmt: RleFormat, image: NDArray[np.generic] | None
) -> Opinion | None:
    """Return the pixel order in which a case's masks are plausible, and whether the evidence is clear.

    Return None if both orders are about equally plausible. See `likely_order` for the arguments.
    """
    if shape[0] != shape[-1]:
        column, row = (sum(count_pieces(text, line, fmt) for text in texts) for line in (shape[0], shape[-1]))
        if max(column, row) >= _SCATTER_RATIO * min(column, row) and column != row:
            return "column" if column < row else "row", max(column, row) >= _CLEAR_SCATTER * min(column, row)
        return None
    if image is None or len(shape) != 2 or tuple(image.shape) != tuple(shape):
        return None
    edges = _edge_strength(image)
    union = np.zeros(shape, np.bool_)
    for text in texts:
        union |= decode(text, shape, RleFormat("column", fmt.base, fmt.relative, fmt.empty), strict=False)
    column_strength, row_strength = (
        float(edges[outline].mean()) if (outline := _outline(mask)).any() else 0.0 for mask in (union, union.T)
    )
    weaker, stronger = sorted((column_strength, row_strength))
    if stronger <= _EDGE_RATIO * weaker:
        return None
    return "column" if column_strength > row_strength else "row", stronger >= _CLEAR_EDGES * weaker


def count_pieces(text: str, line: int, fmt: RleFormat) -> int:
    """Count the runs of a mask that touch no run in the previous line of pixels (column or row).

    This number is at least the number of connected pieces of the mask.

    Args:
        text: the mask as pairs of start and length.
        line: number of pixels of one line: the height for columns, the width for rows.
        fmt: the format; only `base`, `relative` and `empty` are used.
    """
    if text.strip() in ("", fmt.empty.strip()):
        return 0
    numbers = parse_numbers(text)
    numbers = numbers[: len(numbers) // 2 * 2]
    if fmt.relative:
        edges = np.cumsum(numbers)
        starts, ends = edges[::2], edges[1::2]
    else:
        starts = numbers[::2] - fmt.base
        ends = starts + numbers[1::2]
    # Shift a run back by one line. Only the first run that ends after the shifted start can contain this start.
    candidate = np.searchsorted(ends, starts - line, side="right")
    # A run that is longer than a line would be its own neighbour.
    is_earlier = candidate < np.arange(len(starts))
    has_neighbour = np.zeros(len(starts), np.bool_)
    has_neighbour[is_earlier] = starts[candidate[is_earlier]] < ends[is_earlier] - line
    return int(np.count_nonzero(~has_neighbour))


def check_order(vote: OrderVote, fmt: RleFormat, path: object, key: str) -> None:
    """Check that the order in the YAML does not clearly contradict the data.

    Args:
        vote: the order that the data indicate.
        fmt: the RLE format that the YAML or its profile sets.
        path: the table, for the message.
        key: the source of the format, for the message: `train.rle_format`, `submission.rle`, or `submission.profile`
            and the profile's name.

    Raises:
        MaskfoldError: the order in the YAML clearly contradicts the data (exit status 2).
    """
    if vote.order is not None and vote.order != fmt.order and vote.clear:
        # The hint repeats the whole format, because train.rle_format overrides all its keys.
        full_format = f"train.rle_format to {_format_yaml(fmt, vote.order)}"
        setting, hint = f"{key}.order", f"Set {key}.order to {vote.order}"
        if key == "submission.rle":
            hint += f". If only this table has another order, set {full_format}"
        elif key != "train.rle_format":
            setting, hint = f"the order of {key}", f"Set {full_format}, or correct submission.profile"
        raise MaskfoldError(
            f"The order of the run lengths in {path} seems to be wrong: {setting} is {fmt.order}, but "
            f"{vote.votes} of {vote.cases} sampled cases indicate {vote.order}.",
            f"{hint}. The order on the competition's page may be wrong.",
            status=2,
        )


def _format_yaml(fmt: RleFormat, order: Order) -> str:
    """Return the format as YAML text for a hint, with `order` instead of the format's own order."""
    items = [f"order: {order}"]
    items += ["base: 0"] if fmt.base == 0 else []
    items += ["relative: true"] if fmt.relative else []
    items += [f'empty: "{fmt.empty}"'] if fmt.empty else []
    return f"{{{', '.join(items)}}}"


def _edge_strength(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the sum of an image's absolute gradients along all axes, as float32 of the image's shape."""
    grey = image.astype(np.float32)
    strength = np.zeros(grey.shape, np.float32)
    for axis in range(grey.ndim):
        strength += np.abs(np.gradient(grey, axis=axis))
    return strength


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the pixels that differ from the previous pixel along at least one axis."""
    outline = np.zeros(mask.shape, np.bool_)
    for axis in range(mask.ndim):
        later = [slice(None)] * mask.ndim
        later[axis] = slice(1, None)
        outline[tuple(later)] |= np.diff(mask, axis=axis)
    return outline
