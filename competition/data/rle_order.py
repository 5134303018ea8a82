"""Whether a host's run lengths go down the columns or along the rows, by what the data look like.

Hosts' pages are sometimes wrong about it. In the right order the runs of a shape lie beside each other in neighbouring
lines; in the wrong order, on an image that is not square, they are scattered. On a square image the wrong order only
transposes the mask, so there the image decides: the right mask's outline follows its edges.
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
from competition.config.errors import MaskfoldError
from competition.data.readers import read_header, read_image
from competition.data.sources import Case
from competition.rle import RleFormat, decode
from competition.rle_text import text_to_numbers

Order = Literal["row", "column"]

CLEAR_CASES = 5  # that must have an opinion before the data may overrule the YAML
CLEAR_SHARE = 0.9  # of them that must agree
_HEADERS = 200  # cases whose size is looked at
_CASES, _TEXTS = 24, 10  # cases whose masks are looked at, and masks of each
_SCATTERED = 1.5  # times as many pieces: the order is wrong
_FAINT = 1.05  # times as strong an edge: less is noise


@dataclass(frozen=True)
class OrderVerdict:
    """What the data say about the order.

    Attributes:
        order: the likelier one; None where no case has an opinion.
        votes: cases for that order. cases: cases with an opinion.
    """

    order: Order | None
    votes: int
    cases: int

    @property
    def confidence(self) -> float:
        """Share of the cases with an opinion that agree; 0 without any."""
        return self.votes / self.cases if self.cases else 0.0

    @property
    def clear(self) -> bool:
        """Whether the data may overrule what the YAML says."""
        return self.cases >= CLEAR_CASES and self.confidence >= CLEAR_SHARE


def verdict(opinions: Iterable[Order | None]) -> OrderVerdict:
    """Puts the cases' opinions together."""
    given = [opinion for opinion in opinions if opinion is not None]
    if not given:
        return OrderVerdict(None, 0, 0)
    columns = given.count("column")
    order: Order = "column" if 2 * columns >= len(given) else "row"
    return OrderVerdict(order, max(columns, len(given) - columns), len(given))


def probe_table(comp: Competition, cases: Mapping[str, Case], rows: Mapping[str, list[list[Any]]],
                texts: Mapping[int, str], fmt: RleFormat, grid: tuple[int, int] | None = None) -> OrderVerdict:
    """Asks a sample of the cases of `train.rle`; the answer is kept while the table and the sample stay the same.

    Cases that are not square are asked first, as they need no pixels.

    Args:
        comp: what the host gave.
        cases: the first channel's files, by id.
        rows: by id, [line, class, slice] of each row that is not empty, as `rle_table.find_rows` gives them.
        texts: the text of each line.
        fmt: the format that the YAML, or its profile, says.
        grid: (H, W) on which the masks are written; None: the image's own.
    """
    asked = []
    if fmt.container != "pairs":  # the others do not leave the order open
        return verdict([])
    for case_id in _spread([case_id for case_id in sorted(rows) if rows[case_id]], _HEADERS):
        index = rows[case_id][0][2]
        files = cases[case_id].files
        path = Path(comp.root) / (files if isinstance(files, str) else files[index or 0])
        lines = [line for line, _, at in rows[case_id] if at == index]
        if isinstance(files, str) or index is not None:  # one text for a whole stack would need all its headers
            asked.append((path, tuple(texts[line] for line in _spread(lines, _TEXTS))))
    return _ask(2 if any(case.slices for case in cases.values()) else comp.dimensions, tuple(asked), fmt, grid)


@lru_cache(maxsize=8)
def _ask(dimensions: int, asked: tuple[tuple[Path, tuple[str, ...]], ...], fmt: RleFormat,
         grid: tuple[int, int] | None) -> OrderVerdict:
    """The verdict of cases, each a file and its texts."""
    uneven: list[tuple[Path, tuple[int, ...], tuple[str, ...]]] = []
    even: list[tuple[Path, tuple[int, ...], tuple[str, ...]]] = []
    for path, texts in asked:
        try:
            shape = grid or read_header(path, dimensions).shape
        except MaskfoldError:  # a bad file is refused, or left out, where its case is checked
            continue
        (uneven if shape[0] != shape[-1] else even).append((path, shape, texts))
    opinions: list[Order | None] = []
    for _, shape, texts in _spread(uneven, _CASES):
        opinions.append(_heard(texts, shape, fmt))
    if len([one for one in opinions if one is not None]) < CLEAR_CASES:
        for path, shape, texts in _spread(even, _CASES):
            opinions.append(_heard(texts, shape, fmt, path))
    return verdict(opinions)


