"""Suggest folds, preprocessing and patch size for a first experiment, as a YAML snippet with reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from competition.config.competition import Competition
from competition.explore.contrasts import ChannelContrast, similar_contrasts
from competition.explore.types import CaseStats, ChannelStats
from competition.text import format_count, has_or_have, is_or_are, join_names, pixel_or_voxel

STEP = {2: 32, 3: 8}  # 2D encoders halve the patch five times, 3D networks three times
# maximum size of a patch with which a step on one CPU core takes seconds, not minutes
MAX_PATCH_PIXELS = {2: 256**2, 3: 2**18}
DEFAULT_FOLDS = 5
MAX_RESIZED_SIDE = 512  # longest side of a resized 2D image
MAX_CHANNELS = 6  # maximum number of channels that a reason names
MAX_AIR_HU = -500  # only CT has integer values below this number
MAX_MEAN_RATIO = 5.0  # if the cases' means differ by a larger factor, the cases have no common intensity scale
# An axis whose spacing is more than this multiple of the finest spacing is coarse, as in nnU-Net (Isensee et al.,
# Nature Methods 2021).
ANISOTROPY = 3.0


@dataclass(frozen=True)
class SuggestedKey:
    """Hold one key of the suggested YAML.

    Attributes:
        key: the key, e.g. `prepare.spacing`.
        value: its value in YAML.
        reason: reason for the value, for a comment.
        alternatives: other settings, which are added as further comments.
    """

    key: str
    value: str
    reason: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suggestion:
    """Hold the suggested keys, and the grid of cases that are preprocessed with these keys.

    Attributes:
        keys: keys of the sections `folds` and `prepare`.
        shape: median shape of preprocessed cases.
        spacing: voxel size along each axis of the preprocessed grid in mm; 1 if the files store no spacing.
    """

    keys: list[SuggestedKey]
    shape: list[int]
    spacing: list[float]


def suggest_experiment(comp: Competition, cases: Sequence[CaseStats], contrasts: Sequence[ChannelContrast]) -> str:
    """Suggest the sections `folds`, `prepare` and `patch` of an experiment.

    Args:
        comp: the competition.
        cases: training and test cases.
        contrasts: contrasts of the channels, see `contrasts.rank_contrasts`.

    Returns:
        YAML that forms an experiment together with `competition`, `model` and `loss`; empty if no training case is
        readable.
    """
    found = suggest_keys(comp, cases, contrasts)
    return _to_yaml([*found.keys, _patch(found.shape)]) if found is not None else ""


def suggest_keys(
    comp: Competition, cases: Sequence[CaseStats], contrasts: Sequence[ChannelContrast], k: int = DEFAULT_FOLDS
) -> Suggestion | None:
    """Suggest the sections `folds` and `prepare`.

    Args:
        comp: the competition.
        cases: training and test cases.
        contrasts: contrasts of the channels, see `contrasts.rank_contrasts`.
        k: number of folds; if there are fewer groups, there are fewer folds.

    Returns:
        The suggested keys, and the grid of cases that are preprocessed with these keys; None if no training case is
        readable.
    """
    train = [case for case in cases if case.split == "train" and case.readable and not case.skipped]
    if not train:
        return None
    grid, shape, spacing = _grid(comp, train)
    keys = [_folds(comp, train, k), *grid, *_intensity_window(comp, train), *_channels(comp, train, contrasts)]
    return Suggestion(keys, shape, spacing)


def _to_yaml(lines: Sequence[SuggestedKey]) -> str:
    """Return the snippet, with reasons and alternatives as comments."""
    text, section = [], ""
    for line in lines:
        parent, _, key = line.key.rpartition(".")
        if parent and parent != section:
            text.append(f"{parent}:")
        section = parent
        indent = "  " if parent else ""
        text.append(f"{indent}{key}: {line.value}".ljust(44) + f"  # {line.reason}")
        text += [f"{indent}# or {alternative}" for alternative in line.alternatives]
    return "\n".join(text) + "\n"


def _folds(comp: Competition, train: Sequence[CaseStats], most: int) -> SuggestedKey:
    """Suggest the scheme and the number of folds (at most `most`), depending on groups and rare classes."""
    group_sizes = Counter(case.group or case.id for case in train)
    is_grouped = comp.group is not None and len(group_sizes) < len(train)
    k = max(2, min(most, len(group_sizes)))
    truths = [case.truth for case in train if case.truth is not None]
    shares = []
    if truths:
        shares = [float(np.mean([truth.voxels[index] > 0 for truth in truths])) for index in range(len(comp.classes))]
    uneven = [f"{name} in {share:.0%}" for name, share in zip(comp.classes, shares, strict=False) if 0 < share < 0.95]
    empty = sum(truth.foreground == 0 for truth in truths)
    stratify = bool(uneven) or 0.02 < (empty / len(truths) if truths else 0) < 0.98
    schemes = {(True, True): "stratified_group", (True, False): "group", (False, True): "stratified"}
    scheme = schemes.get((is_grouped, stratify), "kfold")
    if is_grouped:
        groups = format_count(len(group_sizes), "group")
        reason = f"{format_count(len(train), 'case')} in {groups}; each group stays in one fold"
    else:
        reason = f"{format_count(len(train), 'case')} without groups"
    if uneven:
        reason += "; not every case has every class: " + ", ".join(uneven[:3])
    elif stratify:
        reason += f"; {format_count(empty, 'mask')} {is_or_are(empty)} empty"
    else:
        reason += "; every case has every class" if truths else "; no truth could be read"
    return SuggestedKey("folds", f"{{scheme: {scheme}, k: {k}}}", reason)


def _grid(comp: Competition, train: Sequence[CaseStats]) -> tuple[list[SuggestedKey], list[int], list[float]]:
    """Suggest orientation, spacing and size.

    Returns:
        The suggested keys, and the median shape and median spacing of cases that are preprocessed with these keys.
    """
    lines: list[SuggestedKey] = []
    shapes, spacings = [case.shape or () for case in train], [case.spacing or () for case in train]
    if comp.dimensions == 3 and all(case.orientation and "?" not in case.orientation for case in train):
        codes = Counter(str(case.orientation) for case in train)
        counts = ", ".join(f"{code} in {format_count(n, 'case')}" for code, n in codes.most_common())
        reason = "the orientation of all cases" if set(codes) == {"RAS"} else f"orientation of the files: {counts}"
        lines.append(SuggestedKey("prepare.orientation", "RAS", reason))
        orders = [_to_ras(str(case.orientation)) for case in train]
        shapes = [tuple(shape[axis] for axis in order) for shape, order in zip(shapes, orders, strict=True)]
        spacings = [tuple(mm[axis] for axis in order) for mm, order in zip(spacings, orders, strict=True)]
    median_shape = [median(axis) for axis in zip(*shapes, strict=True)]
    median_spacing = [float(median(axis)) for axis in zip(*spacings, strict=True)]
    if comp.dimensions == 3:
        target, reason = _spacing(spacings)
        value = "null"
        if target is not None:
            median_spacing = target
            value = f"[{', '.join(f'{mm:g}' for mm in target)}]"
            sizes = [
                [n * mm / new for n, mm, new in zip(shape, own, target, strict=True)]
                for shape, own in zip(shapes, spacings, strict=True)
            ]
            median_shape = [median(axis) for axis in zip(*sizes, strict=True)]
        size = patch_size([round(n) for n in median_shape])
        alternative = f"resize: {size}   # instead of spacing: all cases get this size"
        lines.append(SuggestedKey("prepare.spacing", value, reason, (alternative,)))
    else:
        lines.append(_resize(median_shape, shapes))
    return lines, [round(n) for n in median_shape], median_spacing


def _resize(median_shape: Sequence[float], shapes: Sequence[tuple[int, ...]]) -> SuggestedKey:
    """Return a suggestion that leaves the size of 2D images unchanged, with two ways of resizing as alternatives."""
    scale = min(1.0, MAX_RESIZED_SIDE / max(median_shape))
    size = [_round_up(n * scale, STEP[2]) for n in median_shape]
    sides = sorted(max(shape) for shape in shapes)
    extent = f"{sides[0]} to {sides[-1]}" if sides[0] != sides[-1] else str(sides[0])
    return SuggestedKey(
        "prepare.resize",
        "null",
        f"no resizing; the longer side of the images has {extent} pixels",
        (
            (
                f"resize: [{size[0]}, {size[1]}]   # all images get this size; use it if each image shows one "
                "large object"
            ),
            f"long_side: {max(size)}   # smaller images that keep their aspect ratio",
        ),
    )


def _spacing(spacings: Sequence[tuple[float, ...]]) -> tuple[list[float] | None, str]:
    """Suggest the median spacing of the cases; for a coarse axis, suggest the 10th percentile, as nnU-Net does.

    Returns:
        The spacing in mm along each axis, None if the cases need no resampling; and the reason.
    """
    array = np.array(spacings)
    if (array == 1).all():
        return None, "all spacings are 1 mm or unknown; if files do not store their spacing, set competition.spacing"
    medians = np.median(array, axis=0)
    if float((np.abs(array / medians - 1)).max()) < 0.01:
        spacing = "×".join(f"{mm:.3g}" for mm in medians)
        return None, f"all cases have a spacing of {spacing} mm, so they need no resampling"
    coarse = int(medians.argmax())
    reason = "the median spacing, because spacings differ between cases"
    if medians[coarse] >= ANISOTROPY * medians.min():
        medians[coarse] = np.quantile(array[:, coarse], 0.1)
        reason = f"the median spacing; for axis {coarse}, which is much coarser, the 10th percentile"
    return [float(f"{mm:.3g}") for mm in medians], reason


def _intensity_window(comp: Competition, train: Sequence[CaseStats]) -> list[SuggestedKey]:
    """Suggest a window around the foreground for CT, percentiles if there are outliers, otherwise z-scores per case."""
    readable = [case for case in train if case.stats]
    channels = [case.stats[0] for case in readable if case.stats]  # the first channel of each case
    is_ct = (
        comp.dimensions == 3
        and readable
        and all(map(_has_integer_values, readable))
        and all(median(lows) < MAX_AIR_HU for lows in _lows_by_channel(readable))  # a window clips all channels
    )
    foregrounds = [channel for channel in channels if not math.isnan(channel.foreground_low)]
    if is_ct and foregrounds:
        low = median(channel.foreground_low for channel in foregrounds)
        high = median(channel.foreground_high for channel in foregrounds)
        half = max(1.0, (high - low) / 2)
        level, width = 5 * round((low + high) / 10), max(10, 10 * math.ceil(4 * half / 10))
        return [
            SuggestedKey(
                "prepare.intensity",
                "window",
                f"CT values; 90 % of the foreground is between {low:.0f} and {high:.0f} HU",
            ),
            SuggestedKey(
                "prepare.window",
                f"[{level}, {width}]",
                "level and width of a window that is twice as wide as this range",
            ),
        ]
    outliers = [
        channel
        for channel in channels
        if channel.high > channel.low and channel.maximum - channel.median > 5 * (channel.high - channel.median) > 0
    ]
    if len(outliers) > 0.2 * max(1, len(channels)):
        return [
            SuggestedKey(
                "prepare.intensity",
                "percentile",
                f"{len(outliers)} of {format_count(len(channels), 'case')} {has_or_have(len(outliers))} a few "
                f"very bright {pixel_or_voxel(comp.dimensions)}s, which are clipped",
            )
        ]
    means = [abs(channel.mean) for channel in channels if channel.mean]
    ratio = max(means) / min(means) if means else 1.0
    note = (
        f"; the means of cases differ by a factor of up to {ratio:,.0f}"
        if ratio >= MAX_MEAN_RATIO and comp.dimensions == 3
        else ""
    )
    return [
        SuggestedKey(
            "prepare.intensity", "zscore", f"each case is normalised by its own mean and standard deviation{note}"
        )
    ]


def _lows_by_channel(cases: Sequence[CaseStats]) -> list[list[float]]:
    """Return the 0.5 % quantiles of all cases, for each channel."""
    lows: dict[str, list[float]] = {}
    for case in cases:
        for channel in case.stats or []:
            lows.setdefault(channel.name, []).append(channel.low)
    return list(lows.values())


def _has_integer_values(case: CaseStats) -> bool:
    is_integer_type = (case.dtype or "").lstrip("u").startswith("int")
    return is_integer_type or all(channel.minimum == round(channel.minimum) for channel in case.stats or [])


def _channels(
    comp: Competition, train: Sequence[CaseStats], contrasts: Sequence[ChannelContrast]
) -> list[SuggestedKey]:
    """Suggest the channels to use if there are several."""
    counts = Counter(case.channels for case in train if case.stats)
    best, similar = contrasts[0] if contrasts else None, similar_contrasts(contrasts)
    note = ""
    if best and len(similar) > 1:  # no channel has a clearly better contrast
        names = join_names([contrast.name for contrast in similar[:MAX_CHANNELS]])
        note = f"; {names} have nearly the same contrast (|d| {best.effect_size:.2f})"
        best = None
    alternative = ""
    if best and best.channel is not None:
        alternative = f"channels: [{best.channel}]   # {best.name} has the highest contrast"
    if comp.dimensions == 2 and len({len(_without_grey(case)) for case in train if case.stats}) > 1:
        return [
            SuggestedKey(
                "prepare.channels", "rgb", "the data contain grey and colour images, so all get three channels"
            )
        ]
    if comp.dimensions == 2 and counts and set(counts) <= {3, 4} and not any(case.is_colour for case in train):
        return [SuggestedKey("prepare.channels", "grey", "the three channels of every image are equal")]
    if comp.dimensions == 2 and counts and set(counts) <= {3, 4}:
        if best and best.name == "grey" and not alternative:
            alternative = "channels: grey   # the grey value has a higher contrast than each of the three channels"
        n_colour = sum(bool(case.is_colour) for case in train)
        reason = f"{n_colour} of {format_count(len(train), 'image')} {has_or_have(n_colour)} colours{note}"
        return [SuggestedKey("prepare.channels", "rgb", reason, (alternative,) if alternative else ())]
    if len(contrasts) > 1 and (alternative or note):
        reason = f"{format_count(len(contrasts), 'channel')}{note}"
        return [SuggestedKey("prepare.channels", "keep", reason, (alternative,) if alternative else ())]
    return []


def _without_grey(case: CaseStats) -> list[ChannelStats]:
    return [channel for channel in case.stats or [] if channel.name != "grey"]


def _patch(shape: Sequence[int]) -> SuggestedKey:
    """Suggest a patch size for cases of the median shape `shape`."""
    size = patch_size(shape)
    median_size = "×".join(map(str, shape))
    limit = f"a patch has at most {MAX_PATCH_PIXELS[len(size)]:,} {pixel_or_voxel(len(size))}s"
    return SuggestedKey("patch", f"{{size: {size}, foreground: 0.5}}", f"the median case has {median_size}; {limit}")


def patch_size(shape: Sequence[int], most: int | None = None) -> list[int]:
    """Return a patch size for a U-Net.

    Each side is the side of the median case, rounded up to a multiple of `STEP`. If a 3D case is thinner than `STEP`
    along an axis, this side is rounded up to a power of two instead. If the patch has more than `most` pixels, its
    longest side is shortened by `STEP` repeatedly.

    Args:
        shape: median shape of preprocessed cases.
        most: maximum number of pixels or voxels; None means `MAX_PATCH_PIXELS`.
    """
    step = STEP[len(shape)]
    most = MAX_PATCH_PIXELS[len(shape)] if most is None else most
    size = [_round_up(length, step) for length in shape]
    while math.prod(size) > most and max(size) > step:
        size[size.index(max(size))] -= step
    return size


def _round_up(length: float, step: int) -> int:
    """Round a length up to a multiple of `step`.

    For volumes (whose `step` is below `STEP[2]`), a length below `step` is rounded up to a power of two instead.
    """
    if step < STEP[2] and length < step:
        return int(2 ** max(0, math.ceil(math.log2(max(1.0, length)))))
    return int(step * max(1, math.ceil(length / step)))


def _to_ras(code: str) -> list[int]:
    """Return, for each axis of RAS, the index of the file's axis along the same line; `code` is e.g. `LPS`."""
    return [next(axis for axis, letter in enumerate(code) if letter in pair) for pair in ("RL", "AP", "SI")]
