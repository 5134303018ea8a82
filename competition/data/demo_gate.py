"""Drawing one picture of the gate's demo: what looks like a lesion is one only in a scan with contrast agent.

Two scans of three were made with contrast agent, which shows in one place: the vessel near the lower edge is bright. In the
third the vessel is dark, and the very same mottled spots are old scars that the host did not mark: the case is empty. Nothing
near a spot tells which it is, unless the vessel happens to be there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from competition.data.demo2d import _Blob, _upsample, _waves

Array = np.ndarray[Any, Any]

CLASSES = ("lesion",)
KINDS = ("contrast", "contrast", "plain")  # dealt out in turn
SIDE = 96  # pixels
VESSEL = 7.0  # radius in pixels
UPTAKE = {"contrast": (0.10, 0.34), "plain": (-0.16, 0.02)}  # how much brighter than tissue it is, from and to


def picture(rng: np.random.Generator, kind: str = "contrast") -> tuple[Array, Array]:
    """Draw one picture.

    Args:
        rng: source of all that is random in it.
        kind: `contrast` (spots are lesions) or `plain` (the same spots are none).

    Returns:
        The image (96, 96) uint8 and its labels (96, 96) uint8: 0 background, 1 lesion.
    """
    values = 0.45 + 0.05 * _waves(rng, SIDE, SIDE, count=6, longest=3.0)
    labels, taken = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), bool)
    centre = np.array([rng.uniform(SIDE - 13, SIDE - 9), rng.uniform(0.2, 0.8) * SIDE])
    vessel = _Blob(rng, centre, VESSEL, labels.shape)
    wall = np.clip((1.0 - vessel.rho) * 4.0, 0.0, 1.0)
    values[vessel.box] += wall * rng.uniform(*UPTAKE[kind])
    taken[vessel.box] |= vessel.inside
    _spots(rng, values, taken, count=int(rng.integers(2, 5)), labels=labels if kind == "contrast" else None)
    _spots(rng, values, taken, count=int(rng.integers(1, 4)), labels=None, mottled=False)
    image = np.clip(np.rint(255.0 * values + rng.normal(0.0, 8.0, values.shape)), 0, 255)
    return image.astype(np.uint8), labels


def _spots(rng: np.random.Generator, values: Array, taken: Array, count: int, labels: Array | None,
           mottled: bool = True) -> None:
    """Draw spots apart from all that is there; plain ones, which no lesion looks like, are no lesions in any scan."""
    for _ in range(60):
        if count == 0:
            return
        spot = _Blob(rng, rng.uniform(10, SIDE - 10, size=2), rng.uniform(6.0, 10.0), values.shape)
        if taken[spot.box].any():
            continue
        soft = np.clip((1.0 - spot.rho) * 4.0, 0.0, 1.0)
        high, wide = spot.rho.shape
        grain = _upsample(rng.choice([-1.0, 1.0], size=(SIDE // 3 + 3,) * 2), high, wide, 3.0) if mottled else 0.0
        values[spot.box] += soft * (0.12 + 0.2 * grain)
        taken[spot.box] |= spot.rho < 1.15
        if labels is not None:
            labels[spot.box][spot.inside] = 1
        count -= 1
