"""Predict an image in sliding windows whose predictions are blended with Gaussian weights.

To save memory, the weighted sums are kept only for a slab: the part of the first axis that the current windows cover.
"""

# This module does not use monai.inferers. MONAI adds the windows in another order, so predictions of existing runs
# would change in their last bits. MONAI is faster if the network is small. Processor time and additional memory for a
# volume of 256×256×640 voxels, five output channels and a network of one 1×1×1 convolution: MONAI 7.2 s and 26 bytes
# per voxel, MONAI with `buffer_steps=1` 9.6 s and 30 bytes, this module 19.4 s and 31 bytes (`python
# benchmarks/libraries.py windows`).

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from competition import large_arrays
from competition.config.experiment import Experiment
from competition.data.cache import NormalisedWindows
from competition.errors import MaskfoldError
from competition.inference.presence import case_presence, mean_presence_along_axes
from competition.inference.tta import TTAView, tta_views
from competition.models.execution import arrange
from competition.models.interface import format_shapes, main_output, split_presence

SLAB_BYTES = 2**32  # if the sums of a slab take more bytes, they are stored in host memory instead of on the device
SLICES_PER_BLOCK = 16  # number of slices that are read and summed together for a 2D network
Autocast = Callable[[], AbstractContextManager[Any]]
Predict = Callable[[torch.Tensor], torch.Tensor]
NetworkInput = np.ndarray | NormalisedWindows


