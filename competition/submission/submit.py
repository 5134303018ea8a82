"""From runs to the host's file: fit, expect, predict, write, and say what was done."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from competition.config import MaskfoldError
from competition.data.files import temporary, writable
from competition.data.skipped import told
from competition.data.table import case_table, load_image
from competition.scoring.summary import cv_score
from competition.submission.blend import Blend, check_same
from competition.submission.ensemble import Fitted, fit_weights
from competition.submission.expected import Expected, expect, groups_of
from competition.submission.members import Checkpoint, Ensemble
from competition.submission.postprocess import postprocess
from competition.submission.testset import TestSet
from competition.submission.validate import Verdict
from competition.submission.writer import Masked, write_submission
from competition.training.checkpoint import write_json, write_table
from competition.training.find import finished
from competition.training.runs import CvRun

FOLDER = Path("submissions")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Submitted:
    """A submission that was written.

    Attributes:
        path: the CSV. note: the JSON beside it.
        verdict: of the validator.
        blend: the runs with the weights used.
        expected: the score to expect; None where nothing was predicted out of fold (a fit on all cases alone).
    """

    path: Path
    note: Path
    verdict: Verdict
    blend: Blend
    expected: Expected | None


def submit(
    runs: Sequence[CvRun],
    weights: Sequence[float] | str | None = None,
    output: Path | None = None,
    trust: tuple[str, ...] = (),
    say: Say = lambda _: None,
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda rows, _: rows,
) -> Submitted:
    """Predicts the test cases with every fold of every run and writes the host's file.

    Args:
        runs: finished runs of one competition.
        weights: of the runs; `auto` fits them out of fold; None: equal.
        output: the CSV; None: `submissions/<competition>/<experiment>-<run>.csv`.
        trust: packages besides the known ones that `target` may name.
        say: takes lines for the user.
        progress: wraps the cases as they are predicted, given their number.

    Returns:
        What was written.

    Raises:
        MaskfoldError: something does not fit, most of it told before any long work; no CSV is left behind.
    """
    check_same(runs)
    blend = Blend(tuple(runs), plain_weights(weights, len(runs)))
    comp = blend.comp
    tests = TestSet.of(comp, told(case_table(comp, "test")))
    path = output or FOLDER / comp.name / f"{_name(runs, weights)}.csv"
    _refuse_overwrite(path)
    _read_all(tests)
    ensemble = Ensemble(blend, tests.rows[0], trust)
    say(
        f"{sum(map(len, ensemble.checkpoints.values()))} networks of {len(runs)} "
        f"run{'s' * (len(runs) > 1)}, {len(tests)} test cases"
    )
    for run in runs:
        if missing := [member for member in run.members() if member not in finished(run)]:
            say(
                f"note: {len(missing)} of {len(run.members())} networks of {run.folder} are not finished; the others predict"
            )
    blend, fitted, expected = settle(blend, weights, len(tests), say)
    if fitted is not None:
        ensemble = Ensemble(blend, tests.rows[0], trust)
    settings = expected.settings if expected is not None else runs[0].exp.postprocess

    def masks() -> Iterator[Masked]:
        for row in progress(iter(tests.rows), len(tests)):
            probabilities, gate = ensemble.predict(row)
            outcome = postprocess(probabilities, comp, settings, row, gate)
            shown = probabilities[len(probabilities) - len(comp.classes) :] if tests.profile.confidence else None
            yield from tests.masks(row, outcome, shown)

    note, staged = path.with_suffix(".json"), temporary(path)
    try:
        verdict = replace(write_submission(masks(), tests.profile, staged, sample=tests.sample), path=path)
        write_json(note, summary(path.name, staged, blend, ensemble.checkpoints, expected, fitted, verdict))
        if expected is not None:
            write_table(expected.rows, scores_beside(path))
        os.replace(staged, path)  # last, so that no CSV is there without its JSON
    finally:
        staged.unlink(missing_ok=True)
    return Submitted(path, note, verdict, blend, expected)


def settle(
    blend: Blend, weights: Sequence[float] | str | None, test_cases: int, say: Say
) -> tuple[Blend, Fitted | None, Expected | None]:
    """All that is learnt from the out-of-fold predictions: weights where they are `auto`, steps, and the score to expect.

    Returns:
        The blend with its weights; how they were found; the expectation, None where nothing was predicted out of fold.
    """
    runs, fitted = blend.runs, None
    if weights == "auto" and len(runs) > 1:
        fitted = fit_weights(blend, runs[0].exp.seeds[0], groups_of(blend), say)
        for line in fitted.lines([run.folder.name for run in runs]):
            say(line)
        blend = replace(blend, weights=fitted.weights, by_fold=fitted.by_fold)
    expected = expect(blend, test_cases, say) if _predicted(blend) else None
    if expected is not None and expected.tuned is not None:
        for line in expected.tuned.lines():
            say(line)
    return blend, fitted, expected


def summary(
    name: str,
    path: Path,
    blend: Blend,
    found: dict[str, list[Checkpoint]],
    expected: Expected | None,
    fitted: Fitted | None,
    verdict: Verdict,
) -> dict[str, Any]:
    """What the JSON beside a CSV says."""
    runs = [
        {
            "run": str(run.folder),
            "experiment": run.name,
            "hash": run.folder.name,
            "weight": weight,
            "checkpoints": [
                {"file": str(one.path), "fold": one.fold, "seed": one.seed, "sha256": one.sha256}
                for one in found[str(run.folder)]
            ],
        }
        for run, weight in zip(blend.runs, blend.weights, strict=True)
    ]
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "competition": blend.comp.name,
        "file": name,
        "sha256": digest,
        "rows": verdict.rows,
        "empty_rows": verdict.empty,
        "runs": runs,
        "expected": None if expected is None else _expectation(expected),
        "postprocess": None if expected is None else expected.settings.model_dump(),
        "weights": None
        if fitted is None
        else {
            "found": list(fitted.found),
            "single": list(fitted.single),
            "equal": fitted.equal,
            "best": fitted.best,
            "nested": fitted.nested,
            "gain": _gain(fitted.gain),
        },
    }


def _expectation(expected: Expected) -> dict[str, Any]:
    tuned = expected.tuned
    return {
        "metric": expected.metric,
        "score": expected.score,
        "low": _finite(expected.low),
        "high": _finite(expected.high),
        "level": 0.95,
        "out_of_fold_cases": expected.cases,
        "test_cases": expected.test_cases,
        "tuning": None
        if tuned is None
        else {
            "before": tuned.before,
            "after": tuned.after,
            "nested": tuned.nested,
            "gain": _gain(tuned.gain),
            "kept": tuned.kept,
            **({} if tuned.gate is None else {"gate": _gain(tuned.gate)}),
            "found": {name: [step.model_dump() for step in steps] for name, steps in tuned.found.items()},
        },
    }


def write_out_of_fold(run: CvRun, path: Path) -> tuple[Verdict, float]:
    """Writes a run's out-of-fold masks through the host's format, so that `maskfold score` can check the CV score.

    Args:
        run: the run; its masks are argmax, or 0.5 where classes overlap, or what `postprocess.steps` makes.
        path: the CSV.

    Returns:
        The validator's verdict, and the score of the masks.
    """
    blend = Blend((run,), (1.0,))
    settings = run.exp.postprocess
    with_rows = expect(_untuned(blend), 1)
    kept = blend.out_of_fold()
    shared = kept.fold_of()
    tests = TestSet.of(blend.comp, run.cases[run.cases["id"].isin(shared.keys())], with_sample=False)

    def masks() -> Iterator[Masked]:
        for row in tests.rows:
            probabilities = kept.read(row.id)
            outcome = postprocess(probabilities, blend.comp, settings, row, kept.gate(row.id))
            yield from tests.masks(row, outcome)

    return write_submission(masks(), tests.profile, path), cv_score(with_rows.rows, blend.comp.metric)


def _untuned(blend: Blend) -> Blend:
    run = blend.runs[0]
    exp = run.exp.model_copy(update={"postprocess": run.exp.postprocess.model_copy(update={"tune": False})})
    return replace(blend, runs=(replace(run, exp=exp),))


def plain_weights(weights: Sequence[float] | str | None, count: int) -> tuple[float, ...]:
    """Weights whose sum is 1; equal ones where they are still to be fitted.

    Raises:
        MaskfoldError: status 2; they are not one for each run, or cannot be used.
    """
    if weights is None or isinstance(weights, str):
        return tuple([1 / count] * count)
    if len(weights) != count:
        raise MaskfoldError(
            f"--weights has {len(weights)} numbers for {count} runs.", "Give one for each run, or `auto`.", status=2
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
        raise MaskfoldError(
            f"--weights {', '.join(map(str, weights))} cannot be used.",
            "Give numbers from 0 on, not all of them 0.",
            status=2,
        )
    return tuple(weight / sum(weights) for weight in weights)


def _name(runs: Sequence[CvRun], weights: Sequence[float] | str | None) -> str:
    """`unet2d-15ba66a88b85`, or `blend-` and a hash of the runs and the weights asked for."""
    if len(runs) == 1:
        experiment = runs[0].name.removeprefix(f"{runs[0].exp.competition.name}-")
        return f"{experiment}-{runs[0].folder.name}"
    text = json.dumps([[run.folder.name for run in runs], weights])
    return f"blend-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _refuse_overwrite(path: Path) -> None:
    if path.is_dir() or path.suffix != ".csv":
        raise MaskfoldError(f"{path} is not the name of a CSV.", "Give -o a name that ends in .csv.", status=2)
    writable(path.parent)


def _read_all(tests: TestSet) -> None:
    """Reads every test image once: cheap beside inference, and a damaged one is told before hours go by.

    Raises:
        MaskfoldError: naming the case.
    """
    for row in tests.rows:
        try:
            load_image(tests.comp, row)
        except MaskfoldError as error:
            raise MaskfoldError(
                f"The test case {row.id} cannot be read: {error.wrong}",
                "Copy the file again; the host wants a row for every test case.",
            ) from error


def scores_beside(path: Path) -> Path:
    """The out-of-fold scores by case and class that a CSV's expected score is of: `x.scores.csv`, beside `x.csv`."""
    return path.with_suffix(".scores.csv")


def _predicted(blend: Blend) -> bool:
    return bool(blend.out_of_fold().fold_of())


def _gain(gain: Any) -> dict[str, float | None]:
    return {"value": _finite(gain.value), "low": _finite(gain.low), "high": _finite(gain.high)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
