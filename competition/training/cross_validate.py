"""Cross-validate an experiment: open and prepare a run, train its folds, and score all out-of-fold predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from competition.config.competition import MetricConfig
from competition.config.experiment import Experiment
from competition.context import Context
from competition.data.splits import HELD_OUT
from competition.errors import MaskfoldError
from competition.io import remove_all_stale_temp, sha256_of_file
from competition.metrics.bootstrap import bootstrap_interval, cv_score, dice_per_class, paired_gain
from competition.records import finite_or_none, nan_to_none
from competition.runs.fold import FoldJob, FoldResult
from competition.runs.identity.contents import (
    FOLDS_KEY,
    RunRecord,
    changed_error,
    check_contents,
    describe_content,
    run_contents,
    source_digests,
    source_name,
)
from competition.runs.identity.hashing import run_hash
from competition.runs.imported import IMPORT_HINT, is_imported
from competition.runs.kept_settings import decide_settings, stored_settings, with_kept_settings, with_settings
from competition.runs.lock import run_lock
from competition.runs.oof import open_store, stored_shapes
from competition.runs.run import CACHE_FOLDER, FOLDS_FILE, RUNS_FOLDER, Run, edited_error, read_skipped
from competition.runs.summary import SCORES_FILE, write_summary
from competition.tables import write_table
from competition.text import format_count, format_number, join_names
from competition.training.soup_selection import fold_scores, score_interval, select_soup


@dataclass(frozen=True)
class CvSummary:
    """Summarise a run's finished folds; the run's folder stores the summary as `summary.json`.

    Attributes:
        metric: name of the competition's metric.
        score: the metric over all out-of-fold predictions so far; None if no case was validated.
        low: lower end of the 95 % bootstrap interval of the score. The bootstrap draws groups if the competition has
            groups, otherwise cases. None if there are too few cases.
        high: upper end of this interval.
        dice: mean Dice by class, over the cases that have the class in their labels or their prediction; None for a
            class that no case has.
        dice_low: lower ends of the 95 % intervals of `dice`.
        dice_high: upper ends of the 95 % intervals of `dice`.
        cases: number of cases with an out-of-fold prediction.
        folds: result of each finished fold and seed, as dictionaries with the fields of `FoldResult`.
        test_dice: mean Dice by class on the held-out test share (`folds.shares` with three numbers); None if there
            is no test share.
        test_score: the metric on the held-out test share; None if there is no test share.
        soup: comparison of averaged checkpoints with the plain weights, see `select_soup`; None if no fold has averaged
            checkpoints.
        seeds: comparison of one seed with all seeds together, see `seed_ensemble_gain`; None if there is one seed.
        digests: SHA-256 of `scores.csv` in the run's folder, by file name. Empty in summaries of version 0.1.
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
    digests: dict[str, str] = field(default_factory=dict)


def open_run(exp: Experiment, name: str, *, new: bool = False, root: Path = RUNS_FOLDER) -> Run:
    """Return the run of an experiment: the existing run with the same hash, or a new one.

    The name of a new run's folder is version 2 of its hash. A run that an older version of Maskfold made has version 1
    of the hash as its name, and is found too. See `competition.runs.identity.hashing.run_hash`.

    Args:
        exp: the experiment.
        name: name of the experiment, e.g. `hippocampus-unet3d`.
        new: whether to start another run (with a number after the hash) if a run with this hash exists.
        root: the folder of all runs.

    Returns:
        The run; no file has been written.

    Raises:
        MaskfoldError: the data or the folds are invalid, a weight file does not exist, or the YAML belongs to an
            imported run. Or the run was started with another memory format or optimiser kernel than the YAML sets.
    """
    from competition.data.cases import case_table
    from competition.data.splits import check_leaks, split
    from competition.runs.cascade.first_stage import first_stage_contents
    from competition.runs.extra_cases import combined_data_hash, extra_case_tables
    from competition.runs.find import resolve_source_runs

    if is_imported(exp):
        raise MaskfoldError(
            "This is the YAML of an imported run, which has no network to train.", IMPORT_HINT, status=2
        )
    exp = resolve_source_runs(exp)
    cases = case_table(exp.competition, "train")
    folds = split(cases, exp.competition, exp.folds, exp.seeds[0])
    check_leaks(cases, folds)
    extra_tables = extra_case_tables(exp, cases)
    data = combined_data_hash(cases, extra_tables)
    base = root / name / run_hash(exp, data)
    known = base.exists()
    contents = run_contents(exp, folds, missing_ok=known) | first_stage_contents(exp, missing_ok=known)
    record = RunRecord({"1": base.name, "2": run_hash(exp, data, 2, contents)}, data, contents)
    if not base.exists():
        base = base.with_name(record.names["2"])
    folder = base
    number = 1
    while folder.exists() and (new or _numbered_folder(base, number + 1).exists()):
        number += 1
        folder = _numbered_folder(base, number)
    exp = with_kept_settings(exp, folder)
    return _with_saved_groups(Run(folder, exp, cases, folds, name, extra_tables, record))


