"""Whose turn it is, against counting."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from competition.data.randomness import rng
from competition.data.turns import Turns


def test_without_others_the_draws_are_the_same_as_ever():
    turns, expected = Turns(7), []
    for cycle in range(9):  # the rule of the first version, written down again
        expected += rng(5, 2, cycle, 0, "order").permutation(7).tolist()
    assert [turns.case_at(place, 5, 2) for place in range(63)] == expected
    assert turns.cycle == turns.cases == 7


@pytest.mark.parametrize("others", [[(6, 0.5)], [(5, 0.3)], [(4, 2.5)], [(1, 0.1), (3, 1.0)], [(7, 0.05), (2, 3.0)]])
def test_each_kind_is_drawn_as_often_as_its_weight_says(others):
    turns, cycles = Turns(4, others), 60
    total = cycles * 4 + sum(int(Fraction(str(weight)) * number * cycles) for number, weight in others)
    drawn = Counter(turns.case_at(place, 1, 0) for place in range(total))
    assert [drawn[index] for index in range(4)] == [cycles] * 4
    first = 4
    for number, weight in others:
        counts = [drawn[index] for index in range(first, first + number)]
        assert max(counts) - min(counts) <= 1  # rounds: none is drawn again before all others were
        assert abs(np.mean(counts) - weight * cycles) < 1
        first += number
    assert sum(drawn.values()) == total and turns.cases == first


def test_any_place_can_be_asked_for_first():
    others = [(5, 0.7), (3, 0.25)]
    whole = [Turns(3, others).case_at(place, 9, 1) for place in range(80)]
    turns = Turns(3, others)
    assert [turns.case_at(place, 9, 1) for place in reversed(range(80))] == whole[::-1]
    assert whole != [Turns(3, others).case_at(place, 10, 1) for place in range(80)]
    assert whole != [Turns(3, others).case_at(place, 9, 2) for place in range(80)]


def test_rounds_of_two_kinds_are_shuffled_on_their_own():
    turns = Turns(1, [(30, 1.0), (30, 1.0)])
    drawn = [turns.case_at(place, 1, 0) for place in range(61)]
    one, two = ([index - first for index in drawn if first <= index < first + 30] for first in (1, 31))
    assert sorted(one) == sorted(two) == list(range(30)) and one != two
