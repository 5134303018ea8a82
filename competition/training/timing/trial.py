"""Take trial steps to measure time, and restore everything that the steps change."""

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

    from competition.models.optim import ExponentialMovingAverage

MAX_TRIALS = 5
MAX_SHARE = 0.01  # share of the time budget for further steps after the second step
SLOW_STEP = 5.0  # seconds; a second step follows if the first took less, or less than MAX_FIRST_SHARE
MAX_FIRST_SHARE = 0.05  # of the time budget


@contextmanager
def undone(
    modules: list[nn.Module], optimizer: Any, ema: ExponentialMovingAverage | None, fabric: Fabric
) -> Iterator[None]:
    """Restore, at the end of the `with` block, everything that training steps in the block have changed.

    Args:
        modules: the network and the loss; all parameters and buffers are restored, even if no state dictionary has
            them.
        optimizer: the network's optimiser.
        ema: the moving average of the network's weights; None without an average.
        fabric: the fabric that has the loss scaler.
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
    """Time a few steps; return the seconds of one step.

    The first step is slower than later steps, because memory is allocated and kernels are selected. So it counts only
    if the budget has no time for a second step.

    Args:
        take_step: function that takes one step, and waits for its end.
        budget_seconds: the time budget.
        agree: function that returns the main process's decision in every process of the fold, so that all processes
            continue or stop.
        clock: function that returns seconds.
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
    """Keep the batches of the trial steps for the training, so that loader processes start only once."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches, self._read = batches, list[Any]()

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._read.append(batch)
        return batch

    def rewind(self) -> Iterator[Any]:
        """Return all batches, starting with the first."""
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
    """Wait until a device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
