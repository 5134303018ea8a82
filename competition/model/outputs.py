"""What a network gives: one tensor, or several with deep supervision."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def output_levels(outputs: Any, dims: int, channels: int) -> list[tuple[Tensor, float]]:
    """Bring whatever a network returns into one form.

    Understood are a tensor (B, C, *spatial); a stack (B, n, C, *spatial), as MONAI's DynUNet gives; lists, tuples and
    dictionaries of tensors. Tensors of another shape (an auxiliary classifier's, features) are left out. Weights follow
    nnU-Net (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z): 1, 1/2, 1/4, … divided by their sum, in
    the order of a stack or a dictionary; in a list, by size, so that outputs of one size weigh the same.

    Args:
        outputs: what `network(x)` gave.
        dims: spatial axes, 2 or 3.
        channels: channels of a segmentation, `competition.outputs`.

    Returns:
        (logits (B, channels, *spatial), weight) pairs; the first is the one that predicts.

    Raises:
        ValueError: nothing among the outputs has `channels` channels and `dims` spatial axes.
    """
    tensors, ranks = _unfold(split_gate(outputs)[0], dims, channels)
    if not tensors:
        raise ValueError(f"the network gives {describe(outputs)}, not (batch, {channels}, {dims} spatial axes)")
    weights = [0.5**rank for rank in ranks]
    return [(tensor, weight / sum(weights)) for tensor, weight in zip(tensors, weights, strict=True)]


def main_output(outputs: Any, dims: int, channels: int) -> Tensor:
    """The logits (B, channels, *spatial) that predict, among whatever a network returns.

    Raises:
        ValueError: as `output_levels`.
    """
    return output_levels(outputs, dims, channels)[0][0]


def split_gate(outputs: Any) -> tuple[Any, Tensor | None]:
    """What a network with a gate gives, in two: its segmentation, in any form, and the gate's logits (B, K).

    A gate is the second of two outputs and has two axes; so is the classifier of segmentation_models_pytorch's networks.
    Without one the second is None.
    """
    if isinstance(outputs, list | tuple) and len(outputs) == 2:
        masks, gate = outputs
        if isinstance(gate, Tensor) and gate.ndim == 2:
            return masks, gate
    return outputs, None


def tensors_of(outputs: Any) -> list[Tensor]:
    """All tensors that a network gives."""
    if isinstance(outputs, Tensor):
        return [outputs]
    inner = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, list | tuple) else []
    return [tensor for value in inner for tensor in tensors_of(value)]


def describe(outputs: Any) -> str:
    """The shapes of a network's outputs, for messages."""
    if isinstance(outputs, Tensor):
        return str(tuple(outputs.shape))
    if isinstance(outputs, dict):
        return "{" + ", ".join(f"{name}: {describe(value)}" for name, value in outputs.items()) + "}"
    if isinstance(outputs, list | tuple):
        return "[" + ", ".join(describe(value) for value in outputs) + "]"
    return type(outputs).__name__


def _unfold(outputs: Any, dims: int, channels: int) -> tuple[list[Tensor], list[int]]:
    """The segmentations, the main one first, and the rank of each."""
    if isinstance(outputs, Tensor):
        if outputs.ndim == dims + 3 and outputs.shape[2] == channels:
            return list(outputs.unbind(1)), list(range(outputs.shape[1]))
        return ([outputs], [0]) if _fits(outputs, dims, channels) else ([], [])
    if isinstance(outputs, dict):
        tensors = [value for value in outputs.values() if _fits(value, dims, channels)]
        return tensors, list(range(len(tensors)))
    if not isinstance(outputs, list | tuple):
        return [], []
    # The last of the largest comes first: U-Net++ lists its outputs from the shallowest to the deepest.
    found = [value for value in reversed(outputs) if _fits(value, dims, channels)]
    tensors = sorted(found, key=lambda tensor: -tensor.shape[2:].numel())
    sizes = list(dict.fromkeys(tensor.shape[2:].numel() for tensor in tensors))
    return tensors, [sizes.index(tensor.shape[2:].numel()) for tensor in tensors]


def _fits(value: Any, dims: int, channels: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == dims + 2 and value.shape[1] == channels
