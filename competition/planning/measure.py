"""Measure the time and memory that candidate experiments take on this machine.

Each candidate runs in a separate process, which has the same environment as the process of a fold. In this process,
the trainer takes steps on a few cases, and predicts one case. So data, augmentation, precision, memory layout,
optimiser and averaged weights are the same as in training.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from competition.errors import MaskfoldError
from competition.records import read_record, write_json

STEP_SECONDS = 4.0  # seconds over which the steps of a candidate are averaged
MIN_TIMED, MAX_TIMED = 3, 12  # steps
SAMPLED_CASES = 3
REPEATED_CASE = 3.0  # seconds; a prediction that took less time is repeated, because the first one also loads libraries
LARGE = 1.5  # times the median size; the memory for a larger case is measured
OPEN_CASES = 128  # cases that training keeps open, see `competition.data.dataset`


@dataclass(frozen=True)
class Measurement:
    """Hold the times and memory that a candidate's process measured. Processor times are sums over all threads.

    Attributes:
        step_processor: processor seconds of a step.
        step_wall: elapsed seconds of a step.
        step_least: elapsed seconds of the fastest step.
        case_processor: processor seconds to predict, store and score one case.
        case_wall: elapsed seconds to predict, store and score one case.
        network_share: share of a step's time that network, loss and optimiser take.
        memory_gib: peak memory of the process, or of the GPU, in GiB.
        case_bytes: bytes of a preprocessed case.
        device: device of the network, e.g. `cpu`.
        precision: precision of the training, e.g. `fp32`.
        steps: number of timed steps.
        processor: processor seconds of the whole measurement.
    """

    step_processor: float
    step_wall: float
    step_least: float
    case_processor: float
    case_wall: float
    network_share: float
    memory_gib: float
    case_bytes: int
    device: str
    precision: str
    steps: int
    processor: float

    def step_seconds(self, threads: int) -> float:
        """Return the seconds that a training step takes on an otherwise idle machine.

        With one thread on a CPU, the result is the processor time, which other programs do not lengthen.

        Args:
            threads: number of threads of the process.
        """
        if not self.device.startswith("cpu"):
            return self.step_wall
        return self.step_processor if threads == 1 else max(self.step_processor / threads, self.step_least)

    def case_seconds(self, threads: int) -> float:
        """Return the seconds to predict, store and score one case on an otherwise idle machine.

        Args:
            threads: number of threads of the process.
        """
        if not self.device.startswith("cpu"):
            return self.case_wall
        return (
            self.case_processor
            if threads == 1
            else max(self.case_processor / threads, min(self.case_wall, self.case_processor))
        )

    def training_memory(self, cases: int, share: float) -> float:
        """Estimate the peak memory in GiB of a training on `cases` cases, including the files that the process maps.

        Args:
            cases: number of training cases.
            share: share of a median case that the patches of one step cover, 0 to 1.
        """
        if not self.device.startswith("cpu"):
            return self.memory_gib
        further = max(0, min(OPEN_CASES, cases) - SAMPLED_CASES)
        return self.memory_gib + further * share * self.case_bytes / 2**30


def measure(
    plain: dict[str, Any], rows: Sequence[dict[str, Any]], folder: Path, threads: int, limit: float
) -> Measurement | str:
    """Measure, in a new process, the time and memory that training steps and the prediction of a case take.

    Args:
        plain: the experiment as plain data, with its competition.
        rows: rows of the case table for a few training cases; the first case is predicted.
        folder: an empty folder for the process's files.
        threads: threads of the process.
        limit: seconds after which the process is ended.

    Returns:
        The measurement, or the reason for its failure as text.
    """
    from competition.config.loading import write_yaml

    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(plain, folder / "experiment.yaml")
    write_json(folder / "job.json", {"rows": list(rows), "threads": threads, "seconds": min(STEP_SECONDS, limit / 4)})
    with open(folder / "output.txt", "ab") as output:
        process = _start(folder, threads, output, libraries_of(plain))
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"no result within {limit:.0f} s"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if status == 0:
        return Measurement(**read_record(folder / "result.json"))
    if status in (-9, 137):
        return "the process was killed, probably because memory ran out"
    lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the process ended with status {status}"


def libraries_of(plain: dict[str, Any]) -> list[str]:
    """Return the names of the optional modules that an experiment needs, to import them once for all timings."""
    from competition.training.fold_process import OPTIONAL_MODULES

    text = json.dumps(plain, default=str)
    flat = plain["competition"]["dimensions"] == 2  # albumentations augments images, not volumes
    return [name for name in OPTIONAL_MODULES if f'"{name}.' in text or (flat and name.startswith("albumentations"))]


def _start(folder: Path, threads: int, output: Any, libraries: list[str]) -> Any:
    from competition.config.experiment import HardwareConfig
    from competition.fork_server import ForkedProcess, ServerLost, shared_server
    from competition.training.executors import may_fork
    from competition.training.fold_process import FOLD_MODULES, fold_environment

    environment = fold_environment(threads)
    if may_fork(HardwareConfig()):
        server = shared_server(FOLD_MODULES, environment)
        if server is not None:
            try:
                pid = server.start("competition.planning.measure:main", [str(folder)], output.fileno(), {}, libraries)
                return ForkedProcess(server, pid)
            except ServerLost:
                pass
    return subprocess.Popen(
        [sys.executable, "-m", "competition.planning.measure", str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


# In the candidate's process


def main(folder: str) -> int:
    """Measure the experiment in a folder, write `result.json` into the folder, and return the exit status."""
    from competition.process import exit_with_parent, parent_process

    exit_with_parent(parent_process())
    try:
        result = measure_here(Path(folder))
    except MaskfoldError as error:
        print(error, flush=True)
        return 1
    write_json(Path(folder) / "result.json", asdict(result))
    return 0


def measure_here(folder: Path) -> Measurement:
    """Measure, in this process, the time and memory that training steps and the prediction of a case take.

    Args:
        folder: folder with the experiment's YAML and `job.json` (cases, threads, seconds).

    Raises:
        MaskfoldError: the experiment or a case is invalid.
    """
    import pandas as pd
    import torch

    from competition.config.loading import load_experiment
    from competition.context import Context
    from competition.data.preprocessing import preprocess_cases
    from competition.process import keep_freed_memory
    from competition.training.guards import peak_gib

    job = read_record(folder / "job.json")
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    exp = load_experiment(folder / "experiment.yaml", trust=None)
    cases = pd.DataFrame(job["rows"])
    prepared = preprocess_cases(cases, exp, folder / "prepared", workers=1)
    one_view = exp.model_copy(update={"inference": exp.inference.model_copy(update={"tta": []})})
    trainer = _make_trainer(one_view, cases, prepared, folder, job["threads"], Context(say=lambda _: None))
    steps = _time_steps(trainer, job["seconds"])
    case_processor, case_wall = _time_case(trainer, folder)
    _use_memory_of_the_end(trainer, exp, folder)
    files = [path.stat().st_size for case in prepared.values() for path in case.glob("*.npy")]
    return Measurement(
        **steps,
        case_processor=case_processor,
        case_wall=case_wall,
        memory_gib=peak_gib(trainer.fabric.device),
        case_bytes=sum(files) // len(prepared),
        device=str(trainer.fabric.device),
        precision=str(trainer.fabric.strategy.precision.precision),
        processor=time.process_time(),
    )


def _make_trainer(exp: Any, cases: Any, prepared: dict[str, Path], folder: Path, threads: int, context: Any) -> Any:
    """Return the trainer of a fold that trains on all the given cases and validates the first of them."""
    import torch

    from competition.augment import build_batch_transform, build_loader_transform
    from competition.data.cache import PreprocessedCase
    from competition.data.dataset import PatchDataset
    from competition.models.build import build_network, suits_channels_last
    from competition.runs.kept_settings import decide_settings, with_settings
    from competition.training.distributed import make_fabric, with_workers
    from competition.training.evaluator import Evaluator
    from competition.training.guards import bf16_is_deterministic
    from competition.training.trainer import Trainer

    folders = list(prepared.values())
    channels = int(PreprocessedCase.open(folders[0]).image.shape[0]) * (exp.patch.slices or 1)
    exp = with_settings(exp, decide_settings(exp, suits_channels_last(exp, channels, context)))
    fabric, _ = make_fabric(exp, lambda: bf16_is_deterministic(exp, channels, folder / "prepared", context))
    exp = with_workers(exp, fabric.device, threads)
    fabric.launch()
    dataset = PatchDataset(folders, exp, 0, exp.seeds[0], augment=build_loader_transform(exp, context))
    torch.manual_seed(0)
    network = build_network(exp, channels, context, pretrained=False)
    evaluator = Evaluator(exp, cases.iloc[:1], prepared, fabric.device, fabric.autocast, lambda: None)
    return Trainer(
        fabric=fabric,
        exp=exp,
        folder=folder,
        fold=0,
        seed=exp.seeds[0],
        model=network,
        dataset=dataset,
        evaluator=evaluator,
        augment=build_batch_transform(exp),
        start_time=time.monotonic(),
        stop_reason=lambda: "",
        context=context,
    )


class _Timed:
    """Wrap a function, and add up the processor seconds of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.process_time()
        result = self.function(*args)
        self.seconds += time.process_time() - start
        return result

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self()


