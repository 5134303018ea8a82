"""Whether a network's bf16 gradients on this CPU are the same each time they are computed.

Some kernels of oneDNN add up, or read, other numbers each time (a weight gradient of a 3×3×3 convolution on a grid of 2×2×4
with two threads, for one): resumed training would end elsewhere, and now and then a gradient is NaN. Such a network
trains in fp32 where `training.precision` is auto.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from competition.config import Experiment, MaskfoldError
from competition.data.records import read_record
from competition.model.outputs import tensors_of
from competition.training.checkpoint import write_json

RUNS = 5


def repeats(exp: Experiment, channels: int, cache: Path, trust: Sequence[str] = ()) -> bool:
    """Compute the gradients of one batch several times and compare them bit for bit.

    Args:
        exp: read are the model, the patch and the batch size.
        channels: of the network's input.
        cache: where the answer is kept for the other folds, and for a resumed one.
        trust: packages besides the known ones that the model may come from.

    Returns:
        True where all are finite and equal.
    """
    threads = torch.get_num_threads()
    said = [
        exp.model.model_dump(),
        exp.patch.size,
        exp.training.batch_size,
        channels,
        exp.outputs,
        threads,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        RUNS,
        *([exp.gate.model_dump()] if exp.gate is not None else []),
    ]
    kept = cache / "bf16" / f"{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(FileNotFoundError, MaskfoldError, KeyError):  # a damaged answer is found again
        return bool(read_record(kept)["repeats"])
    found = _same(exp, channels, trust)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, {"repeats": found})
    return found


def _same(exp: Experiment, channels: int, trust: Sequence[str]) -> bool:
    from competition.model.network import build_network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(exp, channels, trust, pretrained=False).train()
        image = torch.randn(exp.training.batch_size, channels, *exp.patch.size)
        first: list[torch.Tensor] = []
        for _ in range(RUNS):
            torch.manual_seed(1)  # dropout
            found = _gradients(network, image)
            if not all(bool(torch.isfinite(one).all()) for one in found):
                return False
            if not first:
                first = found
            elif not all(torch.equal(one, other) for one, other in zip(first, found, strict=True)):
                return False
    return True


def _gradients(network: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """The gradient of each parameter that has one, of a number that all outputs take part in."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(image)
    sum((one.float().sigmoid().mean() for one in tensors_of(outputs)), torch.zeros(())).backward()
    return [one.grad.clone() for one in network.parameters() if one.grad is not None]
