"""Guard training against non-finite values, lack of memory, and bf16 gradients that differ between repetitions."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from competition.config.experiment import Experiment, SkipSteps
from competition.context import Context
from competition.errors import MaskfoldError
from competition.inference.predict import HOST_MEMORY_HINT, free_unused_memory, is_out_of_memory, reduced_batch_size
from competition.models.execution import arrange, memory_format
from competition.models.interface import error_in_one_line, flatten_tensors
from competition.records import json_digest, read_record, write_json
from competition.text import format_count
from competition.training.distributed import DistributedContext

if TYPE_CHECKING:
    from lightning.fabric import Fabric

T = TypeVar("T")
LOADER_ERRORS = ("is killed by signal", "exited unexpectedly")  # part of torch's error if a loader process dies
MAX_RESTORES = 8  # maximum number of restores per fold; the learning rate is then 1/256 of the original one
GRADIENT_NORM = "gradient's norm"
REPEATS = 5  # how often `bf16_is_deterministic` computes the gradients


# Non-finite values


class MicroBatchResult(NamedTuple):
    """Hold the losses and cases of a micro-batch, or of a part of it if memory was too small for the whole."""

    losses: dict[str, Tensor]  # the loss and its terms, scalars
    cases: Tensor  # (b,) case indices
    share: float  # share of the full micro-batch; less than 1 for a part


class NonFiniteGuard:
    """Detect non-finite losses and gradients, decide how to react (`training.on_nan`), and undo the rejected step.

    All processes of a fold check the same values, which are means over the processes. So all processes make the same
    decision.

    Args:
        exp: the experiment; `training.on_nan`, `training.on_oom` and `training.clip_gradient` are read.
        fabric: Lightning Fabric, after its method `launch` was called.
        distributed: object that exchanges values between the processes of the fold.
        network: the network without Fabric's wrapper; `rollback` restores its buffers.
        case_id: function that returns the id of a case from its index in the dataset.
    """

    def __init__(
        self,
        exp: Experiment,
        fabric: Fabric,
        distributed: DistributedContext,
        network: nn.Module,
        case_id: Callable[[int], str],
    ) -> None:
        self.policy, self.fabric, self.distributed, self.case_id = exp.training.on_nan, fabric, distributed, case_id
        self.scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        self.max_norm = exp.training.clip_gradient
        self._unscaled = False  # the scaler allows one unscaling per step, and clipping needs it
        self._buffers: list[Tensor] = []
        if self.policy != "stop" or exp.training.on_oom != "stop":
            self._buffers = list(network.buffers())
        self._saved_buffers = [buffer.clone() for buffer in self._buffers]

    def snapshot(self) -> None:
        """Copy the network's buffers, e.g. batch statistics, so that `rollback` can restore them.

        Call this before the forward pass, because a non-finite forward pass corrupts the buffers.
        """
        self._unscaled = False
        if self._buffers:
            torch._foreach_copy_(self._saved_buffers, self._buffers)

    def clip_gradient(self, network: Any, optimizer: Any) -> Tensor:
        """Clip the norm of the gradient to `training.clip_gradient`; if this key is null, leave the gradient unchanged.

        Returns:
            The norm before clipping, a scalar on the device.
        """
        if self.max_norm is None:
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            return get_total_norm(gradients)
        self._unscaled = self.scaler is not None
        norm: Any = self.fabric.clip_gradients(network, optimizer, max_norm=self.max_norm, error_if_nonfinite=False)
        return norm

    def rollback(self, optimizer: Any) -> None:
        """Undo a step that is rejected: clear the gradients, and restore the network's buffers and the loss scaler."""
        optimizer.zero_grad()
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._saved_buffers)
        if self._unscaled:
            self.scaler.update(self.scaler.get_scale())

    def check(
        self, micro_batches: Sequence[MicroBatchResult], norm: Tensor, where: str
    ) -> tuple[dict[str, float], str]:
        """Check that the losses and the gradient of a step are finite.

        All values are read from the device at once, because each synchronisation takes time.

        Args:
            micro_batches: micro-batches of the step, in order.
            norm: norm of the gradient, a scalar tensor.
            where: name of the step for the message, e.g. `at step 3 of fold 0`.

        Returns:
            The sum of each loss over the micro-batches, and an empty text, if all values are finite. Otherwise an empty
            dictionary, and a message that names the first bad value and the cases.
        """
        norm_index = len(micro_batches)
        scalars = {
            (index, name): value for index, micro in enumerate(micro_batches) for name, value in micro.losses.items()
        }
        means = self.distributed.mean(scalars | {(norm_index, GRADIENT_NORM): norm})
        bad = [key for key, value in means.items() if not math.isfinite(value)]
        if bad and not (bad == [(norm_index, GRADIENT_NORM)] and self._scaler_overflowed()):
            index, name = bad[0]
            bad_micro_batches = sorted({index for index, _ in bad if index < norm_index}) or range(norm_index)
            ids = self._case_ids(micro_batches[number].cases for number in bad_micro_batches)
            return {}, f"The {name} is {means[index, name]} {where} (cases {ids})"
        sums: dict[str, float] = {}
        for (index, name), value in means.items():
            if index < norm_index:
                sums[name] = sums.get(name, 0.0) + value * micro_batches[index].share
        return sums, ""

    def decide(self, problem: str, skipped: int, restored: int) -> str:
        """Return the reaction to a step with non-finite values: `skip` or `restore`.

        Args:
            problem: message from `check`.
            skipped: number of steps that this fold has skipped so far.
            restored: number of times that this fold has returned to an earlier checkpoint so far.

        Raises:
            MaskfoldError: `training.on_nan` is `stop`, or the maximum number of skipped steps or restores is reached.
        """
        hint = "Lower optimizer.args.lr, set training.precision=fp32, or check these cases"
        if isinstance(self.policy, SkipSteps):
            if skipped < self.policy.skip:
                return "skip"
            raise MaskfoldError(
                f"{problem}; the fold has already skipped {format_count(skipped, 'step')}.",
                f"{hint}. training.on_nan={{skip: {2 * skipped}}} allows more such steps.",
            )
        if self.policy == "restore":
            if restored < MAX_RESTORES:
                return "restore"
            raise MaskfoldError(
                f"{problem}, although the learning rate was already halved {format_count(restored, 'time')}.",
                f"{hint}.",
            )
        raise MaskfoldError(
            f"{problem}.",
            f"{hint}. training.on_nan={{skip: 5}} skips a few such steps, and training.on_nan=restore goes "
            "back to the start of the epoch with half the learning rate.",
        )

    def _scaler_overflowed(self) -> bool:
        """Return whether the loss scaler of fp16 may have caused a non-finite gradient.

        This is possible only if its scale is above 1. The scaler itself then lowers the scale and skips the step.
        """
        return self.scaler is not None and self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def _case_ids(self, cases: Iterable[Tensor]) -> str:
        return ", ".join(self.case_id(index) for index in self.distributed.gather(torch.cat(list(cases))))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all entries of all tensors are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


