"""Write a submission (CSV) from finished runs.

First, ensemble weights and post-processing are fitted on out-of-fold (OOF) predictions, and the score is estimated.
Then the test cases are predicted and the file is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from competition.config.competition import MetricConfig
from competition.config.metric import Direction
from competition.context import Context, no_log
from competition.data.cases import case_table
from competition.data.readers import load_image
from competition.data.selection import warn_skipped
from competition.ensembling.ensemble import EnsemblePredictor
from competition.ensembling.expected import ExpectedScore, better_alone, estimate_score
from competition.ensembling.weights import FittedWeights, fit_weights
from competition.errors import MaskfoldError
from competition.inference.masks import class_probabilities
from competition.io import ensure_writable, sha256_of_file, temporary_folder
from competition.metrics.bootstrap import cv_score
from competition.postprocessing.pipeline import postprocess
from competition.records import SUBMISSION_DIGEST, finite_or_none, with_own_digest, write_json
from competition.runs.blend import Ensemble, check_same_competition
from competition.runs.identity.contents import source_name
from competition.runs.imported import check_test_predictions, is_imported
from competition.runs.outputs import check_output, competitions_of
from competition.runs.run import Checkpoint, Run
from competition.submission.testset import TestSet
from competition.submission.validate import ValidationReport
from competition.submission.writer import MaskItem, ObjectsItem, write_submission
from competition.tables import write_table
from competition.text import format_count, is_or_are

SUBMISSIONS_FOLDER = Path("submissions")


@dataclass(frozen=True)
class SubmissionResult:
    """Describe a written submission.

    Attributes:
        path: path of the CSV, or of the folder or archive of label files.
        summary_path: path of the summary JSON next to the submission.
        validation: report of the validation.
        ensemble: the runs and their weights.
        expected: the expected score. None if there are no out-of-fold predictions, because the runs were only trained
            on all cases.
    """

    path: Path
    summary_path: Path
    validation: ValidationReport
    ensemble: Ensemble
    expected: ExpectedScore | None


def submit(
    runs: Sequence[Run],
    weights: Sequence[float] | str | None = None,
    output: Path | None = None,
    trust: tuple[str, ...] = (),
    say: Callable[[str], None] = no_log,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda rows, _: rows,
) -> SubmissionResult:
    """Predict the test cases with every fold of every run, and write the CSV for the host.

    Args:
        runs: finished runs of one competition.
        weights: one weight per run; `auto` fits the weights on out-of-fold predictions; None for equal weights.
        output: path of the CSV; None for `submissions/<competition>/<name>.csv`, see `submission_name`.
        trust: additional packages from which a `target` in the YAML may be imported.
        say: function that receives messages for the user.
        progress: function that wraps the iteration over the cases, e.g. with a progress bar. It receives an iterator
            and the number of cases, and returns an iterator.

    Returns:
        The written submission.

    Raises:
        MaskfoldError: an input is missing, damaged or inconsistent. Most checks are made before the prediction. No
            incomplete CSV is left on the disk.
    """
    context = Context(trust, say)
    check_same_competition(runs)
    ensemble = Ensemble(tuple(runs), normalize_weights(weights, len(runs)))
    comp = ensemble.comp
    tests = TestSet.from_table(comp, warn_skipped(case_table(comp, "test")))
    path = output or SUBMISSIONS_FOLDER / comp.name / f"{submission_name(runs, weights)}.csv"
    check_csv_output(path, runs)
    check_test_predictions([run for run, _ in ensemble.active], tests.rows)
    _check_images_readable(tests)
    predictor = EnsemblePredictor(ensemble, tests.rows[0], context)
    say(
        f"{format_count(sum(map(len, predictor.checkpoints.values())), 'network')} of "
        f"{format_count(len(runs), 'run')} will predict {format_count(len(tests), 'test case')}"
    )
    for run in runs:
        if is_imported(run.exp):
            say(f"the predictions of {run.full_name} were imported, so no network of this run predicts")
        if run.exp.first_stage is not None:
            say(f"{source_name(run.exp.first_stage)} predicts each case first, as the first stage of {run.full_name}")
        if missing := [member for member in run.members() if member not in run.finished_members()]:
            say(
                f"note: {len(missing)} of {format_count(len(run.members()), 'network')} of {run.folder} "
                f"{is_or_are(len(missing))} not finished, so only the finished networks predict"
            )
    ensemble, fitted, expected = fit_on_oof(ensemble, weights, len(tests), context)
    if fitted is not None:
        predictor = EnsemblePredictor(ensemble, tests.rows[0], context)
    settings = expected.settings if expected is not None else runs[0].exp.postprocess

    def masks() -> Iterator[MaskItem | ObjectsItem]:
        for row in progress(iter(tests.rows), len(tests)):
            probabilities, presence = predictor.predict(row)
            prediction = postprocess(probabilities, comp, settings, row, presence)
            confidence = class_probabilities(probabilities, comp) if tests.profile.confidence else None
            yield from tests.masks(row, prediction, confidence)

    summary_path = path.with_suffix(".json")
    with temporary_folder(path) as folder:
        staged = folder / path.name
        validation = replace(write_submission(masks(), tests.profile, staged, sample=tests.sample), path=path)
        content = submission_summary(path.name, staged, ensemble, predictor.checkpoints, expected, fitted, validation)
        write_json(staged.with_suffix(".json"), with_own_digest(content, SUBMISSION_DIGEST))
        if expected is not None:
            write_table(expected.rows, scores_path(staged))
        _replace(staged, path)
    return SubmissionResult(path, summary_path, validation, ensemble, expected)


def _replace(staged: Path, path: Path) -> None:
    """Move a complete CSV, its JSON and its scores to their final paths.

    The old CSV is removed first if its content differs, and the new CSV is moved last. So a CSV never lies next to the
    JSON of another CSV, even if the process is killed.

    Args:
        staged: temporary path of the new CSV; its JSON and scores lie beside it.
        path: final path of the CSV.
    """
    if path.exists() and sha256_of_file(path) != sha256_of_file(staged):
        path.unlink()
    os.replace(staged.with_suffix(".json"), path.with_suffix(".json"))
    if scores_path(staged).exists():
        os.replace(scores_path(staged), scores_path(path))
        remove_old_scores(path)
    else:
        scores_path(path).unlink(missing_ok=True)
    os.replace(staged, path)


def fit_on_oof(
    ensemble: Ensemble, weights: Sequence[float] | str | None, test_cases: int, context: Context
) -> tuple[Ensemble, FittedWeights | None, ExpectedScore | None]:
    """Fit ensemble weights and post-processing on out-of-fold predictions, and estimate the score on the test set.

    Args:
        ensemble: the runs and their weights.
        weights: the user's setting. If it is `auto` and there are several runs, weights are fitted.
        test_cases: number of test cases.
        context: context whose log receives messages for the user.

    Returns:
        The ensemble with the weights to use; the result of fitting weights, or None if they were not fitted; and the
        expected score, or None if there are no out-of-fold predictions.
    """
    runs, fitted = ensemble.runs, None
    if weights == "auto" and len(runs) > 1:
        fitted = fit_weights(ensemble, runs[0].exp.seeds[0], runs[0].groups(), context)
        for line in fitted.report_lines([run.folder.name for run in runs]):
            context.say(line)
        ensemble = replace(ensemble, weights=fitted.weights, fold_weights=fitted.fold_weights)
    expected = estimate_score(ensemble, test_cases, context) if _has_oof_predictions(ensemble) else None
    if expected is not None and expected.tuning is not None:
        for line in expected.tuning.report_lines():
            context.say(line)
    for line in better_alone(ensemble, expected) if expected is not None else []:
        context.say(line)
    return ensemble, fitted, expected


def submission_summary(
    name: str,
    path: Path,
    ensemble: Ensemble,
    checkpoints: dict[str, list[Checkpoint]],
    expected: ExpectedScore | None,
    fitted: FittedWeights | None,
    validation: ValidationReport,
) -> dict[str, Any]:
    """Return the content of the summary JSON that is written next to a submission.

    Args:
        name: file name of the submission.
        path: path of the file whose SHA-256 is stored.
        ensemble: the runs and their weights.
        checkpoints: weight files of each run, by the run's folder.
        expected: the expected score; None if it was not estimated.
        fitted: the result of fitting weights; None if they were not fitted.
        validation: report of the validation.
    """
    run_entries = [
        {
            "run": str(run.folder),
            "experiment": run.name,
            "hash": run.folder.name,
            "weight": weight,
            **({} if run.exp.first_stage is None else {"first_stage": source_name(run.exp.first_stage)}),
            "checkpoints": [
                {
                    "file": str(checkpoint.path),
                    "fold": checkpoint.fold,
                    "seed": checkpoint.seed,
                    "sha256": checkpoint.sha256,
                }
                for checkpoint in checkpoints[str(run.folder)]
            ],
        }
        for run, weight in zip(ensemble.runs, ensemble.weights, strict=True)
    ]
    return {
        "competition": ensemble.comp.name,
        "file": name,
        "sha256": sha256_of_file(path),
        "rows": validation.rows,
        "empty_rows": validation.empty,
        "runs": run_entries,
        "expected": _expectation(expected, ensemble.comp.metric),
        "postprocess": None if expected is None else expected.settings.model_dump(),
        "weights": None
        if fitted is None
        else {
            "found": list(fitted.best_weights),
            "single": list(fitted.single),
            "equal": fitted.equal,
            "best": fitted.best,
            "nested": fitted.nested,
            "gain": _gain(fitted.gain),
        },
    }


def _expectation(expected: ExpectedScore | None, metric: MetricConfig) -> dict[str, Any] | None:
    """Return the expected score as plain data for the summary JSON.

    If there is no score, e.g. because no out-of-fold case contains a class, return None.
    """
    if expected is None or math.isnan(expected.score):
        return None
    tuning = expected.tuning
    return {
        "metric": expected.metric,
        **({} if metric.direction is Direction.HIGHER else {"higher_is_better": False}),
        "score": expected.score,
        "low": finite_or_none(expected.low),
        "high": finite_or_none(expected.high),
        "level": 0.95,
        "out_of_fold_cases": expected.cases,
        "test_cases": expected.test_cases,
        "tuning": None
        if tuning is None
        else {
            "before": tuning.before,
            "after": tuning.after,
            "nested": tuning.nested,
            "gain": _gain(tuning.gain),
            "kept": tuning.kept,
            **({} if tuning.presence_gain is None else {"gate": _gain(tuning.presence_gain)}),
            "found": {name: [step.model_dump() for step in steps] for name, steps in tuning.best_steps.items()},
        },
    }


def write_oof_submission(run: Run, path: Path) -> tuple[ValidationReport, float]:
    """Write the out-of-fold masks of a run in the host's format, so that `maskfold score` can check the CV score.

    Args:
        run: the run. Its masks are made with the steps of `postprocess.steps`, without tuning. Without steps, each
            pixel gets its most probable class or, if classes overlap, all classes with a probability above 0.5.
        path: path of the CSV.

    Returns:
        The report of the validation, and the score of the masks by the competition's metric.
    """
    ensemble = Ensemble((run,), (1.0,))
    settings = run.exp.postprocess
    scores = estimate_score(_without_tuning(ensemble), 1)
    oof = ensemble.out_of_fold()
    shared = oof.fold_of()
    tests = TestSet.from_table(ensemble.comp, run.cases[run.cases["id"].isin(shared.keys())], with_sample=False)

    def masks() -> Iterator[MaskItem | ObjectsItem]:
        for row in tests.rows:
            probabilities = oof.read(row.id)
            prediction = postprocess(probabilities, ensemble.comp, settings, row, oof.presence(row.id))
            yield from tests.masks(row, prediction)

    return write_submission(masks(), tests.profile, path), cv_score(scores.rows, ensemble.comp.metric)


def _without_tuning(ensemble: Ensemble) -> Ensemble:
    run = ensemble.runs[0]
    exp = run.exp.model_copy(update={"postprocess": run.exp.postprocess.model_copy(update={"tune": False})})
    return replace(ensemble, runs=(replace(run, exp=exp),))


def normalize_weights(weights: Sequence[float] | str | None, count: int) -> tuple[float, ...]:
    """Return the weights of an ensemble, divided by their sum.

    Args:
        weights: one weight per run. None gives equal weights. `auto` gives equal weights until the weights are fitted.
        count: number of runs.

    Raises:
        MaskfoldError: the number of weights is not `count`, or a weight is invalid (status 2).
    """
    if weights is None or isinstance(weights, str):
        return tuple([1 / count] * count)
    if len(weights) != count:
        raise MaskfoldError(
            f"--weights: found {len(weights)} numbers, expected {count}, one per run.",
            "Give one weight for each run, or `auto`.",
            status=2,
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
        raise MaskfoldError(
            f"--weights: found {', '.join(map(str, weights))}, expected numbers of at least 0 with a sum above 0.",
            "Correct the numbers, or write --weights auto.",
            status=2,
        )
    return tuple(weight / sum(weights) for weight in weights)


def submission_name(runs: Sequence[Run], weights: Sequence[float] | str | None) -> str:
    """Return the file name of a submission without its extension.

    For a single run, this is its experiment and hash, e.g. `unet2d-15ba66a88b85`. For several runs, it is `blend-` and
    a hash of the runs and weights.
    """
    if len(runs) == 1:
        experiment = runs[0].name.removeprefix(f"{runs[0].exp.competition.name}-")
        return f"{experiment}-{runs[0].folder.name}"
    text = json.dumps([[run.folder.name for run in runs], weights])
    return f"blend-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def check_csv_output(path: Path, runs: Sequence[Run]) -> None:
    """Check that a submission may be written to a path, without overwriting data or files of a run.

    The JSON and the table of scores next to the CSV are checked too.

    Args:
        path: path of the CSV.
        runs: the runs of the submission.

    Raises:
        MaskfoldError: the path is not allowed (status 2), or the folder cannot be written.
    """
    if path.is_dir() or path.suffix != ".csv":
        found = f"the folder {path}" if path.is_dir() else path
        raise MaskfoldError(
            f"--output: found {found}, expected a file name that ends in .csv.",
            "Give the name of a file, for example -o submission.csv.",
            status=2,
        )
    beside = [path.with_suffix(".json"), scores_path(path)]
    if folder := next((other for other in beside if other.is_dir()), None):
        raise MaskfoldError(
            f"--output: next to {path.name}, the command also writes the file {folder}, but a folder has this name.",
            "Give another file with -o, or rename the folder.",
            status=2,
        )
    check_output([path, *beside], competitions_of(runs))
    ensure_writable(path.parent)


def _check_images_readable(tests: TestSet) -> None:
    """Read every test image once, so that a damaged file is reported before the long prediction.

    Raises:
        MaskfoldError: an image cannot be read.
    """
    for row in tests.rows:
        try:
            load_image(tests.comp, row)
        except MaskfoldError as error:
            raise MaskfoldError(
                f"Cannot read the test case {row.id}: {error.message}",
                "Copy the file again. The host requires a row for every test case.",
            ) from error


def scores_path(path: Path) -> Path:
    """Return the path of the table of out-of-fold scores that belongs to a submission: `x.scores.tsv` for `x.csv`.

    The extension is not `.csv`, so that `submissions/*.csv` matches only files for the host.
    """
    return path.with_suffix(".scores.tsv")


def old_scores_path(path: Path) -> Path:
    """Return the path at which versions before 0.2 stored the table of out-of-fold scores of a submission."""
    return path.with_suffix(".scores.csv")


def remove_old_scores(path: Path) -> None:
    """Remove the table of scores that a version before 0.2 wrote next to a submission.

    The file is removed only if it has the header of such a table, because a file with this name, e.g.
    `best.scores.csv`, may also be a submission.
    """
    old = old_scores_path(path)
    with suppress(OSError, UnicodeDecodeError):
        with old.open(encoding="utf-8-sig") as file:
            header = file.readline(1000).strip().split(",")
        if header[:5] == ["id", "fold", "class", "score", "dice"]:
            old.unlink()


def _has_oof_predictions(ensemble: Ensemble) -> bool:
    return bool(ensemble.out_of_fold().fold_of())


def _gain(gain: Any) -> dict[str, float | None]:
    return {"value": finite_or_none(gain.value), "low": finite_or_none(gain.low), "high": finite_or_none(gain.high)}
