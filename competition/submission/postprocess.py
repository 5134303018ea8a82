"""Probabilities to masks and objects, by each class's list of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.postprocess import Postprocess, Step
from competition.inference.masks import merged, to_masks
from competition.scoring.instances import components
from competition.submission import steps as step
from competition.submission.number import affine_of, numbered

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Found:
    """What a class's steps have made so far.

    Attributes:
        mask: (*spatial) bool.
        objects: (*spatial) int32, 0 for background, objects from 1; None: the mask's connected components.
    """

    mask: Mask
    objects: Labels | None = None

    def numbered(self) -> Labels:
        """The objects, connected components where no step has made them."""
        return components(self.mask).astype(np.int32) if self.objects is None else self.objects


@dataclass(frozen=True)
class Evidence:
    """One case's probabilities, as the steps of any class look at them.

    Args:
        probabilities: (P, *spatial) float16, with the boundary class last where there is one.
        comp: the competition.
        gate: (K, 1, …), which classes the case holds, see `competition.inference.predicted`; only the step `gate` looks at it.
    """

    probabilities: NDArray[Any]
    comp: Competition
    gate: NDArray[Any] | None = None

    @cached_property
    def masks(self) -> Mask:
        """(K, *spatial) bool, by argmax or by 0.5."""
        return to_masks(self.probabilities, self.comp)

    @cached_property
    def plain(self) -> NDArray[Any]:
        """(comp.outputs, *spatial): the probabilities, without a boundary class."""
        return merged(self.probabilities, self.comp) if self.has_boundary else self.probabilities

    @property
    def nothing(self) -> Found:
        """Of no class anything."""
        return Found(np.zeros(self.probabilities.shape[1:], np.bool_))

    @property
    def has_boundary(self) -> bool:
        """Whether there is a boundary class."""
        return len(self.probabilities) > self.comp.outputs

    def of(self, index: int) -> NDArray[Any]:
        """(*spatial): the probability of a class."""
        return np.asarray(self.plain[index + (self.comp.labels == "exclusive")])

    def inside(self, index: int) -> NDArray[Any]:
        """(*spatial): the probability that a pixel is in an object of a class and not on its boundary."""
        return np.asarray(self.probabilities[index + (self.comp.labels == "exclusive")])

    def open(self, index: int, threshold: float) -> NDArray[Any]:
        """(1, …) bool, or with one number for each slice more: where the gate for a class reaches a threshold.

        Raises:
            MaskfoldError: there is no gate.
        """
        if self.gate is None:
            raise MaskfoldError(
                "The step gate is wanted of a prediction without a gate.",
                "Take the step out of postprocess.steps, or name a run that was trained with `gate`.",
            )
        return np.asarray(self.gate[index] >= threshold)

    def above(self, index: int, threshold: float) -> Mask:
        """(*spatial) bool: where the class is above a threshold, and no exclusive class is more probable."""
        mine = self.of(index)
        mask = np.asarray(mine > threshold)
        if self.comp.labels == "exclusive":
            for other in range(len(self.comp.classes)):
                if other != index:
                    mask &= mine > self.of(other) if other < index else mine >= self.of(other)
        return mask


@dataclass(frozen=True)
class Outcome:
    """The masks of one case.

    Attributes:
        masks: (K, *spatial) bool.
        objects: (K, *spatial) int32, the objects of each class; None: the connected components of the masks.
    """

    masks: Mask
    objects: Labels | None

    def of(self, index: int) -> Iterator[Mask]:
        """The objects of a class, one mask at a time."""
        labels = components(self.masks[index]) if self.objects is None else self.objects[index]
        for number in np.unique(labels[labels != 0]):
            yield np.asarray(labels == number)


def weighed(
    probabilities: NDArray[Any],
    comp: Competition,
    settings: Postprocess,
    row: Any = None,
    gate: NDArray[Any] | None = None,
) -> Evidence:
    """What the steps of a case look at: its probabilities, with classes by their order where `number` asks for it.

    Args:
        probabilities: (P, *spatial) floats.
        comp: the competition.
        settings: the steps; read is `number`.
        row: of the case table, or `competition.submission.members.Loose`: for `number`, which needs its affine.
        gate: see `Evidence`.

    Raises:
        MaskfoldError: `number` is wanted of a case without an affine.
    """
    if settings.number is not None:
        probabilities = numbered(probabilities, comp, settings.number, affine_of(row, comp))
    return Evidence(probabilities, comp, gate)


def postprocess(
    probabilities: NDArray[Any],
    comp: Competition,
    settings: Postprocess,
    row: Any = None,
    gate: NDArray[Any] | None = None,
) -> Outcome:
    """Masks of one case.

    Args:
        probabilities: (P, *spatial) floats; see `Evidence`.
        comp: the competition.
        settings: the steps. Without any, argmax, or 0.5 where classes overlap.
        row: see `weighed`.
        gate: see `Evidence`; needed where a class has the step `gate`.

    Raises:
        MaskfoldError: as `weighed`, or there is no gate where one is needed.
    """
    evidence = weighed(probabilities, comp, settings, row, gate)
    found = [run_steps(evidence, index, settings.of(name)) for index, name in enumerate(comp.classes)]
    masks = np.stack([one.mask for one in found])
    if settings.forbid_overlap:
        masks = step.forbid_overlap(masks, np.stack([evidence.of(index) for index in range(len(found))]))
    if all(one.objects is None for one in found):
        return Outcome(masks, None)
    return Outcome(masks, np.stack([np.where(mask, one.numbered(), 0) for one, mask in zip(found, masks, strict=True)]))


def run_steps(
    evidence: Evidence, index: int, steps: Sequence[Step], done: dict[tuple[Step, ...], Found] | None = None
) -> Found:
    """The mask, and the objects, that steps make of one class.

    Args:
        evidence: the case.
        index: the class.
        steps: in order.
        done: results of this class by their steps: found there, steps are not taken again.
    """
    known = {} if done is None else done
    taken = tuple(steps)
    length = next((n for n in range(len(taken), 0, -1) if taken[:n] in known), 0)
    found = known[taken[:length]] if length else Found(evidence.masks[index])
    for place in range(length, len(taken)):
        found = take(found, taken[place], evidence, index)
        if taken[place].name != "gate":  # it costs next to nothing, and a search has very many of them
            known[taken[: place + 1]] = found
    return found


def beside_gates(evidence: Evidence, index: int, steps: Sequence[Step]) -> tuple[Step, ...] | None:
    """The steps without the gates that let everything of the case pass; None where one of them lets nothing pass."""
    holds = {one: evidence.open(index, one.value) for one in steps if one.name == "gate"}
    if not all(one.any() for one in holds.values()):
        return None
    return tuple(one for one in steps if one not in holds or not holds[one].all())


def take(found: Found, one: Step, evidence: Evidence, index: int) -> Found:
    """One step of one class."""
    value: Any = one.value
    match one.name:
        case "threshold":
            return Found(evidence.above(index, value))
        case "triplet":
            mask = step.triplet(evidence.of(index), value.high, value.pixels, value.low)
            return Found(mask & evidence.above(index, value.low))
        case "gate":
            holds = evidence.open(index, value)
            return found if holds.all() else _cut(found, found.mask & holds)
        case "open":
            return _cut(found, step.opened(found.mask, value))
        case "close":
            return Found(step.closed(found.mask, value))
        case "fill_holes":
            if found.objects is None:
                return Found(step.fill_holes(found.mask))
            return _labelled(step.fill_object_holes(found.objects))
        case "split" if value.boundary is not None:
            return _labelled(step.split_seeds(found.mask, evidence.inside(index), value.boundary, value.smallest))
        case "split":
            return _labelled(step.split_distance(found.mask, value.smooth, value.distance))
        case "remove_small":
            if found.objects is None:
                return Found(step.remove_small(found.mask, value))
            return _labelled(step.remove_small_objects(found.objects, value))
        case "keep_largest":
            return _cut(found, step.keep_largest(found.mask, value))
    raise ValueError(f"no step {one.name!r}")


def _labelled(objects: Labels) -> Found:
    return Found(objects != 0, objects)


def _cut(found: Found, mask: Mask) -> Found:
    """Less of what was found."""
    return replace(found, mask=mask, objects=None if found.objects is None else np.where(mask, found.objects, 0))
