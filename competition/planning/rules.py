"""Define the rules of the plan: list the candidates, and choose the best one by their timings on this machine.

Every function is pure: the same data, budget and timings give the same plan. `competition.planning.measure` measures
the timings; `competition.planning.recipe` writes the YAML. docs/plan.md has the evidence for the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from competition.explore.suggest import MAX_PATCH_PIXELS, STEP, patch_size

Size = Literal["light", "medium", "standard", "wide"]

# What a training needs: a number of optimiser steps (MIN_STEPS…), and a number of voxels in all its patches
# (MIN_CASES_SEEN).
MIN_STEPS: dict[int, dict[Size, int]] = {
    2: {"light": 300, "medium": 300, "standard": 300, "wide": 3000},
    3: {"light": 300, "medium": 600, "standard": 300, "wide": 1500},
}
# In the same time, many steps on parts of a case teach more than few steps on whole volumes or large parts of images.
MIN_STEPS_ON_PARTS = {2: 700, 3: 300}
MIN_STEPS_ON_LARGE = {2: 3000, 3: 1000}
PART = 2 / 3  # if a volume fits into one patch, there are also patches with this share of the volume's voxels
MIN_CASES_SEEN = 100  # number of voxels in all patches of a training, in units of the median case's number of voxels
HOPELESS_STEPS = 60  # with fewer steps, a network learns almost nothing

# The grid: multiples of the data's own spacing, and the minimum side of an object, in voxels of a coarser grid.
FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
MIN_OBJECT_SIDE = {2: 24.0, 3: 6.0}

# 2D: structures that are thinner than this on a coarser grid, in pixels, lose a large part of their score on it.
MIN_WIDTH = 3.0

# A candidate is measured if it gets at least this share of the steps that it needs, by its extrapolated timing.
HOPE = 0.8

# Shares of the budget
VALIDATION_SHARE = 0.10  # maximum share of the validations during training
PREDICTION_SHARE = 0.25  # maximum share of the final prediction; if it takes more, windows overlap less
MIRROR_SHARE = 0.10  # maximum share of the final prediction for which it is averaged over mirrored views
START_SECONDS = 8.0  # loading libraries and cases before the first step, writing files at the end
TRIAL_STEPS, TRIAL_CASES = 3, 2  # trial steps and cases that training times before its first step
MAX_VALIDATIONS = 5

EMA_SHARE = 0.10  # the averaged weights cover this share of the last steps
MAX_EMA_WINDOW = 200


@dataclass(frozen=True)
class Grid:
    """Describe a resolution of the preprocessed cases.

    Attributes:
        factor: spacing of the fine axes, as a multiple of the data's own spacing. In 2D, `long_side` is rounded, so the
            factor is not one of `FACTORS`.
        spacing: voxel size along each axis of volumes in mm; None keeps the spacing of the files.
        long_side: 2D: length of the longer side; None keeps the scale of the images.
        shape: median shape of the cases on this grid.
        keeps_width: whether the thinnest structures are still wide enough on this grid, see `MIN_WIDTH`.
    """

    factor: float
    spacing: tuple[float, ...] | None
    long_side: int | None
    shape: tuple[int, ...]
    keeps_width: bool = True

    @property
    def times(self) -> str:
        """The grid's factor as text, for example `1.5`."""
        return f"{self.factor:.{2 if self.spacing is None else 3}g}"


@dataclass(frozen=True)
class Candidate:
    """Hold the settings of a possible experiment that determine the duration of a training step.

    Attributes:
        grid: resolution of the preprocessed cases.
        network: size of the network.
        patch: pixels or voxels along each axis.
        batch: number of patches in a step.
        enough: number of steps that a training of this candidate needs.
    """

    grid: Grid
    network: Size
    patch: tuple[int, ...]
    batch: int
    enough: int

    @property
    def work(self) -> float:
        """Voxels in a step times the relative cost of the network; this product is proportional to the step's time."""
        return self.batch * math.prod(self.patch) * NETWORK_COST[len(self.patch)][self.network]

    @property
    def seen(self) -> float:
        """Size of all patches of a training step, in cases of median size.

        A patch that is larger than the median case is counted as one case.
        """
        return self.batch * min(1.0, math.prod(self.patch) / max(1, math.prod(self.grid.shape)))

    @property
    def name(self) -> str:
        """Description of the candidate, for the printed table of candidates."""
        grid = "own grid" if self.grid.factor == 1 else f"{self.grid.times}× coarser"
        return f"{grid}, {self.settings}"

    @property
    def settings(self) -> str:
        """Description of the candidate without its grid."""
        return f"{self.network} network, patch {'×'.join(map(str, self.patch))}, batch {self.batch}"

    @property
    def needed(self) -> int:
        """Number of steps that are enough, see `is_enough`."""
        return max(self.enough, math.ceil(MIN_CASES_SEEN / self.seen))


