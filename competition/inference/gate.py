"""What a gate says of whole cases: one number for each class, or with a flat network one for each class and slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from competition.config.errors import MaskfoldError
from competition.data.geometry import Geometry, resample


def of_case(windows: Sequence[torch.Tensor], slices: int | None) -> np.ndarray:
    """The gate of a case from those of its windows.

    A class is somewhere if it is in some window, so each network's largest number counts; then their mean over networks.

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
        raise MaskfoldError("The network's gate gives values that are not finite.",
                            "Train with a lower learning rate or with `training.precision: fp32`.")
    grouped = every.reshape(slices or 1, -1, *every.shape[1:])
    return np.asarray(grouped.amax(1).mean(1).T.numpy())


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
    for row, values in zip(whole, gate[:, before:before + kept], strict=True):
        row[low:high] = resample(values.reshape(1, 1, -1), (1, 1, high - low)).ravel()
    if geometry.flips[-1]:
        whole = whole[:, ::-1]
    return np.ascontiguousarray(whole).reshape(len(gate), *(whole.shape[1] if place == axis else 1 for place in range(dims)))