def _with_saved_groups(run: Run) -> Run:
    """Return the run with folds in which the cases of each group in its stored `folds.csv` stay together.

    An earlier command may have put copies of an image into one group. The copies must stay in one fold.
    """
    from competition.data.splits import split
    from competition.runs.copies import in_several_groups

    exp = run.exp
    saved = _saved_groups(run.folder, set(run.cases["id"])) if exp.folds.scheme != "file" else []
    # The competition's own groups are omitted, because the split uses them anyway.
    alike = in_several_groups(saved, run.folds)
    return replace(run, folds=split(run.cases, exp.competition, exp.folds, exp.seeds[0], alike)) if alike else run


def _saved_groups(folder: Path, ids: set[str]) -> list[list[str]]:
    """Return the groups of two or more cases in a run's `folds.csv`, each as a list of case ids.

    If the file does not exist or cannot be read, return an empty list.

    Args:
        folder: the run's folder.
        ids: ids of the present cases; other cases in the file are ignored.
    """
    from competition.data.duplicates import ids_in_common
    from competition.data.splits import read_folds

    try:
        saved = read_folds(folder / FOLDS_FILE)
    except MaskfoldError:
        return []
    known = saved[saved["id"].isin(ids)]
    return ids_in_common(known["id"], known["group"])


