"""Find whole masks that are shifted, or exchanged between two cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from competition.review.voxels import Labels

MIN_SUSPICION = 0.2  # minimum evidence per foreground pixel of cases whose whole masks are compared
MAX_SIDE = {2: 256, 3: 64}  # side of the reduced masks, by number of axes
MIN_AGREEMENT = 0.5  # minimum Dice after the shift or exchange
MIN_GAIN = 0.2  # minimum gain of the Dice
MAX_SUSPECTS = 200  # maximum number of cases that are compared in pairs


@dataclass(frozen=True)
class WholeMask:
    """Hold the true and predicted labels of a suspect case, at a reduced resolution.

    Attributes:
        id: id of the case.
        shape: shape of the file.
        truth: true labels of every `step`-th voxel along each axis.
        predicted: predicted labels of the same voxels.
        step: distance between these voxels, in voxels of the file.
    """

    id: str
    shape: tuple[int, ...]
    truth: Labels
    predicted: Labels
    step: int

    @classmethod
    def reduce(cls, case_id: str, truth: Labels, predicted: Labels) -> WholeMask:
        """Return the true and predicted labels of a case, reduced to at most `MAX_SIDE` voxels per axis.

        Args:
            case_id: id of the case.
            truth: (*spatial) uint8.
            predicted: (*spatial) uint8.
        """
        step = max(1, -(-max(truth.shape) // MAX_SIDE[truth.ndim]))
        part = (slice(None, None, step),) * truth.ndim
        return cls(case_id, truth.shape, truth[part].copy(), predicted[part].copy(), step)


def agreement(truth: Labels, predicted: Labels) -> float:
    """Return the Dice of all foreground labels together; 0 if both masks are empty."""
    size = np.count_nonzero(truth) + np.count_nonzero(predicted)
    return 2 * np.count_nonzero((truth == predicted) & (truth > 0)) / size if size else 0.0


def find_move(mask: WholeMask) -> tuple[tuple[int, ...], float] | None:
    """Find the translation with which the truth of a case best fits its prediction.

    Returns:
        The translation in voxels of the file, and the Dice after this translation. None if this Dice is below
        `MIN_AGREEMENT`, or less than `MIN_GAIN` above the Dice without a translation.
    """
    from scipy.fft import irfftn, next_fast_len, rfftn

    size = np.count_nonzero(mask.truth) + np.count_nonzero(mask.predicted)
    labels = np.intersect1d(mask.truth, mask.predicted)
    shape = [next_fast_len(2 * length - 1, real=True) for length in mask.truth.shape]
    total = np.zeros(shape, np.float32)
    for label in labels[labels > 0]:
        first, second = (rfftn((each == label).astype(np.float32), shape) for each in (mask.truth, mask.predicted))
        total += irfftn(np.conj(first) * second, shape)
    if not size or not total.any():
        return None
    best = np.unravel_index(int(total.argmax()), total.shape)
    dice = 2 * float(total[best]) / size
    if dice < MIN_AGREEMENT or dice - agreement(mask.truth, mask.predicted) < MIN_GAIN:
        return None
    move = (int(place) - (full if place > full // 2 else 0) for place, full in zip(best, shape, strict=True))
    return tuple(place * mask.step for place in move), dice


def find_exchanged(masks: Sequence[WholeMask]) -> dict[str, str]:
    """Find pairs of cases whose masks are exchanged.

    In such a pair, the truth of each case fits the prediction of its partner better than its own prediction.

    Args:
        masks: the suspect cases, most suspect first; only the first `MAX_SUSPECTS` are compared.

    Returns:
        For each case with an exchanged mask, the id of its partner; the keys are the ids of the cases.
    """
    found: list[tuple[float, str, str]] = []
    for first, second in combinations(masks[:MAX_SUSPECTS], 2):
        if first.shape != second.shape:
            continue
        crossed = agreement(first.truth, second.predicted), agreement(second.truth, first.predicted)
        straight = agreement(first.truth, first.predicted), agreement(second.truth, second.predicted)
        gains = [new - old for new, old in zip(crossed, straight, strict=True)]
        if min(crossed) >= MIN_AGREEMENT and min(gains) >= MIN_GAIN:
            found.append((sum(crossed), first.id, second.id))
    partners: dict[str, str] = {}
    for _, one, other in sorted(found, reverse=True):
        if one not in partners and other not in partners:
            partners[one], partners[other] = other, one
    return partners
