"""An exponential moving average of the weights (Polyak averaging), which is what predicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Averages a network's parameters over its training steps; buffers, such as batch statistics, are copied.

    The n-th update (n = 0, 1, …) moves the average by 1 - d towards the parameters, d = min(decay, (1 + n) / (10 + n)),
    so that it forgets where training began (as TensorFlow's ExponentialMovingAverage with `num_updates`).

    Args:
        network: on its device; the average lives beside it.
        decay: d in the long run, in [0, 1).

    Example:
        >>> ema = Ema(nn.Linear(2, 1), 0.99)
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's weights after an optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged = {
            name
            for name, parameter in network.named_parameters(remove_duplicate=False)
            if parameter.is_floating_point()
        }
        means: list[Tensor] = []
        values: list[Tensor] = []
        old: list[Tensor] = []
        new: list[Tensor] = []
        for name, tensor in network.state_dict().items():
            ours, theirs = (means, values) if name in averaged else (old, new)
            ours.append(self._tensors[name])
            theirs.append(tensor)
        if means:
            torch._foreach_lerp_(means, values, 1.0 - decay)
        if old:
            torch._foreach_copy_(old, new)

    def weights(self) -> dict[str, Tensor]:
        """The averaged state dictionary; it fits the network's `load_state_dict`, and is not a copy."""
        return dict(self._tensors)

    def state_dict(self) -> dict[str, Any]:
        """`updates`, a number, and `weights`, tensors by name."""
        return {"updates": self.updates, "weights": self.weights()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            KeyError: the weights are another network's.
        """
        if set(state["weights"]) != set(self._tensors):
            raise KeyError("the averaged weights are another network's")
        self.updates = int(state["updates"])
        for name, tensor in self._tensors.items():
            tensor.copy_(state["weights"][name])
