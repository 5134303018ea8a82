"""Run a trial of a study: sample overrides with Optuna, run a cross-validation, prune, and measure the objectives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from competition.config.competition import MetricConfig
from competition.config.metric import Direction
from competition.config.study import StudyConfig
from competition.context import Context
from competition.errors import ChangedDataError, MaskfoldError
from competition.io import read_metrics_lines, sha256_of_file
from competition.runs.cascade.first_stage import first_stage_contents
from competition.runs.contents import run_contents
from competition.runs.extra_cases import combined_data_hash, extra_case_tables
from competition.runs.find import resolve_source_runs
from competition.runs.run import CASES_FILE, Run
from competition.runs.summary import read_summary, run_scores, write_summary
from competition.study.space import ExperimentSource, suggest_overrides
from competition.study.storage import PROCESS_ATTRIBUTE, current_process
from competition.text import join_names, nearest_names
from competition.training.cross_validate import CvSummary

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from competition.config.experiment import Experiment

CASES_TABLE = Path(CASES_FILE).stem


# Sampler and pruner


def make_sampler(config: StudyConfig, seed: int, number: int, is_duplicate: bool = False) -> Any:
    """Return the sampler for one trial.

    Args:
        config: section `study` of the experiment.
        seed: seed of the experiment.
        number: number of trials in Optuna, from which the trial's seed is derived, so that a resumed study repeats no
            sample.
        is_duplicate: whether the previous sample repeated a trial. If so, the next sample is random.
    """
    from optuna import samplers

    trial_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if config.sampler == "random" or is_duplicate:
        return samplers.RandomSampler(seed=trial_seed)
    if config.sampler == "gp":
        return samplers.GPSampler(seed=trial_seed, n_startup_trials=config.startup_trials)
    return samplers.TPESampler(seed=trial_seed, n_startup_trials=config.startup_trials, multivariate=True, group=True)


def make_pruner(config: StudyConfig) -> Any:
    """Return Optuna's pruner for the settings in `study`."""
    from optuna import pruners

    if config.pruner == "wilcoxon":
        return pruners.WilcoxonPruner(p_threshold=config.p_value, n_startup_steps=8)
    if config.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=config.startup_trials)
    if config.pruner == "hyperband":
        return pruners.HyperbandPruner()
    return pruners.NopPruner()


# Objectives

TIMED_CASES = 5  # number of cases whose prediction is timed
MINIMISED = ("inference_seconds", "minutes", "peak_gib")
OBJECTIVES = ("score", *MINIMISED)  # further names: dice_<class>


def check_objectives(source: ExperimentSource, config: StudyConfig, classes: list[str]) -> None:
    """Check that all objectives and constraints have known names.

    Raises:
        MaskfoldError: status 2; a name is unknown.
    """
    known = [*OBJECTIVES, *(f"dice_{name}" for name in classes)]
    for key, names in (("objectives", config.objectives), ("constraints", config.constraints)):
        for name in names:
            if name not in known:
                similar = nearest_names(name, known)
                raise MaskfoldError(
                    f"{source.locate(key)}: study.{key}: found {name}, expected one of {', '.join(known)}.",
                    f"Did you mean {similar[0]}?" if similar else f"Correct study.{key}.",
                    status=2,
                )


def objective_directions(config: StudyConfig, metric: MetricConfig) -> list[Literal["minimize", "maximize"]]:
    """Return Optuna's direction of each objective; `score` has the direction of the metric."""

    def is_minimised(name: str) -> bool:
        return name in MINIMISED or (name == "score" and metric.direction is Direction.LOWER)

    return ["minimize" if is_minimised(name) else "maximize" for name in config.objectives]


def tune_if_set(run: Run, summary: CvSummary, context: Context = Context()) -> None:
    """Tune post-processing on a run's finished folds if `postprocess.tune` is set; store the result with the run."""
    if not run.exp.postprocess.tune or not summary.cases:
        return
    from competition.ensembling.expected import estimate_score
    from competition.runs.blend import Ensemble

    estimate_score(Ensemble((run,), (1.0,)), summary.cases, context)


