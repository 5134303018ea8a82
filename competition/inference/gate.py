"""What a gate says of whole cases: one number for each class, or with a flat network one for each class and slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from competition.config.errors import MaskfoldError
from competition.data.geometry import Geometry, resample

SUREST = 1e-3  # a network's last word is taken for no surer than this: it does not outvote all others alone


def agreed(gates: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """What several networks' gates say together: the mean of their log odds.

    A threshold is found on single networks and used on what they say together. The mean of probabilities lies nearer to 0.5
    than theirs, so that a threshold far from 0.5 would mean something else; the mean of log odds does not (the logarithmic
    opinion pool: Genest and Zidek, Combining probability distributions, Statistical Science 1986).

    Args:
        gates: probabilities, of shapes that broadcast: one says it of each slice, another of the case; one alone comes back
            as it is.
        weights: of each, with a sum above 0; None: the same for all.

    Returns:
        Probabilities of the shape that they broadcast to, float64.
    """
    if len(gates) == 1:
        return gates[0].astype(np.float64)
    share = np.clip(np.stack(np.broadcast_arrays(*gates)).astype(np.float64), SUREST, 1 - SUREST)
    odds = np.average(np.log(share / (1 - share)), axis=0, weights=weights)
    return np.asarray(1 / (1 + np.exp(-odds)))


def of_case(windows: Sequence[torch.Tensor], slices: int | None) -> np.ndarray:
    """The gate of a case from those of its windows.

    A class is somewhere if it is in some window, so each network's largest number counts; then what the networks say together.

    Args:
        windows: (b, N, K) probabilities of each batch of windows, in order, of N networks, means over the views.
        slices: of a volume that a flat network predicts slice by slice, one after the other; None: there are no slices.

    Returns:
        (K, 1, …) float64, or (K, slices): K classes.

    Raises:
        MaskfoldError: a number is none.
    """
    every = torch.cat(list(windows)).double().cpu()
    if not torch.isfinite(every).all():
        raise MaskfoldError(
            "The network's gate gives values that are not finite.",
            "Train with a lower learning rate or with `training.precision: fp32`.",
        )
    surest = every.reshape(slices or 1, -1, *every.shape[1:]).amax(1)  # (slices, N, K)
    return np.ascontiguousarray(agreed(list(surest.numpy().swapaxes(0, 1))).T)


def on_file_grid(gate: np.ndarray, geometry: Geometry, by_slice: bool) -> np.ndarray:
    """The gate on the file's grid, so that it spreads over the case's masks.

    Args:
        gate: (K, 1), or (K, slices of the prepared volume).
        geometry: of the case.
        by_slice: whether there is one number for each slice.

    Returns:
        (K, 1, …, 1) float32, with the file's number of slices on the axis along which the slices lie. Where preparation
        cropped slices off the class is not.
    """
    dims = len(geometry.file_shape)
    if not by_slice:
        return gate.astype(np.float32).reshape(len(gate), *[1] * dims)
    axis, (before, _), kept = geometry.axes[-1], geometry.pad[-1], geometry.resampled[-1]
    low, high = geometry.crop[-1]
    whole = np.zeros((len(gate), geometry.file_shape[axis]), np.float32)
    for row, values in zip(whole, gate[:, before : before + kept], strict=True):
        row[low:high] = resample(values.reshape(1, 1, -1), (1, 1, high - low)).ravel()
    if geometry.flips[-1]:
        whole = whole[:, ::-1]
    return np.ascontiguousarray(whole).reshape(
        len(gate), *(whole.shape[1] if place == axis else 1 for place in range(dims))
    )