def _time_steps(trainer: Any, seconds: float) -> dict[str, Any]:
    """Time training steps for about `seconds` seconds.

    The first step is slower than the next ones, so it is used only if it is the only one.
    """
    from competition.training.timing.trial import wait_for

    loader = iter(trainer.train_loader())
    batches: Any = _Timed(lambda: next(loader))
    augment = _Timed(trainer.augment) if trainer.augment is not None else None
    trainer.augment = augment
    walls: list[float] = []
    processors: list[float] = []
    outside: list[float] = []
    while len(walls) <= MAX_TIMED:
        before = batches.seconds + (augment.seconds if augment is not None else 0.0)
        start, processor = time.monotonic(), time.process_time()
        trainer.training_step(batches)
        wait_for(trainer.fabric.device)
        walls.append(time.monotonic() - start)
        processors.append(time.process_time() - processor)
        outside.append(batches.seconds + (augment.seconds if augment is not None else 0.0) - before)
        enough = len(walls) > MIN_TIMED and sum(processors[1:]) >= seconds
        if enough or (processors[0] > seconds and len(walls) > 1) or processors[0] > 3 * seconds:
            break
    timed = slice(1, None) if len(walls) > 1 else slice(None)
    processor = sum(processors[timed]) / len(processors[timed])
    return {
        "step_processor": processor,
        "step_wall": sum(walls[timed]) / len(walls[timed]),
        "step_least": min(walls[timed]),
        "network_share": 1.0 - min(1.0, sum(outside[timed]) / max(1e-9, sum(processors[timed]))),
        "steps": len(walls[timed]),
    }


