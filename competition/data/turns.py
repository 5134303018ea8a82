"""Whose turn it is: labelled cases once in each cycle, the others as often as their weight says."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from competition.data.randomness import rng

KEPT = 4  # orders in memory


class Turns:
    """Which case is drawn at which place, counted from the first sample of training.

    A cycle has every labelled case once. Of n others with the weight w it has w·n turns, rounded down or up so that all
    cycles together have w·n each in the mean; the others take these turns in rounds of their own, each of them once a
    round in random order. So after any number of rounds all cases of one weight were drawn equally often, and w times as
    often as a labelled case: the expected gradient is that of a loss in which each of them has the weight w. Without
    others a cycle is a random order of the cases, and the draws are the same as ever.

    Args:
        labelled: number of labelled cases; they have the first indices.
        others: (number, weight) of each further kind, in the order of their indices.

    Example:
        >>> turns = Turns(4, [(6, 0.5)])
        >>> sorted(turns.case_at(place, seed=1, fold=0) for place in range(7))[:4]
        [0, 1, 2, 3]
    """

    def __init__(self, labelled: int, others: Sequence[tuple[int, float]] = ()) -> None:
        self.labelled = labelled
        self.others = [(number, Fraction(str(weight)) * number) for number, weight in others]
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def cases(self) -> int:
        """How many cases there are."""
        return self.labelled + sum(number for number, _ in self.others)

    @property
    def cycle(self) -> int:
        """Turns of a cycle, in the mean, rounded up."""
        return math.ceil(self._mean)

    @property
    def _mean(self) -> Fraction:
        return Fraction(self.labelled) + sum((rate for _, rate in self.others), Fraction(0))

    def case_at(self, place: int, seed: int, fold: int) -> int:
        """Index of the case at a place.

        Args:
            place: number of the sample since training began.
            seed: of this member.
            fold: the fold that is validated.
        """
        cycle = math.floor(place / self._mean)  # its start is rounded down: the place may lie in the next one
        while self._start(cycle + 1) <= place:
            cycle += 1
        if cycle not in self._orders:
            self._orders[cycle] = self._order(cycle, seed, fold)
            while len(self._orders) > KEPT:
                self._orders.popitem(last=False)
        return int(self._orders[cycle][place - self._start(cycle)])

    def _start(self, cycle: int) -> int:
        """The place at which a cycle begins."""
        return cycle * self.labelled + sum(math.floor(cycle * rate) for _, rate in self.others)

    def _order(self, cycle: int, seed: int, fold: int) -> np.ndarray:
        """The cases of a cycle, shuffled."""
        taken, first = list(range(self.labelled)), self.labelled
        for kind, (number, rate) in enumerate(self.others, start=1):
            rounds: dict[int, np.ndarray] = {}
            for turn in range(math.floor(cycle * rate), math.floor((cycle + 1) * rate)):
                around, rank = divmod(turn, number)
                if around not in rounds:  # position 0 of this purpose shuffles the cycle itself
                    rounds[around] = rng(seed, fold, around, kind, "order").permutation(number)
                taken.append(first + int(rounds[around][rank]))
            first += number
        return np.array(taken)[rng(seed, fold, cycle, 0, "order").permutation(len(taken))]
