"""Derive a random generator for each random choice from a seed, fold, epoch, position and purpose.

No two choices share a generator. Therefore, neither the number of loader processes nor a resume in the middle of an
epoch changes a choice, and the state of a generator need not be saved.

Example:
    >>> [int(rng(12345, fold=0, epoch=3, position=7, purpose="patch").integers(100)) for _ in range(2)]
    [66, 66]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# The index of a purpose determines its random numbers, so append new purposes, and never reorder them.
PURPOSES = ("order", "patch", "augment", "torch", "init", "bootstrap", "folds", "demo", "pictures", "tune", "soup")


def seed_sequence(seed: int, fold: int, epoch: int, position: int, purpose: str) -> np.random.SeedSequence:
    """Return numpy's `SeedSequence` for a random choice; different arguments give independent generators.

    Args:
        seed: seed of the experiment.
        fold: number of the fold; -1 for training on all cases.
        epoch: number of the epoch.
        position: position of a sample or a step in the epoch.
        purpose: one of `PURPOSES`.

    Raises:
        ValueError: the purpose is unknown.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"unknown purpose: found {purpose!r}, expected one of {', '.join(PURPOSES)}")
    # numpy needs 32-bit words; -1 becomes the largest word.
    address = [value & 0xFFFF_FFFF for value in (fold, epoch, position)]
    seed &= 0xFFFF_FFFF_FFFF_FFFF
    # The seed always occupies two words, so that different addresses give different lists of words.
    return np.random.SeedSequence([seed & 0xFFFF_FFFF, seed >> 32, *address, PURPOSES.index(purpose)])


def rng(seed: int, fold: int, epoch: int, position: int, purpose: str) -> np.random.Generator:
    """Return the generator of one random choice; see `seed_sequence`."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, fold, epoch, position, purpose)))


def child_seed(seed: int, fold: int, epoch: int, position: int, purpose: str) -> int:
    """Return a 63-bit seed for generators of other libraries; see `seed_sequence`."""
    return int(seed_sequence(seed, fold, epoch, position, purpose).generate_state(1, np.uint64)[0] >> np.uint64(1))


def choose_by_seed(choices: Sequence[T], seed: int) -> T:
    """Choose one of `choices` by a seed. The chosen index depends only on the seed and the number of choices.

    Over many seeds from `child_seed`, all choices occur equally often. Two functions that get the same seed make the
    same choice.
    """
    return choices[seed % len(choices)]
