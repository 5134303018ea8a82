"""The gate: a head that says, for each foreground class, whether the patch holds it at all.

Networks of segmentation_models_pytorch have such a head, which their `aux_params` switch on. Around any other network goes
`Gated`: the deepest feature map, pooled, and one linear layer. Classes are asked one by one (a sigmoid each), whether they
exclude each other or overlap. A network with a gate gives the tuple (what it gave before, gate logits (B, K)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from competition.config import Competition, MaskfoldError
from competition.config.gate import Gate
from competition.model.truth import IGNORE

Maps = dict[str, tuple[int, tuple[int, ...]]]  # (channels, spatial size) by the module that made the map


class Gated(nn.Module):
    """A network and a classifying head on one of its feature maps.

    Args:
        network: any network; its own parameters are found under `network.`, the head's under `head.`.
        place: the name of the module within it that makes the feature map.
        width: channels of that map.
        classes: K.
        gate: how it is pooled, and its dropout.

    Example:
        >>> Gated(network, "bottleneck", 256, 2, Gate())(image)[1].shape  # doctest: +SKIP
        torch.Size([4, 2])
    """

    def __init__(self, network: nn.Module, place: str, width: int, classes: int, gate: Gate) -> None:
        super().__init__()
        self.network, self.place, self.pooling = network, place, gate.pooling
        self.head = nn.Sequential(nn.Dropout(gate.dropout), nn.Linear(width, classes))

    def forward(self, image: Tensor) -> tuple[Any, Tensor]:
        """What the network gives for (B, C, *spatial), and the gate's logits (B, K)."""
        maps: list[Tensor] = []
        # A hook for this call alone: one that stays would point to another network once this one is copied.
        hook = self.network.get_submodule(self.place).register_forward_hook(
            lambda _module, _given, made: maps.append(made)
        )
        try:
            outputs = self.network(image)
        finally:
            hook.remove()
        values = maps[-1].flatten(2)
        return outputs, self.head(values.mean(2) if self.pooling == "avg" else values.amax(2))


def deepest_map(
    network: nn.Module, on_cpu: Callable[[], nn.Module], channels: int, size: tuple[int, ...]
) -> tuple[str, int]:
    """The module that makes a network's deepest feature map, and the map's channels.

    One patch goes through, and one of twice the size, on the meta device where the network allows it. Of the modules that
    are called once, and give one feature map smaller than the patch that grows with it (a squeeze-and-excitation's pooled
    values do not), it is the one with the smallest map; of several the widest, and of those the last that is done.

    Args:
        network: on the meta device.
        on_cpu: builds it on the CPU, for a network that looks at values while it runs.
        channels: of its input.
        size: of the patch.

    Raises:
        MaskfoldError: status 2; there is no such module.
    """
    try:
        found, device = _maps(network, channels, size, "meta"), "meta"
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error).lower():
            raise
        network, device = on_cpu(), "cpu"
        found = _maps(network, channels, size, device)
    try:
        twice = _maps(network, channels, tuple(2 * edge for edge in size), device)
    except Exception:  # noqa: BLE001 - a network that takes patches of one size alone may raise anything
        twice = None
    whole, best = torch.Size(size).numel(), ("", 0)
    deepest = (1 - whole, 0)  # smaller, then wider
    for name, (width, spatial) in found.items():
        area = torch.Size(spatial).numel()
        if twice is not None:
            width_of_twice, spatial_of_twice = twice.get(name, (0, ()))
            if width_of_twice != width or torch.Size(spatial_of_twice).numel() <= area:
                continue
        if (-area, width) >= deepest:
            best, deepest = (name, width), (-area, width)
    if not best[0]:
        raise MaskfoldError(
            f"gate needs a feature map smaller than the patch, and {type(network).__name__} makes none.",
            "Set gate to null, or take an encoder-decoder such as monai.networks.nets.DynUNet.",
            status=2,
        )
    return best


@torch.no_grad()
def _maps(network: nn.Module, channels: int, size: tuple[int, ...], device: str) -> Maps:
    """The feature maps of one patch, by module, in the order in which they are done."""
    made: dict[str, list[tuple[int, tuple[int, ...]]]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_module: nn.Module, _given: Any, output: Any) -> None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else ()
            calls = made.pop(name, [])
            made[name] = [*calls, (shape[1], shape[2:]) if len(shape) == len(size) + 2 else (0, ())]

        return note

    hooks = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    try:
        network.eval()(torch.zeros(1, channels, *size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: calls[0] for name, calls in made.items() if len(calls) == 1 and calls[0][0]}


def presence(mask: Tensor, comp: Competition) -> tuple[Tensor, Tensor]:
    """Whether each class is in each patch.

    Pixels that are ignored say nothing: a class that is on them alone is not there, as in the score, and a patch of nothing
    else says nothing at all. With one class the boundary of its objects belongs to it.

    Args:
        mask: (B, M, *spatial) uint8, as `competition.model.truth.Truth` takes it.
        comp: read are `classes` and `labels`; pseudo-labels and other competitions' cases bring ignored pixels too.

    Returns:
        (B, K) float32 of 0 and 1, and (B, K) bool: where it is known.
    """
    classes = len(comp.classes)
    if comp.labels == "overlapping":
        planes = mask.flatten(2)
        return (planes == 1).any(2).float(), (planes != IGNORE).any(2)
    found = torch.zeros((len(mask), IGNORE + 1), device=mask.device)
    found.scatter_(1, mask.flatten(1).long(), 1.0)
    there = found[:, 1 : classes + 1] if classes > 1 else found[:, 1:3].amax(1, keepdim=True)
    return there, (found[:, :IGNORE].amax(1, keepdim=True) > 0).expand(-1, classes)


def gate_loss(logits: Tensor, mask: Tensor, comp: Competition) -> Tensor:
    """The binary cross-entropy of the gate, a float32 scalar: its mean over the patches and classes that are known.

    Args:
        logits: (B, K).
        mask: see `presence`.
        comp: see `presence`.
    """
    there, known = presence(mask, comp)
    each = binary_cross_entropy_with_logits(logits.float(), there, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)
