"""Plan the first experiment: derive each setting from the measurements of `explore` by a simple rule, with a reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import yaml

from competition.config.competition import Competition
from competition.explore import Exploration
from competition.explore.suggest import DEFAULT_FOLDS, suggest_keys
from competition.explore.types import CaseStats
from competition.planning.lines import Line, key_path
from competition.planning.words import has_word, words
from competition.text import format_count, pixel_or_voxel

LEVELS = 3  # number of times that the network halves its patch, if the axes are long enough
MAX_PATCH = {2: 256**2, 3: 2**18}  # pixels; a step on one CPU core then takes seconds, not minutes
BATCH = {2: 8, 3: 2}
STEPS, STEPS_PER_EPOCH = 1000, 50
ANISOTROPY = 3.0
SIDE_WORDS = words("left right l r")
MIN_OBJECT, THICK_OBJECT = 6, 12  # median object sides in pixels from which borders are one and two pixels wide


def plan_experiment(exploration: Exploration, minutes: float | None, k: int | None) -> list[Line]:
    """Return the keys of experiment.yaml with their reasons; an empty list without a readable training case.

    Args:
        exploration: exploration of the competition.
        minutes: time budget of a fold; None trains a fixed number of steps.
        k: number of folds; None takes five. If there are fewer groups, there are fewer folds.
    """
    comp = exploration.comp
    suggested, shape = suggest_keys(comp, exploration.cases, exploration.contrasts, k or DEFAULT_FOLDS)
    if not suggested:
        return []
    train = [case for case in exploration.used_cases("train") if case.readable]
    lines = [
        Line(("competition",), "competition.yaml", "what the host provides"),
        Line(("seed",), 12345, "another seed gives other folds and weights"),
    ]
    for item in suggested:
        if item.key not in ("prepare.resize",) and not (item.key == "prepare.spacing" and item.value == "null"):
            lines.append(_with_stratum(comp, Line(key_path(item.key), yaml.safe_load(item.value), item.reason)))
    lines += _crop(comp, train) + _boundary(comp, train)
    lines = [line for line in lines if line.path[0] != "prepare"] + [
        line for line in lines if line.path[0] == "prepare"
    ]
    size = patch_size(shape)
    median = "×".join(map(str, shape))
    lines.append(
        Line(
            ("patch",),
            {"size": size, "foreground": 0.5},
            f"the median case has {median}; at most {MAX_PATCH[len(size)]:,} {pixel_or_voxel(len(size))}s, "
            "and half of the patches on foreground",
        )
    )
    lines += [_augment(comp), *_network(comp, size), _loss(comp)]
    lines += [
        Line(
            ("optimizer",),
            {"target": "torch.optim.AdamW", "args": {"lr": 2.0e-3, "weight_decay": 1.0e-4}},
            "fits networks of this size with normalisation, from random weights",
        ),
        Line(("schedule",), {"name": "cosine", "warmup": 0.02}, "the rate falls to zero at the last step"),
        *_training(comp, minutes),
        Line(
            ("inference",),
            {"overlap": 0.25 if comp.dimensions == 2 else 0.5, "tta": "auto"},
            "tta: the flips of training",
        ),
        Line(("postprocess",), {"tune": True}, "a step is kept only if it gains on folds that it was not tuned on"),
    ]
    return lines


def _with_stratum(comp: Competition, line: Line) -> Line:
    """Return the line of the folds with a scheme that balances the competition's strata."""
    if line.path != ("folds",) or comp.stratum is None or "stratified" in line.value["scheme"]:
        return line
    scheme = "stratified_group" if line.value["scheme"] == "group" else "stratified"
    return Line(line.path, {**line.value, "scheme": scheme}, f"{line.reason}; balanced by {comp.stratum}")


def patch_size(shape: Sequence[int]) -> list[int]:
    """Return a patch size for a U-Net with `LEVELS` halvings: at most the median case and at most `MAX_PATCH`.

    Axes are multiples of eight, or of a smaller power of two if the case is thinner; the longest axis is shortened
    first.
    """
    size = [_fit_axis(length) for length in shape]
    while math.prod(size) > MAX_PATCH[len(size)] and max(size) > 2**LEVELS:
        size[size.index(max(size))] -= 2**LEVELS
    if len(size) == 2:  # encoders of 2D networks halve five times
        return [max(32, 32 * round(side / 32)) for side in size]
    return size


def _fit_axis(length: int) -> int:
    step = 2**LEVELS
    if length < step:
        return int(2 ** max(0, math.ceil(math.log2(max(1, length)))))
    return step * math.ceil(length / step)


