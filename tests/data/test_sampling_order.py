"""The sampling order, compared with counts."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from competition.data.dataset import WeightedCaseSampler
from competition.seeding import rng


def test_without_extra_cases_the_order_is_unchanged():
    sampler, expected = WeightedCaseSampler(7), []
    for cycle in range(9):  # the rule of the first version
        expected += rng(5, 2, cycle, 0, "order").permutation(7).tolist()
    assert [sampler.index_at(place, 5, 2) for place in range(63)] == expected
    assert sampler.cycle_length == sampler.num_cases == 7


@pytest.mark.parametrize("extra", [[(6, 0.5)], [(5, 0.3)], [(4, 2.5)], [(1, 0.1), (3, 1.0)], [(7, 0.05), (2, 3.0)]])
def test_extra_cases_are_drawn_in_proportion_to_their_weight(extra):
    sampler, cycles = WeightedCaseSampler(4, extra), 60
    total = cycles * 4 + sum(int(Fraction(str(weight)) * number * cycles) for number, weight in extra)
    drawn = Counter(sampler.index_at(place, 1, 0) for place in range(total))
    assert [drawn[index] for index in range(4)] == [cycles] * 4
    first = 4
    for number, weight in extra:
        counts = [drawn[index] for index in range(first, first + number)]
        assert max(counts) - min(counts) <= 1  # rounds: none is drawn again before all extra were
        assert abs(np.mean(counts) - weight * cycles) < 1
        first += number
    assert sum(drawn.values()) == total and sampler.num_cases == first


def test_samples_can_be_requested_in_any_order():
    extra = [(5, 0.7), (3, 0.25)]
    whole = [WeightedCaseSampler(3, extra).index_at(place, 9, 1) for place in range(80)]
    sampler = WeightedCaseSampler(3, extra)
    assert [sampler.index_at(place, 9, 1) for place in reversed(range(80))] == whole[::-1]
    assert whole != [WeightedCaseSampler(3, extra).index_at(place, 10, 1) for place in range(80)]
    assert whole != [WeightedCaseSampler(3, extra).index_at(place, 9, 2) for place in range(80)]


def test_rounds_of_two_kinds_are_shuffled_independently():
    sampler = WeightedCaseSampler(1, [(30, 1.0), (30, 1.0)])
    drawn = [sampler.index_at(place, 1, 0) for place in range(61)]
    one, two = ([index - first for index in drawn if first <= index < first + 30] for first in (1, 31))
    assert sorted(one) == sorted(two) == list(range(30)) and one != two