def measure_objectives(
    run: Run, summary: CvSummary, config: StudyConfig, context: Context = Context()
) -> dict[str, float]:
    """Return the value of each objective and constraint of a finished trial.

    `score` is the score that counts, see `competition.runs.summary.run_scores`; `dice_<class>` is the mean Dice of a
    class without tuned post-processing,
    `minutes` the training time of all folds, `peak_gib` the largest peak memory of a fold, and `inference_seconds` the
    mean time of one network per case.

    Raises:
        MaskfoldError: an objective has no value for this trial.
    """
    values: dict[str, float] = {}
    for name in dict.fromkeys((*config.objectives, *config.constraints)):
        value: Any
        if name == "score":
            scores = run_scores(run) if run.exp.postprocess.tune else None
            value = summary.score if scores is None else scores.value
        elif name in ("minutes", "peak_gib"):
            per_fold = [float(fold[name]) for fold in summary.folds]
            value = sum(per_fold) if name == "minutes" else max(per_fold)
        elif name == "inference_seconds":
            value = inference_seconds(run, context)
        else:
            value = summary.dice.get(name.removeprefix("dice_"))
        if value is None or value != value:
            raise MaskfoldError(
                f"The trial has no {name}: there are no out-of-fold predictions, or no case contains the class.",
                "See the run's scores in scores.csv in the folder of the run.",
            )
        values[name] = float(value)
    return values