# Memory


class OutOfMemoryGuard:
    """Let training continue with smaller micro-batches after memory has run out, if `training.on_oom` is `halve`.

    The gradients of the smaller micro-batches are accumulated, so that a step uses the same samples as before.

    Args:
        exp: the experiment; `training.on_oom`, `training.batch_size` and `training.accumulate` are read.
        device: the training device.
        context: context whose log receives messages about memory.
    """

    def __init__(self, exp: Experiment, device: torch.device, context: Context) -> None:
        self.policy, self.batch_size = exp.training.on_oom, exp.training.batch_size
        self.accumulate = exp.training.accumulate
        self.device, self.say = device, context.say
        self._logged_windows: int | None = None

    def micro_batch_size(self, halved: int) -> int:
        """Return the number of samples in a micro-batch after its size was halved `halved` times, rounded up."""
        return -(-self.batch_size // 2**halved)

    def split(self, batch: dict[str, Any], halved: int) -> list[dict[str, Any]]:
        """Split a batch into parts of `micro_batch_size(halved)` samples; the order of the samples does not change."""
        size = self.micro_batch_size(halved)
        if size >= self.batch_size:
            return [batch]
        chunks = {name: value.split(size) for name, value in batch.items()}
        return [dict(zip(chunks, part, strict=True)) for part in zip(*chunks.values(), strict=True)]

    def run(self, work: Callable[[], T], halved: int, step: int) -> T | None:
        """Call a function that computes the gradient of a step.

        Args:
            work: the function.
            halved: number of times that the size of micro-batches was halved so far.
            step: number of the step, for the message.

        Returns:
            The result of `work`. None if memory ran out; the caller must then repeat the step with micro-batches of
            half the size.

        Raises:
            MaskfoldError: memory ran out, and `training.on_oom` is `stop` or a micro-batch has only one sample.
        """
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = error_in_one_line(error)
        # after the exception handler, because the exception's frames hold tensors until then
        free_unused_memory(self.device)
        size = self.micro_batch_size(halved)
        if size > 1 and self.policy == "halve":
            self.say(
                f"memory ran out on {self.device} at step {step} with {size} samples at a time ({message}); "
                f"training continues with {format_count(self.micro_batch_size(halved + 1), 'sample')} at a time, and "
                f"still accumulates {self.batch_size * self.accumulate} samples per step"
            )
            return None
        batch_size = (
            "training.batch_size (a higher training.accumulate keeps the samples per step), " if size > 1 else ""
        )
        halve = ", or set training.on_oom=halve" if self.policy == "stop" and size > 1 else ""
        raise MaskfoldError(
            f"Memory ran out on {self.device} at step {step} with {size} sample{'s' * (size > 1)} at a time: "
            f"{message}.",
            f"Lower {batch_size}patch.size or the network's width{halve}. {HOST_MEMORY_HINT}.",
        )

    def report(self, halved: int) -> dict[str, float]:
        """Return the reduced sizes of micro-batches and prediction batches as metrics; empty if none was reduced.

        If the size of prediction batches (number of windows) has changed since the last call, write a line to the log.

        Args:
            halved: number of times that the size of micro-batches was halved so far.
        """
        metrics = {"memory/micro_batch": float(self.micro_batch_size(halved))} if halved else {}
        reduced_windows = reduced_batch_size(self.device)
        if reduced_windows is not None:
            metrics["memory/windows"] = float(reduced_windows)
            if reduced_windows != self._logged_windows:
                self.say(
                    f"memory ran out on {self.device} in prediction; prediction continues with "
                    f"{format_count(reduced_windows, 'window')} at a time"
                )
        self._logged_windows = reduced_windows
        return metrics


@contextmanager
def oom_as_error(doing: str) -> Iterator[None]:
    """Convert an out-of-memory exception in the `with` block to an error whose hint names the YAML keys to lower.

    Args:
        doing: description of the work in the block for the message, e.g. `training fold 0`.

    Raises:
        MaskfoldError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        loader_killed = (
            isinstance(error, RuntimeError)
            and "DataLoader worker" in str(error)
            and any(text in str(error) for text in LOADER_ERRORS)
        )
        if not loader_killed and not is_out_of_memory(error):
            raise
        problem = "A loader process was killed, probably because memory ran out," if loader_killed else "Memory ran out"
        raise MaskfoldError(
            f"{problem} while {doing}: {error_in_one_line(error)}.",
            f"{HOST_MEMORY_HINT}. You can also limit the memory for prepared cases, e.g. with prepare.cache_gib=4, or "
            "lower training.batch_size, inference.batch_size or patch.size.",
        ) from error


def peak_gib(device: torch.device) -> float:
    """Return the peak memory of a CUDA device in GiB; for other devices, the process's peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# Determinism of bf16


def bf16_is_deterministic(exp: Experiment, channels: int, cache: Path, context: Context = Context()) -> bool:
    """Return whether a network has the same bf16 gradients on this CPU each time that they are computed.

    The gradients of one random batch are computed several times and compared. The result is stored, so that other folds
    and resumed folds need not compute it.

    Args:
        exp: the experiment; its model, memory format, patch and batch size are used.
        channels: number of channels of the network's input.
        cache: folder in which the result is stored.
        context: context with the trusted packages.

    Returns:
        True if all gradients are finite and equal.
    """
    threads = torch.get_num_threads()
    settings = [
        exp.model.model_dump(),
        exp.patch.size,
        exp.training.batch_size,
        channels,
        exp.network_channels,
        threads,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        REPEATS,
        *([exp.gate.model_dump()] if exp.gate is not None else []),
        *(["channels_last"] if memory_format(exp) is not None else []),
    ]
    path = cache / "bf16" / f"{json_digest(settings)[:32]}.json"
    with contextlib.suppress(FileNotFoundError, MaskfoldError, KeyError):  # a damaged file is replaced
        return bool(read_record(path)["repeats"])
    deterministic = _gradients_repeat(exp, channels, context)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"repeats": deterministic})
    return deterministic


def _gradients_repeat(exp: Experiment, channels: int, context: Context) -> bool:
    from competition.models.build import build_network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(exp, channels, context, pretrained=False).train()
        image = arrange(torch.randn(exp.training.batch_size, channels, *exp.patch.size), exp)
        first: list[Tensor] = []
        for _ in range(REPEATS):
            torch.manual_seed(1)  # dropout
            gradients = _compute_gradients(network, image)
            if not all_finite(gradients):
                return False
            if not first:
                first = gradients
            elif not all(torch.equal(before, after) for before, after in zip(first, gradients, strict=True)):
                return False
    return True


def _compute_gradients(network: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the bf16 gradients of a network's parameters for a scalar that depends on all outputs of the network.

    Parameters without a gradient are left out.
    """
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(image)
    sum((output.float().sigmoid().mean() for output in flatten_tensors(outputs)), torch.zeros(())).backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