# Seconds of a step per voxel, relative to the standard network, to choose which candidate to measure next.
NETWORK_COST: dict[int, dict[Size, float]] = {
    2: {"light": 0.7, "medium": 0.8, "standard": 1.0, "wide": 1.6},
    3: {"light": 0.15, "medium": 0.4, "standard": 1.0, "wide": 3.0},
}


@dataclass(frozen=True)
class Timing:
    """Hold the time and memory that a candidate takes on this machine.

    Attributes:
        step: seconds of a step on this machine when nothing else runs.
        case: seconds to predict and score a median case, without mirrored views.
        step_wall: elapsed seconds of a step, while other programs may run.
        memory_gib: peak memory of the process (on a GPU, of the device) in GiB; 0 if unknown.
        network_share: share of the step in network, loss and optimiser; the rest is data and augmentation.
        measured: whether the figures were measured; False if they are extrapolated from another candidate.
    """

    step: float
    case: float
    step_wall: float
    memory_gib: float = 0.0
    network_share: float = 1.0
    measured: bool = True


@dataclass(frozen=True)
class Budget:
    """Hold the time of a fold, and the predictions that must fit into it.

    Attributes:
        minutes: minutes of a fold.
        validated: size of all cases that the fold predicts at its end and at each validation, in cases of median size.
        views: number of mirrored views that `inference.tta: auto` would predict, 1 without mirroring.
    """

    minutes: float
    validated: float
    views: int = 1


@dataclass(frozen=True)
class Schedule:
    """Hold the steps, validations and prediction of a candidate that fit into a budget.

    Attributes:
        steps: expected number of steps.
        steps_per_epoch: steps of an epoch.
        validate_every: epochs between validations; more than the number of epochs if no validation fits into the
            budget.
        validations: expected number of validations during training.
        ema: decay of the averaged weights.
        warmup: share of the steps in which the learning rate rises.
        overlap: overlap of neighbouring sliding windows, as a share of the window.
        mirrored: whether the prediction is averaged over mirrored views.
        prediction: share of the budget that the final prediction takes.
    """

    steps: int
    steps_per_epoch: int
    validate_every: int
    validations: int
    ema: float
    warmup: float
    overlap: float
    mirrored: bool
    prediction: float


# Candidates


def grids(
    shape: Sequence[int],
    spacing: Sequence[float] | None,
    object_side: float,
    width: float = math.inf,
    *,
    may_resample: bool = True,
) -> list[Grid]:
    """Return the resolutions (grids) of preprocessed cases from which the plan chooses, the finest first.

    A coarser grid first resamples only the fine axes, until they are as coarse as the other axes. A grid is left out
    if the objects of the smallest class would be smaller than `MIN_OBJECT_SIDE` on it.

    Args:
        shape: median shape of the cases on their own grid.
        spacing: voxel size along each axis of the cases' own grid in mm; None in 2D.
        object_side: side of a typical object of the smallest class, in pixels or voxels of the cases' own grid.
        width: 2D: mean width of the class with the thinnest structures, in pixels of the cases' own grid.
        may_resample: if False, only the data's own grid is returned.
    """
    found = [Grid(1.0, None, None, tuple(shape))]
    for factor in FACTORS[1:]:
        if not may_resample or object_side / factor < MIN_OBJECT_SIDE[len(shape)]:
            break
        if spacing is None:
            longest = STEP[2] * max(1, round(max(shape) / factor / STEP[2]))
            scale = longest / max(shape)
            if scale < 1 and longest != found[-1].long_side:
                size = tuple(max(1, round(side * scale)) for side in shape)
                found.append(Grid(round(1 / scale, 2), None, longest, size, width * scale >= MIN_WIDTH))
        else:
            target = tuple(round(max(mm, factor * min(spacing)), 4) for mm in spacing)
            size = tuple(max(1, round(n * mm / new)) for n, mm, new in zip(shape, spacing, target, strict=True))
            found.append(Grid(factor, target, None, size))
    return found