def _crop(comp: Competition, train: Sequence[CaseStats]) -> list[Line]:
    """Crop to voxels that are not 0 if at least half of most cases is 0, as in images without skull or table."""
    stats = [case.stats[0] for case in train if case.stats]
    empty = [item for item in stats if item.median == 0 and item.minimum == 0]
    if comp.dimensions == 3 and len(empty) > 0.5 * len(stats):
        reason = (
            f"in {len(empty)} of {format_count(len(stats), 'case')} at least half is exactly 0; statistics leave it out"
        )
        return [Line(("prepare", "crop"), "nonzero", reason)]
    return []


def _boundary(comp: Competition, train: Sequence[CaseStats]) -> list[Line]:
    """Add a border class for touching objects if they are wide enough."""
    if not comp.instances or comp.labels != "exclusive":
        return []
    sizes = [size for case in train if case.truth is not None for size in case.truth.object_sizes.tolist()]
    side = math.sqrt(sorted(sizes)[len(sizes) // 2]) if sizes else 0.0
    if side < MIN_OBJECT:
        return []
    width = 2 if side >= THICK_OBJECT else 1
    return [
        Line(
            ("prepare", "boundary"),
            width,
            f"the border of each object is a class; the median object is {side:.0f} wide",
        )
    ]


def _augment(comp: Competition) -> Line:
    sided = [name for name in comp.classes if has_word(name, SIDE_WORDS)]
    if sided:
        return Line(
            ("augment",), {"preset": "medium", "flip": False}, f"no flips: classes have sides ({', '.join(sided[:3])})"
        )
    return Line(
        ("augment",), {"preset": "medium", "flip": True}, "no class is called left or right, so flips are allowed"
    )


def _network(comp: Competition, size: Sequence[int]) -> list[Line]:
    if comp.dimensions == 2:
        depth = min(5, int(math.log2(min(size))) - 1)
        channels = [128, 64, 48, 32, 16][5 - depth :]
        return [
            Line(("model", "target"), "segmentation_models_pytorch.Unet", "a 2D U-Net; no weights are downloaded"),
            Line(
                ("model", "args"),
                {"encoder_name": "resnet18", "encoder_depth": depth, "decoder_channels": channels},
                "small enough to train on a CPU; resnet34 on a GPU",
            ),
        ]
    strides = _strides(size)
    channels = [16, 32, 64, 128][: len(strides) + 1]
    thin = "" if all(isinstance(stride, int) for stride in strides) else "; short axes are halved less often"
    return [
        Line(("model", "target"), "monai.networks.nets.UNet", "a 3D U-Net with residual units"),
        Line(
            ("model", "args"),
            {"spatial_dims": 3, "channels": channels, "strides": strides, "num_res_units": 2, "norm": "instance"},
            f"{len(channels)} levels{thin}",
        ),
    ]


def _strides(size: Sequence[int]) -> list[Any]:
    """Return the strides of the levels; do not halve axes of a few voxels, and halve thin axes later."""
    left, strides = list(size), []
    for _ in range(LEVELS):
        step = [2 if side % 2 == 0 and side >= 4 and side >= max(left) / ANISOTROPY else 1 for side in left]
        if set(step) == {1}:
            break
        left = [side // factor for side, factor in zip(left, step, strict=True)]
        strides.append(2 if set(step) == {2} else step)
    return strides or [1]


def _loss(comp: Competition) -> Line:
    if comp.labels == "exclusive":
        return Line(
            ("loss",),
            {"target": "monai.losses.DiceCELoss", "args": {"include_background": False}},
            "Dice of the classes and cross-entropy; softmax, because classes exclude each other",
        )
    return Line(
        ("loss",),
        [{"target": "monai.losses.DiceLoss"}, {"target": "torch.nn.BCEWithLogitsLoss"}],
        "Dice and binary cross-entropy of each class; sigmoid, because classes overlap",
    )


def _training(comp: Competition, minutes: float | None) -> list[Line]:
    batch = BATCH[comp.dimensions]
    if minutes is not None:
        length = [Line(("training", "budget_minutes"), minutes, "per fold, everything included (--minutes)")]
    else:
        epochs = STEPS // STEPS_PER_EPOCH
        length = [Line(("training", "epochs"), epochs, f"{STEPS:,} steps; budget_minutes ends a fold by time instead")]
    return [
        *length,
        Line(("training", "steps_per_epoch"), STEPS_PER_EPOCH, "an epoch is a line in the log"),
        Line(("training", "batch_size"), batch, "a larger batch needs more memory, and gives steadier steps"),
        Line(("training", "ema"), 0.99, "averaged weights predict"),
        Line(("training", "validate_every"), 5, "epochs between validations, because validations take time too"),
    ]
