"""Average the weights of a network over the training steps, as an exponential moving average (EMA)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


class ExponentialMovingAverage:
    """Average a network's parameters over the training steps.

    Buffers, such as batch statistics, are copied. Update number n (n = 0, 1, …) sets the average to
    d · average + (1 - d) · parameters. The decay d = min(decay, (1 + n) / (10 + n)) is small at first, so that the
    initial weights lose influence fast. TensorFlow's ExponentialMovingAverage with `num_updates` uses the same decay.

    Args:
        network: the network, on its device. The average is stored on the same device.
        decay: final value of d, in [0, 1).

    Example:
        >>> ema = ExponentialMovingAverage(nn.Linear(2, 1), 0.99)
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average = AveragedModel(network, multi_avg_fn=self._move)
        self._average.n_averaged.fill_(1)  # without this, the first update would copy the parameters

    def update(self, network: nn.Module) -> None:
        """Update the average with the network's weights; call this method after each optimiser step."""
        self._average.update_parameters(network)
        self.updates += 1

    def _move(self, averages: Tensors, parameters: Tensors, _: Tensor | int) -> None:
        """Move the averages towards the parameters; if the tensors are integers, copy the parameters instead.

        All tensors of one call must have the same dtype.
        """
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, parameters, 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates)))
        else:
            torch._foreach_copy_(averages, parameters)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights as a state dictionary, which the network's `load_state_dict` accepts.

        The tensors are not copied, so later updates change them.
        """
        return dict(self._average.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return a dictionary: `updates` is the number of updates, and `weights` the averaged tensors by name."""
        return {"updates": self.updates, "weights": self.weights()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            KeyError: the weights belong to another network.
        """
        weights = self.weights()
        if set(state["weights"]) != set(weights):
            raise KeyError("the averaged weights are those of another network")
        self.updates = int(state["updates"])
        for name, tensor in weights.items():
            tensor.copy_(state["weights"][name])
