"""One fold, as a process of its own: `python -m competition.training.fold job.json`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

BEGAN = time.monotonic()  # before the slow imports, so that a budget pays for them

import torch  # noqa: E402

from competition.augment import device_augment, loader_augment  # noqa: E402
from competition.config import Experiment, MaskfoldError  # noqa: E402
from competition.config.secrets import guard  # noqa: E402
from competition.data.files import refusal, sweep_all  # noqa: E402
from competition.data.patches import PatchDataset  # noqa: E402
from competition.data.prepare import PreparedCase, prepare_cases  # noqa: E402
from competition.data.randomness import child_seed  # noqa: E402
from competition.inference.store import OofStore  # noqa: E402
from competition.inference.weights import load_weights  # noqa: E402
from competition.model.network import build_network  # noqa: E402
from competition.scoring.curves import fold_curves  # noqa: E402
from competition.scoring.summary import cv_score  # noqa: E402
from competition.training.checkpoint import GOOD, save_weights, write_json, write_table  # noqa: E402
from competition.training.device import make_fabric  # noqa: E402
from competition.training.executors.process import ERROR, WORDS  # noqa: E402
from competition.training.job import FoldResult, Job  # noqa: E402
from competition.training.lessons import learn  # noqa: E402
from competition.training.lineage import check_lineage, read_said  # noqa: E402
from competition.training.lock import alone  # noqa: E402
from competition.training.loop import Training  # noqa: E402
from competition.training.memory import peak_gib, told  # noqa: E402
from competition.training.ranks import die_with, is_first, launch, parent  # noqa: E402
from competition.training.repeat import repeats  # noqa: E402
from competition.training.runs import CvRun, load_run, write_resolved  # noqa: E402
from competition.training.soup_fold import predict_soup  # noqa: E402
from competition.training.validation import Judge, dice_per_class, summary_metrics  # noqa: E402


def run_fold(job: Job, say: Callable[[str], None] = print, began: float | None = None) -> FoldResult:
    """Train, predict out of fold, score: idempotent, and resumable after a kill at any instant.

    Args:
        job: which fold of which run.
        say: takes lines for the log.
        began: `time.monotonic()` from which the budget counts; None is now.

    Returns:
        What `result.json` holds.

    Raises:
        MaskfoldError: the work failed in a way the user can cure.
        KeyboardInterrupt: asked to stop; a checkpoint is written.
    """
    if (finished := FoldResult.read(job.folder)) is not None:
        return finished
    with alone(job.folder, job.patience, say), told(f"working on {job.folder.name}"):
        sweep_all(job.folder, mine=True)
        return _run_fold(job, say, began if began is not None else time.monotonic())


def _run_fold(job: Job, say: Callable[[str], None], began: float) -> FoldResult:
    run = ready(job)
    training = begin(job, run, say, began)
    training.train()
    weights = job.folder / "weights.safetensors"
    if not weights.exists():
        save_weights(weights, training.final_weights())
    score, dice = predict(job, run, training, weights)
    write_resolved(run.exp, training.plan.pairs if run.exp.training.budget_minutes else None, job.folder)
    fold_curves(job.folder / "curves.png", job.folder / "metrics.jsonl")
    soup = predict_soup(job, run, training, score, dice)
    result = finish(job, run.exp, training, score, dice, soup)
    training.soup.forget()  # after the result: a fold that is killed in between has what it needs to make the soup again
    return result


def ready(job: Job) -> CvRun:
    """The run, with this process's share of the fold's threads taken."""
    run = load_run(job.run, job.trust)
    torch.set_num_threads(max(1, job.threads // run.exp.run.devices))
    return run


def assist(job: Job) -> None:
    """What the fold's other processes do, one for each further device: take steps, and nothing else.

    Raises:
        MaskfoldError: the work failed in a way the user can cure.
        KeyboardInterrupt: the first process stopped.
    """
    die_with(parent())
    with told(f"working on {job.folder.name}"):
        begin(job, ready(job), lambda line: None, BEGAN).train()


def begin(job: Job, run: CvRun, say: Callable[[str], None], began: float) -> Training:
    """Everything the loop needs: prepared cases, network, device, the judge of the validation cases."""
    exp = run.exp
    prepared = prepare_cases(run.cases, exp, job.cache)
    fold_of = dict(zip(run.folds["id"], run.folds["fold"], strict=True))
    train = [prepared[case] for case, fold in fold_of.items() if fold not in (job.fold, -2) or job.fold < 0]
    lessons = learn(job, run, say)
    channels = PreparedCase.open(train[0]).image.shape[0] * (exp.patch.slices or 1)

    def steady() -> bool:
        same = repeats(exp, channels, job.cache, job.trust)
        if not same:
            say("note: this network's bf16 gradients are not the same each time on this CPU, so it trains in fp32")
        return same

    fabric, precision = make_fabric(exp, steady)
    launch(fabric)
    seed = exp.seeds[job.seed]
    dataset = PatchDataset(
        [*train, *lessons.folders],
        exp,
        job.fold,
        seed,
        augment=loader_augment(exp, job.trust),
        turns=lessons.turns(len(train)),
    )
    torch.manual_seed(child_seed(seed, job.fold, 0, 0, "init"))
    fresh = not (job.folder / "last.pt").exists()
    network = build_network(exp, channels, job.trust, pretrained=fresh)
    if exp.init_from is not None and fresh:
        load_weights(network, check_lineage(Path(exp.init_from), job, run))
    watched = run.cases[[fold_of[case] == job.fold for case in run.cases["id"]]]
    interrupted = Interruption()
    judge = (
        Judge(exp, watched, prepared, fabric.device, fabric.autocast, interrupted.check, dataset.resident)
        if job.fold >= 0
        else None
    )
    say(
        f"{len(train)} cases to train on, {len(watched) if judge else 0} to validate, {precision} on {fabric.device}, "
        f"{torch.get_num_threads()} threads, {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
    )
    return Training(
        fabric,
        exp,
        job.folder,
        job.fold,
        seed,
        network,
        dataset,
        judge,
        device_augment(exp),
        began,
        interrupted.reason,
        say,
        job.trust,
    )


def predict(job: Job, run: CvRun, training: Training, weights: Path) -> tuple[float | None, dict[str, float | None]]:
    """Predict the fold's cases (and the held-out test share, if there is one) with the final weights; score them."""
    if training.judge is None:
        return None, {}
    network = training.bare
    load_weights(network, weights)
    network.eval()
    judge, comp = training.judge, run.exp.competition
    store = OofStore(job.folder / "oof", run.exp.inference.store)
    scores = judge.predict_out_of_fold(network, store, job.fold)
    judge.draw_extremes(store, scores, job.folder / "pictures", job.fold)
    write_table(scores, job.folder / "scores.csv")
    step = training.progress.step
    if not training.journal.has(step, "val/score"):  # the curves' last point
        memory = training.memory.report(training.progress.halved)
        training.journal.write(step, -(-step // training.steps_per_epoch), summary_metrics(scores, run.exp) | memory)
    if (run.folds["fold"] == -2).any():
        held_out = run.cases[run.cases["id"].isin(run.folds.loc[run.folds["fold"] == -2, "id"])]
        tester = replace(judge, cases=held_out)
        write_table(
            tester.predict_out_of_fold(network, OofStore(job.folder / "test", run.exp.inference.store), -2),
            job.folder / "test_scores.csv",
        )
    score = cv_score(scores, comp.metric)
    if score > training.progress.best:
        training.keep_best(network)
    return score, dice_per_class(scores, comp.classes)


def finish(
    job: Job,
    exp: Experiment,
    training: Training,
    score: float | None,
    dice: dict[str, float | None],
    soup: dict[str, Any] | None = None,
) -> FoldResult:
    """Write `result.json`, last of all files: it says that the fold is finished."""
    progress = training.progress
    result = FoldResult(
        fold=job.fold,
        seed=job.seed,
        score=score,
        dice=dice,
        steps=progress.step,
        epochs=-(-progress.step // training.steps_per_epoch),
        minutes=training.elapsed() / 60,
        peak_gib=peak_gib(training.fabric.device),
        threads=torch.get_num_threads(),
        precision=str(training.fabric.strategy.precision.precision),
        device=str(training.fabric.device),
        torch=torch.__version__,
        stopped=progress.stopped,
        devices=training.ranks.count,
        skipped=progress.skipped,
        restored=progress.restored,
        halved=progress.halved,
        soup=soup,
        lessons=read_said(job.folder) or {},
    )
    (job.folder / GOOD).unlink(missing_ok=True)
    write_json(job.folder / "result.json", result.__dict__)
    return result


class Interruption:
    """Notices SIGTERM, Ctrl-C and the death of the process that started this one."""

    def __init__(self) -> None:
        self._why = ""
        self._parent = parent()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                signal.signal(number, self._note)
            except ValueError:
                return  # not in the main thread: a test runs the fold in place

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._why = signal.Signals(number).name

    def reason(self) -> str:
        """Why to stop now; empty while there is no reason."""
        if not self._why and os.getppid() != self._parent:
            self._why = "the parent process ended"
        return self._why

    def check(self) -> None:
        """Raise where there is a reason to stop."""
        if reason := self.reason():
            raise KeyboardInterrupt(reason)


def main(path: str) -> int:
    """The process: lines on standard output, `error.json` for the parent, an exit status that says how it went."""
    guard()
    try:
        job = Job.read(Path(path))
    except MaskfoldError as error:  # whoever started this shows the last line
        print(f"error: {error}", flush=True)
        return 1
    if not is_first():
        return assisted(job)

    def say(line: str) -> None:
        with (
            contextlib.suppress(OSError),
            open(job.folder / "log.txt", "a") as log,
        ):  # a full disk is told where it matters
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        with contextlib.suppress(OSError):
            print(line, flush=True)

    pipe = int(os.environ.pop(WORDS, "-1"))  # the fold's other processes do not have it
    try:
        run_fold(job, say, BEGAN)
    except MaskfoldError as error:
        say(f"error: {error}")
        return failed(job, error, pipe)
    except OSError as error:
        if (refused := refusal(error, None)) is None:
            raise
        say(f"error: {refused}")
        return failed(job, refused, pipe)
    except KeyboardInterrupt as reason:
        say(f"stopped ({reason}); the same command goes on from the last checkpoint")
        return 143 if str(reason) == "SIGTERM" else 130
    return 0


def assisted(job: Job) -> int:
    """One of the fold's other processes; the first answers for it, and is ended by Fabric where the status is not 0."""
    try:
        assist(job)
    except MaskfoldError as error:  # all have met it, or this one alone, in a case that it drew
        return failed(job, error)
    except KeyboardInterrupt:
        return 0
    except Exception:
        time.sleep(2.0)  # where the first process is gone, its own words are enough: `die_with` acts now
        raise
    return 0


def failed(job: Job, error: MaskfoldError, pipe: int = -1) -> int:
    """Leave the error for the process that started the fold, also through the pipe; the exit status."""
    words = {"wrong": error.wrong, "cure": error.cure, "status": error.status}
    with contextlib.suppress(OSError):  # that process may be gone
        if pipe >= 0:
            os.write(pipe, json.dumps(words).encode())
    with contextlib.suppress(MaskfoldError):  # the disk may be full
        write_json(job.folder / ERROR, words)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
