"""A first experiment's folds, preparation and patch, from what was measured: a YAML snippet with the reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.data.explore.contrast import Contrast, alike
from competition.data.explore.measured import Measured
from competition.data.explore.words import dot, have, joined, many

STEP = 16  # four levels of a U-Net halve the patch four times
LARGEST = {2: 2**18, 3: 2**20}  # pixels of a patch: 512×512, about 101³
BYTES = 2048  # of a pixel in training: four convolutions of 32 channels at full size with norm and activation, float32, and
# a third more for the levels below
SIDE = 512  # longest side of a picture that is made smaller as a whole
SHOWN = 6  # channels named in a reason
AIR = -500  # Hounsfield units: only CT goes below, with whole numbers
APART = 5.0  # times from the least mean of a case to the greatest: no common scale
COARSE = 3.0  # an axis so many times coarser than the finest; nnU-Net's border (Isensee et al., Nature Methods 2021)


@dataclass(frozen=True)
class Line:
    """One key of the snippet: its value in YAML, why, and other values that may serve as well."""

    key: str
    value: str
    why: str
    instead: tuple[str, ...] = ()


def suggest(comp: Competition, cases: Sequence[Measured], contrasts: Sequence[Contrast]) -> str:
    """Writes the sections `folds`, `prepare` and `patch` of an experiment.

    Args:
        comp: what the host gave.
        cases: train and test.
        contrasts: of the channels, see `contrast.rank`.

    Returns:
        YAML; with `competition`, `model` and `loss` it is an experiment. Empty where no training case could be read.
    """
    train = [case for case in cases if case.split == "train" and case.readable and not case.left_out]
    if not train:
        return ""
    grid, shape = _grid(comp, train)
    lines = [_folds(comp, train), *grid, *_intensity(comp, train), *_channels(comp, train, contrasts), _patch(shape)]
    return _written(lines)


def _written(lines: Sequence[Line]) -> str:
    """The snippet; a reason is a comment, and so is what may be written instead."""
    text, section = [], ""
    for line in lines:
        above, _, key = line.key.rpartition(".")
        if above and above != section:
            text.append(f"{above}:")
        section = above
        pad = "  " if above else ""
        text.append(f"{pad}{key}: {line.value}".ljust(44) + f"  # {line.why}")
        text += [f"{pad}# or {other}" for other in line.instead]
    return "\n".join(text) + "\n"


def _folds(comp: Competition, train: Sequence[Measured]) -> Line:
    """Groups stay together, rare classes are dealt out, and each fold has cases enough."""
    top = Counter(case.group or case.id for case in train)
    grouped = comp.group is not None and len(top) < len(train)
    k = max(2, min(5, len(top)))
    truths = [case.truth for case in train if case.truth is not None]
    shares = [float(np.mean([one.voxels[index] > 0 for one in truths])) for index in range(len(comp.classes))] if truths else []
    uneven = [f"{name} in {share:.0%}" for name, share in zip(comp.classes, shares, strict=False) if 0 < share < 0.95]
    empty = sum(one.foreground == 0 for one in truths)
    balance = bool(uneven) or 0.02 < (empty / len(truths) if truths else 0) < 0.98
    scheme = {(True, True): "stratified_group", (True, False): "group", (False, True): "stratified"}.get(
        (grouped, balance), "kfold")
    why = [f"{many(len(top), 'group')} of {many(len(train), 'case')} stay together" if grouped
           else f"{many(len(train), 'case')}, each by itself"]
    if balance:
        why.append("not every case has every class: " + ", ".join(uneven[:3]) if uneven
                   else f"{many(empty, 'mask')} {'is' if empty == 1 else 'are'} empty")
    else:
        why.append("every case has every class" if truths else "no truth could be read")
    return Line("folds", f"{{scheme: {scheme}, k: {k}}}", "; ".join(why))


def _grid(comp: Competition, train: Sequence[Measured]) -> tuple[list[Line], list[int]]:
    """Orientation, spacing and size; and the median shape that a network would see."""
    lines: list[Line] = []
    shapes, spacings = [case.shape or () for case in train], [case.spacing or () for case in train]
    if comp.dimensions == 3 and all(case.orientation and "?" not in case.orientation for case in train):
        codes = Counter(str(case.orientation) for case in train)
        why = "all are so already" if set(codes) == {"RAS"} else ", ".join(f"{code} in {n}" for code, n in codes.most_common())
        lines.append(Line("prepare.orientation", "RAS", why))
        orders = [_to_ras(str(case.orientation)) for case in train]
        shapes = [tuple(shape[axis] for axis in order) for shape, order in zip(shapes, orders, strict=True)]
        spacings = [tuple(mm[axis] for axis in order) for mm, order in zip(spacings, orders, strict=True)]
    middle = [median(axis) for axis in zip(*shapes, strict=True)]
    if comp.dimensions == 3:
        wanted, why = _spacing(spacings)
        if wanted is None:
            lines.append(Line("prepare.spacing", "null", why))
        else:
            lines.append(Line("prepare.spacing", f"[{', '.join(f'{mm:g}' for mm in wanted)}]", why))
            sizes = [[n * mm / new for n, mm, new in zip(shape, own, wanted, strict=True)]
                     for shape, own in zip(shapes, spacings, strict=True)]
            middle = [median(axis) for axis in zip(*sizes, strict=True)]
        instead = f"resize: {_fit([round(n) for n in middle], LARGEST[3])}   # one size for all, in place of spacing"
        lines[-1] = Line(lines[-1].key, lines[-1].value, lines[-1].why, (instead,))
    else:
        lines.append(_resize(middle, shapes))
    return lines, [round(n) for n in middle]


def _resize(middle: Sequence[float], shapes: Sequence[tuple[int, ...]]) -> Line:
    """Pictures keep their own scale unless they are much larger than a patch; the other way is named."""
    scale = min(1.0, SIDE / max(middle))
    size = [_up(n * scale) for n in middle]
    sides = sorted(max(shape) for shape in shapes)
    words = f"sizes from {sides[0]} to {sides[-1]} along the longer side" if sides[0] != sides[-1] else "all of one size"
    return Line("prepare.resize", "null", f"pictures keep their own scale; {words}",
                (f"resize: [{size[0]}, {size[1]}]   # whole pictures of one size: for one large object each",
                 f"long_side: {max(size)}   # smaller pictures that keep their aspect ratio"))


def _spacing(spacings: Sequence[tuple[float, ...]]) -> tuple[list[float] | None, str]:
    """The median; along a much coarser axis the 10th percentile, so that the finer cases keep their slices (nnU-Net)."""
    array = np.array(spacings)
    if (array == 1).all():
        return None, "the files say 1 mm everywhere, or nothing"
    middle = np.median(array, axis=0)
    if float((np.abs(array / middle - 1)).max()) < 0.01:
        words = "×".join(f"{mm:.3g}" for mm in middle)
        return None, f"all have {words} mm already, so that nothing is resampled"
    coarse = int(middle.argmax())
    why = "the median; spacings differ from case to case"
    if middle[coarse] >= COARSE * middle.min():
        middle[coarse] = np.quantile(array[:, coarse], 0.1)
        why = f"the median; axis {coarse} is much coarser than the others, there the 10th percentile"
    return [float(f"{mm:.3g}") for mm in middle], why


def _intensity(comp: Competition, train: Sequence[Measured]) -> list[Line]:
    """A window for CT, by the foreground; else each case by its own mean and spread."""
    read = [case for case in train if case.values]
    firsts = [case.values[0] for case in read if case.values]
    whole = all((case.dtype or "").lstrip("u").startswith("int") or all(one.least == round(one.least) for one in case.values or [])
                for case in read)
    ct = comp.dimensions == 3 and read and whole and median(one.low for one in firsts) < AIR
    fronts = [(one.front_low, one.front_high) for one in firsts if not math.isnan(one.front_low)]
    if ct and fronts:
        low, high = median(one for one, _ in fronts), median(one for _, one in fronts)
        half = max(1.0, (high - low) / 2)
        level, width = 5 * round((low + high) / 10), max(10, 10 * math.ceil(4 * half / 10))
        return [Line("prepare.intensity", "window", f"CT; nine tenths of the foreground lie between {low:.0f} and {high:.0f} HU"),
                Line("prepare.window", f"[{level}, {width}]", "level and width: as far again on both sides")]
    outliers = [case for case in firsts if case.high > case.low and case.most - case.median > 5 * (case.high - case.median) > 0]
    if len(outliers) > 0.2 * max(1, len(firsts)):
        return [Line("prepare.intensity", "percentile", f"{len(outliers)} of {many(len(firsts), 'case')} {have(len(outliers))} "
                     f"a few {dot(comp.dimensions)}s far brighter than the rest, which are clipped")]
    means = [abs(one.mean) for one in firsts if one.mean]
    apart = max(means) / min(means) if means else 1.0
    why = f"; the cases' means differ up to {apart:,.0f}-fold" if apart >= APART and comp.dimensions == 3 else ""
    return [Line("prepare.intensity", "zscore", f"each case by its own mean and spread{why}")]


def _channels(comp: Competition, train: Sequence[Measured], contrasts: Sequence[Contrast]) -> list[Line]:
    """Which channels, where there is a choice."""
    counts = Counter(case.channels for case in train if case.values)
    best, equal = contrasts[0] if contrasts else None, alike(contrasts)
    same = ""
    if best and len(equal) > 1:  # nothing to choose by
        same = f"; {joined([one.name for one in equal[:SHOWN]])} are alike in contrast (|d| {best.size:.2f})"
        best = None
    one = f"channels: [{best.number}]   # {best.name} alone has the most contrast" if best and best.number is not None else ""
    if comp.dimensions == 2 and len({len(_kept(case)) for case in train if case.values}) > 1:
        return [Line("prepare.channels", "rgb", "grey and colour pictures: all get three channels")]
    if comp.dimensions == 2 and counts and set(counts) <= {3, 4} and not any(case.colour for case in train):
        return [Line("prepare.channels", "grey", "the three channels of every picture are equal")]
    if comp.dimensions == 2 and counts and set(counts) <= {3, 4}:
        grey = "channels: grey   # the weighted mean of the three has the most contrast"
        coloured = sum(bool(case.colour) for case in train)
        return [Line("prepare.channels", "rgb", f"colours in {coloured} of {many(len(train), 'picture')}{same}",
                     tuple(word for word in (one or (grey if best and best.name == "grey" else ""),) if word))]
    if len(contrasts) > 1 and (one or same):
        return [Line("prepare.channels", "keep", f"{len(contrasts)} channels{same}", (one,) if one else ())]
    return []


def _kept(case: Measured) -> list[Any]:
    return [one for one in case.values or [] if one.name != "grey"]


def _patch(shape: Sequence[int]) -> Line:
    """The median case, rounded up to whole levels of a U-Net, as far as memory goes."""
    size = _fit(shape, LARGEST[len(shape)])
    memory = BYTES * math.prod(size) / 2**20
    words = "×".join(map(str, shape))
    room = f"{memory / 1024:.1f} GiB" if memory >= 1024 else f"{memory:.0f} MiB"
    return Line("patch", f"{{size: {size}, foreground: 0.5}}",
                f"the median case has {words}; about {room} a sample with 32 channels in float32")


def _fit(shape: Sequence[int], most: int) -> list[int]:
    """The shape rounded up, its longest axis shortened step by step until it is small enough."""
    size = [_up(n) for n in shape]
    while math.prod(size) > most and max(size) > STEP:
        longest = size.index(max(size))
        size[longest] -= STEP
    return size


def _up(length: float) -> int:
    """To a multiple of 16; an axis of few slices to a power of two, which is halved less often."""
    if length <= STEP / 2:
        return 2 ** max(0, math.ceil(math.log2(max(1.0, length))))
    return STEP * math.ceil(length / STEP)


def _to_ras(code: str) -> list[int]:
    """The file's axis of each axis of RAS."""
    return [next(axis for axis, letter in enumerate(code) if letter in pair) for pair in ("RL", "AP", "SI")]
