"""Predict the test cases of a bundle within a time limit, in one process or in one process for each device."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.context import Context
from competition.ensembling.ensemble import EnsemblePredictor
from competition.errors import MaskfoldError
from competition.export.runtime_cases import Bundle
from competition.export.time_limit import Clock, DegradableEnsemble, TimeBudget
from competition.inference.masks import class_probabilities
from competition.io import atomic_write
from competition.postprocessing.case import CasePrediction
from competition.postprocessing.pipeline import postprocess
from competition.process import ProcessPool
from competition.text import join_or

ROWS_FILE = "rows.json"  # file with the cases of each process
GRACE_SECONDS = 20.0  # after the deadline, a process may finish its present case within this time (s)


# Prediction in one process


class TimeUp(BaseException):
    """Interrupt the prediction of a case at the deadline.

    This is a BaseException, so that `except Exception` in libraries does not catch it.
    """


class BundlePrediction(NamedTuple):
    """Hold a case and its predicted masks.

    Attributes:
        row: row of the case table.
        outcome: masks and objects of the case.
        probabilities: (K, *spatial) probabilities of the classes, if the submission file has a confidence for each
            object; otherwise None.
        reached: whether the case was predicted; if not, its masks are empty.
        error: for the last case of a process in which every case failed: the error of the process; otherwise None.
    """

    row: Any
    outcome: CasePrediction
    probabilities: NDArray[Any] | None
    reached: bool = True
    error: MaskfoldError | None = None


@dataclass(frozen=True)
class PredictionOptions:
    """Hold the options of a prediction.

    Attributes:
        limit: time limit in seconds; None for no limit.
        started: time at which the limit begins, as `clock` returns it.
        continue_on_error: whether to continue with empty masks if a case cannot be read or predicted; if not, the
            prediction stops.
        use_onnx: whether to predict with onnxruntime.
        clock: function that returns the time in seconds.
    """

    limit: float | None = None
    started: float = 0.0
    continue_on_error: bool = False
    use_onnx: bool = False
    clock: Clock = time.monotonic


def predict_cases(
    bundle: Bundle,
    rows: Sequence[Any],
    confidence: bool,
    scratch: Path,
    options: PredictionOptions,
    say: Callable[[str], None],
) -> Iterator[BundlePrediction]:
    """Predict cases in order, and yield their masks.

    If the time limit is too short for all cases, parts of the ensemble are dropped, see
    `competition.export.time_limit`. Cases that are not reached get empty masks.

    Args:
        bundle: the bundle with the networks.
        rows: rows of the case table.
        confidence: whether the submission file has a confidence for each object.
        scratch: folder for preprocessed cases.
        options: time limit and error handling.
        say: function that receives messages for the user.

    Raises:
        MaskfoldError: a case cannot be read or predicted. If `options.continue_on_error` is true, the error is raised
            only if every case fails.
    """
    comp = bundle.ensemble.comp
    reducible = DegradableEnsemble(_load_networks(bundle, rows, scratch, options), options.clock)
    sizes = [count_voxels(row) for row in rows]
    budget = TimeBudget(reducible.levels, reducible.views, sizes, options.limit, options.started, options.clock)
    failed = 0
    for number, row in enumerate(rows):
        start = options.clock()
        try:
            with _stop_at_deadline(budget):
                probabilities, presence = reducible.predictor.predict(row)
                outcome = postprocess(probabilities, comp, bundle.settings, row, presence)
        except TimeUp:
            say(f"time limit: the time is over; cases with empty masks: {len(rows) - number} of {len(rows)}")
            yield from (empty_prediction(remaining, comp) for remaining in rows[number:])
            return
        except MaskfoldError as error:
            failed += 1
            if not options.continue_on_error or failed == len(rows):
                raise
            say(f"note: {error.message} The case {row.id} gets empty masks.")
            yield empty_prediction(row, comp)
        else:
            yield BundlePrediction(row, outcome, class_probabilities(probabilities, comp) if confidence else None)
        lines = budget.record(options.clock() - start, reducible.pop_seconds())
        if lines:
            reducible.set_level(budget.level)
        for line in lines:
            say(line)


def empty_prediction(row: Any, comp: Competition) -> BundlePrediction:
    """Return empty masks for a case that was not predicted; `row` is its row in the case table."""
    return BundlePrediction(
        row, CasePrediction(np.zeros((len(comp.classes), *json.loads(row.shape)), np.bool_), None), None, False
    )


def _load_networks(bundle: Bundle, rows: Sequence[Any], scratch: Path, options: PredictionOptions) -> EnsemblePredictor:
    """Load the networks of a bundle, with the number of input channels of the first case.

    If `options.continue_on_error` is true, cases that cannot be read are skipped. If no case can be read, the error of
    the last case is raised.
    """
    for number, row in enumerate(rows):
        try:
            predictor = EnsemblePredictor(bundle.ensemble, row, Context(bundle.trust), scratch)
            break
        except MaskfoldError:
            if not options.continue_on_error or number + 1 == len(rows):
                raise
    if options.use_onnx:
        from competition.export.onnx import use_onnx_networks

        use_onnx_networks(predictor)
    return predictor


def count_voxels(row: Any) -> int:
    """Return the number of voxels of a case; the time of its prediction is assumed to be proportional to it."""
    return int(np.prod(json.loads(row.shape)))


@contextmanager
def _stop_at_deadline(budget: TimeBudget) -> Iterator[None]:
    """Raise `TimeUp` when the deadline passes during the `with` block, or at once if it has already passed.

    The block is interrupted by a signal. This works only in the main thread, with the real clock, and not on Windows;
    otherwise, the block is not interrupted.
    """
    if budget.is_over():
        raise TimeUp
    no_alarm = budget.deadline is None or budget.clock is not time.monotonic or not hasattr(signal, "setitimer")
    if no_alarm or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_time_up(_number: int, _frame: Any) -> None:
        raise TimeUp

    previous = signal.signal(signal.SIGALRM, raise_time_up)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, (budget.deadline or 0.0) - budget.clock()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# Several processes


def assign_shards(sizes: Sequence[int], shards: int) -> list[list[int]]:
    """Distribute cases over several processes, so that all processes have about the same number of voxels.

    The cases of one process are called a shard. From the largest case to the smallest, each case goes to the shard that
    has the fewest voxels so far.

    Args:
        sizes: number of voxels of each case.
        shards: number of shards.

    Returns:
        For each shard, the indices of its cases in ascending order.
    """
    assigned: list[list[int]] = [[] for _ in range(shards)]
    total = [0] * shards
    for case in sorted(range(len(sizes)), key=lambda case: (-sizes[case], case)):
        smallest = min(range(shards), key=lambda shard: (total[shard], shard))
        assigned[smallest].append(case)
        total[smallest] += sizes[case]
    return [sorted(cases) for cases in assigned]


def parse_devices(text: str) -> list[str]:
    """Return the names of the devices that the option `--devices` selects.

    Args:
        text: `auto` for all GPUs, a number of GPUs from 1, or a list such as `cuda:0,cuda:1` or `cpu,cpu`.

    Returns:
        Names such as `cuda:0` and `cpu`. If there is no GPU, `auto` gives `["auto"]`.

    Raises:
        MaskfoldError: the text is invalid, or names a GPU that does not exist (status 2).
    """
    import torch

    gpus = torch.cuda.device_count()
    if text == "auto":
        return [f"cuda:{index}" for index in range(gpus)] or ["auto"]
    available = ["cpu", *(f"cuda:{index}" for index in range(gpus))]
    names = [f"cuda:{index}" for index in range(int(text))] if text.isdigit() else text.split(",")
    for name in names:
        kind, _, index = name.partition(":")
        if name != "cpu" and not (kind == "cuda" and index.isdigit() and int(index) < gpus):
            raise MaskfoldError(
                f"--devices {text}: this machine has no device {name}, expected {join_or(available)}.",
                "Set auto, a number of GPUs, or a list such as cuda:0,cuda:1 or cpu,cpu.",
                status=2,
            )
    if not names:
        raise MaskfoldError(
            f"--devices: found {text}, expected at least 1 as the number of GPUs.",
            "Set auto, a number of GPUs, or a list such as cuda:0,cuda:1 or cpu,cpu.",
            status=2,
        )
    return names


def collect(
    predict_shard: Callable[[None, int, str], None],
    devices: Sequence[str],
    rows: Sequence[Any],
    sizes: Sequence[int],
    folder: Path,
    confidence: bool,
    deadline: float | None,
) -> Iterator[BundlePrediction | None]:
    """Predict cases in one process for each device, and yield them in order.

    Args:
        predict_shard: function that predicts the cases of a process and stores each with `save_result`. Its arguments
            are None, the index of the shard (see `assign_shards`), and the name of the device.
        devices: device of each process.
        rows: rows of the case table.
        sizes: number of voxels of each case.
        folder: empty folder through which the processes exchange cases and masks.
        confidence: whether the submission file has a confidence for each object.
        deadline: time at which the prediction must end, on the clock of `time.monotonic()`; None for no deadline.

    Yields:
        The predicted case; None for a case that no process has finished before the deadline.

    Raises:
        MaskfoldError: a process failed.
    """
    shards = assign_shards(sizes, len(devices))
    shard_of = {case: shard for shard, cases in enumerate(shards) for case in cases}
    content = json.dumps(
        {"rows": [vars(row) for row in rows], "shards": shards, "confidence": confidence}, default=int
    ).encode()
    atomic_write(folder / ROWS_FILE, lambda file: file.write(content), len(content))
    with ExitStack() as stack:
        tasks: list[tuple[ProcessPool, Future[None]]] = []
        for shard, device in enumerate(devices):  # one pool per device, because their environments differ
            name, environment = _environment(device, len(devices))
            pool = ProcessPool(
                None, 1, "predicted test cases", "Run with --devices cpu, or with one device.", environment
            )
            stack.enter_context(pool)
            tasks.append((pool, pool.submit(predict_shard, shard, name)))
        for case, row in enumerate(rows):
            yield _wait_for_case(folder, case, row, *tasks[shard_of[case]], deadline)


def load_shard(folder: Path, shard: int) -> tuple[list[tuple[int, Any]], bool]:
    """Return the cases that are assigned to one process.

    Args:
        folder: folder through which the processes exchange cases and masks.
        shard: index of the shard.

    Returns:
        (index, row of the case table) of each case; and whether the submission file has a confidence for each object.
    """
    plain = json.loads((folder / ROWS_FILE).read_text(encoding="utf-8"))
    return [(case, SimpleNamespace(**plain["rows"][case])) for case in plain["shards"][shard]], plain["confidence"]


def save_result(folder: Path, case: int, predicted: BundlePrediction) -> None:
    """Store the masks of a case for the main process.

    Args:
        folder: folder through which the processes exchange cases and masks.
        case: index of the case.
        predicted: the masks.
    """
    masks, objects = predicted.outcome.masks, predicted.outcome.objects
    arrays: dict[str, Any] = {
        "masks": np.packbits(masks),
        "shape": np.array(masks.shape),
        "reached": np.array(predicted.reached),
    }
    if objects is not None:
        arrays["objects"] = objects
    if predicted.probabilities is not None:
        arrays["probabilities"] = predicted.probabilities
    if predicted.error is not None:
        arrays["error"] = np.array([predicted.error.message, predicted.error.hint])
    atomic_write(folder / f"{case}.npz", lambda file: np.savez_compressed(file, **arrays))


def _environment(device: str, count: int) -> tuple[str, dict[str, str]]:
    """Return the device name that a process must use, and its environment variables.

    The variables hide all other GPUs from the process, so its own GPU is named `cuda:0`. On the CPU, they limit the
    process to its share of the threads.

    Args:
        device: the device as the main process names it, e.g. `cuda:1`.
        count: number of processes.
    """
    if device == "cpu":
        threads = max(1, (os.cpu_count() or 1) // count)
        return "cpu", {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    index = device.partition(":")[2]
    gpu = visible.split(",")[int(index)] if visible else index
    return "cuda:0", {"CUDA_VISIBLE_DEVICES": gpu}


def _wait_for_case(
    folder: Path, case: int, row: Any, pool: ProcessPool, task: Future[None], deadline: float | None
) -> BundlePrediction | None:
    """Wait until a process has stored the masks of a case, and read them; None if the deadline has passed.

    Args:
        folder: folder through which the processes exchange cases and masks.
        case: index of the case.
        row: row of the case table.
        pool: the pool of the process that predicts the case.
        task: the future of this process's work.
        deadline: see `collect`.

    Raises:
        MaskfoldError: the process failed, or ended without the masks.
    """
    path = folder / f"{case}.npz"
    while not path.exists():
        if task.done() and not path.exists():
            pool.result(task)  # raises the error of the process, if there is one
            raise MaskfoldError(
                f"The process that predicts case {row.id} ended before it had written the masks.",
                "Run with --devices cpu, or with one device.",
            )
        if deadline is not None and time.monotonic() > deadline + GRACE_SECONDS:
            return None
        time.sleep(0.05)
    with np.load(path, allow_pickle=False) as arrays:
        shape = tuple(arrays["shape"])
        masks = np.unpackbits(arrays["masks"], count=int(np.prod(shape))).astype(np.bool_).reshape(shape)
        outcome = CasePrediction(masks, arrays.get("objects"))
        error = MaskfoldError(*map(str, arrays["error"])) if "error" in arrays else None
        predicted = BundlePrediction(row, outcome, arrays.get("probabilities"), bool(arrays["reached"]), error)
    path.unlink()
    return predicted
