"""Counted randomness: every random choice has an address, and the address is its seed.

Nothing is drawn from a stream that somebody else has drawn from before. So neither the number of loader processes nor a
resume in mid-epoch changes a choice, and no generator's state has to be saved.

Example:
    >>> [int(rng(12345, fold=0, epoch=3, position=7, purpose="patch").integers(100)) for _ in range(2)]
    [66, 66]
"""

from __future__ import annotations

import numpy as np

# A purpose's place here is part of the address: add new ones at the end, and never reorder.
PURPOSES = ("order", "patch", "augment", "torch", "init", "bootstrap", "folds", "demo", "pictures", "tune", "soup")


def seed_sequence(seed: int, fold: int, epoch: int, position: int, purpose: str) -> np.random.SeedSequence:
    """The address as numpy's `SeedSequence`, which hashes neighbouring addresses to independent states.

    Args:
        seed: of the experiment.
        fold: number of the fold; -1 is a fit on all cases.
        epoch: number of the epoch.
        position: place in the epoch: of a sample, or of a step.
        purpose: one of `PURPOSES`.

    Raises:
        ValueError: an unknown purpose.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose {purpose!r} is none of {', '.join(PURPOSES)}")
    words = [value & 0xFFFF_FFFF for value in (fold, epoch, position)]  # -1 becomes the largest word
    seed &= 0xFFFF_FFFF_FFFF_FFFF
    # Two words for the seed whatever its size, so that no two addresses have the same list of words.
    return np.random.SeedSequence([seed & 0xFFFF_FFFF, seed >> 32, *words, PURPOSES.index(purpose)])


def rng(seed: int, fold: int, epoch: int, position: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one random choice; see `seed_sequence`."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, fold, epoch, position, purpose)))


def child_seed(seed: int, fold: int, epoch: int, position: int, purpose: str) -> int:
    """A seed of 63 bits for other libraries' generators; see `seed_sequence`."""
    return int(seed_sequence(seed, fold, epoch, position, purpose).generate_state(1, np.uint64)[0] >> np.uint64(1))
