"""Convert probabilities to masks and objects by each class's list of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.config.postprocess import PostprocessConfig, StepConfig
from competition.errors import MaskfoldError
from competition.inference.predict import merge_boundary_class, to_masks
from competition.metrics.instances import connected_components
from competition.postprocessing import steps as steps_module
from competition.postprocessing.ordering import case_affine, relabel_by_order

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class ClassMask:
    """Mask and objects of one class after some steps.

    Attributes:
        mask: (*spatial) bool.
        objects: (*spatial) int32, 0 for background, objects from 1; None: the mask's connected components.
    """

    mask: Mask
    objects: Labels | None = None

    def labels(self) -> Labels:
        """Return the objects; connected components if no step has set them."""
        return connected_components(self.mask).astype(np.int32) if self.objects is None else self.objects


@dataclass(frozen=True)
class CaseProbabilities:
    """The probabilities of one case, shared by the steps of all classes.

    Args:
        probabilities: (P, *spatial) float16; the boundary class, if any, is last.
        comp: the competition.
        presence: (K, 1, …), probability that the case contains each class, see `competition.inference.predict`; only
            the step `gate` uses it.
    """

    probabilities: NDArray[Any]
    comp: Competition
    presence: NDArray[Any] | None = None

    @cached_property
    def masks(self) -> Mask:
        """(K, *spatial) bool, by argmax, or by 0.5 where classes overlap."""
        return to_masks(self.probabilities, self.comp)

    @cached_property
    def class_probabilities(self) -> NDArray[Any]:
        """(comp.output_channels, *spatial): the probabilities with the boundary class merged into the classes."""
        return merge_boundary_class(self.probabilities, self.comp) if self.has_boundary else self.probabilities

    @property
    def empty(self) -> ClassMask:
        """An empty mask."""
        return ClassMask(np.zeros(self.probabilities.shape[1:], np.bool_))

    @property
    def has_boundary(self) -> bool:
        """Whether there is a boundary class."""
        return len(self.probabilities) > self.comp.output_channels

    def probability(self, index: int) -> NDArray[Any]:
        """Return the probability of a class, (*spatial)."""
        return np.asarray(self.class_probabilities[index + (self.comp.labels == "exclusive")])

    def interior(self, index: int) -> NDArray[Any]:
        """Return the probability that a pixel is in an object of a class and not on its boundary, (*spatial)."""
        return np.asarray(self.probabilities[index + (self.comp.labels == "exclusive")])

    def present(self, index: int, threshold: float) -> NDArray[Any]:
        """Return where the presence of a class reaches a threshold: (1, …) bool, or one value per slice.

        Raises:
            MaskfoldError: the prediction has no presence.
        """
        if self.presence is None:
            raise MaskfoldError(
                "The step `gate` requires a presence head, but the prediction has none.",
                "Remove `gate` from postprocess.steps, or use a run that was trained with `gate`.",
            )
        return np.asarray(self.presence[index] >= threshold)

    def above_threshold(self, index: int, threshold: float) -> Mask:
        """Return where the class exceeds a threshold and no exclusive class is more probable, (*spatial) bool."""
        probability = self.probability(index)
        mask = np.asarray(probability > threshold)
        if self.comp.labels == "exclusive":
            for other in range(len(self.comp.classes)):
                if other < index:  # ties go to the first class, as with argmax
                    mask &= probability > self.probability(other)
                elif other > index:
                    mask &= probability >= self.probability(other)
        return mask


@dataclass(frozen=True)
class CasePrediction:
    """The masks of one case.

    Attributes:
        masks: (K, *spatial) bool.
        objects: (K, *spatial) int32, the objects of each class; None: the connected components of the masks.
    """

    masks: Mask
    objects: Labels | None

    def object_masks(self, index: int) -> Iterator[Mask]:
        """Yield the objects of a class, one mask at a time."""
        labels = connected_components(self.masks[index]) if self.objects is None else self.objects[index]
        for number in np.unique(labels[labels != 0]):
            yield np.asarray(labels == number)


def apply_ordering(
    probabilities: NDArray[Any],
    comp: Competition,
    settings: PostprocessConfig,
    row: Any = None,
    presence: NDArray[Any] | None = None,
) -> CaseProbabilities:
    """Return a case's probabilities for the steps, relabelled by the objects' order if `number` is set.

    Args:
        probabilities: (P, *spatial) floats.
        comp: the competition.
        settings: the post-processing; only `number` is used.
        row: of the case table, or `competition.ensembling.ensemble.InMemoryCase`; `number` requires its affine.
        presence: see `CaseProbabilities`.

    Raises:
        MaskfoldError: `number` is set and the case has no affine.
    """
    if settings.number is not None:
        probabilities = relabel_by_order(probabilities, comp, settings.number, case_affine(row, comp))
    return CaseProbabilities(probabilities, comp, presence)


def postprocess(
    probabilities: NDArray[Any],
    comp: Competition,
    settings: PostprocessConfig,
    row: Any = None,
    presence: NDArray[Any] | None = None,
) -> CasePrediction:
    """Return the masks of one case.

    Args:
        probabilities: (P, *spatial) floats; see `CaseProbabilities`.
        comp: the competition.
        settings: the steps. Without steps: argmax, or 0.5 where classes overlap.
        row: see `apply_ordering`.
        presence: see `CaseProbabilities`; required if a class has the step `gate`.

    Raises:
        MaskfoldError: as `apply_ordering`, or a required presence is missing.
    """
    evidence = apply_ordering(probabilities, comp, settings, row, presence)
    classes = [run_steps(evidence, index, settings.steps_for(name)) for index, name in enumerate(comp.classes)]
    masks = np.stack([cls.mask for cls in classes])
    if settings.forbid_overlap:
        masks = steps_module.forbid_overlap(
            masks, np.stack([evidence.probability(index) for index in range(len(classes))])
        )
    if all(cls.objects is None for cls in classes):
        return CasePrediction(masks, None)
    objects = [np.where(mask, cls.labels(), 0) for cls, mask in zip(classes, masks, strict=True)]
    return CasePrediction(masks, np.stack(objects))


def run_steps(
    evidence: CaseProbabilities,
    index: int,
    steps: Sequence[StepConfig],
    cache: dict[tuple[StepConfig, ...], ClassMask] | None = None,
) -> ClassMask:
    """Apply steps to one class and return its mask and objects.

    Args:
        evidence: the case.
        index: the class.
        steps: in order.
        cache: results of this class by their steps; steps in it are not applied again.
    """
    cache = {} if cache is None else cache
    steps = tuple(steps)
    start = next((n for n in range(len(steps), 0, -1) if steps[:n] in cache), 0)  # longest cached prefix
    result = cache[steps[:start]] if start else ClassMask(evidence.masks[index])
    for position in range(start, len(steps)):
        result = apply_step(result, steps[position], evidence, index)
        if steps[position].name != "gate":  # gates are cheap, and a search tries very many of them
            cache[steps[: position + 1]] = result
    return result


def drop_passing_gates(
    evidence: CaseProbabilities, index: int, steps: Sequence[StepConfig]
) -> tuple[StepConfig, ...] | None:
    """Return the steps without the gates that pass the whole case; None if a gate passes nothing."""
    passing = {step: evidence.present(index, step.value) for step in steps if step.name == "gate"}
    if not all(passes.any() for passes in passing.values()):
        return None
    return tuple(step for step in steps if step not in passing or not passing[step].all())


def apply_step(current: ClassMask, step: StepConfig, evidence: CaseProbabilities, index: int) -> ClassMask:
    """Apply one step to one class."""
    value: Any = step.value
    match step.name:
        case "threshold":
            return ClassMask(evidence.above_threshold(index, value))
        case "triplet":
            mask = steps_module.double_threshold(evidence.probability(index), value.high, value.pixels, value.low)
            return ClassMask(mask & evidence.above_threshold(index, value.low))
        case "gate":
            present = evidence.present(index, value)
            return current if present.all() else _restrict(current, current.mask & present)
        case "open":
            return _restrict(current, steps_module.binary_opening(current.mask, value))
        case "close":
            return ClassMask(steps_module.binary_closing(current.mask, value))
        case "fill_holes":
            if current.objects is None:
                return ClassMask(steps_module.fill_holes(current.mask))
            return _from_objects(steps_module.fill_object_holes(current.objects))
        case "split" if value.boundary is not None:
            interior = evidence.interior(index)
            return _from_objects(steps_module.split_seeds(current.mask, interior, value.boundary, value.smallest))
        case "split":
            return _from_objects(steps_module.split_distance(current.mask, value.smooth, value.distance))
        case "remove_small":
            if current.objects is None:
                return ClassMask(steps_module.remove_small(current.mask, value))
            return _from_objects(steps_module.remove_small_objects(current.objects, value))
        case "keep_largest":
            return _restrict(current, steps_module.keep_largest(current.mask, value))
    raise ValueError(f"no step {step.name!r}")


def _from_objects(objects: Labels) -> ClassMask:
    return ClassMask(objects != 0, objects)


def _restrict(current: ClassMask, mask: Mask) -> ClassMask:
    """Restrict mask and objects to `mask`."""
    return replace(current, mask=mask, objects=None if current.objects is None else np.where(mask, current.objects, 0))
