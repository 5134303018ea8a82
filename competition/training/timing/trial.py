"""Take trial steps to measure how long a training step takes, and undo everything that these steps change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from competition.models.ema import ExponentialMovingAverage

MAX_TRIALS = 5
MAX_SHARE = 0.01  # more than two trial steps are taken only if all together take less than this share of the budget
# A second trial step follows if the first one took less than these seconds, or less than this share of the time budget.
SLOW_STEP = 5.0
MAX_FIRST_SHARE = 0.05


@contextmanager
def undone(
    modules: list[nn.Module], optimizer: Any, ema: ExponentialMovingAverage | None, fabric: Fabric
) -> Iterator[None]:
    """Restore, at the end of the `with` block, everything that training steps in the block have changed.

    Args:
        modules: the network and the loss. All their parameters and buffers are restored, also buffers that are not part
            of a state dictionary.
        optimizer: the optimiser of the network.
        ema: the moving average of the network's weights; None if there is none.
        fabric: Lightning Fabric, which has the loss scaler of fp16.
    """
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    copies = [_copy_to_cpu(tensor) for tensor in tensors]
    training = [(part, part.training) for module in modules for part in module.modules()]
    optimizer_state = _copy_to_cpu(optimizer.state_dict())
    average = _copy_to_cpu(ema.state_dict()) if ema is not None else None
    precision = fabric.strategy.precision
    scaler = precision.state_dict()
    random_states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state(fabric.device) if fabric.device.type == "cuda" else None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
        for part, mode in training:
            part.training = mode
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer_state)
        if ema is not None and average is not None:
            ema.load_state_dict(average)
        if scaler:
            precision.load_state_dict(scaler)
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        torch.set_rng_state(random_states[2])
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, fabric.device)


def time_steps(
    take_step: Callable[[], None], budget_seconds: float, agree: Callable[[bool], bool], clock: Callable[[], float]
) -> float:
    """Take a few steps, and return the mean seconds of a step.

    The first step is slower than the others, because memory is allocated and kernels are selected. So it is left out of
    the mean, except if the budget has no time for a second step.

    Args:
        take_step: function that takes one step, and returns after the device has finished it.
        budget_seconds: the time budget of the fold in seconds.
        agree: function that returns the main process's decision in every process of the fold, so that all processes
            take the same number of steps.
        clock: function that returns the time in seconds.
    """
    seconds: list[float] = []
    begin = clock()
    while len(seconds) < MAX_TRIALS:
        start = clock()
        take_step()
        seconds.append(clock() - start)
        spent = clock() - begin
        if len(seconds) == 1:
            go_on = spent < max(SLOW_STEP, MAX_FIRST_SHARE * budget_seconds)
        else:
            go_on = spent + seconds[-1] < MAX_SHARE * budget_seconds
        if not agree(go_on):
            break
    timed = seconds[1:] or seconds
    return sum(timed) / len(timed)


class ReplayableBatches(Iterator[Any]):
    """Iterate over batches, and store those that were read, so that training can use the batches of the trial steps.

    Without this, the loader processes would have to be started a second time.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches, self._read = batches, list[Any]()

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._read.append(batch)
        return batch

    def rewind(self) -> Iterator[Any]:
        """Return an iterator over all batches, starting with those that were already read."""
        read = self._read
        while read:
            yield read.pop(0)  # a batch must not stay in memory after its step
        yield from self._batches


def _copy_to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy_to_cpu(item) for item in value)
    return value


def wait_for(device: torch.device) -> None:
    """Wait until a CUDA device has finished all work that was queued; other devices need no wait."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
