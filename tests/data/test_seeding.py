"""Addressed generators: addresses are independent, stable, and checked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from competition.seeding import PURPOSES, child_seed, rng


def test_same_address_same_numbers() -> None:
    first, second = (rng(7, 1, 2, 3, "patch").random(5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_every_part_of_the_address_counts() -> None:
    addresses = list(itertools.product((0, 1, 2**32, 2**40 + 1), (-1, 0, 1), (0, 1), (0, 1), PURPOSES))
    seeds = {child_seed(*address) for address in addresses}
    assert len(seeds) == len(addresses)


def test_seed_fits_torch_and_int64() -> None:
    seeds = [child_seed(0, 0, 0, position, "torch") for position in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61  # all bits are used


def test_neighbours_are_not_correlated() -> None:
    values = np.array([rng(1, 0, 0, position, "patch").random(2) for position in range(2000)])
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.08
    assert abs(values.mean() - 0.5) < 0.02


def test_values_never_change() -> None:
    """Numbers that a finished run has drawn: a change here would break every resume and replay."""
    assert child_seed(12345, 0, 0, 0, "order") == 4337500178614716237
    assert PURPOSES[:6] == ("order", "patch", "augment", "torch", "init", "bootstrap")


def test_unknown_purpose() -> None:
    with pytest.raises(ValueError, match="lunch"):
        rng(0, 0, 0, 0, "lunch")