def _numbered_folder(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


@contextmanager
def locked_run(run: Run, context: Context = Context(), patience: float = 0.0) -> Iterator[Run]:
    """Take the lock of a run, prepare the run, and hold the lock until the end of the `with` block.

    The lock is taken before the first file is written into the run's folder. So a command that does not get the lock
    changes nothing.

    Args:
        run: the run, a result of `open_run`.
        context: context with the trusted packages and the log.
        patience: maximum time in seconds to wait for another process to release the lock.

    Yields:
        The prepared run.

    Raises:
        MaskfoldError: another process works in the run's folder, or the run cannot be prepared, see `prepare_run`.
    """
    with ExitStack() as stack:
        locks: list[None] = []

        def lock() -> None:
            if not locks:
                run.folder.mkdir(parents=True, exist_ok=True)
                locks.append(stack.enter_context(run_lock(run.folder, patience, context.say)))

        if run.folder.exists():  # the folder of a new run is created only after all checks
            lock()
        prepared = prepare_run(run, context, before_write=lock)
        lock()
        yield prepared


def prepare_run(run: Run, context: Context = Context(), before_write: Callable[[], None] = lambda: None) -> Run:
    """Check the run, preprocess all cases, and write the run's folder, before any fold starts.

    Args:
        run: the run, a result of `open_run`.
        context: context with the trusted packages and the log.
        before_write: function that is called after all checks, before the run's folder is written.

    Returns:
        The run. With `on_bad_case: skip`, cases that cannot be preprocessed are removed from it.

    Raises:
        MaskfoldError: a class in the YAML, its arguments, the patch or a case is invalid, or a file that the YAML names
            has changed since the run was started. After an error, nothing has been written to the run's folder.
    """
    opened = run
    stored = stored_settings(run.folder)
    if stored is not None:  # another command may have started the run since `open_run`
        run = replace(run, exp=with_settings(run.exp, stored))
    _check_same_contents(run)
    started = (run.folder / FOLDS_FILE).exists()
    run = _with_saved_groups(run)  # another command may have written them since `open_run`
    if not unfinished_jobs(run, context):
        ids = set(run.cases["id"])
        return run.without_cases({case: why for case, why in read_skipped(run.folder).items() if case in ids})

    from competition.augment import build_batch_transform, build_loader_transform
    from competition.config.instantiate import check_targets
    from competition.data.cache import PreprocessedCase
    from competition.data.normalisation import find_other_channels
    from competition.data.preprocessing import preprocess_cases
    from competition.inference.tta import count_passes
    from competition.metrics.scoring import check_metric, unused_settings
    from competition.models.build import suits_channels_last, validate_network
    from competition.models.initial_weights import check_initial_file
    from competition.runs.cascade.channels import join_first_stage
    from competition.runs.cascade.first_stage import check_same_cases, open_first_stage
    from competition.runs.copies import keep_copies_together
    from competition.training.averaging import check_soup
    from competition.training.extra.fold_data import check_extra_data, prepare_extra_data
    from competition.training.guards import oom_as_error
    from competition.training.lineage import check_initial_weights

    run = _record_sources(run)
    remove_all_stale_temp(CACHE_FOLDER)
    _check_same_training(run)
    check_soup(run)
    if run.exp.initial_run is not None:
        for job in unfinished_jobs(run, context):
            check_initial_weights(Path(run.exp.initial_run), job, run)
    check_extra_data(run, unfinished_jobs(run, context))
    if run.exp.first_stage is not None:  # an early check, before the cases are preprocessed
        first = open_first_stage(run.exp, context.trust)
        ids = set(run.cases["id"])
        check_same_cases(run.without_cases({case: why for case, why in first.skipped if case in ids}), first)
    check_targets(run.exp, context.trust)
    if (warning := check_metric(run.exp.competition)) is not None:
        context.say(f"note: {warning}")
    for key in unused_settings(run.exp.competition.metric):
        context.say(f"note: competition.metric.{key} has no effect, because the metric has no such setting")
    build_loader_transform(run.exp, context)  # this function and the next two only check their sections of the YAML
    build_batch_transform(run.exp)
    count_passes(run.exp)
    if run.exp.patch.slices is not None:
        context.say(_describe_slices(run.exp))
    one_by_one = (
        preprocess_cases(run.cases.iloc[[index]], run.exp, CACHE_FOLDER, 1) for index in range(len(run.cases))
    )
    folder = next((folder for cases in one_by_one for folder in cases.values()), None)
    if folder is None:
        raise MaskfoldError("No case can be preprocessed.", "To see the reason, set competition.on_bad_case=stop.")
    channels = int(PreprocessedCase.open(folder).image.shape[0]) + run.exp.first_stage_channels
    validate_network(run.exp, channels * (run.exp.patch.slices or 1), context)
    check_initial_file(run.exp, channels * (run.exp.patch.slices or 1), context)
    if stored is None:
        is_faster = suits_channels_last(run.exp, channels * (run.exp.patch.slices or 1), context)
        run = replace(run, exp=with_settings(run.exp, decide_settings(run.exp, is_faster)))
    with oom_as_error("preparing the cases"):
        skipped: dict[str, str] = {}
        prepared = preprocess_cases(
            run.cases,
            run.exp,
            CACHE_FOLDER,
            progress=context.say,
            skipped=skipped,
            bar=context.bar("cases preprocessed"),
        )
    added = run.exp.first_stage_channels
    counts = {case: int(PreprocessedCase.open(path).image.shape[0]) + added for case, path in prepared.items()}
    comp = run.exp.competition
    for case, error in find_other_channels(counts, comp.dimensions).items():
        if comp.on_bad_case == "stop" or comp.dimensions == 2:  # because all 2D images can be converted to grey or rgb
            raise error
        skipped[case] = error.message
        del prepared[case], counts[case]
    # The network was checked with the channels of the first case. Check it again if that case is skipped because all
    # others have another number of channels.
    if next(iter(counts.values()), channels) != channels:
        validate_network(run.exp, next(iter(counts.values())) * (run.exp.patch.slices or 1), context)
    for case, why in skipped.items():
        context.say(f"note: case {case} is skipped: {why}")
    together = keep_copies_together(run, prepared, context)
    if together is not run and run.exp.initial_run is not None:
        for job in unfinished_jobs(together, context):
            check_initial_weights(Path(str(run.exp.initial_run)), job, together)
    run = together.without_cases(skipped)
    prepare_extra_data(run, unfinished_jobs(run, context), prepared, CACHE_FOLDER, context)
    join_first_stage(run, prepared, CACHE_FOLDER, context)
    if run.exp.first_stage is not None:
        names = join_names(comp.classes)
        context.say(
            f"the first stage {source_name(run.exp.first_stage)} adds {format_count(added, 'input channel')}: the "
            f"probabilities of {names}"
        )
    before_write()
    if not started and (run.folder / FOLDS_FILE).exists():  # another command has started the run and written this file
        return prepare_run(opened, context)
    run.write()
    return run


def _describe_slices(exp: Experiment) -> str:
    """Return a line for the user that names the axes along which a 2.5D network takes its slices."""
    planes = exp.slice_planes or ["in the file's order of axes"] * len(exp.patch.axes)
    axes = join_names([f"{axis} ({plane})" for axis, plane in zip(exp.patch.axes, planes, strict=True)])
    along = "axis" if len(exp.patch.axes) == 1 else "one of the axes"
    return f"2.5D: each patch has {exp.patch.slices} slices along {along} {axes}"


def _check_same_contents(run: Run) -> None:
    """Check that the folds and the files that the YAML refers to have not changed since the run was started."""
    from competition.data.splits import read_folds

    record = RunRecord.read(run.folder)
    if record is not None and (table := record.changed_table(run.folder, missing_ok=True)) is not None:
        raise edited_error(run.folder, table)
    if run.record is not None:
        check_contents(run.folder, run.exp, run.record.contents)
    # If a run has no record, compare its folds with those in its folder. If no fold has started, the folds may change.
    began = any(run.member_folder(*member).exists() for member in run.possible_members())
    if not began or record is not None:
        return
    try:
        former = read_folds(run.folder / FOLDS_FILE)
    except MaskfoldError:  # a missing or damaged table will be written again
        return
    current = run.fold_of()
    if any(current.get(case, fold) != fold for case, fold in zip(former["id"], former["fold"], strict=True)):
        raise changed_error(run.folder, describe_content(FOLDS_KEY, run.exp))


def _record_sources(run: Run) -> Run:
    """Check and record the digests of the weights of the runs in `init_from` and `pseudo.from`.

    Returns:
        The run, whose record contains these digests.

    Raises:
        MaskfoldError: the weights have changed since the run was started.
    """
    if run.record is None or (run.exp.initial_run is None and run.exp.pseudo is None):
        return run
    sources = source_digests(run.exp)
    check_contents(run.folder, run.exp, {}, sources)
    return replace(run, record=replace(run.record, sources=sources))


def _check_same_training(run: Run) -> None:
    """Check that `run.devices` and `training.on_nan` fit the way in which the finished folds were trained.

    Raises:
        MaskfoldError: a finished fold was trained on another number of devices than `run.devices`, or treated
            non-finite values in another way than `training.on_nan` now requires.
    """
    devices, on_nan = run.exp.run.devices, run.exp.training.on_nan
    samples = run.exp.training.batch_size * run.exp.training.accumulate  # per device and step
    for result in run.results():
        if result.devices != devices:
            raise MaskfoldError(
                f"The fold in {run.member_folder(result.fold, result.seed)} was trained with "
                f"run.devices={result.devices} ({result.devices * samples} samples per step), but "
                f"run.devices is now {devices}.",
                f"Set run.devices={result.devices}, or start another run with --new.",
            )
        if (result.restored and on_nan != "restore") or (result.skipped and on_nan == "restore"):
            restored, skipped = format_count(result.restored, "time"), format_count(result.skipped, "step")
            setting = on_nan if isinstance(on_nan, str) else f"{{skip: {on_nan.skip}}}"
            how = f"went back to an earlier step {restored}" if result.restored else f"skipped {skipped}"
            raise MaskfoldError(
                f"The fold in {run.member_folder(result.fold, result.seed)} {how} because of non-finite values, but "
                f"training.on_nan is now {setting}, so the other folds would treat such values in another way.",
                "Set training.on_nan to the value in the experiment.yaml in the folder of that fold, or start another "
                "run with --new.",
            )


def run_cv(run: Run, context: Context = Context(), should_stop: Callable[[], None] = lambda: None) -> CvSummary:
    """Train the folds that are not finished, then score all finished folds.

    Args:
        run: the run that `locked_run` yields.
        context: context with the trusted packages and the log.
        should_stop: function that is called while folds run; if it raises an exception, each fold writes a checkpoint
            and stops.

    Returns:
        The summary, which is also written to `summary.json`. The scores are written to `scores.csv`, with one row per
        case and class.

    Raises:
        MaskfoldError: a fold failed in a way that the user can correct.
    """
    from competition.training.executors import make_executor

    remove_all_stale_temp(run.folder)
    if jobs := unfinished_jobs(run, context):
        make_executor(run.exp).run(jobs, context.say, should_stop)
    return summarize_run(run)


def unfinished_jobs(run: Run, context: Context = Context()) -> list[FoldJob]:
    """Return one job for each fold and seed that `folds.run` selects and that is not finished."""
    return [job for job in make_jobs(run, context) if FoldResult.read(job.folder) is None]


def make_jobs(run: Run, context: Context = Context()) -> list[FoldJob]:
    """Return one job for each fold and seed that `folds.run` selects."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    threads = run.exp.run.threads or max(1, cores // run.exp.run.parallel_folds)
    return [
        FoldJob(
            run.folder.resolve(),
            run.member_folder(fold, seed).resolve(),
            fold,
            seed,
            CACHE_FOLDER.resolve(),
            threads,
            context.trust,
        )
        for fold, seed in run.members()
    ]


# Scores of the finished folds


def summarize_run(run: Run) -> CvSummary:
    """Score the out-of-fold predictions of all finished folds together.

    The function also selects the weights for prediction (`select_soup`), and writes `scores.csv` and `summary.json`.

    Raises:
        MaskfoldError: a result or a prediction is damaged.
    """
    comp = run.exp.competition
    soup = select_soup(run)
    results = run.results()
    folds = sorted({result.fold for result in results if result.fold >= 0})
    tables = [fold_scores(run, fold, [r for r in results if r.fold == fold]) for fold in folds]
    plain = [asdict(result) for result in results]
    if not tables:
        summary = CvSummary(comp.metric.name, None, None, None, {}, {}, {}, 0, plain)
    else:
        scores = pd.concat(tables, ignore_index=True)
        write_table(scores, run.folder / SCORES_FILE)
        groups = run.groups()
        low, high = bootstrap_interval(scores, comp.metric, seed=run.exp.seeds[0], groups=groups)
        intervals = {name: _dice_interval(scores, name, run.exp.seeds[0], groups) for name in comp.classes}
        test_scores = score_test_share(run, [result for result in results if result.fold >= 0])
        summary = CvSummary(
            comp.metric.name,
            nan_to_none(cv_score(scores, comp.metric)),
            nan_to_none(low),
            nan_to_none(high),
            dice_per_class(scores, comp.classes),
            {name: ends[0] for name, ends in intervals.items()},
            {name: ends[1] for name, ends in intervals.items()},
            int(scores["id"].nunique()),
            plain,
            dice_per_class(test_scores, comp.classes) if test_scores is not None else None,
            nan_to_none(cv_score(test_scores, comp.metric)) if test_scores is not None else None,
            soup,
            seed_ensemble_gain(run, results, scores, groups),
            {SCORES_FILE: sha256_of_file(run.folder / SCORES_FILE)},
        )
    write_summary(run.folder, asdict(summary))
    return summary


def _dice_interval(
    scores: pd.DataFrame, name: str, seed: int, groups: dict[str, str] | None
) -> tuple[float | None, float | None]:
    rows = scores[scores["class"] == name].assign(score=lambda table: table["dice"])
    return score_interval(rows, MetricConfig(name="dice", both_empty=None), seed, groups)


def score_test_share(run: Run, members: list[FoldResult]) -> pd.DataFrame | None:
    """Score the mean probabilities of a run's networks on the held-out test share.

    Args:
        run: the run.
        members: results of the finished folds and seeds, without the training on all cases.

    Returns:
        Table with one row per case and class; None if the run has no test share or `members` is empty.
    """
    locations = [
        (run.member_folder(member.fold, member.seed), member.prefix, member.digests.get(member.weights))
        for member in members
    ]
    cases = run.test_share()
    if not locations or cases.empty:
        return None
    if len(locations) == 1:
        folder, prefix, _ = locations[0]
        return members[0].read_scores(folder, f"{prefix}test_scores.csv")
    import torch

    from competition.training.evaluator import Evaluator

    shapes = stored_shapes(run.exp, run.cases)
    stores = [open_store(run.exp, folder / f"{prefix}test", shapes, digest) for folder, prefix, digest in locations]
    evaluator = Evaluator(run.exp, cases, {}, torch.device("cpu"), torch.no_grad, lambda: None)
    scores: list[dict[str, Any]] = []
    for row in evaluator.iter_cases():
        mean = np.asarray(np.mean([store.read(row.id) for store in stores], axis=0, dtype=np.float32), np.float16)
        scores += evaluator.score(mean, row, HELD_OUT)[0]
    return pd.DataFrame(scores)


def seed_ensemble_gain(
    run: Run, results: list[FoldResult], blended: pd.DataFrame, groups: Mapping[str, str] | None
) -> dict[str, Any] | None:
    """Compare the scores of single seeds with the score of the mean prediction of all seeds.

    Only folds whose seeds are all finished are included.

    Args:
        run: the run.
        results: results of all finished folds and seeds.
        blended: table with the scores of the mean prediction over seeds, one row per case and class.
        groups: group of each case by id. The bootstrap for the intervals draws whole groups. None to draw single cases.

    Returns:
        None if the run has one seed, or while no fold has finished all its seeds. Otherwise a dictionary:

        - `alone`: for each seed, its `score` and its `dice` by class.
        - `one`, `one_low`, `one_high`: mean score of the single seeds, with its 95 % interval.
        - `blended`, `blended_low`, `blended_high`: score of the mean prediction, with its 95 % interval.
        - `gain`, `low`, `high`: difference between `blended` and `one`, with its paired 95 % interval.
        - `folds`: number of folds that are included.
    """
    seeds, comp = run.exp.seeds, run.exp.competition
    complete = [fold for fold in run.fold_numbers() if sum(result.fold == fold for result in results) == len(seeds)]
    if len(seeds) < 2 or not complete:
        return None
    seed_scores = []
    for index in range(len(seeds)):
        members = [result for result in results if result.fold in complete and result.seed == index]
        tables = [fold_scores(run, member.fold, [member]) for member in members]
        seed_scores.append(pd.concat(tables, ignore_index=True))
    value_columns = [name for name in seed_scores[0].columns if name not in ("id", "class", "fold")]
    # The mean ignores NaN, so the score of a class is NaN only if it is NaN for every seed.
    mean = pd.concat(seed_scores).groupby(["id", "class"], sort=False)[value_columns].mean().reset_index()
    ensemble = blended[blended["fold"].isin(complete)]
    gain = paired_gain(mean, ensemble, comp.metric, seed=seeds[0], groups=groups)
    low, high = map(finite_or_none, gain[1:])
    (one_low, one_high), (blended_low, blended_high) = (
        score_interval(table, comp.metric, seeds[0], groups) for table in (mean, ensemble)
    )
    return {
        "alone": {
            str(seed): {"score": nan_to_none(cv_score(table, comp.metric)), "dice": dice_per_class(table, comp.classes)}
            for seed, table in zip(seeds, seed_scores, strict=True)
        },
        "one": nan_to_none(cv_score(mean, comp.metric)),
        "one_low": one_low,
        "one_high": one_high,
        "blended": nan_to_none(cv_score(ensemble, comp.metric)),
        "blended_low": blended_low,
        "blended_high": blended_high,
        "gain": nan_to_none(gain.value),
        "low": low,
        "high": high,
        "folds": len(complete),
    }


def format_seed_gain(seeds: Mapping[str, Any] | None) -> list[str]:
    """Return lines for the user that compare the seeds.

    Args:
        seeds: a result of `seed_ensemble_gain`; None (one seed) gives no lines.
    """
    if seeds is None:
        return []
    interval = f", 95 % {seeds['low']:+.4f} to {seeds['high']:+.4f}" if seeds["low"] is not None else ""
    alone = ", ".join(f"seed {seed}: {format_number(scores['score'])}" for seed, scores in seeds["alone"].items())
    return [
        (
            f"{len(seeds['alone'])} seeds: score {format_number(seeds['blended'])} with all seeds together, "
            f"{format_number(seeds['one'])} with one seed on average (gain "
            f"{format_number(seeds['gain'], '+.4f')}{interval}); {alone}"
        )
    ]
