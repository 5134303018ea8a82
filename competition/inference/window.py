"""Sliding windows with Gaussian blending, in memory that grows with one slab and not with the whole image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment
from competition.inference.gate import of_case
from competition.inference.tta import View, views
from competition.model.outputs import describe, main_output, split_gate

SLAB_BYTES = 2**32  # sums larger than this stay in host memory
SLICES = 16  # of a volume that a flat network predicts: read and summed together
Autocast = Callable[[], AbstractContextManager[Any]]
Predict = Callable[[torch.Tensor], torch.Tensor]


def predict_prepared(
    networks: Sequence[nn.Module],
    image: np.ndarray,
    exp: Experiment,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> np.ndarray:
    """Probabilities of one prepared image, averaged over networks and over the views of `inference.tta`.

    An image that fits one patch is predicted whole, padded to the patch: volumes with 0, pictures with their edge. A
    larger one is cut into windows of `patch.size` that overlap by `inference.overlap` and are blended with Gaussian
    weights of a standard deviation of 1/8 of the patch (Isensee et al., nnU-Net, Nature Methods 2021). With
    `patch.slices` a flat network predicts a volume slice by slice along its last axis.

    Args:
        networks: on `device`; put into evaluation mode meanwhile.
        image: (C, *prepared) float32, normalised: `PreparedCase.network_image()`. May be a memory map.
        exp: the experiment.
        device: where the networks are.
        autocast: makes the context of a forward pass, such as `fabric.autocast`.

    Returns:
        (P, *prepared) float16, P = `exp.outputs`.

    Raises:
        MaskfoldError: a network gives another shape, or values that are not finite.
    """
    return predict_gated(networks, image, exp, device, autocast)[0]


def predict_gated(
    networks: Sequence[nn.Module],
    image: np.ndarray,
    exp: Experiment,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `predict_prepared`, and from the same passes the gate: see `competition.inference.gate.of_case`; None without one."""
    looks, slices = views(exp), exp.patch.slices
    gates: list[torch.Tensor] = []  # of the windows in their order: with slices, those of the first slice come first

    def predict(batch: torch.Tensor) -> torch.Tensor:
        found, gate = _mean(networks, batch.to(device), looks, exp, autocast)
        gates.extend(gate)
        return found

    with torch.no_grad(), _evaluating(networks):
        if slices is not None:
            found = _slice_by_slice(predict, image, exp)
        else:
            found = _streamed(predict, image, exp, torch.device(device))
    return found, of_case(gates, image.shape[-1] if slices is not None else None) if exp.gate is not None else None


