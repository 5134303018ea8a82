"""Run one fold in its own process: `python -m competition.training.fold job.json`.

The process trains the fold's network, predicts and scores the validation cases, and writes `result.json`.
"""
# ruff: noqa: E402

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

# The slow imports below count towards the time budget.
PROCESS_START = time.monotonic()

import pandas as pd
import torch

from competition.augment import build_batch_transform, build_loader_transform
from competition.config.experiment import Experiment
from competition.context import Context
from competition.data.cache import PreprocessedCase
from competition.data.dataset import PatchDataset, WeightedCaseSampler, no_training_cases_error
from competition.data.preprocessing import preprocess_cases
from competition.data.splits import HELD_OUT
from competition.errors import MaskfoldError
from competition.io import as_disk_error, remove_all_stale_temp, sha256_of_file
from competition.metrics.bootstrap import cv_score, dice_per_class
from competition.models.build import build_network
from competition.models.execution import compile_network, wants_compilation
from competition.models.initial_weights import load_initial_weights
from competition.process import exit_with_parent, keep_freed_memory, parent_process
from competition.records import nan_to_none, write_json
from competition.redact import install_redaction
from competition.runs.cascade.channels import join_first_stage
from competition.runs.cascade.first_stage import first_stage_contents
from competition.runs.checkpoint import LAST_CHECKPOINT, load_weights, save_weights
from competition.runs.fold import PLAIN_WEIGHTS, SOUP_WEIGHTS, FoldJob, FoldResult
from competition.runs.identity.contents import check_contents, run_contents, source_digests
from competition.runs.lock import run_lock
from competition.runs.oof import open_store, stored_shapes
from competition.runs.run import Run, load_run, write_replay_yaml
from competition.seeding import child_seed
from competition.tables import write_table
from competition.text import format_count
from competition.training.distributed import is_main_process, launch_processes, make_fabric, with_workers
from competition.training.evaluator import Evaluator, summary_metrics
from competition.training.extra.fold_data import build_extra_data, split_by_weight
from competition.training.fold_process import ERROR_FILE, ERROR_PIPE
from competition.training.guards import bf16_is_deterministic, oom_as_error, peak_gib
from competition.training.lineage import LINEAGE_FILE, check_initial_weights, read_lineage_summary
from competition.training.soup_selection import predict_with_soup
from competition.training.stop_signal import StopSignal
from competition.training.timing.progress import ProgressLog, progress_of, wants_bar
from competition.training.trainer import Trainer
from competition.viz.curves import plot_fold_curves


def run_fold(job: FoldJob, say: Callable[[str], None] = print, start_time: float | None = None) -> FoldResult:
    """Train the network of a fold with one seed, and predict and score its validation cases.

    If the fold is already finished, return its result. If a process was killed during the fold, another call resumes
    the training from the last checkpoint.

    Args:
        job: the fold.
        say: function that receives lines for the log.
        start_time: time at which the time budget starts, on the clock of `time.monotonic()`; None if it starts with
            this call.

    Returns:
        The content of `result.json`.

    Raises:
        MaskfoldError: the fold failed in a way that the user can correct.
        KeyboardInterrupt: a stop signal arrived, and a checkpoint was written.
    """
    if (result := FoldResult.read(job.folder)) is not None:
        return result
    with run_lock(job.folder, job.patience, say), oom_as_error(f"working on {job.folder.name}"):
        remove_all_stale_temp(job.folder, locked=True)
        return _run_fold(job, Context(job.trust, say), start_time if start_time is not None else time.monotonic())


def _run_fold(job: FoldJob, context: Context, start_time: float) -> FoldResult:
    run = load_run_for_job(job)
    trainer = setup_fold(job, run, context, start_time)
    trainer.train()
    weights = job.folder / PLAIN_WEIGHTS
    if not weights.exists():
        save_weights(weights, trainer.final_weights())
    score, dice = predict_and_score(job, run, trainer, weights)
    write_replay_yaml(run.exp, trainer.budget.estimates if run.exp.training.budget_minutes else None, job.folder)
    plot_fold_curves(job.folder / "curves.png", job.folder / "metrics.jsonl", trainer.direction)
    soup = predict_with_soup(job, run, trainer, score, dice)
    result = write_result(job, run.exp, trainer, score, dice, soup)
    # Remove the checkpoints of the soup only after the result is written. If the fold is killed before, it needs them
    # to make the soup again.
    trainer.soup.remove_files()
    return result


