"""Convert probabilities to masks and objects; each class has its own list of steps."""

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
    """Prepare the probabilities of a case for the post-processing steps.

    If `postprocess.number` is set, objects that lie in a row, such as vertebrae, first get their classes by their order
    in the row; see `relabel_by_order`.

    Args:
        probabilities: (P, *spatial) floats.
        comp: the competition.
        settings: section `postprocess`; only `number` is used.
        row: row of the case table, or an `InMemoryCase` of `competition.ensembling.ensemble`. Needed only if
            `number` is set, to read the affine.
        presence: see `CaseProbabilities`; None if the network has no presence head.

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
    """Convert the probabilities of one case to masks, with the post-processing steps of each class.

    Args:
        probabilities: (P, *spatial) floats, see `CaseProbabilities`.
        comp: the competition.
        settings: section `postprocess`. If a class has no steps, its mask contains the pixels in which the class is the
            most probable one. If classes overlap, it instead contains the pixels whose probability is above 0.5.
        row: row of the case table, or an `InMemoryCase`; needed only if `postprocess.number` is set.
        presence: class presence, see `CaseProbabilities`; needed if a class has the step `gate`.

    Raises:
        MaskfoldError: `postprocess.number` is set and the case has no affine; or a class has the step `gate` and
            `presence` is None.
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
    """Apply a list of steps to one class of a case, and return its mask and objects.

    Args:
        evidence: probabilities of the case.
        index: index of the class.
        steps: the steps, in order.
        cache: results of earlier calls for this class of this case, by list of steps. This function adds its own
            results. None for no cache.
    """
    cache = {} if cache is None else cache
    steps = tuple(steps)
    # Start from the cached result of as many of the first steps as possible.
    start = next((n for n in range(len(steps), 0, -1) if steps[:n] in cache), 0)
    result = cache[steps[:start]] if start else ClassMask(evidence.masks[index])
    for position in range(start, len(steps)):
        result = apply_step(result, steps[position], evidence, index)
        # Results of the step `gate` are not cached, because it is fast and a search tries it with very many lists.
        if not isinstance(steps[position].step, Gate):
            cache[steps[: position + 1]] = result
    return result


def drop_passing_gates(
    evidence: CaseProbabilities, index: int, steps: Sequence[StepConfig]
) -> tuple[StepConfig, ...] | None:
    """Return the steps without the `gate` steps that do not change this case.

    If a `gate` step empties the mask of the whole case, return None instead.

    Args:
        evidence: probabilities of the case.
        index: index of the class.
        steps: the steps, in order.
    """
    passing = {step: evidence.present(index, step.value) for step in steps if isinstance(step.step, Gate)}
    if not all(passes.any() for passes in passing.values()):
        return None
    return tuple(step for step in steps if step not in passing or not passing[step].all())


def apply_step(current: ClassMask, step: StepConfig, evidence: CaseProbabilities, index: int) -> ClassMask:
    """Apply one step to one class, and check the type, shape and dtype of the result.

    Args:
        current: mask and objects of the class before the step.
        step: the step.
        evidence: probabilities of the case.
        index: index of the class.

    Raises:
        MaskfoldError: the step is the user's own and not trusted, or it does not return a `ClassMask` with a bool mask
            of the same shape.
    """
    result = step.step.apply(current, evidence, index)
    if not isinstance(result, ClassMask) or result.mask.shape != current.mask.shape or result.mask.dtype != np.bool_:
        found = f"{result.mask.dtype} {result.mask.shape}" if isinstance(result, ClassMask) else type(result).__name__
        raise MaskfoldError(
            f"The step {step.name} returned {found}, expected a ClassMask whose mask has the dtype bool and "
            f"the shape {current.mask.shape}.",
            f"Correct the method `apply` of {type(step.step).__name__}.",
        )
    return result
