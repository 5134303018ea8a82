"""A step whose loss or gradient is not a number: found, named, and answered as `training.on_nan` says.

All processes of a fold see the same numbers, means over the processes, and so decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from competition.config import Experiment, MaskfoldError
from competition.config.experiment import Skip
from competition.training.ranks import Ranks

if TYPE_CHECKING:
    from lightning.fabric import Fabric

RESTORES = 8  # times that a fold goes back: the rate is then 1/256 of what it was
GRADIENT = "gradient's norm"


class Micro(NamedTuple):
    """What a micro-batch gave."""

    values: dict[str, Tensor]  # loss and its parts, scalars
    cases: Tensor  # (b,) indices
    share: float  # of a whole micro-batch; less than 1 for a part of one


class Numbers:
    """The numbers of a fold's steps.

    Args:
        exp: read are `training.on_nan` and `training.on_oom`.
        fabric: launched.
        ranks: the fold's processes.
        network: without Fabric's wrapper; its buffers are put back where a step is not taken.
        case_id: the id of a case by its index.
    """

    def __init__(
        self, exp: Experiment, fabric: Fabric, ranks: Ranks, network: nn.Module, case_id: Callable[[int], str]
    ) -> None:
        self.policy, self.fabric, self.ranks, self.case_id = exp.training.on_nan, fabric, ranks, case_id
        self.scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        self.most = exp.training.clip_gradient
        self._unscaled = False  # the scaler lets a gradient be unscaled once a step, and was asked to
        self._buffers: list[Tensor] = []
        if self.policy != "stop" or exp.training.on_oom != "stop":
            self._buffers = list(network.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]

    def remember(self) -> None:
        """Keep the network's buffers, such as batch statistics: the forward pass of a bad batch spoils them."""
        self._unscaled = False
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def clip(self, network: Any, optimizer: Any) -> Tensor:
        """Clip the gradient as `training.clip_gradient` says; its norm before that, a scalar on the device."""
        if self.most is None:
            return get_total_norm([one.grad for one in network.parameters() if one.grad is not None])
        self._unscaled = self.scaler is not None
        norm: Any = self.fabric.clip_gradients(network, optimizer, max_norm=self.most, error_if_nonfinite=False)
        return norm

    def undo(self, optimizer: Any) -> None:
        """Leave no trace of a step that is not taken: gradients, buffers, and what the scaler has noted of it."""
        optimizer.zero_grad()
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)
        if self._unscaled:
            self.scaler.update(self.scaler.get_scale())

    def look(self, micros: Sequence[Micro], norm: Tensor, where: str) -> tuple[dict[str, float], str]:
        """Wait for the device, once in a step, and look at what it found.

        Args:
            micros: of a step, in order.
            norm: of its gradient.
            where: `at step 3 of fold 0`.

        Returns:
            The sum of each value over the micro-batches, and what is wrong, with the cases; empty where nothing is.
        """
        scalars = {(place, name): value for place, micro in enumerate(micros) for name, value in micro.values.items()}
        found = self.ranks.mean(scalars | {(len(micros), GRADIENT): norm})
        bad = [key for key, number in found.items() if not math.isfinite(number)]
        if bad and not (bad == [(len(micros), GRADIENT)] and self._overflows()):
            place, name = bad[0]
            guilty = sorted({place for place, _ in bad if place < len(micros)}) or range(len(micros))
            return (
                {},
                f"The {name} is {found[place, name]} {where} (cases {self._ids(micros[one].cases for one in guilty)})",
            )
        sums: dict[str, float] = {}
        for (place, name), number in found.items():
            if place < len(micros):
                sums[name] = sums.get(name, 0.0) + number * micros[place].share
        return sums, ""

    def answer(self, wrong: str, skipped: int, restored: int) -> str:
        """What to do about a step with wrong numbers: `skip` or `restore`.

        Args:
            wrong: what is wrong, and where.
            skipped: steps of the fold that were left out before.
            restored: times that it went back before.

        Raises:
            MaskfoldError: the fold is to stop.
        """
        cure = "Lower optimizer.args.lr, set training.precision to fp32, or look at these cases"
        if isinstance(self.policy, Skip):
            if skipped < self.policy.skip:
                return "skip"
            raise MaskfoldError(
                f"{wrong}, and the fold has left out {skipped} already.",
                f"{cure}; training.on_nan={{skip: {2 * skipped}}} leaves out more.",
            )
        if self.policy == "restore":
            if restored < RESTORES:
                return "restore"
            raise MaskfoldError(f"{wrong}, after the rate was halved {restored} times.", f"{cure}.")
        raise MaskfoldError(
            f"{wrong}.",
            f"{cure}; training.on_nan={{skip: 5}} leaves out a few such steps, and "
            "training.on_nan=restore goes back to the epoch's start at half the rate.",
        )

    def _overflows(self) -> bool:
        """Whether a gradient that is no number is the scaler's doing: it is looking for its scale, and leaves out the step.

        At a scale of 1 or less it has none to lower any more.
        """
        return self.scaler is not None and self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def _ids(self, cases: Iterable[Tensor]) -> str:
        return ", ".join(self.case_id(index) for index in self.ranks.all_of(torch.cat(list(cases))))


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all entries of all tensors are numbers."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
