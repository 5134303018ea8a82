"""Predict for each foreground class whether a patch contains it, with a presence head.

A presence head is a classification head. Networks of segmentation_models_pytorch get such a head from the
argument `aux_params`. For any other network, `WithPresenceHead` adds one: it pools the deepest feature map and applies
one linear layer. Each class has its own sigmoid, even if classes are exclusive. A network with a presence head returns
its segmentation output and the presence logits (B, K).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from competition.config.competition import Competition
from competition.config.experiment import PresenceHeadConfig
from competition.errors import MaskfoldError
from competition.models.targets import IGNORE_INDEX

FeatureMaps = dict[str, tuple[int, tuple[int, ...]]]  # (channels, spatial size) of the output of each module, by name


class WithPresenceHead(nn.Module):
    """Add a classification head to one of a network's feature maps.

    Args:
        network: any network. The names of its parameters get the prefix `network.`; the names of the head's parameters
            get the prefix `head.`.
        module_name: name of the module in `network` whose output is the feature map.
        width: number of channels of the feature map.
        classes: number of classes K.
        gate: pooling and dropout of the head.

    Example:
        >>> WithPresenceHead(network, "bottleneck", 256, 2, PresenceHeadConfig())(image)[1].shape  # doctest: +SKIP
        torch.Size([4, 2])
    """

    def __init__(
        self, network: nn.Module, module_name: str, width: int, classes: int, gate: PresenceHeadConfig
    ) -> None:
        super().__init__()
        self.network, self.module_name, self.pooling = network, module_name, gate.pooling
        self.head = nn.Sequential(nn.Dropout(gate.dropout), nn.Linear(width, classes))

    def forward(self, image: Tensor) -> tuple[Any, Tensor]:
        """Return the network's output for images (B, C, *spatial), and presence logits (B, K)."""
        maps: list[Tensor] = []
        # The hook exists only for this call, because in a copy of this module a permanent hook would still refer to the
        # original network.
        hook = self.network.get_submodule(self.module_name).register_forward_hook(
            lambda _module, _inputs, output: maps.append(output)
        )
        try:
            outputs = self.network(image)
        finally:
            hook.remove()
        values = maps[-1].flatten(2)
        return outputs, self.head(values.mean(2) if self.pooling == "avg" else values.amax(2))


def find_deepest_feature_map(
    network: nn.Module, build_on_cpu: Callable[[], nn.Module], channels: int, size: tuple[int, ...]
) -> tuple[str, int]:
    """Find the module that computes the network's deepest feature map.

    The network runs on a patch and on a patch of twice the size, on the meta device if possible. A module is a
    candidate if it is called once, and its output is one feature map with these properties:

    - The map is smaller than the patch.
    - The map of the larger patch is larger. This excludes, for example, the pooled values of a squeeze-and-excitation
      block.

    The candidate with the smallest map is chosen. Among maps of the same size, the map with the most channels is
    chosen. Among maps that are equal in both, the last one in order of computation is chosen.

    Args:
        network: the network, on the meta device.
        build_on_cpu: function that builds the network on the CPU. It is called if the forward pass reads the content
            of tensors.
        channels: number of channels of the network's input.
        size: size of the patch.

    Returns:
        The module's name and the number of channels of its feature map.

    Raises:
        MaskfoldError (exit status 2): no module is a candidate.
    """
    try:
        maps, device = _feature_maps(network, channels, size, "meta"), "meta"
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error).lower():
            raise
        network, device = build_on_cpu(), "cpu"
        maps = _feature_maps(network, channels, size, device)
    try:
        maps_of_double = _feature_maps(network, channels, tuple(2 * edge for edge in size), device)
    except Exception:  # noqa: BLE001 - a network that accepts one patch size only may raise anything
        maps_of_double = None
    best = ("", 0)
    deepest = (1 - torch.Size(size).numel(), 0)  # (-pixels, channels): smaller maps first, then wider ones
    for name, (width, spatial) in maps.items():
        pixels = torch.Size(spatial).numel()
        if maps_of_double is not None:
            double_width, double_spatial = maps_of_double.get(name, (0, ()))
            if double_width != width or torch.Size(double_spatial).numel() <= pixels:
                continue
        if (-pixels, width) >= deepest:
            best, deepest = (name, width), (-pixels, width)
    if not best[0]:
        raise MaskfoldError(
            f"gate requires a feature map that is smaller than the patch, but {type(network).__name__} has none.",
            "Set gate to null, or set model.target to an encoder-decoder such as monai.networks.nets.DynUNet.",
            status=2,
        )
    return best


@torch.no_grad()
def _feature_maps(network: nn.Module, channels: int, size: tuple[int, ...], device: str) -> FeatureMaps:
    """Return the feature maps of one patch, in order of computation.

    Returns:
        Name of the module -> channels and spatial size of its feature map. Modules that are called more than once are
        left out.
    """
    calls: dict[str, list[tuple[int, tuple[int, ...]]]] = {}

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else ()
            earlier = calls.pop(name, [])
            calls[name] = [*earlier, (shape[1], shape[2:]) if len(shape) == len(size) + 2 else (0, ())]

        return record

    hooks = [module.register_forward_hook(recorder(name)) for name, module in network.named_modules() if name]
    try:
        network.eval()(torch.zeros(1, channels, *size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: shapes[0] for name, shapes in calls.items() if len(shapes) == 1 and shapes[0][0]}


def presence_target(mask: Tensor, comp: Competition) -> tuple[Tensor, Tensor]:
    """Return which classes are present in each patch, and for which classes this is known.

    Ignored pixels are left out, as in the score. If all pixels of a patch are ignored, the presence of its classes is
    unknown. If there is only one class, every value except 0 and 255 means that the class is present, because further
    values mark the boundaries or rings of its objects.

    Args:
        mask: (B, M, *spatial) uint8, as for `competition.models.targets.LossTarget`.
        comp: competition with `classes` and `labels`. Its setting `ignore` is not read, because pseudo-labels and
            cases of other competitions may have ignored pixels even without this setting.

    Returns:
        Two tensors (B, K): the presence, float32 (0 or 1); and whether the presence is known, bool.
    """
    classes = len(comp.classes)
    if comp.labels == "overlapping":
        planes = mask.flatten(2)
        return (planes == 1).any(2).float(), (planes != IGNORE_INDEX).any(2)
    has_value = torch.zeros((len(mask), IGNORE_INDEX + 1), device=mask.device)
    has_value.scatter_(1, mask.flatten(1).long(), 1.0)
    target = has_value[:, 1 : classes + 1] if classes > 1 else has_value[:, 1:IGNORE_INDEX].amax(1, keepdim=True)
    return target, (has_value[:, :IGNORE_INDEX].amax(1, keepdim=True) > 0).expand(-1, classes)


def presence_loss(logits: Tensor, mask: Tensor, comp: Competition) -> Tensor:
    """Compute the mean binary cross-entropy of the presence head.

    The mean is over all patches and classes whose presence is known.

    Args:
        logits: presence logits (B, K).
        mask: (B, M, *spatial) uint8, as for `presence_target`.
        comp: competition with `classes` and `labels`.
    """
    target, known = presence_target(mask, comp)
    losses = binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)
