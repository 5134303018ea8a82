"""The loss: a weighted sum of terms, at every level that the network gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from competition.config import Experiment, MaskfoldError
from competition.model.arguments import one_line
from competition.model.gate import gate_loss
from competition.model.outputs import describe, output_levels, split_gate
from competition.model.terms import Term
from competition.model.truth import Truth


class SegmentationLoss(nn.Module):
    """The loss of an experiment.

    Each term is any loss of MONAI, segmentation_models_pytorch, torch, or one's own; `competition.model.terms` says
    what each receives. The loss is computed in float32 whatever the network's precision. Where the network gives
    several outputs (deep supervision), the mask is brought to each one's size, and the levels' losses are averaged with
    the weights of `competition.model.outputs`. Pixels of 255 have no gradient where masks may hold them
    (`Experiment.ignores`, `competition.model.truth`).

    Args:
        exp: the experiment.
        trust: packages that a target may come from, besides the trusted ones.

    Raises:
        MaskfoldError: status 2; a term's target or arguments are wrong.

    Example:
        >>> total, parts = SegmentationLoss(exp)(network(image), mask)  # doctest: +SKIP
    """

    def __init__(self, exp: Experiment, trust: Sequence[str] = ()) -> None:
        super().__init__()
        single = not isinstance(exp.loss, list)
        terms = [Term(spec, exp, "loss" if single else f"loss.{place}", trust) for place, spec in enumerate(exp.losses)]
        names: dict[str, int] = {"gate": 1} if exp.gate is not None else {}
        for term in terms:  # two terms of one name are told apart by a number
            names[term.name] = names.get(term.name, 0) + 1
            term.name += f"_{names[term.name]}" if names[term.name] > 1 else ""
            term.prefix = f"{term.name}/" if len(terms) > 1 else ""
        self.terms = nn.ModuleList(terms)
        self.weights = [spec.weight for spec in exp.losses]
        self.dims = exp.network_dimensions
        self.channels = exp.outputs
        self.exclusive = exp.competition.labels == "exclusive"
        self.ignore = exp.ignores
        self.gate, self.comp = exp.gate, exp.competition
        self._device = torch.device("cpu")

    def forward(self, outputs: Any, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch.

        Args:
            outputs: what the network gave in training mode: a tensor (B, C, *spatial), a stack (B, n, C, *spatial), or
                a list, tuple or dictionary of tensors; with a gate, a tuple of that and logits (B, K).
            mask: (B, M, *spatial) uint8 on the same device.

        Returns:
            The total, a float32 scalar with a gradient, and detached scalars by name: each term, or the two losses
            that a MONAI compound adds up (`dice` and `ce`; beside other terms `DiceCELoss/dice`, …), averaged over
            the levels, not weighted by `loss.weight`; and `gate`, not weighted by `gate.weight`.

        Raises:
            ValueError: the network gave no segmentation, or no gate where there shall be one.
        """
        if mask.device != self._device:  # class weights follow the data
            self.to(mask.device)
            self._device = mask.device
        total = torch.zeros((), device=mask.device)
        parts: dict[str, Tensor] = {}
        with torch.autocast(mask.device.type, enabled=False):
            for logits, share in output_levels(outputs, self.dims, self.channels):
                truth = Truth(resize_mask(mask, tuple(logits.shape[2:])), self.channels, self.exclusive, self.ignore)
                settled = truth.settle(logits.float())
                for term, weight in zip(self.terms, self.weights, strict=True):
                    value, values = term(settled, truth)
                    total = total + share * weight * value
                    for name, part in values.items():
                        parts[name] = parts.get(name, 0.0) + share * part.detach()
            if self.gate is not None:
                if (gate := split_gate(outputs)[1]) is None:
                    raise ValueError(f"the network gives {describe(outputs)}, without a gate")
                value = gate_loss(gate, mask, self.comp)
                total, parts["gate"] = total + self.gate.weight * value, value.detach()
        return total, parts


def check_loss(exp: Experiment, trust: Sequence[str] = ()) -> None:
    """Compute the loss of a tiny random batch, and its gradient.

    Args:
        exp: the experiment.
        trust: packages that a target may come from, besides the trusted ones.

    Raises:
        MaskfoldError: status 2; a term cannot be built, or fails on a batch.
    """
    comp, dims = exp.competition, exp.network_dimensions
    loss = SegmentationLoss(exp, trust)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, exp.outputs, *[16] * dims, generator=generator).requires_grad_()
    shape = (2, 1 if loss.exclusive else len(comp.classes), *[16] * dims)
    mask = torch.randint(0, exp.outputs if loss.exclusive else 2, shape, generator=generator, dtype=torch.uint8)
    try:
        total, _ = loss(logits if exp.gate is None else (logits, logits.new_zeros(2, len(comp.classes))), mask)
        total.backward()
    except Exception as error:
        raise MaskfoldError(
            f"loss fails on a batch: {one_line(error)}.",
            f"Correct loss: {', '.join(spec.target for spec in exp.losses)}.",
            status=2,
        ) from error


def resize_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Nearest-neighbour resizing, pixel centres aligned (torch's `nearest-exact`), for any axes and any dtype.

    Args:
        mask: (B, M, *spatial).
        size: the spatial size wanted.

    Returns:
        (B, M, *size), the mask itself where it has that size.
    """
    for axis, (edge, wanted) in enumerate(zip(mask.shape[2:], size, strict=True), start=2):
        if edge != wanted:
            places = (torch.arange(wanted, device=mask.device) * 2 + 1) * edge // (2 * wanted)
            mask = mask.index_select(axis, places)
    return mask