def candidates_of(found: Sequence[Grid], *, may_cut: bool = False) -> list[Candidate]:
    """Return the candidates in the order of preference: the finest grid first, then network and batch, then patch.

    In 3D, no candidate has a batch of one patch, because on a CPU, such a step takes much more than half the time of a
    step with two patches. If a whole case fits into a patch, there are also candidates whose patch is a part of the
    case.

    Args:
        found: grids, the finest first.
        may_cut: in 2D, whether a patch may be a small part of an image, because objects are small.
    """
    dims = len(found[0].shape)
    options: list[tuple[Size, int, float]]  # network, batch, share of the largest patch
    last: list[tuple[Size, int, float]]  # used only if no other option gets enough steps on any grid
    if dims == 3:
        networks: tuple[Size, ...] = ("wide", "standard", "medium", "light")
        options = [(network, 2, share) for network in networks for share in (1.0, PART)]
        last = [("light", 2, 1 / 2), ("light", 2, 1 / 4), ("light", 2, 1 / 8)]
    elif may_cut:
        options = [("wide", 8, 1.0), ("standard", 8, 1.0)]
        options += [("standard", 4, share) for share in (1.0, 1 / 4)]
        last = [("light", 2, 1.0), ("light", 4, 1 / 4), ("light", 2, 1 / 4)]
    else:
        options = [("wide", 8, 1.0), ("standard", 8, 1.0), ("standard", 4, 1.0), ("light", 4, 1.0)]
        last = [("light", 4, 1 / 4), ("light", 2, 1 / 4)]
    choices = [(grid, option) for grid in found for option in options]
    choices += [(grid, option) for option in last for grid in found]  # a large patch before a fine grid
    ordered = []
    for grid, (network, batch, share) in choices:
        largest = MAX_PATCH_PIXELS[dims]
        if share == PART:
            largest = min(largest, math.prod(grid.shape))
        patch = patch_size(grid.shape, None if share == 1 else int(share * largest))
        enough = MIN_STEPS[dims][network]
        if dims == 3 or may_cut:
            whole = all(side >= length for side, length in zip(patch, grid.shape, strict=True))
            is_large = whole if dims == 3 else share == 1
            enough = max(enough, (MIN_STEPS_ON_LARGE if is_large else MIN_STEPS_ON_PARTS)[dims])
        ordered.append(Candidate(grid, network, tuple(patch), batch, enough))
    return list(dict.fromkeys(ordered))


# Choice


def extrapolate(candidate: Candidate, known: Mapping[Candidate, Timing]) -> Timing:
    """Estimate a candidate's timing from the timing of a measured candidate.

    The measured candidate is the one whose step has the most similar work, preferably one with the same network. The
    estimate assumes that the time of a step is proportional to its work, that predicting a case takes a third of the
    time of a step with the same work (only the forward pass), and that reading, resampling and scoring take the same
    time for every candidate.
    """
    nearest = min(
        known, key=lambda other: (other.network != candidate.network, abs(math.log(other.work / candidate.work)))
    )
    base, work = known[nearest], candidate.work / nearest.work
    further = base.step * FORWARD_SHARE * (_predicted_work(candidate) - _predicted_work(nearest)) / nearest.work
    return replace(
        base,
        step=base.step * work,
        step_wall=base.step_wall * work,
        case=max(0.1 * base.case, base.case + further),
        measured=False,
    )


FORWARD_SHARE = 1 / 3  # the forward pass's share of a training step


def _predicted_work(candidate: Candidate) -> float:
    """Return the work to predict a median case: the voxels in all windows times the network's relative cost."""
    dims = len(candidate.patch)
    windows = count_windows(candidate.grid.shape, candidate.patch, OVERLAP[dims])
    return windows * math.prod(candidate.patch) * NETWORK_COST[dims][candidate.network]


OVERLAP = {2: 0.25, 3: 0.5}  # overlap of neighbouring windows
LEAST_OVERLAP = 0.25


def count_windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """Return the number of sliding windows of size `patch` that cover a case with the given overlap."""
    return math.prod(
        1 if side <= window else 1 + math.ceil((side - window) / max(1.0, window * (1 - overlap)))
        for side, window in zip(shape, patch, strict=True)
    )