def _time_case(trainer: Any, folder: Path) -> tuple[float, float]:
    """Predict, store and score one validation case; return the processor seconds and the elapsed seconds."""
    network = trainer.ema_model()
    for repeat in range(2):
        start, processor = time.monotonic(), time.process_time()
        trainer.evaluator.time_cases(network, 0, 0.0, folder)
        wall, processor = time.monotonic() - start, time.process_time() - processor
        if repeat or processor > REPEATED_CASE:
            break
    return processor, wall


def _use_memory_of_the_end(trainer: Any, exp: Any, folder: Path) -> None:
    """Predict a batch of windows and a mirrored view of it, and draw a picture of the case, as a fold does at its end.

    Only the memory is measured, not the time. One mirrored view is enough, because more views need no more memory.
    """
    from competition.augment import flip_axes
    from competition.data.cache import PreprocessedCase
    from competition.inference.sliding_window import predict_image

    evaluator = trainer.evaluator
    axes = flip_axes(exp.augment, exp.network_dimensions)
    if exp.inference.tta and axes:
        exp = exp.model_copy(update={"augment": exp.augment.model_copy(update={"flip": list(axes[:1])})})
    image = PreprocessedCase.open(evaluator.prepared[evaluator.cases["id"].iloc[0]]).network_input
    window = image[(slice(None), *map(slice, _batch_shape(exp)))]
    predict_image([trainer.ema_model()], window, exp, evaluator.device, evaluator.autocast)
    evaluator.draw_truth(folder)


def _batch_shape(exp: Any) -> list[int]:
    """Return the shape of a part of a case that is predicted in about one batch of windows."""
    count = exp.inference.batch_size
    if exp.patch.slices is not None:
        shape = [max(exp.patch.size)] * 3
        shape[exp.patch.axes[0]] = count
        return shape
    *others, last = exp.patch.size
    return [*others, last + math.ceil((count - 1) * last * (1 - exp.inference.overlap))]


def sample_rows(train: Sequence[Any]) -> list[dict[str, Any]]:
    """Return rows of the case table for a few training cases of about median size; the median case comes first.

    Args:
        train: measurements of the training cases, see `competition.explore.types.CaseStats`.
    """
    ordered = _by_size(train)
    middle = len(ordered) // 2
    chosen = ordered[middle : middle + 1] + ordered[max(0, middle - 1) : middle] + ordered[middle + 1 : middle + 2]
    return [_plain(case.row) for case in chosen[:SAMPLED_CASES]]


def largest_row(train: Sequence[Any]) -> tuple[dict[str, Any], float] | None:
    """Return the case-table row of the largest training case, and this case's size divided by the median size.

    Args:
        train: as for `sample_rows`.

    Returns:
        None if no case is readable, or if the largest case is less than `LARGE` times the median size.
    """
    ordered = _by_size(train)
    sizes = [math.prod(case.shape or ()) for case in ordered]
    if not sizes or sizes[-1] < LARGE * sizes[len(sizes) // 2]:
        return None
    return _plain(ordered[-1].row), sizes[-1] / max(1, sizes[len(sizes) // 2])


def _by_size(train: Sequence[Any]) -> list[Any]:
    """Return the readable cases, preferably those with foreground, from the smallest to the largest."""
    with_truth = [case for case in train if case.row is not None and case.truth is not None and case.truth.foreground]
    usable = with_truth or [case for case in train if case.row is not None]
    return sorted(usable, key=lambda case: (math.prod(case.shape or ()), case.id))


def _plain(row: SimpleNamespace) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(vars(row), default=str))
    return plain


def thread_count() -> int:
    """Return the number of threads of a fold with the default settings: one per core."""
    from competition.process import count_cores

    return max(1, count_cores())


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
