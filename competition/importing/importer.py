"""Make a run from predictions of another program, such as nnU-Net."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.config.loading import resolve_config
from competition.context import Context
from competition.data.cases import case_table
from competition.data.splits import TRAIN_ONLY
from competition.errors import MaskfoldError
from competition.importing.reading import ReadingOptions, decide_kind, read_prediction
from competition.importing.sources import LAYOUT_HINT, CaseFiles, Sources, find_sources, find_tests, seen_cases
from competition.io import sha256_of_file, sync_folder, temporary_folder
from competition.metrics.bootstrap import cv_score, dice_per_class
from competition.postprocessing.evaluation import scoring_pool
from competition.records import json_digest, nan_to_none, write_json
from competition.runs.extra_cases import combined_data_hash
from competition.runs.fold import IMPORTED, PLAIN_WEIGHTS, FoldResult
from competition.runs.identity.contents import FOLDS_KEY, RunRecord, folds_digest
from competition.runs.identity.hashing import run_hash
from competition.runs.imported import IMPORT_FILE, IMPORTED_TARGET, PREDICTIONS_KEY, TEST_FOLDER, TEST_TABLE
from competition.runs.oof import OofStore, open_store, stored_shapes
from competition.runs.run import CASES_FILE, RUNS_FOLDER, Run, load_run
from competition.tables import write_table
from competition.text import and_more, format_count, has_or_have, name_problem

if TYPE_CHECKING:
    import pandas as pd

IMPORT_FORMAT = 1  # increase this number if a change of the code reads other predictions from the same files
LOW_DICE = 0.1  # if the Dice of every class is lower, the axes or channels are probably wrong
DEFAULT_OPTIONS = ReadingOptions()


@dataclass(frozen=True)
class ImportedRun:
    """Hold the result of an import: the run, its scores, and the cases without a usable prediction.

    Attributes:
        run: the run.
        is_new: whether this import has made the run; False if the same predictions were imported before.
        layout: name of the layout of the folder with the predictions, e.g. `folders by fold`.
        predicted: number of cases with an out-of-fold prediction.
        seen: reason why the prediction of a case is not out of fold, by case id. These predictions are not used.
        missing: ids of training cases without a prediction.
        tests: number of test cases with a prediction, and number of all test cases.
        score: the competition's metric on the out-of-fold predictions; None if there are none.
        dice: mean Dice by class on the out-of-fold predictions; None for a class that no case has.
    """

    run: Run
    is_new: bool
    layout: str
    predicted: int
    seen: dict[str, str]
    missing: list[str]
    tests: tuple[int, int]
    score: float | None
    dice: dict[str, float | None]


def import_predictions(
    comp: Competition,
    folder: Path,
    name: str,
    *,
    oof: Path | None = None,
    test: Path | None = None,
    splits: Path | None = None,
    options: ReadingOptions = DEFAULT_OPTIONS,
    context: Context = Context(),
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda rows, _: rows,
    root: Path = RUNS_FOLDER,
) -> ImportedRun:
    """Check and score predictions of another program, and write them as a run.

    The name of the run's folder is a hash of the content of the files, the folds and the data, so that a repeated
    import finds the same run. The folder is either written completely, or not at all.

    Args:
        comp: the competition.
        folder: folder of the predictions; see `competition.importing.sources` for the layouts.
        name: name of the experiment in the run's path.
        oof: folder of the out-of-fold predictions; None to search for it in `folder`, see `find_sources`.
        test: folder of the test predictions; None to search for it in `folder`, see `find_tests`.
        splits: file with the folds; None to search for it in `folder`, see `find_sources`.
        options: options for reading the files.
        context: context with the log and the trusted packages.
        progress: function that wraps the iteration over the cases, e.g. with a progress bar. It receives an iterator
            and the number of cases, and returns an iterator.
        root: folder of all runs.

    Raises:
        MaskfoldError: a file is missing, is damaged, or does not fit its case; or there is no usable prediction.
    """
    _check_name(name)
    cases = case_table(comp, "train")
    skipped = [case for case, _ in cases.attrs.get("skipped", [])]
    sources = find_sources(folder, oof, splits, [*cases["id"], *skipped], comp.classes)
    for case in skipped:  # the case is unreadable, so it cannot be scored
        sources.cases.pop(case, None)
    tests = case_table(comp, "test") if comp.test is not None else None
    if tests is not None:
        find_tests(sources, folder, test, tests["id"].tolist(), comp.classes)
    elif test is not None:
        raise MaskfoldError(
            "--test: the YAML of the competition has no test images (`test`).",
            "Add `test` to the YAML, or omit --test.",
            status=2,
        )
    if not sources.cases and not sources.tests:
        raise MaskfoldError(f"{folder} contains no prediction of a case.", LAYOUT_HINT, status=2)
    options = _with_channels(options, sources, comp, context)
    options = replace(options, kind=decide_kind(comp, [*sources.cases.values(), *sources.tests.values()], options))
    seen = seen_cases(sources, cases)
    used = [case for case in cases["id"] if case in sources.cases and case not in seen]
    if not used and not sources.tests:
        reasons = "; ".join(dict.fromkeys(seen.values()))
        raise MaskfoldError(
            f"{folder} has {format_count(len(sources.cases), 'prediction')}, but no out-of-fold prediction: {reasons}.",
            "With --splits, give the file of the folds with which the networks were trained.",
            status=2,
        )
    run = _make_run(comp, name, cases, sources, used, options, root, context.trust)
    missing = [case for case in cases["id"] if case not in sources.cases] if sources.cases else []
    counts = len(sources.tests), 0 if tests is None else len(tests)
    is_new = not (run.folder / CASES_FILE).exists()
    if is_new:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(root.parent / "import") as temporary:  # a folder in which no command looks for runs
            staged = replace(run, folder=temporary / run.folder.name)
            _write(staged, sources, used, tests, options, context, progress, source=folder)
            try:
                os.replace(staged.folder, run.folder)
            except OSError:
                # If the folder exists now, another command has imported the same files.
                if not (run.folder / CASES_FILE).exists():
                    raise
        sync_folder(run.folder.parent)
    run = load_run(run.folder, context.trust)
    from competition.runs.summary import read_summary

    summary = read_summary(run.folder)
    return ImportedRun(
        run, is_new, sources.layout, len(used), seen, missing, counts, summary.get("score"), summary.get("dice") or {}
    )


def _check_name(name: str) -> None:
    problem = name_problem(name) or ("starts with a dot" if name.startswith(".") else None)
    if problem is not None or not name:
        raise MaskfoldError(
            f"--name: {name!r} {problem or 'is empty'}.", "Use letters and digits, for example --name nnunet.", status=2
        )


def _with_channels(options: ReadingOptions, sources: Sources, comp: Competition, context: Context) -> ReadingOptions:
    """Return the options with the order of the classes from nnU-Net's `dataset.json`, if the YAML has another order.

    If the user has set the order, if classes overlap, or if there is no such file, return the options unchanged. If the
    names of the classes differ, tell the user that the order is assumed to be the same.

    Raises:
        MaskfoldError: the number of classes differs (status 2), or the order of the classes differs and the files
            contain labels.
    """
    found = [name.lower() for name in sources.channels]
    expected = [name.lower() for name in comp.classes]
    if options.channels or not found or comp.labels != "exclusive":
        return options
    if sorted(found) != sorted(expected):
        if len(found) != len(expected):
            raise MaskfoldError(
                f"dataset.json has {format_count(len(found), 'class')} ({', '.join(sources.channels)}), expected the "
                f"{format_count(len(expected), 'class')} of the competition ({', '.join(comp.classes)}).",
                "Give the folder with predictions of the same competition.",
                status=2,
            )
        context.say(
            f"note: the classes have other names in dataset.json ({', '.join(sources.channels)}) than in the "
            f"competition ({', '.join(comp.classes)}); their order is assumed to be the same"
        )
        return options
    if found == expected:
        return options
    if any(files.main.suffix != ".npz" for files in [*sources.cases.values(), *sources.tests.values()]):
        raise MaskfoldError(
            f"The classes have different orders: {', '.join(sources.channels)} in dataset.json, and "
            f"{', '.join(comp.classes)} in the competition.",
            "Import probabilities (nnU-Net's option `--npz`), whose channels Maskfold reorders. Or use the "
            "same order in dataset.json and in competition.classes.",
        )
    return ReadingOptions(options.kind, options.axes, ("background", *sources.channels))


def _make_run(
    comp: Competition,
    name: str,
    cases: pd.DataFrame,
    sources: Sources,
    used: Sequence[str],
    options: ReadingOptions,
    root: Path,
    trust: tuple[str, ...],
) -> Run:
    """Return the run for the predictions, without writing it.

    The name of the run's folder is a hash of the predictions, the folds and the data.

    Args:
        comp: the competition.
        name: name of the experiment in the run's path.
        cases: the case table.
        sources: the files of the predictions.
        used: ids of the cases whose predictions are out of fold.
        options: options for reading the files.
        root: folder of all runs.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list.
    """
    import pandas as pd

    is_used = set(used)
    numbers = {case: int(sources.fold_of[case] or 0) if case in is_used else TRAIN_ONLY for case in cases["id"]}
    folds = pd.DataFrame({"id": cases["id"], "fold": list(numbers.values()), "group": cases["group"]})
    placeholder = {"target": IMPORTED_TARGET}
    exp = Experiment.model_validate(
        {
            "competition": comp,
            "folds": {"scheme": "file", "file": "folds.csv", "run": None if used else "full"},
            "patch": {"size": [1] * comp.dimensions},
            "model": placeholder,
            "loss": placeholder,
        }
    )
    exp = Experiment.model_validate(resolve_config(exp))  # as a later command reads it from the run's folder
    exp.competition.metric.trust(trust)
    data = combined_data_hash(cases, {})
    digest = _digest(sources, used, options)
    contents = {FOLDS_KEY: folds_digest(folds), PREDICTIONS_KEY: digest}
    names = {"1": run_hash(exp, data), "2": run_hash(exp, data, 2, contents)}
    full_name = f"{comp.name}-{name}"
    record = RunRecord(names, data, contents)
    return Run(root / full_name / names["2"], exp, cases, folds, full_name, {}, record)


def _digest(sources: Sources, used: Sequence[str], options: ReadingOptions) -> str:
    """Return a digest of the content of all imported files, and of the options with which they are read."""
    files = {
        kind: {case: [sha256_of_file(path) for path in found[case].paths] for case in ids}
        for kind, found, ids in (("oof", sources.cases, used), ("test", sources.tests, list(sources.tests)))
    }
    # The extension is included, because it decides how a file is read.
    suffixes = sorted({path.suffix for found in _all_files(sources, used) for path in found.paths})
    return json_digest([IMPORT_FORMAT, files, suffixes, asdict(options)])


def _all_files(sources: Sources, used: Sequence[str]) -> Iterator[CaseFiles]:
    yield from (sources.cases[case] for case in used)
    yield from sources.tests.values()


def _write(
    run: Run,
    sources: Sources,
    used: Sequence[str],
    tests: pd.DataFrame | None,
    options: ReadingOptions,
    context: Context,
    progress: Callable[[Iterator[Any], int], Iterator[Any]],
    source: Path,
) -> None:
    """Write the folder of an imported run: its predictions, scores and records.

    Args:
        run: the run, in a temporary folder.
        sources: the files of the predictions.
        used: ids of the cases whose predictions are out of fold.
        tests: case table of the test cases; None if the competition has none.
        options: options for reading the files.
        context: context with the log.
        progress: function that wraps the iteration over the cases.
        source: folder of the predictions, which is recorded in the run.
    """
    import pandas as pd

    from competition.data.cases import case_rows
    from competition.training.cross_validate import summarize_run

    run.write()
    context.say(
        f"reading {format_count(len(used), 'out-of-fold prediction')} and "
        f"{format_count(len(sources.tests), 'test prediction')}"
    )
    rows = run.rows(used)
    fold_of = run.fold_of()
    shapes = stored_shapes(run.exp, run.cases)
    assert run.record is not None
    reader = CaseImporter(run.exp, options, run.record.contents[PREDICTIONS_KEY])
    jobs: list[tuple[Any, CaseFiles, Path, tuple[int, ...], int | None]] = [
        (rows[case], sources.cases[case], run.member_folder(fold_of[case], 0) / "oof", shapes[case], fold_of[case])
        for case in used
    ]
    if tests is not None and sources.tests:
        tests = tests[tests["id"].isin(list(sources.tests))].reset_index(drop=True)
        write_table(tests, run.folder / TEST_TABLE)
        shapes = stored_shapes(run.exp, tests)
        jobs += [
            (row, sources.tests[row.id], run.folder / TEST_FOLDER, shapes[row.id], None) for row in case_rows(tests)
        ]
    with scoring_pool(reader, len(jobs)) as pool:
        results = list(progress(pool.map(CaseImporter.convert, jobs), len(jobs)))
    table = pd.DataFrame([score for scores in results for score in scores])
    for fold in run.fold_numbers() or [-1]:
        _write_member(run, fold, table[table["fold"] == fold] if len(table) else table, reader.origin)
    write_json(
        run.folder / IMPORT_FILE,
        {
            "folder": str(source.absolute()),
            "layout": sources.layout,
            "imported": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "options": asdict(options),
            "cases": len(used),
            "test_cases": len(sources.tests),
        },
    )
    summarize_run(run)


@dataclass(frozen=True)
class CaseImporter:
    """Read, store and score single cases in worker processes.

    Attributes:
        exp: the experiment.
        options: options for reading the files.
        origin: digest of the imported files. It is stored with each prediction instead of a digest of weights.
    """

    exp: Experiment
    options: ReadingOptions
    origin: str

    def convert(self, job: tuple[Any, CaseFiles, Path, tuple[int, ...], int | None]) -> list[dict[str, Any]]:
        """Read and store the prediction of one case, and score it if it is not a test case.

        Args:
            job: row of the case table, files of the prediction, folder in which the probabilities are stored, their
                shape (P, *file shape) with P = `comp.output_channels`, and number of the fold (None for a test case).

        Returns:
            The scores, one dictionary per class; empty for a test case.
        """
        row, files, folder, shape, fold = job
        store: OofStore = open_store(self.exp, folder, {row.id: shape}, self.origin)
        store.write(row.id, read_prediction(self.exp.competition, row, files, self.options))
        values = store.read(row.id)
        return [] if fold is None else self._score(values, row, fold)

    def _score(self, probabilities: np.ndarray[Any, Any], row: Any, fold: int) -> list[dict[str, Any]]:
        from competition.data.content.unchanged import load_unchanged_mask, load_unchanged_objects
        from competition.inference.masks import to_masks
        from competition.metrics.scoring import score_case

        comp = self.exp.competition
        truth = load_unchanged_mask(comp, row)
        objects = load_unchanged_objects(comp, row) if comp.instances else None
        scores = score_case(
            to_masks(probabilities, comp), truth, comp, spacing=json.loads(row.spacing), true_instances=objects
        )
        return [{"id": row.id, "fold": fold, **score} for score in scores]


def _write_member(run: Run, fold: int, scores: pd.DataFrame, origin: str) -> None:
    """Write the scores and the result of one fold.

    The result contains the digest of the imported files in place of the digest of the weights. So predictions of
    another import are rejected when they are read.

    Args:
        run: the run.
        fold: number of the fold; -1 if only test predictions were imported.
        scores: table of the fold's scores.
        origin: digest of the imported files.
    """
    folder = run.member_folder(fold, 0)
    folder.mkdir(exist_ok=True)
    comp, digests = run.exp.competition, {PLAIN_WEIGHTS: origin}
    if fold >= 0:
        write_table(scores, folder / "scores.csv")
        digests["scores.csv"] = sha256_of_file(folder / "scores.csv")
    FoldResult(
        fold=fold,
        seed=0,
        score=nan_to_none(cv_score(scores, comp.metric)) if fold >= 0 else None,
        dice=dice_per_class(scores, comp.classes) if fold >= 0 else {},
        epochs=0,
        steps=0,
        minutes=0.0,
        peak_gib=0.0,
        threads=1,
        precision="unknown",
        device="elsewhere",
        torch="unknown",
        stopped=IMPORTED,
        digests=digests,
    ).write(folder)


def import_notes(done: ImportedRun) -> list[str]:
    """Return notes for the user about predictions that were left out, are missing, or are probably wrong."""
    notes = []
    for reason in dict.fromkeys(done.seen.values()):
        ids = [case for case, why in done.seen.items() if why == reason]
        notes.append(
            f"{len(ids)} prediction{'s count' if len(ids) > 1 else ' counts'} as seen in training and "
            f"{'are' if len(ids) > 1 else 'is'} left out, because {reason}: "
            f"{', '.join(ids[:3])}{and_more(len(ids), 3, 'case')}"
        )
    if done.missing:
        notes.append(
            f"{format_count(len(done.missing), 'training case')} {has_or_have(len(done.missing))} no prediction: "
            f"{', '.join(done.missing[:3])}"
            f"{and_more(len(done.missing), 3, 'case')}"
        )
    found, expected = done.tests
    if found < expected:
        some = (
            f"{expected - found} of {format_count(expected, 'test case')} {has_or_have(expected - found)} no prediction"
            if found
            else "there are no test predictions"
        )
        notes.append(
            f"{some}: the run can be used in `maskfold compare` and `maskfold report`, but not in `maskfold submit`"
        )
    values = [value for value in done.dice.values() if value is not None]
    if values and max(values) < LOW_DICE:
        notes.append(
            f"no class has a Dice above {LOW_DICE}, so the order of the axes (--axes) or of the channels "
            "(--channels) may be wrong"
        )
    return notes
