"""Define the post-processing steps, one class per step.

The fields of a class are the step's keys in the YAML. Its method `apply` changes a mask, and its method `candidates`
returns the search candidates: steps with the values that tuning tries. The order of the classes in this module is the
order of the steps in tuned lists, and also the order in which tuning searches the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from competition.config.competition import PositiveInt, UnitInterval
from competition.config.experiment import Experiment
from competition.config.postprocess import STEPS, Step
from competition.postprocessing import mask_operations
from competition.postprocessing.case import CaseProbabilities, ClassMask

MASK_SLOT = "mask"  # slot of the steps that make or empty the mask; the search tries them as alternatives
MANY_OBJECTS = 200  # with at least this many objects in the labels, the smallest one is representative
MIN_EMPTY_SHARE = 0.05  # steps that empty masks are tried only if at least this share of the cases lacks the class
MAX_MORPHOLOGY_VOXELS = 2**24  # maximum number of voxels of a case for which opening and closing are searched


class TruthSizes(NamedTuple):
    """Hold, for one class and case, the number of labelled pixels and the sizes of the objects in pixels."""

    pixels: int
    object_sizes: tuple[int, ...]  # in pixels


@dataclass(frozen=True)
class SearchContext:
    """Hold the data about a class from which a step derives its search candidates.

    Attributes:
        exp: the experiment.
        truths: for each case, the sizes of the class and of its objects in the labels.
        largest: number of pixels of the largest case.
        has_boundary: whether the probabilities include a boundary class.
        presence: whether to also search steps that require the presence head.
    """

    exp: Experiment
    truths: Sequence[TruthSizes]
    largest: int
    has_boundary: bool
    presence: bool


# Steps that make the mask


@STEPS.register("threshold")
class Threshold(Step):
    """Make the mask from the pixels whose probability is above the threshold `value`.

    Without this step, the mask consists of the pixels in which the class is the most probable one, or, if classes
    overlap, in which its probability is above 0.5.
    """

    creates_mask = True
    slot = MASK_SLOT
    searched_again = True

    value: UnitInterval

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        return ClassMask(case.above_threshold(index, self.value))

    @classmethod
    def candidates(cls, search: SearchContext) -> list[Threshold]:
        """Return steps with thresholds from 0.3 to 0.7."""
        return [cls(value=value) for value in (0.3, 0.35, 0.4, 0.45, 0.55, 0.6, 0.65, 0.7)]


@STEPS.register("triplet")
class Triplet(Step):
    """Make a mask of the pixels above `low` if at least `pixels` pixels are above `high`; otherwise an empty mask."""

    creates_mask = True
    slot = MASK_SLOT

    high: UnitInterval
    pixels: PositiveInt
    low: UnitInterval

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        mask = mask_operations.double_threshold(case.probability(index), self.high, self.pixels, self.low)
        return ClassMask(mask & case.above_threshold(index, self.low))

    @classmethod
    def candidates(cls, search: SearchContext) -> list[Triplet]:
        """Return one step for each combination of `high`, `pixels` and `low` to try.

        If nearly all cases contain the class, return an empty list, because the step could then only remove true masks.
        """
        areas = [truth.pixels for truth in search.truths if truth.pixels]
        if not areas or len(areas) > (1 - MIN_EMPTY_SHARE) * len(search.truths):
            return []
        pixels = sorted({max(1, round(share * float(np.quantile(areas, 0.05)))) for share in (0.1, 0.3, 0.7)})
        return [
            cls(high=high, pixels=count, low=low)
            for high, count, low in product((0.6, 0.75, 0.9), pixels, (0.35, 0.5))
            if low < high
        ]


@STEPS.register("gate")
class Gate(Step):
    """Empty the mask if the presence head's probability that the case contains the class is below `value`.

    A 2.5D network with a single axis in `patch.axes` predicts a probability for each slice. In this case, the mask of
    each slice is emptied separately.
    """

    needs_presence = True
    slot = MASK_SLOT
    combines = True

    value: UnitInterval

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        present = case.present(index, self.value)
        return current if present.all() else current.restrict(current.mask & present)

    @classmethod
    def candidates(cls, search: SearchContext) -> list[Gate] | None:
        """Return steps with thresholds from 0.05 to 0.9, or None if this step is not useful.

        The step is not useful in two situations: the network has no presence head; or the presence head predicts whole
        cases (not slices), and nearly all cases contain the class.
        """
        by_slice = search.exp.presence_axis is not None
        non_empty = sum(truth.pixels > 0 for truth in search.truths)
        if not search.presence or (not by_slice and non_empty > (1 - MIN_EMPTY_SHARE) * len(search.truths)):
            return None
        return [cls(value=value) for value in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]

    def find_problem(self, exp: Experiment) -> str | None:
        """Return the problem if the experiment has no presence head; see `Step.find_problem`."""
        if exp.gate is None:
            return "the step `gate` requires a presence head; to train one, add the section `gate` to the experiment"
        return None


# Steps that change the mask


@STEPS.register("open")
class Open(Step):
    """Open the mask (erosion, then dilation) with a disk in 2D or a ball in 3D."""

    searched_again = True

    value: PositiveInt  # radius in pixels

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        return current.restrict(mask_operations.binary_opening(current.mask, self.value))

    @classmethod
    def candidates(cls, search: SearchContext) -> list[Open] | None:
        """Return steps with small radii; None if the largest case is so large that opening would take too long."""
        return [cls(value=radius) for radius in _radii(search)] or None


@STEPS.register("close")
class Close(Step):
    """Close the mask (dilation, then erosion) with a disk in 2D or a ball in 3D."""

    value: PositiveInt  # radius in pixels

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        return ClassMask(mask_operations.binary_closing(current.mask, self.value))

    @classmethod
    def candidates(cls, search: SearchContext) -> list[Close] | None:
        """Return steps with small radii; None if the largest case is so large that closing would take too long."""
        return [cls(value=radius) for radius in _radii(search)] or None


@STEPS.register("fill_holes")
class FillHoles(Step):
    """Fill holes of the mask; if an earlier step has made objects, fill the holes of each object."""

    value: Annotated[bool, Field(strict=True)]

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        if current.objects is None:
            return ClassMask(mask_operations.fill_holes(current.mask))
        return ClassMask.from_objects(mask_operations.fill_object_holes(current.objects))

    @classmethod
    def candidates(cls, search: SearchContext) -> list[FillHoles]:
        """Return one step, because `true` is the only value to try."""
        return [cls(value=True)]


@STEPS.register("split")
class Split(Step):
    """Separate touching objects by a watershed.

    Each object grows from a seed. Set either `distance` or `boundary`:

    - If `distance` is set, the seeds are peaks of the distance to the background.
    - If only `boundary` is set, the seeds are regions in which the probability of being inside an object is high.
    - If `boundary` and `depth` are set, the seeds are peaks of the sum of this probability and the square root of a
      distance, see `mask_operations.split_inner_peaks`.
    """

    searched_again = True

    # Minimum height, in pixels, of a peak of the distance above the saddle to a higher peak.
    distance: Annotated[float, Field(gt=0)] | None = None
    # Standard deviation, in pixels, of the Gaussian that smooths the distance.
    smooth: Annotated[float, Field(ge=0)] = 1.0
    # Seeds are the pixels whose probability of being inside an object is above this value.
    boundary: UnitInterval | None = None
    smallest: PositiveInt = 4  # minimum seed size in pixels; used only without `depth`
    # Minimum height, above the saddle to a higher peak, of a peak of probability and distance together. The distance is
    # that to the pixels whose probability of being inside an object is at most `boundary`.
    depth: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_method(self) -> Split:
        if (self.distance is None) == (self.boundary is None):
            raise ValueError("`split` requires exactly one of `distance` and `boundary`")
        if self.depth is not None and self.boundary is None:
            raise ValueError("`split` with `depth` requires `boundary`")
        return self

    @model_serializer(mode="wrap")
    def _omit_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `depth` if it is not set, so that the stored steps of earlier versions stay the same."""
        return {key: value for key, value in handler(self).items() if key != "depth" or value is not None}

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        if self.boundary is not None:
            mask, interior = current.mask, case.interior(index)
            if self.depth is not None:
                objects = mask_operations.split_inner_peaks(mask, interior, self.boundary, self.depth, self.smooth)
            else:
                objects = mask_operations.split_seeds(mask, interior, self.boundary, self.smallest)
        else:
            assert self.distance is not None  # `_check_method`
            objects = mask_operations.split_distance(current.mask, self.smooth, self.distance)
        return ClassMask.from_objects(objects)

    @classmethod
    def candidates(cls, search: SearchContext) -> list[Split] | None:
        """Return splits by distance and, if there is a boundary class, also by boundary and by both together.

        Return None if the competition does not score objects.
        """
        if not search.exp.competition.instances:
            return None
        pairs = ((1.0, 1.0),) if search.has_boundary else ((0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 2.0))
        splits = [cls(distance=depth, smooth=smooth) for depth, smooth in pairs]
        if search.has_boundary:
            splits += [cls(boundary=level) for level in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
            both = product((0.6, 0.8), (0.4, 0.6, 0.8))
            splits += [cls(boundary=level, depth=depth, smooth=1.5) for level, depth in both]
        return splits

    def find_problem(self, exp: Experiment) -> str | None:
        """Return the problem if objects are not scored, or the boundary class is missing; see `Step.find_problem`."""
        if not exp.competition.instances:
            return "the step `split` requires competition.instances: true"
        if self.boundary is not None and exp.prepare.object_key is None:
            return (
                "`split: {boundary: …}` requires a network that learns boundaries; set `prepare.boundary` or "
                "`prepare.rings`"
            )
        return None


@STEPS.register("remove_small")
class RemoveSmall(Step):
    """Remove objects of fewer than `value` pixels.

    If no earlier step has made objects, each connected component of the mask is treated as an object.
    """

    searched_again = True

    value: PositiveInt  # pixels

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        if current.objects is None:
            return ClassMask(mask_operations.remove_small(current.mask, self.value))
        return ClassMask.from_objects(mask_operations.remove_small_objects(current.objects, self.value))

    @classmethod
    def candidates(cls, search: SearchContext) -> list[RemoveSmall]:
        """Return steps with sizes below those of nearly all labelled objects; an empty list if no size is suitable."""
        sizes = [size for truth in search.truths for size in truth.object_sizes]
        if not sizes:
            return []
        small, median, limit = float(np.quantile(sizes, 0.02)), float(np.median(sizes)), _safe_size(sizes)
        values = {share * small for share in (0.25, 0.5, 1.0)} | {share * median for share in (0.05, 0.1, 0.2)}
        return [cls(value=value) for value in sorted({round(min(value, limit)) for value in values}) if value > 1]


@STEPS.register("remove_uncertain")
class RemoveUncertain(Step):
    """Remove objects whose mean probability is below `value`.

    If no earlier step has made objects, each connected component of the mask is treated as an object.

    False objects often have a low probability in all their pixels. So this step removes more false than true objects.
    """

    searched_again = True

    value: UnitInterval  # minimum mean probability of an object's pixels

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        objects = mask_operations.remove_uncertain(current.labels(), case.probability(index), self.value)
        return current.restrict(objects != 0)

    @classmethod
    def candidates(cls, search: SearchContext) -> list[RemoveUncertain] | None:
        """Return steps with probabilities from 0.6 to 0.95; None if the competition does not score objects."""
        if not search.exp.competition.instances:
            return None
        return [cls(value=value) for value in (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)]


@STEPS.register("keep_largest")
class KeepLargest(Step):
    """Keep the `value` largest connected components of the mask, and remove all others."""

    value: PositiveInt  # number of components

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> ClassMask:
        """Apply this step to one class; see `Step.apply`."""
        return current.restrict(mask_operations.keep_largest(current.mask, self.value))

    @classmethod
    def candidates(cls, search: SearchContext) -> list[KeepLargest] | None:
        """Return steps with 1, 2 and 3 components; None if the competition scores objects."""
        return None if search.exp.competition.instances else [cls(value=count) for count in (1, 2, 3)]


def _radii(search: SearchContext) -> tuple[int, ...]:
    """Return the radii in pixels to try for opening and closing; an empty tuple for large cases."""
    if search.largest > MAX_MORPHOLOGY_VOXELS:
        return ()
    return (1,) if search.exp.competition.dimensions == 3 else (1, 2)


def _safe_size(sizes: Sequence[int]) -> float:
    """Return a size in pixels that one more true object would almost certainly exceed.

    The smallest of a few observed objects is a poor estimate of this size. So the sizes are assumed to be log-normal,
    and the result is the lower 99 % prediction bound for one more observation (Hahn and Meeker, Statistical Intervals,
    section 4.7).

    If there are `MANY_OBJECTS` or more objects, the observed sizes are a good estimate, so the result is infinite and
    limits no candidate. If there are fewer than three objects, the result is 0.

    Args:
        sizes: sizes of the objects in the labels, in pixels.
    """
    if len(sizes) >= MANY_OBJECTS:
        return np.inf
    if len(sizes) < 3:
        return 0.0
    from scipy.stats import t

    logs = np.log(sizes)
    spread = float(logs.std(ddof=1)) * np.sqrt(1 + 1 / len(logs))
    return float(np.exp(logs.mean() + t.ppf(0.01, len(logs) - 1) * spread))
