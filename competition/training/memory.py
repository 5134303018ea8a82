"""Memory that runs out while a fold trains: said in words, or answered with smaller parts, as `training.on_oom` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from competition.config import Experiment, MaskfoldError
from competition.inference.memory import HOST, is_shortage, release, windows
from competition.model.arguments import one_line

T = TypeVar("T")
LOADERS = ("is killed by signal", "exited unexpectedly")  # of a loader's process, as torch tells it


class Memory:
    """How many parts a micro-batch is taken in, so that it fits.

    Args:
        exp: read are `training.on_oom`, `training.batch_size` and `inference.batch_size`.
        device: that trains.
        say: takes lines for the log.
    """

    def __init__(self, exp: Experiment, device: torch.device, say: Callable[[str], None]) -> None:
        self.policy, self.batch, self.accumulate = exp.training.on_oom, exp.training.batch_size, exp.training.accumulate
        self.device, self.say = device, say
        self.told: int | None = None  # windows at a time, as the log knows them

    def size(self, halved: int) -> int:
        """Samples of a micro-batch that was halved some times."""
        return -(-self.batch // 2**halved)

    def parts(self, batch: dict[str, Any], halved: int) -> list[dict[str, Any]]:
        """A batch in parts of `size(halved)` samples: the same samples in the same order, whatever the parts."""
        size = self.size(halved)
        if size >= self.batch:
            return [batch]
        pieces = {name: value.split(size) for name, value in batch.items()}
        return [dict(zip(pieces, part, strict=True)) for part in zip(*pieces.values(), strict=True)]

    def fits(self, work: Callable[[], T], halved: int, step: int) -> T | None:
        """Do the work of a step; None where memory ran out and the step is to be taken again in smaller parts.

        Raises:
            MaskfoldError: memory ran out, and the parts may not or cannot be smaller.
        """
        try:
            return work()
        except Exception as error:
            if not is_shortage(error):
                raise
            words = one_line(error)
        # Only here, after the handler, are the tensors free that the exception's frames held.
        release(self.device)
        size = self.size(halved)
        if size > 1 and self.policy == "halve":
            self.say(
                f"memory ran out on {self.device} at step {step} with {size} samples at a time ({words}); from now on "
                f"{self.size(halved + 1)} at a time, added up to the same {self.batch * self.accumulate} samples a step"
            )
            return None
        several = (
            "training.batch_size (and raise training.accumulate as much: the step stays the same), " if size > 1 else ""
        )
        halve = ", or set training.on_oom=halve" if self.policy == "stop" and size > 1 else ""
        raise MaskfoldError(
            f"Memory ran out on {self.device} at step {step} with {size} sample{'s' * (size > 1)} at a time: {words}.",
            f"Lower {several}patch.size or the network's width{halve}. {HOST}.",
        )

    def report(self, halved: int) -> dict[str, float]:
        """What is not as the YAML asks, as metrics: samples and windows at a time. The log hears of windows here."""
        found = {"memory/micro_batch": float(self.size(halved))} if halved else {}
        fewer = windows(self.device)
        if fewer is not None:
            found["memory/windows"] = float(fewer)
            if fewer != self.told:
                self.say(f"memory ran out on {self.device} in prediction; from now on {fewer} windows at a time")
        self.told = fewer
        return found


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Turns memory that runs out inside of the block into an error that says what to lower.

    Args:
        doing: what was being done, e.g. `training fold 0`.

    Raises:
        MaskfoldError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        loader = (
            isinstance(error, RuntimeError)
            and "DataLoader worker" in str(error)
            and any(word in str(error) for word in LOADERS)
        )
        if not loader and not is_shortage(error):
            raise
        ran_out = "A loader process was killed, most likely for want of memory," if loader else "Memory ran out"
        raise MaskfoldError(
            f"{ran_out} while {doing}: {one_line(error)}.",
            f"{HOST}; set prepare.cache_gib, or lower training.batch_size, inference.batch_size or patch.size.",
        ) from error


def peak_gib(device: torch.device) -> float:
    """Peak memory: the device's where it has its own, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