def starts(length: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: evenly spread, overlapping by at least `overlap`, no gap."""
    if length <= patch:
        return [0]
    step = max(1.0, patch * (1 - overlap))
    count = int(np.ceil((length - patch) / step)) + 1
    return [int(first) for first in np.linspace(0, length - patch, count).round()]


def blend(length: int, patch: int, firsts: list[int]) -> torch.Tensor:
    """Weights of each window along one axis, (windows, patch) float32; they sum to 1 at every voxel of the axis.

    A Gaussian in space is the product of one along each axis, and so is its sum over a grid of windows. Weights that
    are normalised axis by axis therefore need no second volume of summed weights.
    """
    offset = np.arange(patch) - (patch - 1) / 2
    gauss = np.exp(-0.5 * (offset / (patch / 8)) ** 2)
    total = np.zeros(max(length, patch))
    for first in firsts:
        total[first : first + patch] += gauss
    return torch.tensor(np.stack([gauss / total[first : first + patch] for first in firsts]), dtype=torch.float32)


def neighbours(image: np.ndarray, position: int, slices: int) -> np.ndarray:
    """Slice `position` of (C, X, Y, Z) with its neighbours as channels, (C * slices, X, Y); edges are repeated."""
    reach = slices // 2
    chosen = np.clip(np.arange(position - reach, position + reach + 1), 0, image.shape[-1] - 1)
    return np.moveaxis(image[..., chosen], -1, 1).reshape(-1, *image.shape[1:-1])


def _streamed(predict: Predict, image: np.ndarray, exp: Experiment, device: torch.device) -> np.ndarray:
    """Windows in order of the first axis; what no later window reaches leaves the float32 sums for the result."""
    patch, spatial, outputs = exp.patch.size, image.shape[1:], exp.outputs
    padded = [max(n, size) for n, size in zip(spatial, patch, strict=True)]
    before = [(large - n) // 2 for large, n in zip(padded, spatial, strict=True)]
    firsts = [starts(n, size, exp.inference.overlap) for n, size in zip(spatial, patch, strict=True)]
    bytes_needed = 4 * outputs * patch[0] * int(np.prod(padded[1:]))
    home = device if bytes_needed <= SLAB_BYTES else torch.device("cpu")
    weights = [blend(n, size, first).to(home) for n, size, first in zip(spatial, patch, firsts, strict=True)]
    sums = torch.zeros((outputs, patch[0], *padded[1:]), device=home)
    result = np.empty((outputs, *spatial), np.float16)
    inner = tuple(slice(skip, skip + n) for skip, n in zip(before[1:], spatial[1:], strict=True))
    places = list(product(*(range(len(first)) for first in firsts[1:])))
    edge = "edge" if exp.competition.dimensions == 2 else "constant"
    for row, top in enumerate(firsts[0]):
        for group in _groups(places, exp.inference.batch_size):
            corners = [(top, *(first[i] for first, i in zip(firsts[1:], place, strict=True))) for place in group]
            windows = np.stack([_window(image, corner, patch, before, edge) for corner in corners])
            for place, corner, found in zip(group, corners, predict(torch.from_numpy(windows)).to(home), strict=True):
                target = tuple(slice(c, c + size) for c, size in zip(corner[1:], patch[1:], strict=True))
                _add(sums[(slice(None), slice(None), *target)], found, weights, (row, *place))
        done = (firsts[0][row + 1] if row + 1 < len(firsts[0]) else padded[0]) - top
        low, high = max(top, before[0]), min(top + done, before[0] + spatial[0])
        finished = sums[(slice(None), slice(low - top, high - top), *inner)]
        result[:, low - before[0] : high - before[0]] = _half(finished)
        for index in range(patch[0]):  # row by row, since a copy of the whole slab would double the memory
            sums[:, index] = sums[:, index + done] if index + done < patch[0] else 0
    return result


def _slice_by_slice(predict: Predict, image: np.ndarray, exp: Experiment) -> np.ndarray:
    """A flat network on each slice of a volume (C, X, Y, Z), some slices at a time."""
    patch, spatial, outputs, slices = exp.patch.size, image.shape[1:3], exp.outputs, exp.patch.slices or 1
    padded = [max(n, size) for n, size in zip(spatial, patch, strict=True)]
    before = [(large - n) // 2 for large, n in zip(padded, spatial, strict=True)]
    firsts = [starts(n, size, exp.inference.overlap) for n, size in zip(spatial, patch, strict=True)]
    weights = [blend(n, size, first) for n, size, first in zip(spatial, patch, firsts, strict=True)]
    depth, reach = image.shape[-1], slices // 2
    result = np.empty((outputs, *image.shape[1:]), np.float16)
    for low in range(0, depth, SLICES):
        high = min(low + SLICES, depth)
        origin = max(0, low - reach)
        # A block at a time, since the last axis is the fastest: even one slice alone touches every page of the file.
        block = np.ascontiguousarray(image[..., origin : min(depth, high + reach)])
        sums = torch.zeros((high - low, outputs, *padded))
        places = list(product(range(low, high), *(range(len(first)) for first in firsts)))
        for group in _groups(places, exp.inference.batch_size):
            corners = [tuple(first[i] for first, i in zip(firsts, place[1:], strict=True)) for place in group]
            windows = np.stack(
                [
                    _window(neighbours(block, place[0] - origin, slices), corner, patch, before, "constant")
                    for place, corner in zip(group, corners, strict=True)
                ]
            )
            for place, corner, found in zip(group, corners, predict(torch.from_numpy(windows)).cpu(), strict=True):
                target = tuple(slice(c, c + size) for c, size in zip(corner, patch, strict=True))
                _add(sums[(place[0] - low, slice(None), *target)], found, weights, place[1:])
        inner = tuple(slice(skip, skip + n) for skip, n in zip(before, spatial, strict=True))
        result[..., low:high] = np.moveaxis(_half(sums[(slice(None), slice(None), *inner)]), 0, -1)
    return result


def _mean(
    networks: Sequence[nn.Module], batch: torch.Tensor, looks: list[View], exp: Experiment, autocast: Autocast
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Probabilities (B, P, *patch) float32 of a batch, the mean over networks and views; and with a gate one tensor

    (B, N, K) of each network's, the mean over views.
    """
    total: torch.Tensor | None = None
    gates: list[torch.Tensor] = []
    for network in networks:
        for look in looks:
            with autocast():
                outputs = network(look.of(batch))
            try:
                logits = look.undo(main_output(outputs, batch.ndim - 2, exp.outputs).float())
                if logits.shape[2:] != batch.shape[2:]:
                    raise ValueError("another size")
            except ValueError as error:
                raise MaskfoldError(
                    f"The network turns a batch of shape {tuple(batch.shape)} into {describe(outputs)}.",
                    f"Make it give {exp.outputs} channels of the same size.",
                    status=2,
                ) from error
            found = logits.softmax(1) if exp.competition.labels == "exclusive" else logits.sigmoid()
            total = found if total is None else total.add_(found)
            gates += _gate(outputs, exp)
    if total is None:
        raise ValueError("no network to predict with")
    shape = (len(networks), len(looks), len(batch), len(exp.competition.classes))
    said = [torch.stack(gates).reshape(shape).mean(1).transpose(0, 1)] if gates else []
    return total.div_(len(networks) * len(looks)), said


def _gate(outputs: Any, exp: Experiment) -> list[torch.Tensor]:
    """The gate's probabilities (B, K) float32 in what a network gave; nothing where the experiment has no gate."""
    if exp.gate is None:
        return []
    if (logits := split_gate(outputs)[1]) is None:
        raise MaskfoldError(f"The network gives {describe(outputs)}, and no gate.", "Set gate to null.", status=2)
    return [logits.float().sigmoid()]


def _add(target: torch.Tensor, found: torch.Tensor, weights: list[torch.Tensor], place: tuple[int, ...]) -> None:
    """Adds one window (P, *patch) to its part of the sums, weighted along each axis."""
    for axis, index in enumerate(place):
        weight = weights[axis][index]
        found = found * weight.reshape(-1, *(1 for _ in place[axis + 1 :]))
    target += found


def _window(
    image: np.ndarray, corner: tuple[int, ...], patch: Sequence[int], before: Sequence[int], edge: Any
) -> np.ndarray:
    """The window (C, *patch) float32 at a corner of the padded grid."""
    inside, margins = [slice(None)], [(0, 0)]
    for first, size, skip, length in zip(corner, patch, before, image.shape[1:], strict=True):
        low, high = max(0, first - skip), min(length, first - skip + size)
        inside.append(slice(low, high))
        left = low - (first - skip)
        margins.append((left, size - left - (high - low)))
    window = np.array(image[tuple(inside)], dtype=np.float32)
    return np.pad(window, margins, mode=edge) if any(map(any, margins)) else window


def _half(sums: torch.Tensor) -> np.ndarray:
    """Finished sums as float16 in host memory."""
    values = sums.half()
    if not torch.isfinite(values).all():
        raise MaskfoldError(
            "The network gives values that are not finite.",
            "Train with a lower learning rate or with `training.precision: fp32`.",
        )
    return values.cpu().numpy()


def _groups(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


@contextmanager
def _evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode that each part had (frozen parts may differ from the rest)."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