def load_run_for_job(job: FoldJob) -> Run:
    """Load the run of a job, and set torch's number of threads to this process's share of the fold's threads.

    Raises:
        MaskfoldError: the run's folder was edited, or one of these has changed since the run was started: a file that
            the YAML names, or the weights of another run.
    """
    run = load_run(job.run, job.trust)
    contents = run_contents(run.exp, None, missing_ok=True) | first_stage_contents(run.exp, missing_ok=True)
    check_contents(run.folder, run.exp, contents, source_digests(run.exp))
    torch.set_num_threads(max(1, job.threads // run.exp.run.devices))
    keep_freed_memory()
    return run


def run_worker(job: FoldJob) -> None:
    """Train in an additional process of the fold.

    A fold with several devices has a main process for the first device, and an additional process for each other
    device. Additional processes only take training steps; they do not validate or write results.

    Raises:
        MaskfoldError: the fold failed in a way that the user can correct.
        KeyboardInterrupt: the main process was stopped.
    """
    exit_with_parent(parent_process())
    with oom_as_error(f"working on {job.folder.name}"):
        setup_fold(job, load_run_for_job(job), Context(job.trust), PROCESS_START).train()


def setup_fold(job: FoldJob, run: Run, context: Context, start_time: float) -> Trainer:
    """Make the trainer of a fold, with everything that it needs: dataset, device, network and evaluator.

    Args:
        job: the fold.
        run: the run of the fold.
        context: context with the trusted packages and the log.
        start_time: time at which the time budget starts, on the clock of `time.monotonic()`.

    Raises:
        MaskfoldError: the fold cannot be trained, e.g. because a case, the network or the device is not usable.
    """
    exp = run.exp
    progress = progress_of(context.say)
    context = replace(context, say=progress)
    prepared = join_first_stage(run, preprocess_cases(run.cases, exp, job.cache, workers=1), job.cache, context)
    train, weighted = split_by_weight(run, job.fold, prepared)
    extra = build_extra_data(job, run, context)
    if not train and not weighted.folders:
        raise no_training_cases_error(job.fold)
    channels = PreprocessedCase.open([*train, *weighted.folders][0]).image.shape[0] * (exp.patch.slices or 1)

    def check_bf16() -> bool:
        deterministic = bf16_is_deterministic(exp, channels, job.cache, context)
        if not deterministic:
            context.say(
                "note: on this CPU, the bf16 gradients of this network differ each time they are computed, so it "
                "trains in fp32"
            )
        return deterministic

    fabric, precision = make_fabric(exp, check_bf16)
    exp = with_workers(exp, fabric.device, job.threads)
    launch_processes(fabric)
    seed = exp.seeds[job.seed]
    dataset = PatchDataset(
        [*train, *weighted.folders, *extra.folders],
        exp,
        job.fold,
        seed,
        augment=build_loader_transform(exp, context),
        sampler=WeightedCaseSampler(len(train), [*weighted.kinds, *extra.kinds]),
    )
    torch.manual_seed(child_seed(seed, job.fold, 0, 0, "init"))
    fresh = not (job.folder / LAST_CHECKPOINT).exists()
    network = build_network(exp, channels, context, pretrained=fresh)
    if exp.initial_run is not None and fresh:
        load_weights(network, check_initial_weights(Path(exp.initial_run), job, run))
    if exp.initial_weights is not None and fresh:
        for line in load_initial_weights(network, exp, channels).lines():
            context.say(line)
    compiled = (
        compile_network(network, exp, channels, fabric.device, context.say, fabric.autocast)
        if wants_compilation(exp, fabric.device)
        else None
    )
    validation = run.validation_cases(job.fold)
    stop_signal = StopSignal()

    def check_and_tick() -> None:
        stop_signal.check()
        progress.tick()

    evaluator = (
        Evaluator(exp, validation, prepared, fabric.device, fabric.autocast, check_and_tick, dataset.memory_budget)
        if job.fold >= 0
        else None
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    context.say(
        f"{format_count(len(train) + len(weighted.folders), 'case')} to train on, {len(validation)} to validate, "
        f"{precision} on {fabric.device}, {format_count(torch.get_num_threads(), 'thread')}, "
        f"{parameters / 1e6:.2f} M parameters"
    )
    return Trainer(
        fabric=fabric,
        exp=exp,
        folder=job.folder,
        fold=job.fold,
        seed=seed,
        model=network,
        dataset=dataset,
        evaluator=evaluator,
        augment=build_batch_transform(exp),
        start_time=start_time,
        stop_reason=stop_signal.reason,
        context=context,
        compiled=compiled,
        final_share=1.0 + _total_size(run.test_share()) / max(1, _total_size(validation)),
    )


def _total_size(cases: pd.DataFrame) -> int:
    """Return the total number of pixels of the cases in these rows of the case table."""
    return sum(math.prod(json.loads(shape)) for shape in cases["shape"])


def predict_and_score(
    job: FoldJob, run: Run, trainer: Trainer, weights: Path
) -> tuple[float | None, dict[str, float | None]]:
    """Predict and score the validation cases of a fold, and the test share if there is one, with the final weights.

    Predictions, tables of scores and pictures are written to the fold's folder.

    Args:
        job: the fold.
        run: the run of the fold.
        trainer: trainer of the fold, after the end of training.
        weights: file with the final weights.

    Returns:
        The competition's metric on the validation cases, and their mean Dice by class. (None, {}) for the training on
        all cases, which has no validation cases.
    """
    if trainer.evaluator is None:
        return None, {}
    network = trainer.unwrapped_model
    load_weights(network, weights)
    network.eval()
    evaluator, comp = trainer.evaluator, run.exp.competition
    trainer.activity = "predicting out of fold"
    digest = sha256_of_file(weights)
    store = open_store(run.exp, job.folder / "oof", stored_shapes(run.exp, run.cases), digest)
    scores = evaluator.predict_out_of_fold(network, store, job.fold)
    evaluator.save_best_and_worst(store, scores, job.folder / "pictures", job.fold)
    write_table(scores, job.folder / "scores.csv")
    step = trainer.state.step
    if not trainer.metrics_log.has_metric(step, "val/score"):  # this is the last point of the curves
        memory = trainer.oom_guard.report(trainer.state.halved)
        trainer.metrics_log.append(step, trainer.epoch, summary_metrics(scores, run.exp) | memory)
    if len(held_out := run.test_share()):
        test_store = open_store(run.exp, job.folder / "test", store.shapes, digest)
        test_scores = replace(evaluator, cases=held_out).predict_out_of_fold(network, test_store, HELD_OUT)
        write_table(test_scores, job.folder / "test_scores.csv")
    return nan_to_none(cv_score(scores, comp.metric)), dice_per_class(scores, comp.classes)


def write_result(
    job: FoldJob,
    exp: Experiment,
    trainer: Trainer,
    score: float | None,
    dice: dict[str, float | None],
    soup: dict[str, Any] | None = None,
) -> FoldResult:
    """Write `result.json`, which marks a fold as finished and is therefore its last file.

    Before that, replace the checkpoint by one without tensors, which a finished fold does not need.

    Args:
        job: the fold.
        exp: the experiment.
        trainer: trainer of the fold, after the end of training.
        score: the competition's metric on the validation cases; None for the training on all cases.
        dice: mean Dice by class.
        soup: scores of the averaged checkpoints, a result of `predict_with_soup`.
    """
    state = trainer.state
    result = FoldResult(
        fold=job.fold,
        seed=job.seed,
        score=score,
        dice=dice,
        steps=state.step,
        epochs=trainer.epoch,
        minutes=trainer.elapsed_seconds() / 60,
        peak_gib=peak_gib(trainer.fabric.device),
        threads=torch.get_num_threads(),
        precision=str(trainer.fabric.strategy.precision.precision),
        device=str(trainer.fabric.device),
        torch=torch.__version__,
        stopped=state.stopped,
        devices=trainer.distributed.world_size,
        skipped=state.skipped,
        restored=state.restored,
        halved=state.halved,
        soup=soup,
        lessons=read_lineage_summary(job.folder) or {},
        digests={path.name: sha256_of_file(path) for path in final_files(job.folder)},
    )
    trainer.drop_tensors()  # before the result is written, so that no finished fold keeps the tensors
    result.write(job.folder)
    return result


def final_files(folder: Path) -> list[Path]:
    """Return the files of a fold whose digests `result.json` records: score tables, weights and `lineage.json`.

    Files that do not exist are left out.
    """
    others = [folder / name for name in (SOUP_WEIGHTS, PLAIN_WEIGHTS, LINEAGE_FILE)]
    return [*sorted(folder.glob("*scores.csv")), *(path for path in others if path.exists())]


def main(path: str) -> int:
    """Run the process of a fold, and return its exit status.

    Log lines go to standard output and `log.txt`. Errors that the user can correct are written to `error.json`.

    Args:
        path: path of the `job.json`.
    """
    install_redaction()
    try:
        job = FoldJob.read(Path(path))
    except MaskfoldError as error:  # the parent process shows the last line
        print(f"error: {error}", flush=True)
        return 1
    if not is_main_process():
        return worker_main(job)

    def say(line: str) -> None:
        # A full disk is reported where results are written, not here.
        with contextlib.suppress(OSError), open(job.folder / "log.txt", "a") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        with contextlib.suppress(OSError):
            print(line, flush=True)

    def show(line: str) -> None:
        with contextlib.suppress(OSError):
            print(line, flush=True)

    pipe = int(os.environ.pop(ERROR_PIPE, "-1"))  # only the main process has the job's file
    progress = ProgressLog(say, show if wants_bar() else None)
    try:
        with progress.ticking():
            run_fold(job, progress, PROCESS_START)
    except MaskfoldError as error:
        say(f"error: {error}")
        return write_error(job, error, pipe)
    except OSError as error:
        if (disk_error := as_disk_error(error, None)) is None:
            raise
        say(f"error: {disk_error}")
        return write_error(job, disk_error, pipe)
    except KeyboardInterrupt as reason:
        say(f"stopped ({reason}); to resume from the last checkpoint, run the same command again")
        return 143 if str(reason) == "SIGTERM" else 130
    return 0


def forked_main(path: str) -> int:
    """Run `main` in a process that was forked after the imports; the time budget starts with this call.

    Args:
        path: path of the `job.json`.
    """
    global PROCESS_START
    PROCESS_START = time.monotonic()
    return main(path)


def worker_main(job: FoldJob) -> int:
    """Run an additional process of a fold, and return its exit status.

    If the status is not 0, Lightning Fabric ends the main process.
    """
    try:
        run_worker(job)
    # The same error may occur in all processes. If a case of this process caused it, it occurs only here.
    except MaskfoldError as error:
        return write_error(job, error)
    except KeyboardInterrupt:
        return 0
    except Exception:
        # If the main process has ended, its error is reported, and `exit_with_parent` ends this process meanwhile.
        time.sleep(2.0)
        raise
    return 0


def write_error(job: FoldJob, error: MaskfoldError, pipe: int = -1) -> int:
    """Write an error for the parent process, to the pipe and to `error.json`; return the exit status 1.

    Args:
        job: the fold.
        error: the error.
        pipe: file descriptor of the pipe to the parent process; -1 if there is no pipe.
    """
    content = {"message": error.message, "hint": error.hint, "status": error.status}
    with contextlib.suppress(OSError):  # the parent may have ended
        if pipe >= 0:
            os.write(pipe, json.dumps(content).encode())
    with contextlib.suppress(MaskfoldError):  # the disk may be full
        write_json(job.folder / ERROR_FILE, content)
    return 1


def exit_fold(status: int) -> NoReturn:
    """End the process of a fold; if the fold has several processes, skip Python's cleanup.

    During that cleanup, a thread of `torch.distributed` that still runs may abort the process. Lightning Fabric would
    then kill the main process, although its result is complete.

    Args:
        status: the exit status.
    """
    if "LOCAL_RANK" in os.environ:  # Fabric sets it if a fold has several processes
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the reader may have ended
                stream.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    exit_fold(main(sys.argv[1]))
