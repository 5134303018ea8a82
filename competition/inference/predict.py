"""Predict a case on the grid of its file; if memory runs out, repeat the prediction with smaller batches."""

from __future__ import annotations

import errno
import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.data.cache import PreprocessedCase
from competition.data.masks import unpredicted_pixels
from competition.errors import MaskfoldError
from competition.inference.presence import presence_on_file_grid
from competition.inference.sliding_window import Autocast, predict_image_with_presence
from competition.models.interface import error_in_one_line

# Parts of the messages with which libraries raise a RuntimeError when memory runs out.
OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
)
HOST_MEMORY_HINT = "To use less RAM, lower run.parallel_folds or run.workers"
T = TypeVar("T")
# Reduced number of windows per batch, by name of the device, if its memory was too small for inference.batch_size.
_reduced: dict[str, int] = {}
log = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """Hold the prediction of a case on the grid of its file.

    Attributes:
        probabilities: (P, *file shape) float16, with P = `exp.output_channels`. With exclusive classes, the background
            is the first channel. If `prepare.boundary` adds a boundary class, it is the last channel.
        presence: the probability that the case contains each of K classes, as float32 in [0, 1]. The shape is
            (K, 1, …, 1), with as many axes as `probabilities`. If a 2.5D network predicts slices along a single axis,
            each slice has its own value, so this axis is as long as in the file. None if the experiment has no presence
            head (`gate`).
    """

    probabilities: np.ndarray
    presence: np.ndarray | None


def predict_case(
    networks: Sequence[nn.Module],
    prepared: PreprocessedCase,
    exp: Experiment,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> np.ndarray:
    """Predict a case, and return its probabilities on the file's grid, (P, *file shape) float16.

    See `predict_case_with_presence` for the arguments and errors, and `Prediction` for the order of the P channels.
    """
    return predict_case_with_presence(networks, prepared, exp, device, autocast).probabilities


def predict_case_with_presence(
    networks: Sequence[nn.Module],
    prepared: PreprocessedCase,
    exp: Experiment,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
) -> Prediction:
    """Predict a case, and map the prediction back to the file's grid.

    Args:
        networks: the networks, on `device`; their probabilities are averaged.
        prepared: the preprocessed case.
        exp: the experiment.
        device: device of the networks.
        autocast: function that returns the context manager of a forward pass, such as `fabric.autocast`.

    Returns:
        Probabilities and class presence on the file's grid.

    Raises:
        MaskfoldError: a network returns another shape than expected, or non-finite values, or memory runs out. The
            message names the case.
    """
    try:
        image = prepared.network_input
        probabilities, presence = retry_with_smaller_batches(
            lambda exp: predict_image_with_presence(networks, image, exp, device, autocast), exp, device
        )
    except MaskfoldError as error:
        raise MaskfoldError(
            f"Case {prepared.id} cannot be predicted: {error.message}", error.hint, status=error.status
        ) from error
    if presence is not None:
        by_slice, axis = exp.presence_axis is not None, exp.patch.axes[0]
        presence = presence_on_file_grid(presence, prepared.geometry, by_slice, axis if by_slice else -1)
    return Prediction(prepared.geometry.inverse(probabilities), presence)


def within_region(prediction: Prediction, comp: Competition, row: Any) -> Prediction:
    """Set all pixels outside the region mask of a case to background, if `test.region` is set.

    Args:
        prediction: the prediction, whose array of probabilities is changed.
        comp: the competition.
        row: row of the case table, or an image in memory, which has no region mask.

    Raises:
        MaskfoldError: a test case has no region mask, or its region mask cannot be read.
    """
    if (outside := unpredicted_pixels(comp, row)) is not None:
        prediction.probabilities[:, outside] = 0
        if comp.labels == "exclusive":
            prediction.probabilities[0, outside] = 1  # the background
    return prediction


# Out of memory: repeat with fewer windows per batch


def retry_with_smaller_batches(predict: Callable[[Experiment], T], exp: Experiment, device: torch.device | str) -> T:
    """Make a prediction; each time memory runs out, repeat it with half as many windows per batch.

    If `training.on_oom` is `stop`, the prediction is not repeated. A reduced number of windows also applies to all
    later predictions of this process on the same device.

    Args:
        predict: function that makes the prediction. Its argument is the experiment to use, in which
            `inference.batch_size` may be reduced.
        exp: the experiment.
        device: device of the networks.

    Returns:
        The result of `predict`.

    Raises:
        MaskfoldError: memory runs out, and the batch has only one window or `training.on_oom` is `stop`.
    """
    while True:
        size = min(exp.inference.batch_size, _reduced.get(str(device), exp.inference.batch_size))
        try:
            return predict(exp if size == exp.inference.batch_size else _with_batch_size(exp, size))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = error_in_one_line(error)
        free_unused_memory(device)
        if size == 1 or exp.training.on_oom == "stop":
            hint = "Lower inference.batch_size, or set training.on_oom=halve" if size > 1 else "Shorten inference.tta"
            raise MaskfoldError(
                f"Memory ran out on {device} with {size} window{'s' * (size > 1)} at a time: {message}.",
                f"{hint}. {HOST_MEMORY_HINT}.",
            )
        _reduced[str(device)] = size // 2
        log.warning(
            "Memory ran out on %s with %d windows at a time (%s); continuing with %d.", device, size, message, size // 2
        )


def reduced_batch_size(device: torch.device | str) -> int | None:
    """Return the number of windows per batch on a device after out-of-memory errors; None if it was never reduced."""
    return _reduced.get(str(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that the memory of a device or of the machine ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY_MESSAGES)


def free_unused_memory(device: torch.device | str) -> None:
    """Free memory that is no longer used: collect garbage, and on a GPU also empty torch's cache.

    Call this function outside of `except` blocks, because a traceback keeps the tensors of its frames alive.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _with_batch_size(exp: Experiment, size: int) -> Experiment:
    return exp.model_copy(update={"inference": exp.inference.model_copy(update={"batch_size": size})})
