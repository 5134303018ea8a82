"""Memory that runs out: how it is recognised, and how a prediction goes on with fewer windows at a time."""

from __future__ import annotations

import errno
import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment
from competition.model.arguments import one_line

# What libraries say where they have no class of their own for it.
WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
)
T = TypeVar("T")
HOST = "Give the machine less to do at once: lower run.parallel_folds or run.workers"

_fit: dict[str, int] = {}  # windows at a time that fit, of each device that had no room for inference.batch_size
log = logging.getLogger(__name__)


def is_shortage(error: BaseException) -> bool:
    """Whether an exception says that a device or the host has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


def release(device: torch.device | str) -> None:
    """Give back what is free. Called outside of the handler: an exception's traceback holds the tensors of its frames."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def windows(device: torch.device | str) -> int | None:
    """Windows that this process predicts at a time on a device that had no room for more; None while it has."""
    return _fit.get(str(device))


def within_memory(predict: Callable[[Experiment], T], exp: Experiment, device: torch.device | str) -> T:
    """Predict; where memory runs out and `training.on_oom` is halve, again with half as many windows at a time.

    What fits once is kept for the cases that follow in this process.

    Args:
        predict: makes the prediction as an experiment says.
        exp: the experiment.
        device: where the networks are.

    Raises:
        MaskfoldError: memory runs out, and may not or cannot be saved any more.
    """
    while True:
        size = min(exp.inference.batch_size, _fit.get(str(device), exp.inference.batch_size))
        try:
            return predict(exp if size == exp.inference.batch_size else _sized(exp, size))
        except Exception as error:
            if not is_shortage(error):
                raise
            words = one_line(error)
        release(device)
        if size == 1 or exp.training.on_oom == "stop":
            lower = "Lower inference.batch_size, or set training.on_oom=halve" if size > 1 else "Shorten inference.tta"
            raise MaskfoldError(
                f"Memory ran out on {device} with {size} window{'s' * (size > 1)} at a time: {words}.",
                f"{lower}. {HOST}.",
            )
        _fit[str(device)] = size // 2
        log.warning(
            "Memory ran out on %s with %d windows at a time (%s); it goes on with %d.", device, size, words, size // 2
        )


def _sized(exp: Experiment, size: int) -> Experiment:
    return exp.model_copy(update={"inference": exp.inference.model_copy(update={"batch_size": size})})
