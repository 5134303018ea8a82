"""Convert probabilities to masks and objects with the list of steps of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition import large_arrays
from competition.config.competition import Competition
from competition.config.postprocess import PostprocessConfig, StepConfig
from competition.errors import MaskfoldError
from competition.postprocessing.case import CasePrediction, CaseProbabilities, ClassMask
from competition.postprocessing.mask_operations import forbid_overlap
from competition.postprocessing.ordering import case_affine, relabel_by_order
from competition.postprocessing.steps import Gate


def apply_ordering(
    probabilities: NDArray[Any],
    comp: Competition,
    settings: PostprocessConfig,
    row: Any = None,
    presence: NDArray[Any] | None = None,
) -> CaseProbabilities:
    """Prepare a case's probabilities for the post-processing steps; if `number` is set, relabel objects by their order.

    Args:
        probabilities: (P, *spatial) floats.
        comp: the competition.
        settings: the post-processing; only `number` is used.
        row: row of the case table, or `competition.ensembling.ensemble.InMemoryCase`; `number` requires the case's
            affine.
        presence: class presence, see `CaseProbabilities`.

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
        settings: the steps; without steps, masks are made by argmax, or by the threshold 0.5 if classes overlap.
        row: see `apply_ordering`.
        presence: class presence, see `CaseProbabilities`; required if a class has the step `gate`.

    Raises:
        MaskfoldError: as for `apply_ordering`, or a required class presence is missing.
    """
    evidence = apply_ordering(probabilities, comp, settings, row, presence)
    classes = [run_steps(evidence, index, settings.steps_for(name)) for index, name in enumerate(comp.classes)]
    masks = large_arrays.empty((len(classes), *probabilities.shape[1:]), np.bool_)
    for mask, cls in zip(masks, classes, strict=True):
        mask[...] = cls.mask
    if settings.forbid_overlap:
        masks = forbid_overlap(masks, np.stack([evidence.probability(index) for index in range(len(classes))]))
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
    """Apply steps to one class, and return the class's mask and objects.

    Args:
        evidence: probabilities of the case.
        index: index of the class.
        steps: the steps, in order.
        cache: earlier results of this class, by list of steps; new results are added.
    """
    cache = {} if cache is None else cache
    steps = tuple(steps)
    # Start from the longest cached prefix of the steps.
    start = next((n for n in range(len(steps), 0, -1) if steps[:n] in cache), 0)
    result = cache[steps[:start]] if start else ClassMask(evidence.masks[index])
    for position in range(start, len(steps)):
        result = apply_step(result, steps[position], evidence, index)
        # Gates are not cached, because they are cheap and a search tries very many of them.
        if not isinstance(steps[position].step, Gate):
            cache[steps[: position + 1]] = result
    return result


def drop_passing_gates(
    evidence: CaseProbabilities, index: int, steps: Sequence[StepConfig]
) -> tuple[StepConfig, ...] | None:
    """Return the steps without the `gate` steps that keep the whole case; None if a gate empties the whole case."""
    passing = {step: evidence.present(index, step.value) for step in steps if isinstance(step.step, Gate)}
    if not all(passes.any() for passes in passing.values()):
        return None
    return tuple(step for step in steps if step not in passing or not passing[step].all())


def apply_step(current: ClassMask, step: StepConfig, evidence: CaseProbabilities, index: int) -> ClassMask:
    """Apply one step to one class.

    Raises:
        MaskfoldError: a user's own step is not trusted, or does not return a mask of the same shape.
    """
    result = step.step.apply(current, evidence, index)
    if not isinstance(result, ClassMask) or result.mask.shape != current.mask.shape or result.mask.dtype != np.bool_:
        found = f"{result.mask.dtype} {result.mask.shape}" if isinstance(result, ClassMask) else type(result).__name__
        raise MaskfoldError(
            f"The step {step.name} returned {found}, expected a ClassMask whose mask has the dtype bool and the shape "
            f"{current.mask.shape}.",
            f"Correct the method `apply` of {type(step.step).__name__}.",
        )
    return result
