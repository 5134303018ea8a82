"""Compute class presence, the probability that a case contains a class, from the presence heads of networks.

There is one value per class. If a 2.5D network predicts slices along a single axis, there is one value per class and
slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from competition.data.geometry import Geometry, resample
from competition.errors import MaskfoldError

if TYPE_CHECKING:  # not at run time, because processes that only score stored predictions import this module
    import torch

# Probabilities are clipped to [MIN_PROBABILITY, 1 - MIN_PROBABILITY], so that one network cannot outweigh all others.
MIN_PROBABILITY = 1e-3


def mean_log_odds(gates: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """Combine the presence probabilities of several networks by the mean of their log odds.

    The probabilities themselves are not averaged, because a threshold is tuned on single networks and then applied to
    the combination of several. The mean of several probabilities is usually closer to 0.5 than the probabilities of
    single networks. So a tuned threshold far from 0.5 would not suit this mean. The mean of log odds avoids this bias
    (logarithmic opinion pool: Genest and Zidek, Combining probability distributions, Statistical Science 1986).

    Args:
        gates: one array of probabilities per network. The shapes must broadcast: some arrays may have a value per
            slice, others one per case. Several arrays are clipped to exclude 0 and 1, whose log odds are infinite. A
            single array is not clipped.
        weights: one weight per network, with a sum above 0; None means equal weights.

    Returns:
        Probabilities of the broadcast shape, float64.
    """
    if len(gates) == 1:
        return gates[0].astype(np.float64)
    probabilities = np.clip(
        np.stack(np.broadcast_arrays(*gates)).astype(np.float64), MIN_PROBABILITY, 1 - MIN_PROBABILITY
    )
    log_odds = np.average(np.log(probabilities / (1 - probabilities)), axis=0, weights=weights)
    return np.asarray(1 / (1 + np.exp(-log_odds)))


def case_presence(windows: Sequence[torch.Tensor], slices: int | None) -> np.ndarray:
    """Compute the probability that a case contains each class from the probabilities for the case's windows.

    A case contains a class if one of its windows contains the class. So the value of each network is the maximum over
    the windows. `mean_log_odds` then combines the networks.

    Args:
        windows: presence probabilities of each batch of windows, in the order of prediction. The shape for a batch of b
            windows, N networks and K classes is (b, N, K). Test-time views are already averaged.
        slices: number of slices, if the volume was predicted slice by slice; then all windows of a slice follow each
            other, and the maximum is taken for each slice. None for all other predictions.

    Returns:
        (K, slices) float64, or (K, 1) if `slices` is None.

    Raises:
        MaskfoldError: a value is not finite.
    """
    return _combine(_maxima(windows, slices))


def mean_presence_along_axes(passes: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Compute the presence of each class in a case that a 2.5D network predicted along several axes of slices.

    For each network, the values of the axes are averaged, as test-time views are. The result has one value per case and
    not one per slice, because slices along different axes have no common value.

    Args:
        passes: for each axis, the presence probabilities of its windows, in the form of the argument `windows` of
            `case_presence`.

    Returns:
        (K, 1) float64 for K classes.

    Raises:
        MaskfoldError: a value is not finite.
    """
    return _combine(np.mean([_maxima(windows, None) for windows in passes], axis=0))


def _maxima(windows: Sequence[torch.Tensor], slices: int | None) -> np.ndarray:
    """Return the maximum presence over the windows of each slice, or of the case, for N networks and K classes.

    See `case_presence` for the arguments.

    Returns:
        (slices, N, K) float64, or (1, N, K) if `slices` is None.
    """
    import torch

    values = torch.cat(list(windows)).double().cpu()
    if not torch.isfinite(values).all():
        raise MaskfoldError(
            "The presence head (gate) returns non-finite values.",
            "Train with a lower learning rate or with training.precision=fp32.",
        )
    return values.reshape(slices or 1, -1, *values.shape[1:]).amax(1).numpy()


def _combine(maxima: np.ndarray) -> np.ndarray:
    """Combine the presence (slices, N, K) of N networks by the mean of their log odds; return (K, slices)."""
    return np.ascontiguousarray(mean_log_odds(list(maxima.swapaxes(0, 1))).T)


def presence_on_file_grid(gate: np.ndarray, geometry: Geometry, by_slice: bool, axis: int = -1) -> np.ndarray:
    """Map class presence to the file's grid, in a shape that broadcasts to the case's masks (K, *file shape).

    Args:
        gate: presence for K classes: (K, 1), or (K, slices of the preprocessed volume) if `by_slice` is True.
        geometry: geometry of the case.
        by_slice: whether `gate` has one value per slice.
        axis: axis of the preprocessed volume along which the slices lie; used only if `by_slice` is True.

    Returns:
        (K, 1, …, 1) float32. If `by_slice` is True, the axis of the slices is as long as in the file. Slices that
        preprocessing cropped off have the presence 0.
    """
    dims = len(geometry.file_shape)
    if not by_slice:
        return gate.astype(np.float32).reshape(len(gate), *[1] * dims)
    slice_axis, (pad_before, _), kept = geometry.axes[axis], geometry.pad[axis], geometry.resampled[axis]
    low, high = geometry.crop[axis]
    result = np.zeros((len(gate), geometry.file_shape[slice_axis]), np.float32)
    for row, values in zip(result, gate[:, pad_before : pad_before + kept], strict=True):
        row[low:high] = resample(values.reshape(1, 1, -1), (1, 1, high - low)).ravel()
    if geometry.flips[axis]:
        result = result[:, ::-1]
    shape = (result.shape[1] if place == slice_axis else 1 for place in range(dims))
    return np.ascontiguousarray(result).reshape(len(gate), *shape)
