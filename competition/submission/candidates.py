"""Which steps are worth trying: for each slot of the list its alternatives, by what the truth looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from competition.config import Experiment
from competition.config.postprocess import Split, Step, Triplet
from competition.submission.evaluate import Steps, Truth

ORDER = ("threshold", "triplet", "gate", "open", "close", "fill_holes", "split", "remove_small", "keep_largest")
AGAIN = ("threshold", "split", "remove_small")  # searched once more when all other slots are settled
MANY_OBJECTS = 200
EMPTY_SHARE = 0.05  # of cases without a class, from which on the triplet rule is tried
BIG = 2**24  # voxels of a case, above which opening and closing are not searched


@dataclass(frozen=True)
class Slot:
    """One place of the list: the step kinds that may stand there, and the alternatives (empty: no step)."""

    names: tuple[str, ...]
    options: tuple[Steps, ...]

    def lists(self, now: Steps, order: Sequence[str]) -> list[Steps]:
        """`now` with each alternative in this slot."""
        rest = [step for step in now if step.name not in self.names]
        return [tuple(sorted([*rest, *option], key=lambda step: order.index(step.name))) for option in self.options]


def slots(
    exp: Experiment, truths: Sequence[Truth], largest: int, has_boundary: bool, start: Steps, gate: bool = False
) -> list[Slot]:
    """The slots of one class, in the order in which they are searched.

    Args:
        exp: the experiment.
        truths: the class's truth in each case.
        largest: pixels of the largest case.
        has_boundary: whether there is a boundary class.
        start: steps that the experiment names; only their kinds are searched then.
        gate: search the gate's threshold too, together with the one that makes the mask.

    Returns:
        The slots; each has the experiment's own value among its alternatives.
    """
    comp, three = exp.competition, exp.competition.dimensions == 3
    kinds = {step.name for step in start}
    gates = _gates(truths, exp.patch.slices is not None) if gate and (not start or "gate" in kinds) else []
    mask = _slot(("threshold", "triplet"), [*_thresholds(), *_triplets(truths)])
    if gates:
        masks = mask.options if not start or kinds & set(mask.names) else ((),)
        mask = Slot((*mask.names, "gate"), (*masks, *((*first, one) for one in gates for first in masks)))
    found = [mask]
    if largest <= BIG:
        radii = (1,) if three else (1, 2)
        found += [
            _slot(("open",), [Step(open=radius) for radius in radii]),
            _slot(("close",), [Step(close=radius) for radius in radii]),
        ]
    found.append(_slot(("fill_holes",), [Step(fill_holes=True)]))
    if comp.instances:
        found.append(_slot(("split",), _splits(has_boundary)))
    found.append(_slot(("remove_small",), _sizes(truths)))
    if not comp.instances:
        found.append(_slot(("keep_largest",), [Step(keep_largest=count) for count in (1, 2, 3)]))
    if start:
        found = [slot for slot in found if kinds & set(slot.names)]
    own = {slot.names: tuple(step for step in start if step.name in slot.names) for slot in found}
    return [Slot(slot.names, tuple(dict.fromkeys([*slot.options, own[slot.names]]))) for slot in found]


def _slot(names: tuple[str, ...], options: Sequence[Step]) -> Slot:
    return Slot(names, ((), *((option,) for option in options)))


def order_of(start: Steps) -> tuple[str, ...]:
    """The order of steps: the experiment's own, and then the usual one."""
    own = [step.name for step in start]
    masks = ("threshold", "triplet")
    return (*masks, *(name for name in dict.fromkeys((*own, *ORDER)) if name not in masks))


def _thresholds() -> list[Step]:
    return [Step(threshold=value) for value in (0.3, 0.35, 0.4, 0.45, 0.55, 0.6, 0.65, 0.7)]


def _triplets(truths: Sequence[Truth]) -> list[Step]:
    """Only where some cases have nothing: elsewhere the rule could but do harm."""
    areas = [truth.pixels for truth in truths if truth.pixels]
    if not areas or len(areas) > (1 - EMPTY_SHARE) * len(truths):
        return []
    pixels = sorted({max(1, round(share * float(np.quantile(areas, 0.05)))) for share in (0.1, 0.3, 0.7)})
    return [
        Step(triplet=Triplet(high=high, pixels=count, low=low))
        for high, count, low in product((0.6, 0.75, 0.9), pixels, (0.35, 0.5))
        if low < high
    ]


def _gates(truths: Sequence[Truth], by_slice: bool) -> list[Step]:
    """Only where some cases, or slices, have nothing."""
    filled = sum(truth.pixels > 0 for truth in truths)
    if not by_slice and filled > (1 - EMPTY_SHARE) * len(truths):
        return []
    return [Step(gate=value) for value in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]


def _sizes(truths: Sequence[Truth]) -> list[Step]:
    """Shares of the smaller true objects: what is removed shall be smaller than nearly all of them."""
    objects = [size for truth in truths for size in truth.objects]
    if not objects:
        return []
    small, middle, most = float(np.quantile(objects, 0.02)), float(np.median(objects)), _safe_size(objects)
    values = {share * small for share in (0.25, 0.5, 1.0)} | {share * middle for share in (0.05, 0.1, 0.2)}
    return [Step(remove_small=value) for value in sorted({round(min(value, most)) for value in values}) if value > 1]


def _safe_size(objects: Sequence[int]) -> float:
    """Pixels below which another object hardly ever lies: of few objects the smallest says little about the next one.

    The lower 99 % prediction bound for one more observation of a log-normal size (Hahn and Meeker, Statistical Intervals,
    section 4.7); many objects speak for themselves.
    """
    if len(objects) >= MANY_OBJECTS:
        return np.inf
    if len(objects) < 3:
        return 0.0
    from scipy.stats import t

    logs = np.log(objects)
    spread = float(logs.std(ddof=1)) * np.sqrt(1 + 1 / len(logs))
    return float(np.exp(logs.mean() + t.ppf(0.01, len(logs) - 1) * spread))


def _splits(has_boundary: bool) -> list[Step]:
    tried = ((1.0, 1.0),) if has_boundary else ((0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 2.0))
    found = [Step(split=Split(distance=depth, smooth=smooth)) for depth, smooth in tried]
    if has_boundary:
        found += [Step(split=Split(boundary=level)) for level in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    return found