def schedule_of(candidate: Candidate, timing: Timing, budget: Budget) -> Schedule:
    """Return the steps, validations and prediction of a candidate that fit into a budget."""
    dims, seconds = len(candidate.patch), 60.0 * budget.minutes
    overlap, case = OVERLAP[dims], timing.case
    if budget.validated * case > PREDICTION_SHARE * seconds and overlap > LEAST_OVERLAP:
        few, many = (count_windows(candidate.grid.shape, candidate.patch, share) for share in (LEAST_OVERLAP, overlap))
        overlap, case = LEAST_OVERLAP, case * few / many
    mirrored = budget.views > 1 and budget.validated * case * budget.views <= MIRROR_SHARE * seconds
    if mirrored:
        case *= budget.views
    prediction = budget.validated * case
    free = seconds - START_SECONDS - TRIAL_STEPS * timing.step - TRIAL_CASES * case - 1.15 * prediction
    validations = min(MAX_VALIDATIONS, int(VALIDATION_SHARE * seconds / max(1e-9, prediction)))
    steps = max(0, int((free - validations * prediction) / max(1e-9, timing.step)))
    per_epoch = min(100, max(10, 10 * round(steps / 100)))
    epochs = max(1, math.ceil(steps / per_epoch))
    every = math.ceil(epochs / (validations + 1)) if validations else NO_VALIDATION
    return Schedule(
        steps=steps,
        steps_per_epoch=per_epoch,
        validate_every=max(1, every),
        validations=validations,
        ema=ema_decay(steps),
        warmup=round(min(0.1, max(0.02, 10 / max(1, steps))), 3),
        overlap=overlap,
        mirrored=mirrored,
        prediction=prediction / seconds,
    )


NO_VALIDATION = 1000  # epochs: no validation before the end


def ema_decay(steps: int) -> float:
    """Return the decay with which the moving average of the weights covers about `EMA_SHARE` of the steps.

    The average covers at least 5 and at most `MAX_EMA_WINDOW` steps.
    """
    window = min(MAX_EMA_WINDOW, max(5.0, EMA_SHARE * steps))
    return round(1.0 - 1.0 / window, 3)


def is_enough(candidate: Candidate, schedule: Schedule, share: float = 1.0) -> bool:
    """Return whether a candidate gets enough steps within the budget.

    It must get at least `share` of the steps that it needs. The patches of all these steps together must also have at
    least the size of `share` times `MIN_CASES_SEEN` cases of median size.
    """
    return schedule.steps >= share * candidate.enough and schedule.steps * candidate.seen >= share * MIN_CASES_SEEN


def choose(
    candidates: Sequence[Candidate], known: Mapping[Candidate, Timing], budget: Budget, *, hope: float = 1.0
) -> Candidate:
    """Return the first candidate that gets enough steps within the budget.

    If no candidate gets enough steps, the result is the candidate that gets the most steps.

    Candidates whose grid is too coarse for thin structures (`Grid.keeps_width`) are considered only if every other
    candidate gets fewer than `HOPELESS_STEPS` steps.

    Args:
        candidates: in the order of preference.
        known: timings of the measured candidates (at least one); all other timings are extrapolated from them.
        budget: the time of a fold.
        hope: share of the needed steps that is enough for a candidate whose network, patch and batch have not been
            timed on any grid.
    """

    def schedule(candidate: Candidate) -> Schedule:
        return schedule_of(candidate, known.get(candidate) or extrapolate(candidate, known), budget)

    def share(candidate: Candidate) -> float:
        steps = (candidate.network, candidate.patch, candidate.batch)
        is_known = any(steps == (other.network, other.patch, other.batch) for other in known)  # on whichever grid
        return 1.0 if is_known else hope

    def first(group: Sequence[Candidate]) -> Candidate | None:
        return next((item for item in group if is_enough(item, schedule(item), share(item))), None)

    fine = [candidate for candidate in candidates if candidate.grid.keeps_width]
    if fine:
        pick = first(fine) or fastest(fine, known, budget)
        if schedule(pick).steps >= HOPELESS_STEPS * share(pick):
            return pick
    return first(candidates) or fastest(candidates, known, budget)


def fastest(candidates: Sequence[Candidate], known: Mapping[Candidate, Timing], budget: Budget) -> Candidate:
    """Return the candidate that gets the most steps within a budget."""
    return max(
        candidates, key=lambda item: schedule_of(item, known.get(item) or extrapolate(item, known), budget).steps
    )


def smallest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the least work, which is measured first."""
    return min(candidates, key=lambda item: (item.work, candidates.index(item)))