def _heard(texts: Sequence[str], shape: tuple[int, ...], fmt: RleFormat, path: Path | None = None) -> Order | None:
    """A case's opinion; none for a case that cannot be read, which is refused where it is loaded."""
    try:
        image = None
        if path is not None and len(shape) == 2:
            image = read_image(path, 2).array[:3].mean(axis=0, dtype=np.float32)  # without alpha
        return opinion(texts, shape, fmt, image)
    except MaskfoldError:
        return None


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the values, evenly spaced."""
    if len(values) <= count:
        return list(values)
    return [values[at * len(values) // count] for at in range(count)]


def opinion(texts: Sequence[str], shape: Sequence[int], fmt: RleFormat,
            image: NDArray[np.generic] | None = None) -> Order | None:
    """The order in which one case's masks make sense.

    Args:
        texts: its masks, one or several, as pairs.
        shape: the shape of its masks.
        fmt: base, relative and empty are believed; the order is what is asked.
        image: (*shape), needed only where both orders have lines of one length.

    Returns:
        The order; None where the case does not tell.

    Raises:
        RleError: a text is not one of numbers.
    """
    if shape[0] != shape[-1]:
        column, row = (sum(pieces(text, line, fmt) for text in texts) for line in (shape[0], shape[-1]))
        if max(column, row) >= _SCATTERED * min(column, row) and column != row:
            return "column" if column < row else "row"
        return None
    if image is None or len(shape) != 2 or tuple(image.shape) != tuple(shape):
        return None
    edges = _edges(image)
    united = np.zeros(shape, np.bool_)
    for text in texts:
        united |= decode(text, shape, RleFormat("column", fmt.base, fmt.relative, fmt.empty), strict=False)
    down, along = (float(edges[outline].mean()) if (outline := _outline(mask)).any() else 0.0
                   for mask in (united, united.T))
    if max(down, along) <= _FAINT * min(down, along):
        return None
    return "column" if down > along else "row"


def pieces(text: str, line: int, fmt: RleFormat) -> int:
    """Runs without a neighbour in the line before: at least the number of connected pieces, close to it for blobs.

    Args:
        text: pairs.
        line: pixels of one line: the height for columns, the width for rows.
        fmt: base, relative and empty are used.
    """
    if text.strip() in ("", fmt.empty.strip()):
        return 0
    numbers = text_to_numbers(text)
    numbers = numbers[:len(numbers) // 2 * 2]
    if fmt.relative:
        edges = np.cumsum(numbers)
        starts, ends = edges[::2], edges[1::2]
    else:
        starts = numbers[::2] - fmt.base
        ends = starts + numbers[1::2]
    # The first run that ends after this one's shadow begins is the only one that can lie in the shadow's beginning.
    other = np.searchsorted(ends, starts - line, side="right")
    inside = other < np.arange(len(starts))  # a run longer than a line would be its own neighbour
    near = np.zeros(len(starts), np.bool_)
    near[inside] = starts[other[inside]] < ends[inside] - line
    return int(np.count_nonzero(~near))


def refuse_order(found: OrderVerdict, fmt: RleFormat, path: object, key: str) -> None:
    """Stops where YAML and data disagree clearly.

    Args:
        found: what the data say.
        fmt: the format that is really used.
        path: the table, for the message.
        key: what says the format: train.rle_format, submission.rle, or submission.profile and its name.

    Raises:
        MaskfoldError: they do (status 2).
    """
    if found.order is not None and found.order != fmt.order and found.clear:
        ways = {"row": "along the rows", "column": "down the columns"}
        whole = f"train.rle_format to {_yaml(fmt, found.order)}"  # what is set there is taken as a whole
        said, cure = f"{key}.order is", f"Set {key}.order to {found.order}"
        if key == "submission.rle":
            cure += f", or {whole} if only this table is so"
        elif key != "train.rle_format":
            said, cure = f"the order of {key} is", f"Set {whole}, or correct submission.profile"
        raise MaskfoldError(
            f"The masks of {path} run {ways[found.order]}, as {found.votes} of {found.cases} cases that were looked at "
            f"show, but {said} {fmt.order}.", f"{cure}; hosts' pages are sometimes wrong about it.", status=2)


def _yaml(fmt: RleFormat, order: Order) -> str:
    """The format in the other order, as it is written in the YAML."""
    words = [f"order: {order}"]
    words += ["base: 0"] if fmt.base == 0 else []
    words += ["relative: true"] if fmt.relative else []
    words += [f'empty: "{fmt.empty}"'] if fmt.empty else []
    return f"{{{', '.join(words)}}}"


def _edges(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Strength of the image's edges, float32."""
    grey = image.astype(np.float32)
    strength = np.zeros(grey.shape, np.float32)
    for axis in range(grey.ndim):
        strength += np.abs(np.gradient(grey, axis=axis))
    return strength


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose neighbour before them, along an axis, differs."""
    outline = np.zeros(mask.shape, np.bool_)
    for axis in range(mask.ndim):
        later = [slice(None)] * mask.ndim
        later[axis] = slice(1, None)
        outline[tuple(later)] |= np.diff(mask, axis=axis)
    return outline
