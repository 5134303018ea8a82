"""Make networks faster, by the memory layout of their tensors and by `torch.compile`.

In 2D, libraries compute convolutions faster when the channels of a pixel lie side by side in memory (channels_last).
With channels_last, a training step of the shipped networks takes 0.8 to 1.05 times as long as with channels first. A
prediction takes 0.75 to 0.95 times as long (`python benchmarks/networks.py`). The layout changes the last bits of the
results. Therefore, a run keeps the layout that it started with (see `competition.runs.kept_settings`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from competition.config.experiment import Experiment
from competition.models.interface import error_in_one_line, flatten_tensors

LONG_BUDGET_MINUTES = 10.0  # `training.compile: auto` compiles if the budget is longer; compiling takes a minute


# Memory layout


def memory_format(exp: Experiment) -> torch.memory_format | None:
    """Return the memory layout of the network's weights and inputs; None means channels first, torch's default.

    When a run starts, `maskfold cv` replaces `training.memory_format: auto` by a layout. Only older runs still contain
    `auto`, and their layout is channels first.
    """
    if exp.training.memory_format != "channels_last":
        return None
    return torch.channels_last if exp.network_dimensions == 2 else torch.channels_last_3d


def arrange_network(network: nn.Module, exp: Experiment) -> nn.Module:
    """Change the weights of a network to the memory layout of the run, and return the network.

    The values of the weights do not change.
    """
    if (layout := memory_format(exp)) is not None:
        set_layout(network, layout)
    return network


def set_layout(network: nn.Module, layout: torch.memory_format) -> None:
    """Set the memory layout of a network's weights and buffers in place.

    The layout channels_last is applied to tensors with four axes, and channels_last_3d to tensors with five axes. Any
    other layout is applied to tensors with four or five axes.
    """
    axes = {torch.channels_last: (4,), torch.channels_last_3d: (5,)}.get(layout, (4, 5))
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim in axes:
            tensor.data = tensor.data.contiguous(memory_format=layout)


def arrange(images: Tensor, exp: Experiment) -> Tensor:
    """Return the network's input (B, C, *patch) in the memory layout of the run, with the same shape and values."""
    layout = memory_format(exp)
    return images if layout is None else to_layout(images, layout)


def to_layout(images: Tensor, layout: torch.memory_format) -> Tensor:
    """Return images (B, C, *spatial) in a memory layout.

    The strides follow the layout even if the images have a single channel.
    """
    found = images.contiguous(memory_format=layout)
    if found.shape[1] == 1:  # both layouts are equal here, and without explicit strides torch assumes channels first
        found = found.as_strided(found.shape, (found.stride(0), 1, *found.stride()[2:]))
    return found


# Compilation


def wants_compilation(exp: Experiment, device: torch.device) -> bool:
    """Return whether to compile the network for training.

    If `training.compile` is `auto`, the network is compiled under two conditions: it trains on a single GPU, and the
    time budget is at least `LONG_BUDGET_MINUTES`.
    """
    if exp.training.compile != "auto":
        return exp.training.compile == "on"
    minutes = exp.training.budget_minutes
    is_long = minutes is not None and minutes >= LONG_BUDGET_MINUTES
    return device.type == "cuda" and exp.run.devices == 1 and is_long


def compile_network(
    network: nn.Module,
    exp: Experiment,
    channels: int,
    device: torch.device,
    say: Callable[[str], None],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> nn.Module | None:
    """Compile a network for training, and call the compiled network once with noise.

    This call is needed, because torch compiles only at the first call. Afterwards, this function restores the buffers,
    the training mode and torch's random generators. The weights do not change.

    Args:
        network: network on `device`. The compiled network shares its weights.
        exp: experiment with the batch size, the patch size and the memory format.
        channels: number of channels of the network's input.
        device: device of the training.
        say: function that receives a message for the user if compilation fails.
        autocast: function that returns the autocast context of the forward pass.

    Returns:
        The compiled network. None means that compilation failed, e.g. because no C compiler is installed.
    """
    network.to(device)
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    was_training = network.training
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            compiled: Any = torch.compile(network)
            images = arrange(torch.randn(exp.training.batch_size, channels, *exp.patch.size, device=device), exp)
            compiled.train()
            with autocast():
                outputs = flatten_tensors(compiled(images))
            torch.stack([output.float().mean() for output in outputs]).sum().backward()
    except Exception as error:  # noqa: BLE001 - torch and the C compiler may raise any exception
        say(f"note: the network cannot be compiled, so it trains without compilation: {error_in_one_line(error)}")
        return None
    finally:
        network.zero_grad()
        network.train(was_training)
        for buffer, before in buffers:
            buffer.copy_(before)
    return compiled
