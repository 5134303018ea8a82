"""Read the first stage of a run: another run, whose class probabilities are added to the input of the networks.

The key `first_stage` of the YAML names this other run. In training and validation, a case gets the out-of-fold
prediction of the first stage, which comes from networks that were not trained on the case. A new case gets the mean
prediction of all folds of the first stage, see `competition.ensembling.ensemble`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from competition.config.experiment import Experiment
from competition.context import Context
from competition.errors import MaskfoldError
from competition.records import json_digest
from competition.runs.fold import describe_member
from competition.runs.identity.contents import FIRST_STAGE_PREDICTIONS, FIRST_STAGE_WEIGHTS, RunRecord, describe_content
from competition.runs.imported import refuse_imported
from competition.runs.run import FOLDS_FILE, Run, load_run
from competition.text import format_count, is_or_are, same_problem

if TYPE_CHECKING:
    from types import SimpleNamespace


def open_first_stage(exp: Experiment, trust: tuple[str, ...] | None = ()) -> Run:
    """Read the run that `first_stage` names, and check that it can be used as a first stage.

    Args:
        exp: an experiment with the key `first_stage`, whose value is a folder.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list. None allows all
            packages; it is meant for callers that do not build the classes of the run.

    Raises:
        MaskfoldError: the folder does not exist, does not belong to a run, or was edited. Or the run was imported,
            belongs to another competition, has other classes, or is not finished.
    """
    folder = Path(str(exp.first_stage))
    if not folder.is_dir():
        raise MaskfoldError(
            f"first_stage: the run {folder} does not exist.",
            "Copy the folder back. If the folder is in another place, add first_stage=FOLDER to the command.",
        )
    try:
        first = load_run(folder, trust)
    except MaskfoldError as error:
        raise MaskfoldError(f"first_stage: {error.message}", error.hint, status=error.status) from error
    refuse_imported([first], "be a first stage")
    for key in ("name", "dimensions", "classes", "labels", "instances"):
        found, expected = (getattr(comp, key) for comp in (first.exp.competition, exp.competition))
        if found != expected:
            raise MaskfoldError(
                f"first_stage: competition.{key} of the run {first.folder} is {found}, expected {expected}.",
                "Name a run of the same competition with the same classes.",
                status=2,
            )
    members = [(fold, seed) for fold in first.fold_numbers() for seed in range(len(first.exp.seeds))]
    if missing := [member for member in members if first.result(*member) is None]:
        raise MaskfoldError(
            f"first_stage: {len(missing)} of {format_count(len(members), 'network')} of the run {first.folder} "
            f"{is_or_are(len(missing))} unfinished, for example {describe_member(*missing[0])}; expected predictions "
            "of all folds.",
            "Finish the run: repeat its `maskfold cv` command, but without folds.run.",
        )
    return first


def fold_members(run: Run) -> list[tuple[int, int]]:
    """Return the (fold, seed) pairs of a first stage whose networks predict new cases.

    These are all finished pairs, except the training on all cases (fold -1).
    """
    return [(fold, seed) for fold, seed in run.finished_members() if fold >= 0]


def check_same_cases(run: Run, first: Run) -> None:
    """Check that a run and its first stage have the same cases in the same folds.

    If the folds differed, a network of the first stage could have been trained on the images of a case that the run
    validates, so the scores would be too high.

    Args:
        run: the run.
        first: its first stage.

    Raises:
        MaskfoldError: a case is in only one of the two runs; a case has other files or another fold in the first stage;
            or no fold validates a case, so that the first stage has no out-of-fold prediction of it (status 2).
    """
    folds, first_folds = run.fold_of(), first.fold_of()
    rows, first_rows = run.rows(), first.rows()
    skipped = {case for case, _ in run.skipped}
    problems = (
        ("is not in that run", [case for case in folds if case not in first_folds]),
        ("is only in that run", [case for case in first_folds if case not in folds and case not in skipped]),
        ("has other files than in that run", _differing(folds, rows, first_rows)),
    )
    for problem, cases in problems:
        if cases:
            raise MaskfoldError(
                f"first_stage: this run does not have the same cases as the run {first.folder}: {min(cases)} {problem}."
                f"{same_problem(len(cases) - 1, 'case')}",
                "Train the first stage on the same cases (competition.train.cases, competition.train.exclude), or name "
                "another run.",
                status=2,
            )
    if moved := [case for case, fold in folds.items() if first_folds[case] != fold]:
        case = min(moved)
        raise MaskfoldError(
            f"first_stage: {len(moved)} of {len(folds)} cases {is_or_are(len(moved))} in another fold than in the run "
            f"{first.folder}. For example, {case} is in fold {folds[case]}, expected fold {first_folds[case]}.",
            f"Use the folds of {first.folder.name}: add folds.scheme=file folds.file={first.folder / FOLDS_FILE} to "
            "the command.",
            status=2,
        )
    if unpredicted := [case for case, fold in folds.items() if fold < 0]:
        raise MaskfoldError(
            f"first_stage: the run {first.folder} has no out-of-fold predictions of {len(unpredicted)} of {len(folds)} "
            f"cases, for example {min(unpredicted)}, because no fold of the run validates these cases.",
            "Use a scheme in which every case is in a validated fold, such as folds.scheme=kfold, in both experiments.",
            status=2,
        )


def _differing(
    cases: Iterable[str], rows: Mapping[str, SimpleNamespace], first_rows: Mapping[str, SimpleNamespace]
) -> list[str]:
    return [case for case in cases if case in first_rows and rows[case].hash != first_rows[case].hash]


# Identity


def first_stage_contents(exp: Experiment, *, missing_ok: bool = False) -> dict[str, str]:
    """Return digests of the first stage's predictions and weights; the hash of a run covers these digests.

    Args:
        exp: the experiment; its `first_stage` must be a folder, see `competition.runs.find.resolve_source_runs`.
        missing_ok: whether the folder of the first stage may be missing; the result is then empty. If False, a missing
            folder is an error.

    Returns:
        The digests by `FIRST_STAGE_PREDICTIONS` and `FIRST_STAGE_WEIGHTS`; empty if there is no first stage. They are
        added to the digests of `competition.runs.identity.contents.run_contents`.

    Raises:
        MaskfoldError: the first stage cannot be used, see `open_first_stage`; or a prediction or a weight file is
            missing, damaged or was changed.
    """
    if exp.first_stage is None or (missing_ok and not Path(exp.first_stage).exists()):
        return {}
    first = open_first_stage(exp, None)
    oof = first.oof()
    predictions = [(case, fold, oof.digests(case)) for case, fold in sorted(oof.fold_of.items())]
    return {FIRST_STAGE_PREDICTIONS: json_digest(predictions), FIRST_STAGE_WEIGHTS: _weights_digest(first)}


def _weights_digest(first: Run) -> str:
    return json_digest([(file.fold, file.seed, file.sha256) for file in first.checkpoints() if file.fold >= 0])


def first_stage_for_prediction(run: Run, context: Context = Context()) -> Run:
    """Return the first stage of a run for the prediction of new cases.

    Settings of the first stage that do not affect its networks are replaced by the settings of `run`, see
    `competition.runs.find.with_current_settings`.

    Args:
        run: a run with a first stage.
        context: context with the trusted packages.

    Raises:
        MaskfoldError: the first stage cannot be used, see `open_first_stage`; or its weights have changed since the run
            was started.
    """
    from competition.runs.find import with_current_settings

    first = open_first_stage(run.exp, context.trust)
    record = RunRecord.read(run.folder)
    expected = None if record is None else record.contents.get(FIRST_STAGE_WEIGHTS)
    if expected is not None and _weights_digest(first) != expected:
        raise MaskfoldError(
            f"{describe_content(FIRST_STAGE_WEIGHTS, run.exp)} changed after the run {run.folder} was started. The "
            f"networks of the run {run.folder.name} were trained with predictions of the former weights, so their "
            "input would now differ.",
            "Restore the former weights, or start another run with --new.",
        )
    return replace(first, exp=with_current_settings(first.exp, run.exp))


def refuse_first_stage(runs: Iterable[Run], purpose: str) -> None:
    """Raise an error if a run has a first stage; for commands that cannot handle the networks of the first stage.

    Args:
        runs: the runs that the user named for the command.
        purpose: what the command would do with the runs, for the message, e.g. `be exported`.

    Raises:
        MaskfoldError: a run has a first stage (status 2).
    """
    for run in runs:
        if run.exp.first_stage is not None:
            raise MaskfoldError(
                f"The run {run.folder} cannot {purpose}, because its networks need the predictions of another "
                f"run (first_stage: {run.exp.first_stage}).",
                "Predict with `maskfold submit` or `maskfold predict`, or name a run without first_stage.",
                status=2,
            )
