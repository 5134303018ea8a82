"""What networks say of one case."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Predicted(NamedTuple):
    """A case's prediction on its file's own grid.

    Attributes:
        probabilities: (P, *file shape) float16, P = `exp.outputs`: background first where classes are exclusive, the
            boundary class of `prepare.boundary` last.
        gate: (K, 1, …, 1) float32 in [0, 1], whether the case holds each class, as many axes as the probabilities have; with
            `patch.slices` (K, …) with the file's number of slices on their axis. None without `exp.gate`.
    """

    probabilities: np.ndarray
    gate: np.ndarray | None
