"""The cross-validation run: which folds run, and what they say together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config import MaskfoldError
from competition.training.job import FoldResult, Job
from competition.training.runs import CACHE, CvRun, read_skipped

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CvSummary:
    """What a run's finished folds say together; `summary.json` in its folder.

    Attributes:
        metric: the competition's metric.
        score: its value over all out-of-fold cases so far; None where nothing was validated.
        low: lower end of the 95 % bootstrap interval over cases (over groups, where there are groups).
        high: upper end of it.
        dice: per class, mean Dice over the cases that have the class; None where no case has.
        dice_low: lower ends of their intervals.
        dice_high: upper ends.
        cases: how many cases were predicted out of fold.
        folds: the results of the finished members.
        test_dice: per class on the share that no fold trained on (`folds.shares` of three numbers).
        test_score: the metric's value on that share.
        soup: what the averages of the best checkpoints are worth, see `soup_choice`; None without them.
        seeds: what several seeds are worth, see `seeds`; None for one.
    """

    metric: str
    score: float | None
    low: float | None
    high: float | None
    dice: dict[str, float | None]
    dice_low: dict[str, float | None]
    dice_high: dict[str, float | None]
    cases: int
    folds: list[dict[str, Any]]
    test_dice: dict[str, float | None] | None = None
    test_score: float | None = None
    soup: dict[str, Any] | None = None
    seeds: dict[str, Any] | None = None


def run_cv(
    run: CvRun, say: Callable[[str], None], trust: tuple[str, ...] = (), alive: Callable[[], None] = lambda: None
) -> CvSummary:
    """Train the folds that are not finished, and score all that are.

    Args:
        run: the run, from `open_run`, made ready by `prepare_run`.
        say: takes lines for the user.
        trust: packages besides the known ones that `target` may name.
        alive: called while folds run; what it raises stops them, each with a checkpoint.

    Returns:
        The summary, also written to `summary.json` beside `scores.csv` (one row per case and class).

    Raises:
        MaskfoldError: something the user can cure.
    """
    from competition.data.files import sweep_all
    from competition.training.executors import make_executor

    sweep_all(run.folder)
    if jobs := open_jobs(run, trust):
        make_executor(run.exp).run(jobs, say, alive)
    return summarise(run)


def prepare_run(run: CvRun, say: Callable[[str], None], trust: tuple[str, ...] = ()) -> CvRun:
    """Refuse what cannot work, prepare every case, then write the run's folder; all before any fold starts.

    Returns:
        The run; under `on_bad_case: skip` without the cases that cannot be prepared.

    Raises:
        MaskfoldError: a target, its arguments, the patch or a case does not fit; no run is left behind.
    """
    from competition.augment import device_augment, loader_augment
    from competition.config.target import check_targets
    from competition.data.files import sweep_all
    from competition.data.prepare import PreparedCase, prepare_cases
    from competition.inference.tta import views
    from competition.model.network import check_network
    from competition.training.lessons import check_lessons, ready_lessons
    from competition.training.lineage import check_lineage
    from competition.training.memory import told
    from competition.training.soup import check_soup

    if not open_jobs(run, trust):
        return run.without(
            {case: why for case, why in read_skipped(run.folder).items() if case in set(run.cases["id"])}
        )
    sweep_all(CACHE)
    _refuse_mixture(run)
    check_soup(run)
    if run.exp.init_from is not None:
        for job in open_jobs(run, trust):
            check_lineage(Path(run.exp.init_from), job, run)
    check_lessons(run, open_jobs(run, trust))
    check_targets(run.exp, trust)
    loader_augment(run.exp, trust)  # made only to be checked: each raises where its section makes no sense
    device_augment(run.exp)
    views(run.exp)
    one_by_one = (prepare_cases(run.cases.iloc[[place]], run.exp, CACHE) for place in range(len(run.cases)))
    first, folder = next((item for found in one_by_one for item in found.items()), (None, None))
    if folder is None:
        raise MaskfoldError("No case can be prepared.", "Set competition.on_bad_case=stop, which says why.")
    channels = int(PreparedCase.open(folder).image.shape[0])
    check_network(run.exp, channels * (run.exp.patch.slices or 1), trust)
    with told("preparing the cases"):
        skipped: dict[str, str] = {}
        prepared = prepare_cases(run.cases, run.exp, CACHE, progress=say, skipped=skipped)
    for case, path in prepared.items():
        found = int(PreparedCase.open(path).image.shape[0])
        if found != channels:
            raise MaskfoldError(
                f"Case {case!r} has {found} channels, but {first!r} has {channels}.",
                "Set prepare.channels to grey or rgb, or mend the case.",
            )
    for case, why in skipped.items():
        say(f"note: case {case} is left out: {why}")
    run = run.without(skipped)
    ready_lessons(run, open_jobs(run, trust), prepared, CACHE, say)
    run.write()
    return run


def open_jobs(run: CvRun, trust: tuple[str, ...] = ()) -> list[Job]:
    """The jobs that are not finished."""
    return [job for job in make_jobs(run, trust) if FoldResult.read(job.folder) is None]


def make_jobs(run: CvRun, trust: tuple[str, ...] = ()) -> list[Job]:
    """A job for each fold and seed that the experiment asks for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    threads = run.exp.run.threads or max(1, cores // run.exp.run.parallel_folds)
    return [
        Job(run.folder.resolve(), run.member_folder(fold, seed).resolve(), fold, seed, CACHE.resolve(), threads, trust)
        for fold, seed in run.members()
    ]


def summarise(run: CvRun) -> CvSummary:
    """Score what the finished folds predicted, all cases together."""
    import pandas as pd

    from competition.scoring.summary import bootstrap_interval, cv_score
    from competition.training.checkpoint import write_json, write_table
    from competition.training.seeds import held_out, worth
    from competition.training.soup_choice import choose
    from competition.training.validation import dice_per_class

    comp = run.exp.competition
    soup = choose(run)
    results = results_of(run)
    folds = sorted({result.fold for result in results if result.fold >= 0})
    tables = [fold_scores(run, fold, [r for r in results if r.fold == fold]) for fold in folds]
    plain = [asdict(result) for result in results]
    if not tables:
        summary = CvSummary(comp.metric.name, None, None, None, {}, {}, {}, 0, plain)
    else:
        scores = pd.concat(tables, ignore_index=True)
        write_table(scores, run.folder / "scores.csv")
        groups = dict(zip(run.cases["id"], run.cases["group"], strict=True)) if comp.group else None
        low, high = bootstrap_interval(scores, comp.metric, seed=run.exp.seeds[0], groups=groups)
        intervals = {name: _dice_interval(scores, name, run.exp.seeds[0], groups) for name in comp.classes}
        tested = [
            table for fold in folds if (table := held_out(run, [r for r in results if r.fold == fold])) is not None
        ]
        summary = CvSummary(
            comp.metric.name,
            cv_score(scores, comp.metric),
            low,
            high,
            dice_per_class(scores, comp.classes),
            {name: ends[0] for name, ends in intervals.items()},
            {name: ends[1] for name, ends in intervals.items()},
            int(scores["id"].nunique()),
            plain,
            dice_per_class(pd.concat(tested), comp.classes) if tested else None,
            cv_score(pd.concat(tested), comp.metric) if tested else None,
            soup,
            worth(run, results, scores, groups),
        )
    write_json(run.folder / "summary.json", asdict(summary))
    return summary


def results_of(run: CvRun) -> list[FoldResult]:
    """What is finished, whichever of it this command named: a run grows over several commands."""
    places = [(fold, seed) for fold in (*run.numbers(), -1) for seed in range(len(run.exp.seeds))]
    return [result for fold, seed in places if (result := FoldResult.read(run.member_folder(fold, seed)))]


def fold_scores(run: CvRun, fold: int, members: list[FoldResult], weights: str | None = None) -> pd.DataFrame:
    """Scores of one fold's cases: of its member, or of the mean of its members' probabilities.

    Args:
        run: the run.
        fold: the fold.
        members: its finished members.
        weights: of which of their weights, see `job`; None: of those that predict.
    """
    import pandas as pd
    import torch

    from competition.scoring.score_table import read_scores
    from competition.training.oof import OutOfFold
    from competition.training.validation import Judge

    folders = [run.member_folder(fold, member.seed) for member in members]
    if len(folders) == 1:
        prefix = members[0].prefix_of(weights or members[0].weights)
        return read_scores(folders[0] / f"{prefix}scores.csv")
    kept = OutOfFold(run, (fold,), weights)
    judge = Judge(run.exp, kept.cases, {}, torch.device("cpu"), torch.no_grad, lambda: None)
    lines: list[dict[str, Any]] = []
    for row in judge.rows():
        lines += judge.score(kept.read(row.id), row, fold)[0]
    return pd.DataFrame(lines)


def _refuse_mixture(run: CvRun) -> None:
    """Folds that were trained in different ways are no cross-validation of one thing."""
    devices, batch, on_nan = run.exp.run.devices, run.exp.training.batch_size, run.exp.training.on_nan
    for result in results_of(run):
        if result.devices != devices:
            raise MaskfoldError(
                f"{run.member_folder(result.fold, result.seed)} was trained with run.devices={result.devices}, "
                f"{result.devices * batch} samples a step, and now run.devices is {devices}.",
                f"Set run.devices={result.devices}, or start another run with --new.",
            )
        if (result.restored and on_nan != "restore") or (result.skipped and on_nan == "restore"):
            how = f"restored {result.restored} times" if result.restored else f"left out {result.skipped} steps"
            raise MaskfoldError(
                f"{run.member_folder(result.fold, result.seed)} has {how}, and now training.on_nan is {on_nan}.",
                "Set training.on_nan as it was, or start another run with --new.",
            )


def _dice_interval(
    scores: pd.DataFrame, name: str, seed: int, groups: dict[str, str] | None
) -> tuple[float | None, float | None]:
    from competition.config import Metric
    from competition.scoring.summary import bootstrap_interval

    rows = scores[scores["class"] == name].assign(score=lambda table: table["dice"])
    if rows["score"].notna().sum() < 2:
        return None, None
    low, high = bootstrap_interval(rows, Metric(name="dice", both_empty=None), seed=seed, groups=groups)
    return float(low), float(high)