def predict_image(
    networks: Sequence[nn.Module],
    image: NetworkInput,
    exp: Experiment,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> np.ndarray:
    """Predict the probabilities of a preprocessed image, averaged over the networks and the views of `inference.tta`.

    If an image is shorter than the patch along an axis, it is padded: volumes with 0, 2D images with their edge pixels.
    A larger image is predicted in windows of `patch.size` that overlap by at least the share `inference.overlap`. The
    windows are blended with Gaussian weights whose standard deviation is 1/8 of the patch (Isensee et al., nnU-Net,
    Nature Methods 2021).

    If `patch.slices` is set, a 2D network predicts a volume slice by slice along each axis of `patch.axes`, and the
    probabilities along these axes are averaged. With several axes, this takes another 4 bytes of memory per value of
    the result.

    Args:
        networks: the networks, on `device`; during the prediction they are in evaluation mode.
        image: (C, *preprocessed shape) float32, normalised, as `PreprocessedCase.network_input` returns it. May be a
            memory map.
        exp: the experiment.
        device: device of the networks.
        autocast: function that returns the context manager of a forward pass, such as `fabric.autocast`.

    Returns:
        (P, *preprocessed shape) float16, with P = `exp.output_channels`.

    Raises:
        MaskfoldError: a network returns another shape than expected, or non-finite values.
    """
    return predict_image_with_presence(networks, image, exp, device, autocast)[0]


def predict_image_with_presence(
    networks: Sequence[nn.Module],
    image: NetworkInput,
    exp: Experiment,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Predict an image like `predict_image`, and also return the presence of each class from the presence heads.

    Returns:
        The probabilities, as from `predict_image`, and the class presence, float64 in [0, 1] for K classes. The shape
        of the presence is (K, slices) if a 2.5D network predicts slices along a single axis, else (K, 1). The presence
        is None if the experiment has no presence head (`gate`).
    """
    # For each axis of slices, the presence in all windows in the order of prediction: with slices, first all windows of
    # the first slice.
    presences: dict[int, list[torch.Tensor]] = {axis: [] for axis in exp.patch.axes}

    def predict_along(axis: int) -> Predict:
        all_views = tta_views(exp, axis)

        def predict(batch: torch.Tensor) -> torch.Tensor:
            probabilities, presence = _predict_batch(networks, batch.to(device), all_views, exp, autocast)
            if presence is not None:
                presences[axis].append(presence)
            return probabilities

        return predict

    with torch.no_grad(), _evaluation_mode(networks):
        if exp.patch.slices is not None:
            assert isinstance(image, np.ndarray)  # volumes are stored normalised
            probabilities = _predict_slices(predict_along, image, exp)
        else:
            probabilities = _predict_windows(predict_along(exp.patch.axes[0]), image, exp, torch.device(device))
    if exp.gate is None:
        return probabilities, None
    if len(exp.patch.axes) > 1:
        return probabilities, mean_presence_along_axes(list(presences.values()))
    axis = exp.presence_axis
    return probabilities, case_presence(presences[exp.patch.axes[0]], None if axis is None else image.shape[axis + 1])


def window_starts(length: int, patch: int, overlap: float) -> list[int]:
    """Return the index of the first voxel of each window along an axis.

    The windows are evenly spaced. Neighbours overlap by at least the share `overlap` of the patch.

    Args:
        length: number of voxels along the axis. If it is not larger than `patch`, there is one window.
        patch: number of voxels of a window along the axis.
        overlap: share of the patch, from 0 to below 1.
    """
    if length <= patch:
        return [0]
    step = max(1.0, patch * (1 - overlap))
    count = int(np.ceil((length - patch) / step)) + 1
    return [int(start) for start in np.linspace(0, length - patch, count).round()]


def window_weights(length: int, patch: int, axis_starts: list[int]) -> torch.Tensor:
    """Return the blending weights of windows along one axis; at every voxel, the weights of all windows add up to 1.

    A window's weight at a voxel is the product of the weights along the axes. The windows lie on a grid, so the sum of
    these products over all windows is the product of the sums along the axes. If each of these sums is 1, the weights
    at every voxel add up to 1, and no volume with the sum of the weights is needed.

    Args:
        length: number of voxels along the axis.
        patch: number of voxels of a window along the axis.
        axis_starts: first voxel of each window, as from `window_starts`.

    Returns:
        (windows, patch) float32.
    """
    offset = np.arange(patch) - (patch - 1) / 2
    gauss = np.exp(-0.5 * (offset / (patch / 8)) ** 2)
    total = np.zeros(max(length, patch))
    for start in axis_starts:
        total[start : start + patch] += gauss
    weights = np.stack([gauss / total[start : start + patch] for start in axis_starts])
    return torch.tensor(weights, dtype=torch.float32)


def stack_neighbour_slices(image: np.ndarray, position: int, slices: int) -> np.ndarray:
    """Return a slice of a volume together with its neighbours, stacked as channels.

    Beyond the ends of the volume, the first or last slice is repeated.

    Args:
        image: (C, X, Y, Z); the slices lie along Z.
        position: index of the slice in the middle.
        slices: odd number of slices to stack.

    Returns:
        (C * slices, X, Y), with the slices of the first channel first.
    """
    margin = slices // 2
    indices = np.clip(np.arange(position - margin, position + margin + 1), 0, image.shape[-1] - 1)
    return np.moveaxis(image[..., indices], -1, 1).reshape(-1, *image.shape[1:-1])


def _predict_windows(predict: Predict, image: NetworkInput, exp: Experiment, device: torch.device) -> np.ndarray:
    """Predict an image in overlapping windows, and return the weighted mean of the windows' probabilities.

    Windows are predicted in the order of the first axis. As soon as no later window overlaps a part of this axis, this
    part is written to the result, and its float32 sums are dropped from memory.
    """
    patch, shape, outputs = exp.patch.size, image.shape[1:], exp.output_channels
    padded, pad_before = _pad_to_patch(shape, patch)
    all_starts = [window_starts(length, size, exp.inference.overlap) for length, size in zip(shape, patch, strict=True)]
    sum_bytes = 4 * outputs * patch[0] * int(np.prod(padded[1:]))
    sum_device = device if sum_bytes <= SLAB_BYTES else torch.device("cpu")
    weights = [
        window_weights(length, size, axis_starts).to(sum_device)
        for length, size, axis_starts in zip(shape, patch, all_starts, strict=True)
    ]
    sums = torch.zeros((outputs, patch[0], *padded[1:]), device=sum_device)
    result = large_arrays.empty((outputs, *shape), np.float16)
    unpadded = tuple(slice(pad, pad + length) for pad, length in zip(pad_before[1:], shape[1:], strict=True))
    window_indices = list(product(*(range(len(axis_starts)) for axis_starts in all_starts[1:])))
    pad_mode = "edge" if exp.competition.dimensions == 2 else "constant"
    for row, top in enumerate(all_starts[0]):
        for group in _batches(window_indices, exp.inference.batch_size):
            corners = [(top, *_corner(all_starts[1:], indices)) for indices in group]
            windows = np.stack([_window(image, corner, patch, pad_before, pad_mode) for corner in corners])
            predictions = predict(torch.from_numpy(windows)).to(sum_device)
            for indices, corner, prediction in zip(group, corners, predictions, strict=True):
                target = tuple(slice(start, start + size) for start, size in zip(corner[1:], patch[1:], strict=True))
                _add_weighted(sums[(slice(None), slice(None), *target)], prediction, weights, (row, *indices))
        finished = (all_starts[0][row + 1] if row + 1 < len(all_starts[0]) else padded[0]) - top
        low, high = max(top, pad_before[0]), min(top + finished, pad_before[0] + shape[0])
        slab = sums[(slice(None), slice(low - top, high - top), *unpadded)]
        result[:, low - pad_before[0] : high - pad_before[0]] = _to_float16(slab)
        for index in range(patch[0]):  # row by row, because a copy of the whole slab would double the memory
            sums[:, index] = sums[:, index + finished] if index + finished < patch[0] else 0
    return result


def _predict_slices(predict_along: Callable[[int], Predict], image: np.ndarray, exp: Experiment) -> np.ndarray:
    """Predict a volume slice by slice with a 2D network along each axis of `patch.axes`; return the mean over the axes.

    Args:
        predict_along: function that receives an axis, and returns the function that predicts batches of windows from
            slices along this axis.
        image: the volume, (C, X, Y, Z) float32.
        exp: the experiment.

    Returns:
        (P, X, Y, Z) float16.
    """
    all_axes, shape = exp.patch.axes, (exp.output_channels, *image.shape[1:])
    if len(all_axes) == 1:
        result = large_arrays.empty(shape, np.float16)
        for place, block in _predict_slice_blocks(predict_along(all_axes[0]), image, exp, all_axes[0]):
            result[place] = _to_float16(block)
        return result
    sums = large_arrays.zeros(shape, np.float32)
    for axis in all_axes:
        for place, block in _predict_slice_blocks(predict_along(axis), image, exp, axis):
            sums[place] += block.numpy()
    result = large_arrays.empty(shape, np.float16)
    for rows in large_arrays.row_blocks(shape[1:]):  # blocks along the first axis of the volume
        result[:, rows] = _to_float16(torch.from_numpy(sums[:, rows] / len(all_axes)))
    return result


def _predict_slice_blocks(
    predict: Predict, image: np.ndarray, exp: Experiment, axis: int
) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
    """Predict each slice of a volume (C, X, Y, Z) along an axis, in blocks of slices.

    Yields:
        Index of a block in the result (P, X, Y, Z), and the probabilities of the block: float32, on the CPU.
    """
    image = np.moveaxis(image, axis + 1, -1)
    patch, shape, outputs, slices = exp.patch.size, image.shape[1:3], exp.output_channels, exp.patch.slices or 1
    padded, pad_before = _pad_to_patch(shape, patch)
    all_starts = [window_starts(length, size, exp.inference.overlap) for length, size in zip(shape, patch, strict=True)]
    weights = [
        window_weights(length, size, axis_starts)
        for length, size, axis_starts in zip(shape, patch, all_starts, strict=True)
    ]
    unpadded = tuple(slice(pad, pad + length) for pad, length in zip(pad_before, shape, strict=True))
    depth, margin = image.shape[-1], slices // 2
    for low in range(0, depth, SLICES_PER_BLOCK):
        high = min(low + SLICES_PER_BLOCK, depth)
        block_start = max(0, low - margin)
        # Read several slices at once. The last axis is contiguous on disk, so reading a single slice along this axis
        # touches almost all of the file.
        block = np.ascontiguousarray(image[..., block_start : min(depth, high + margin)])
        sums = torch.zeros((high - low, outputs, *padded))
        window_indices = list(product(range(low, high), *(range(len(axis_starts)) for axis_starts in all_starts)))
        for group in _batches(window_indices, exp.inference.batch_size):
            corners = [_corner(all_starts, indices[1:]) for indices in group]
            windows = np.stack(
                [
                    _window(
                        stack_neighbour_slices(block, indices[0] - block_start, slices),
                        corner,
                        patch,
                        pad_before,
                        "constant",
                    )
                    for indices, corner in zip(group, corners, strict=True)
                ]
            )
            predictions = predict(torch.from_numpy(windows)).cpu()
            for indices, corner, prediction in zip(group, corners, predictions, strict=True):
                target = tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))
                _add_weighted(sums[(indices[0] - low, slice(None), *target)], prediction, weights, indices[1:])
        place = [slice(None)] * image.ndim
        place[axis + 1] = slice(low, high)
        yield tuple(place), sums[(slice(None), slice(None), *unpadded)].movedim(0, axis + 1)


def _pad_to_patch(shape: Sequence[int], patch: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the shape padded to at least the patch size, and the number of voxels added at the start of each axis."""
    padded = [max(length, size) for length, size in zip(shape, patch, strict=True)]
    return padded, [(total - length) // 2 for total, length in zip(padded, shape, strict=True)]


def _corner(all_starts: Sequence[list[int]], indices: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first voxel of a window along each axis, given the number of the window along each axis."""
    return tuple(axis_starts[index] for axis_starts, index in zip(all_starts, indices, strict=True))


def _predict_batch(
    networks: Sequence[nn.Module], batch: torch.Tensor, all_views: list[TTAView], exp: Experiment, autocast: Autocast
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Predict a batch of B windows with each network and each test-time view.

    Returns:
        The mean probabilities over networks and views, (B, P, *patch) float32; and the class presence of N networks,
        averaged over the views, (B, N, K) float32. The presence is None if the experiment has no presence head.
    """
    total: torch.Tensor | None = None
    presences: list[torch.Tensor] = []
    for network in networks:
        for view in all_views:
            with autocast():
                outputs = network(arrange(view.apply(batch), exp))
            try:
                logits = view.undo(main_output(outputs, batch.ndim - 2, exp.network_channels).float())
                if logits.shape[2:] != batch.shape[2:]:
                    raise ValueError("another size")
            except ValueError as error:
                raise MaskfoldError(
                    f"The network returned {format_shapes(outputs)} for a batch of shape {tuple(batch.shape)}, "
                    f"expected {(len(batch), exp.network_channels, *batch.shape[2:])}.",
                    "Change model.args.",
                    status=2,
                ) from error
            probabilities = logits.softmax(1) if exp.competition.labels == "exclusive" else logits.sigmoid()
            if exp.prepare.rings is not None:
                probabilities = merge_rings(probabilities, exp.prepare.rings)
            total = probabilities if total is None else total.add_(probabilities)
            if exp.gate is not None:
                presences.append(_presence(outputs))
    if total is None:
        raise ValueError("prediction needs at least one network")
    mean = total.div_(len(networks) * len(all_views))
    if not presences:
        return mean, None
    shape = (len(networks), len(all_views), len(batch), len(exp.competition.classes))
    return mean, torch.stack(presences).reshape(shape).mean(1).transpose(0, 1)


def merge_rings(probabilities: torch.Tensor, rings: int) -> torch.Tensor:
    """Convert the probabilities of rings (nested layers of objects) to channels: background, interiors, boundary.

    The interior of a class is the weighted sum of its R ring probabilities. The weights grow from 1/R for the outermost
    ring to 1 for the innermost one. The boundary gets the rest of the foreground probability.

    Args:
        probabilities: (B, 1 + K·R, *patch) for K classes. The first channel is the background. The R rings of the first
            class follow, from the outermost to the innermost, then those of the next class, and so on.
        rings: number R of rings per class.

    Returns:
        (B, K + 2, *patch): background, interior of each class, boundary. The channels add up to 1.
    """
    background, inside = probabilities[:, :1], probabilities[:, 1:]
    by_class = inside.unflatten(1, (-1, rings))  # (B, K, R, *patch)
    depths = torch.arange(1, rings + 1, dtype=probabilities.dtype, device=probabilities.device) / rings
    interior = (by_class * depths.view(rings, *[1] * (probabilities.ndim - 2))).sum(2)
    boundary = inside.sum(1, keepdim=True) - interior.sum(1, keepdim=True)
    return torch.cat([background, interior, boundary.clamp(min=0)], dim=1)


def _presence(outputs: Any) -> torch.Tensor:
    """Return the presence probabilities (B, K) float32 from the outputs of a network with a presence head."""
    if (logits := split_presence(outputs)[1]) is None:
        raise MaskfoldError(
            f"gate is set, but the network returns no presence logits: found the outputs {format_shapes(outputs)}.",
            "Set gate to null, or use a network with a presence head.",
            status=2,
        )
    return logits.float().sigmoid()


def _add_weighted(
    target: torch.Tensor, prediction: torch.Tensor, weights: list[torch.Tensor], indices: tuple[int, ...]
) -> None:
    """Multiply a window's prediction (P, *patch) by the weights along each axis, and add the result to the sums."""
    for axis, index in enumerate(indices):
        weight = weights[axis][index]
        prediction = prediction * weight.reshape(-1, *(1 for _ in indices[axis + 1 :]))
    target += prediction


def _window(
    image: NetworkInput, corner: tuple[int, ...], patch: Sequence[int], pad_before: Sequence[int], pad_mode: Any
) -> np.ndarray:
    """Return the window (C, *patch) float32 at a corner of the padded grid."""
    inside, padding = [slice(None)], [(0, 0)]
    for corner_start, size, pad, length in zip(corner, patch, pad_before, image.shape[1:], strict=True):
        start = corner_start - pad  # corner in the unpadded image
        low, high = max(0, start), min(length, start + size)
        inside.append(slice(low, high))
        padding.append((low - start, size - (high - start)))
    window = np.array(image[tuple(inside)], dtype=np.float32)
    return np.pad(window, padding, mode=pad_mode) if any(map(any, padding)) else window


def _to_float16(sums: torch.Tensor) -> np.ndarray:
    """Convert complete weighted sums of probabilities to float16 in host memory.

    Raises:
        MaskfoldError: a value is not finite.
    """
    values = sums.half()
    if not torch.isfinite(values).all():
        raise MaskfoldError(
            "The network returns non-finite values.",
            "Train with a lower learning rate or with training.precision=fp32.",
        )
    return values.cpu().numpy()


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def _evaluation_mode(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Set networks to evaluation mode during the `with` block.

    After the block, the previous mode of each module is restored. The modes are stored per module, because frozen
    modules may have another mode than the rest of their network.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