def inference_seconds(run: Run, context: Context = Context()) -> float:
    """Return the mean seconds to preprocess and predict a case with the first of a run's networks."""
    from competition.data.cases import case_rows
    from competition.ensembling.ensemble import EnsemblePredictor
    from competition.runs.blend import Ensemble

    rows = case_rows(run.cases.iloc[:: max(1, len(run.cases) // TIMED_CASES)].head(TIMED_CASES))
    predictor = EnsemblePredictor(Ensemble((run,), (1.0,)), rows[0], context)
    run_networks, _ = predictor.weighted_runs[0]
    del run_networks.networks[1:]
    predictor.probabilities(rows[0])  # warm-up
    start = time.perf_counter()
    for row in rows:
        predictor.probabilities(row)
    return (time.perf_counter() - start) / len(rows)


def summary_without_folds(summary: CvSummary) -> dict[str, Any]:
    """Return a summary as plain data, without the results of folds."""
    return {key: value for key, value in asdict(summary).items() if key != "folds"}


# Pruning

POLL_SECONDS = 1.0  # s between two polls
MAX_EPOCHS = 100_000  # more than a fold has epochs; the steps of fold k begin at k times this number


class TrialStopped(Exception):
    """Signal that the pruner stops the trial; the message contains the epoch or the fold."""


class PruningCallback:
    """Report scores to Optuna while folds run, and raise `TrialStopped` if the trial must stop.

    The pruner receives scores as steps. With `wilcoxon`, each validated case is a step, so that the cases of one fold
    suffice for the paired test. The number of the step is the case's index in the case table, which does not depend on
    the order of folds. With `median` and `hyperband`, each validation is a step, fold after fold. If folds run in
    parallel, a later fold is reported after the earlier folds have finished.

    Args:
        run: the trial's run.
        trial: Optuna's trial.
        config: the `study` section.
    """

    def __init__(self, run: Run, trial: optuna.Trial, config: StudyConfig) -> None:
        self.run, self.trial, self.config = run, trial, config
        self.case_index = {case: index for index, case in enumerate(run.cases["id"])}
        self.fold_of = {
            self.case_index[str(case)]: int(fold)
            for case, fold in run.fold_of().items()
            if str(case) in self.case_index
        }
        self.reported: set[int] = set()
        self._last_poll = 0.0

    def __call__(self) -> None:
        if self.config.pruner == "none" or time.monotonic() - self._last_poll < POLL_SECONDS:
            return
        self._last_poll = time.monotonic()
        self.poll()

    def poll(self) -> None:
        """Report new scores to Optuna, and ask the pruner whether to stop.

        Raises:
            TrialStopped: the pruner stops the trial.
        """
        per_case = self.config.pruner == "wilcoxon"
        new_scores = self._case_scores() if per_case else self._validation_scores()
        # Stopping a trial that has trained all folds saves no time, and its score would be lost.
        may_stop = any(self.run.result(fold, seed) is None for fold, seed in self.run.members())
        for step, value in new_scores:
            self.trial.report(value, step)
            self.reported.add(step)
            if may_stop and not per_case and self.trial.should_prune():
                raise TrialStopped(f"pruned at fold {step // MAX_EPOCHS}, epoch {step % MAX_EPOCHS}")
        if may_stop and new_scores and per_case and self.trial.should_prune():
            folds = sorted({self.fold_of[index] for index in self.reported})
            raise TrialStopped(
                f"pruned after fold {', '.join(map(str, folds))}: on {len(self.reported)} cases it is worse than "
                f"the best trial (p < {self.config.p_value:g})"
            )

    def _case_scores(self) -> list[tuple[int, float]]:
        """Return (index in the case table, score) of the cases of folds that have finished since the last call."""
        scores = []
        for fold, seed in self.run.members():
            folder = self.run.member_folder(fold, seed)
            result = self.run.result(fold, seed) if seed == 0 else None
            if result is not None and (folder / "scores.csv").exists():
                table = result.read_scores(folder, "scores.csv")
                means = table.groupby("id", sort=False)["score"].mean().dropna()
                scores += [(self.case_index[str(case)], float(value)) for case, value in means.items()]
        return [(step, score) for step, score in scores if step not in self.reported]

    def _validation_scores(self) -> list[tuple[int, float]]:
        """Return (epoch, score) of the validations since the last call; epochs are counted through all folds."""
        scores: list[tuple[int, float]] = []
        for order, (fold, seed) in enumerate(self.run.members()):
            folder = self.run.member_folder(fold, seed)
            scores += [
                (order * MAX_EPOCHS + int(line.epoch), line.metrics["val/score"])
                for line in read_metrics_lines(folder / "metrics.jsonl")
                if "val/score" in line.metrics
            ]
            if self.run.result(fold, seed) is None:
                break
        return [(step, score) for step, score in scores if step not in self.reported]


# Running a trial

TUNED_ATTRIBUTE = "tuned"  # user attribute: whether the trial's score has tuned post-processing
REASON_ATTRIBUTE = "reason"  # user attribute of a trial that failed or was pruned
HIGH_LOSS = 1e3  # if the training loss is higher, the learning rate is probably the cause of a failure


class DuplicateTrial(Exception):
    """Report that the sampler has repeated an existing trial; the new trial does not count (see `is_ignored`)."""


class TrialRunner:
    """Run one trial per call, as Optuna's objective function.

    Args:
        source: the experiment.
        config: section `study` of the experiment.
        folder: folder of the study.
        context: context with the trusted packages and the log.
        data: digest of the study's data; None: not checked.
        files: digests of the study's other files, see `study_files`; None: not checked.
    """

    def __init__(
        self,
        source: ExperimentSource,
        config: StudyConfig,
        folder: Path,
        context: Context,
        data: str | None = None,
        files: dict[str, str] | None = None,
    ) -> None:
        self.source, self.config, self.folder, self.context = source, config, folder, context
        self.data, self.files = data, files
        # set if the data have changed, because no further trial may run then
        self.data_error: ChangedDataError | None = None
        self.release_lock: Callable[[], None] = lambda: None
        self.number: int | None = None  # folder of the run of the current or last trial
        self.duplicates = 0  # number of consecutive samples that repeated existing trials

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        """Run a trial.

        Raises:
            optuna.TrialPruned: the trial was pruned.
            DuplicateTrial: another trial with the same values is running or has ended.
            MaskfoldError: the trial failed; the reason is stored as an attribute of the trial.
        """
        self.number = trial.number
        trial.set_user_attr(PROCESS_ATTRIBUTE, current_process())
        overrides = suggest_overrides(trial, self.config)
        if (same := _equal_trial(trial)) is not None:
            self.duplicates += 1
            self.context.say(f"trial {trial.number} would repeat trial {same}; sampling again")
            raise DuplicateTrial(f"as trial {same}")
        self.duplicates = 0
        self.release_lock()  # the trial is reserved, so another process may sample its trial now
        try:
            return self._run(trial, overrides)
        except MaskfoldError as error:
            reason = f"{error}{self._describe_high_loss(trial)}"
            trial.set_user_attr(REASON_ATTRIBUTE, reason[:2000])
            self.context.say(f"trial {trial.number} failed: {reason}")
            raise

    def _run(self, trial: optuna.Trial, overrides: list[str]) -> tuple[float, ...]:
        import optuna

        from competition.tracking.sync import MlflowSync
        from competition.training.cross_validate import locked_run, open_run, run_cv

        self.context.say(f"trial {trial.number}: {' '.join(overrides)}")
        trial.set_user_attr("words", overrides)
        exp = self.source.load(overrides)
        run = open_run(exp, trial_runs_name(self.source, exp.competition.name))
        try:
            check_study_data(self.source, run, self.data, self.files)
        except ChangedDataError as error:
            self.data_error = error
            raise
        trial.set_user_attr("run", str(run.folder))
        name = f"trial {trial.number} · {run.folder.name}"
        with (
            locked_run(run, self.context.silent()) as run,
            MlflowSync(run.folder, exp, name=name, study=self.folder) as uploads,
        ):
            pruning = PruningCallback(run, trial, self.config)
            try:
                summary = run_cv(run, self.context.indented(), pruning)
                if self.config.pruner == "wilcoxon":
                    pruning.poll()  # report the last fold, because later trials are compared with it
                ranked = _as_ranked(run, trial)
                trial.set_user_attr(TUNED_ATTRIBUTE, ranked.exp.postprocess.tune)
                tune_if_set(ranked, summary, self.context.indented())
                measured = measure_objectives(ranked, summary, self.config, self.context)
            except TrialStopped as pruned:
                trial.set_user_attr(REASON_ATTRIBUTE, str(pruned))
                _write_stop_reason(run, str(pruned))
                uploads.set_status("KILLED")
                self.context.say(f"trial {trial.number} {pruned}")
                raise optuna.TrialPruned(str(pruned)) from None
            except MaskfoldError as error:
                _write_stop_reason(run, f"failed: {error}")
                raise
        for name, bound in self.config.constraints.items():
            trial.set_constraint(name, measured[name] - bound)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        self.context.say(f"trial {trial.number} complete: {shown}")
        return tuple(measured[name] for name in self.config.objectives)

    def _describe_high_loss(self, trial: optuna.Trial) -> str:
        """Return a sentence about the training loss if the loss was very high, else an empty text."""
        folder = trial.user_attrs.get("run")
        last_losses = [
            losses[-1]
            for path in (Path(folder).glob("*/metrics.jsonl") if folder else ())
            if (
                losses := [
                    line.metrics["train/loss"] for line in read_metrics_lines(path) if "train/loss" in line.metrics
                ]
            )
        ]
        highest = max(map(abs, last_losses), default=0.0)
        return f" The last training loss was {highest:.3g}." if highest > HIGH_LOSS else ""


def _as_ranked(run: Run, trial: optuna.Trial) -> Run:
    """Return a trial's run with `postprocess.tune` set as in the first complete trial of the study.

    So a study does not mix scores with and without tuned post-processing, even if the YAML changes, or if an older
    version without tuning began the study.
    """
    complete = [other for other in trial.study.get_trials(deepcopy=False) if other.state.name == "COMPLETE"]
    if not complete:
        return run
    postprocess = run.exp.postprocess.model_copy(update={"tune": bool(complete[0].user_attrs.get(TUNED_ATTRIBUTE))})
    return replace(run, exp=run.exp.model_copy(update={"postprocess": postprocess}))


def study_tables(exp: Experiment) -> dict[str, pd.DataFrame]:
    """Return the case tables of a study's experiment, by their file names in a run's folder."""
    from competition.data.cases import case_table

    cases = case_table(exp.competition, "train")
    return {CASES_TABLE: cases, **extra_case_tables(exp, cases)}


def data_digest(tables: dict[str, pd.DataFrame]) -> str:
    """Return a digest of the tables of `study_tables`."""
    return combined_data_hash(
        tables[CASES_TABLE], {name: table for name, table in tables.items() if name != CASES_TABLE}
    )


def study_files(exp: Experiment) -> dict[str, str]:
    """Return the digests of the fold file, weight files and user's code that an experiment names.

    Scores of trials with different files cannot be compared. The files include the predictions of a first stage, but no
    images and masks.

    Returns:
        Digests by key, as from `run_contents`, and the fold file's by `folds.file`.

    Raises:
        MaskfoldError: a file cannot be read (status 2).
    """
    files = run_contents(exp, None)
    if exp.first_stage is not None:
        files |= first_stage_contents(resolve_source_runs(exp))
    if exp.folds.file is not None:
        try:
            files["folds.file"] = sha256_of_file(exp.folds.file)
        except OSError as error:
            raise MaskfoldError(
                f"folds.file: {exp.folds.file} cannot be read: {error.strerror}.", "Correct folds.file.", status=2
            ) from error
    return files


def check_study_data(source: ExperimentSource, run: Run, data: str | None, files: dict[str, str] | None = None) -> None:
    """Check, when a trial opens its run, that the data and the other files of the study have not changed.

    Args:
        source: the study's experiment.
        run: run of the trial, whose searched keys may select other data than the study's experiment.
        data: digest of the study's data; None: not checked.
        files: digests of the study's other files, see `study_files`; None: not checked.

    Raises:
        ChangedDataError: the data, or another file, have changed.
    """
    if files is not None and (present := study_files(source.load())) != files:
        changed = sorted(key for key in {*present, *files} if present.get(key) != files.get(key))
        raise ChangedDataError(
            f"{join_names(changed)} changed since the study was opened.",
            "Restore the files, or repeat the command, which begins another study with the present files.",
        )
    if data is None or combined_data_hash(run.cases, run.extra_tables) == data:
        return
    if data_digest(study_tables(source.load())) != data:
        raise ChangedDataError(
            f"The data of {run.exp.competition.name} have changed since the study was opened.",
            "Restore the data, or repeat the command, which begins another study on the present data.",
        )


def is_ignored(trial: Any) -> bool:
    """Return whether a trial does not count, because its process was killed or because it repeats another trial.

    A trial that does not count has the state failed, but no stored reason.
    """
    return trial.state.name == "FAIL" and REASON_ATTRIBUTE not in trial.user_attrs


def _equal_trial(trial: optuna.Trial) -> int | None:
    """Return the number of a running or finished trial with the same values; None if there is none."""
    return next(
        (
            other.number
            for other in trial.study.get_trials(deepcopy=False)
            if other.number != trial.number
            and other.state.name != "WAITING"
            and not is_ignored(other)
            and other.params == trial.params
        ),
        None,
    )


def _write_stop_reason(run: Run, reason: str) -> None:
    """Write the reason why the run ended early into the run's summary, which is also uploaded to MLflow."""
    try:
        summary = read_summary(run.folder)
    except (FileNotFoundError, MaskfoldError):
        summary = {}
    write_summary(run.folder, {**summary, "metric": run.exp.competition.metric.name, "stopped": reason})


def trial_runs_name(source: ExperimentSource, competition: str) -> str:
    """Return the name of the trials' runs.

    The name differs from the experiment's name, so that `maskfold submit FILE` uses no trial.
    """
    return f"{competition}-{source.file.stem}-trials"


def trial_overrides(trial: Any) -> list[str]:
    """Return the `key=value` overrides of a trial that has started."""
    return list(trial.user_attrs.get("words", []))
