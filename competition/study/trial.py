"""Run a trial of a study: sample values with Optuna, run a cross-validation, prune, and measure the objectives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from competition.config.competition import MetricConfig
from competition.config.metric import Direction
from competition.config.postprocess import PostprocessConfig
from competition.config.study import StudyConfig
from competition.context import Context
from competition.errors import ChangedDataError, MaskfoldError
from competition.io import sha256_of_file
from competition.records import read_metrics_lines
from competition.runs.cascade.first_stage import first_stage_contents
from competition.runs.extra_cases import combined_data_hash, extra_case_tables
from competition.runs.find import resolve_source_runs
from competition.runs.identity.contents import run_contents
from competition.runs.run import CASES_FILE, Run
from competition.runs.summary import read_summary, run_scores, write_summary
from competition.study.space import ExperimentSource, suggest_overrides
from competition.study.storage import PROCESS_ATTRIBUTE, REASON_ATTRIBUTE, current_process
from competition.text import format_count, join_names, nearest_names
from competition.training.cross_validate import CvSummary

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from competition.config.experiment import Experiment

CASES_TABLE = Path(CASES_FILE).stem


# Sampler and pruner


def make_sampler(config: StudyConfig, seed: int, number: int, is_duplicate: bool = False) -> Any:
    """Return Optuna's sampler for one trial.

    Args:
        config: section `study` of the experiment.
        seed: seed of the experiment.
        number: number of trials that Optuna has stored. Together with `seed`, it gives the seed of the sampler, so that
            a resumed study does not draw the same samples again.
        is_duplicate: whether the previous sample repeated an existing trial. If so, the next sample is random.
    """
    from optuna import samplers

    trial_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if config.sampler == "random" or is_duplicate:
        return samplers.RandomSampler(seed=trial_seed)
    if config.sampler == "gp":
        return samplers.GPSampler(seed=trial_seed, n_startup_trials=config.startup_trials)
    return samplers.TPESampler(seed=trial_seed, n_startup_trials=config.startup_trials, multivariate=True, group=True)


def make_pruner(config: StudyConfig) -> Any:
    """Return the pruner of Optuna that the section `study` selects."""
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
OBJECTIVES = ("score", *MINIMISED)  # names of objectives; `dice_<class>` is allowed for each class, too


def check_objectives(source: ExperimentSource, config: StudyConfig, classes: list[str]) -> None:
    """Check that all objectives and constraints have known names.

    Args:
        source: the experiment's file and overrides, for the location in messages.
        config: section `study` of the experiment.
        classes: names of the competition's classes.

    Raises:
        MaskfoldError: a name is unknown (status 2).
    """
    known = [*OBJECTIVES, *(f"dice_{name}" for name in classes)]
    for key, names in (("objectives", config.objectives), ("constraints", config.constraints)):
        for name in names:
            if name not in known:
                similar = nearest_names(name, known)
                raise MaskfoldError(
                    f"{source.locate(key)}: study.{key}: found {name}, expected one of {', '.join(known)}.",
                    f"Did you mean {similar[0]}?" if similar else f"Use only these names in study.{key}.",
                    status=2,
                )


def check_pruner(source: ExperimentSource, config: StudyConfig, metric: MetricConfig) -> None:
    """Check that the pruner, which compares scores by the competition's metric, fits the objective of the study.

    The pruner stops trials with worse scores. If the objective is e.g. `minutes`, such trials may be the best ones.

    Args:
        source: the experiment's file and overrides, for the location in messages.
        config: section `study` of the experiment.
        metric: the competition's metric.

    Raises:
        MaskfoldError: the pruner does not fit the objective (status 2).
    """
    if config.pruner == "none" or len(config.objectives) > 1:
        return
    objective = config.objectives[0]
    fits = objective == "score" or (objective not in MINIMISED and metric.direction is Direction.HIGHER)
    if not fits:
        raise MaskfoldError(
            f"{source.locate('pruner')}: study.pruner: found {config.pruner}, expected the value none, because "
            f"pruners compare scores, but the objective is {objective}.",
            "Set study.pruner=none or study.objectives=[score].",
            status=2,
        )


def objective_directions(config: StudyConfig, metric: MetricConfig) -> list[Literal["minimize", "maximize"]]:
    """Return whether Optuna must minimise or maximise each objective; for `score`, this depends on the metric."""

    def is_minimised(name: str) -> bool:
        return name in MINIMISED or (name == "score" and metric.direction is Direction.LOWER)

    return ["minimize" if is_minimised(name) else "maximize" for name in config.objectives]


def tune_if_set(run: Run, summary: CvSummary, context: Context = Context()) -> None:
    """Tune post-processing on the finished folds of a run, or score that of the YAML; store the result in its folder.

    If there is no post-processing, or no case was validated, do nothing.
    """
    if not run.exp.postprocess.is_scored or not summary.cases:
        return
    from competition.ensembling.expected import estimate_score
    from competition.runs.blend import Ensemble

    estimate_score(Ensemble((run,), (1.0,)), summary.cases, context, store_untuned=True)


def measure_objectives(
    run: Run, summary: CvSummary, config: StudyConfig, context: Context = Context()
) -> dict[str, float]:
    """Return the value of each objective and constraint of a finished trial, by name.

    - `score`: score of the masks that would be submitted, see `competition.runs.summary.run_scores`.
    - `dice_<class>`: mean Dice of a class, without tuned post-processing.
    - `minutes`: training time of all folds together.
    - `peak_gib`: largest peak memory of a fold in GiB.
    - `inference_seconds`: mean time in which one network predicts a case, see `inference_seconds`.

    Args:
        run: run of the trial.
        summary: summary of the run.
        config: section `study` of the experiment.
        context: context with the trusted packages.

    Raises:
        MaskfoldError: an objective has no value for this trial.
    """
    values: dict[str, float] = {}
    for name in dict.fromkeys((*config.objectives, *config.constraints)):
        value: Any
        if name == "score":
            scores = run_scores(run) if run.exp.postprocess.is_scored else None
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
                f"The trial has no value of {name}, because its run has no out-of-fold predictions, or because no case "
                "contains the class whose Dice is measured.",
                "See scores.csv in the folder of the trial's run.",
            )
        values[name] = float(value)
    return values


def inference_seconds(run: Run, context: Context = Context()) -> float:
    """Return the mean time in seconds to preprocess and predict a case with the first network of a run.

    The mean is taken over `TIMED_CASES` cases.
    """
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
    """Return the summary of a run as plain data, without the results of its folds."""
    return {key: value for key, value in asdict(summary).items() if key != "folds"}


# Pruning

POLL_SECONDS = 1.0  # s between two checks for new scores
# No fold has as many epochs. The number of a step for the pruner is k times this number, plus the epoch in fold k.
MAX_EPOCHS = 100_000


class TrialStopped(Exception):
    """Report that the pruner stops a trial early; the message contains the epoch or the fold."""


class PruningCallback:
    """Report scores to Optuna while the folds of a trial run, and raise `TrialStopped` if the pruner stops the trial.

    Optuna's pruners compare the scores of trials at numbered steps. What a step is depends on the pruner:

    - With `wilcoxon`, each validated case is a step. So the cases of a single fold suffice for the pruner's paired
      test. The number of the step is the index of the case in the case table, which does not depend on the order of the
      folds.
    - With `median` and `hyperband`, each validation during training is a step, fold after fold. If folds run in
      parallel, the scores of a later fold are reported only after the earlier folds have finished.

    Args:
        run: run of the trial.
        trial: Optuna's trial.
        config: section `study` of the experiment.
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
        """Report new scores to Optuna, and ask the pruner whether to stop the trial.

        Raises:
            TrialStopped: the trial must stop.
        """
        per_case = self.config.pruner == "wilcoxon"
        new_scores = self._case_scores() if per_case else self._validation_scores()
        # Stopping a trial that has trained all folds saves no time, and its score would be lost.
        may_stop = any(self.run.result(fold, seed) is None for fold, seed in self.run.members())
        for step, value in new_scores:
            self.trial.report(value, step)
            self.reported.add(step)
            if may_stop and not per_case and self.trial.should_prune():
                folder = self.run.member_folder(*self.run.members()[step // MAX_EPOCHS])
                raise TrialStopped(f"pruned in {folder.name}, epoch {step % MAX_EPOCHS}")
        if may_stop and new_scores and per_case and self.trial.should_prune():
            folds = sorted({self.fold_of[index] for index in self.reported})
            raise TrialStopped(
                f"pruned after fold {', '.join(map(str, folds))}: the trial is worse than the best trial on "
                f"{format_count(len(self.reported), 'case')} (p < {self.config.p_value:g})"
            )

    def _case_scores(self) -> list[tuple[int, float]]:
        """Return (index in the case table, score) of each case in folds that have finished since the last call."""
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
        """Return (number of the step, score) of each validation since the last call.

        The comment at `MAX_EPOCHS` explains how steps are numbered.
        """
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

# Optuna's user attributes: whether the score of the trial includes tuned post-processing, and whether it includes any
TUNED_ATTRIBUTE, SCORED_ATTRIBUTE = "tuned", "postprocessed"
HIGH_LOSS = 1e3  # if the training loss is higher, the learning rate is probably the cause of a failure


class DuplicateTrial(Exception):
    """Report that the sampled values are those of an existing trial, so that the new trial is ignored.

    See `is_ignored`.
    """


class TrialRunner:
    """Run one trial per call, as the objective function of Optuna.

    Args:
        source: the experiment's file and overrides.
        config: section `study` of the experiment.
        folder: folder of the study.
        context: context with the trusted packages and the log.
        data: hash of the data for which the study was opened, to detect changes; None to skip this check.
        files: digests of the other files for which the study was opened, see `study_files`; None to skip their check.

    Attributes:
        data_error: error that reports changed data or files; None while they are unchanged. After an error, no further
            trial may run.
        release_lock: function that releases the lock of the study. It is called after the trial's values were sampled.
        number: number of the present or last trial; None before the first one.
        duplicates: number of consecutive samples that repeated existing trials.
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
        self.data_error: ChangedDataError | None = None
        self.release_lock: Callable[[], None] = lambda: None
        self.number: int | None = None
        self.duplicates = 0

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        """Run a trial, and return the value of each objective.

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
            self.context.say(f"the values of trial {trial.number} would repeat trial {same}, so new values are drawn")
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

        from competition.postprocessing.ordering import check_affine
        from competition.tracking.sync import MlflowSync
        from competition.training.cross_validate import locked_run, open_run, run_cv

        self.context.say(f"trial {trial.number}: {' '.join(overrides)}")
        trial.set_user_attr("words", overrides)
        exp = self.source.load(overrides)
        run = open_run(exp, trial_runs_name(self.source, exp.competition.name))
        check_affine(run)
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
                trial.set_user_attr(SCORED_ATTRIBUTE, ranked.exp.postprocess.is_scored)
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
        """Return a sentence about the last training loss of a failed trial, if the loss was very high.

        Otherwise, return an empty text.
        """
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
    """Return a trial's run that is tuned, or scored without post-processing, like the study's first complete trial.

    Without this rule, a study could mix scores of both kinds if an older version of Maskfold began it, which did not
    tune or did not score the YAML's steps. If you change the steps in the YAML, later trials have the changed steps.
    """
    complete = [other for other in trial.study.get_trials(deepcopy=False) if other.state.name == "COMPLETE"]
    if not complete:
        return run
    is_tuned = bool(complete[0].user_attrs.get(TUNED_ATTRIBUTE))
    postprocess = run.exp.postprocess.model_copy(update={"tune": is_tuned})
    if not is_tuned and not complete[0].user_attrs.get(SCORED_ATTRIBUTE):
        postprocess = PostprocessConfig()  # the score without post-processing
    return replace(run, exp=run.exp.model_copy(update={"postprocess": postprocess}))


def study_tables(exp: Experiment) -> dict[str, pd.DataFrame]:
    """Return all case tables of an experiment, by their file names (without `.csv`) in a run's folder."""
    from competition.data.cases import case_table

    cases = case_table(exp.competition, "train")
    return {CASES_TABLE: cases, **extra_case_tables(exp, cases)}


def data_digest(tables: dict[str, pd.DataFrame]) -> str:
    """Return the hash of the data in all case tables that `study_tables` returned."""
    return combined_data_hash(
        tables[CASES_TABLE], {name: table for name, table in tables.items() if name != CASES_TABLE}
    )


def study_files(exp: Experiment) -> dict[str, str]:
    """Return digests of the files on which the scores of trials depend, except images and masks.

    These are the fold file, weight files, the user's own code, and the predictions of a first stage. If they change,
    scores of earlier and later trials cannot be compared.

    Returns:
        Digests by the keys of `run_contents` and `first_stage_contents`; the digest of the fold file has the key
        `folds.file`.

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
                f"folds.file: {exp.folds.file} cannot be read: {error.strerror}.",
                "Set folds.file to a file that you can read.",
                status=2,
            ) from error
    return files


def check_study_data(source: ExperimentSource, run: Run, data: str | None, files: dict[str, str] | None = None) -> None:
    """Check that the data and the other files of a study have not changed since the study was opened.

    Args:
        source: the experiment's file and overrides.
        run: run of the trial. The keys that the study searches may select other data than the unchanged YAML; this is
            not an error.
        data: hash of the data for which the study was opened; None to skip this check.
        files: digests of the other files for which the study was opened, see `study_files`; None to skip this check.

    Raises:
        ChangedDataError: the data or another file have changed.
    """
    if files is not None and (present := study_files(source.load())) != files:
        changed = sorted(key for key in {*present, *files} if present.get(key) != files.get(key))
        raise ChangedDataError(
            f"Files on which the study depends have changed since it was opened: {join_names(changed)}.",
            "Restore the files. Or repeat the command, which begins another study with the present files.",
        )
    if data is None or combined_data_hash(run.cases, run.extra_tables) == data:
        return
    if data_digest(study_tables(source.load())) != data:
        raise ChangedDataError(
            f"The data of {run.exp.competition.name} have changed since the study was opened.",
            "Restore the data. Or repeat the command, which begins another study on the present data.",
        )


def is_ignored(trial: Any) -> bool:
    """Return whether a trial is ignored, because its process was killed or because it repeats another trial.

    Such a trial has the state FAIL, but no reason is stored for the failure.
    """
    return trial.state.name == "FAIL" and REASON_ATTRIBUTE not in trial.user_attrs


def _equal_trial(trial: optuna.Trial) -> int | None:
    """Return the number of another running or finished trial with the same values; None if there is none."""
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
    """Store in a run's `summary.json` why its trial ended early; this file is uploaded to MLflow."""
    try:
        summary = read_summary(run.folder)
    except (FileNotFoundError, MaskfoldError):
        summary = {}
    write_summary(run.folder, {**summary, "metric": run.exp.competition.metric.name, "stopped": reason})


def trial_runs_name(source: ExperimentSource, competition: str) -> str:
    """Return the name of the folder that contains the runs of a study's trials.

    It differs from the name for normal runs of the experiment, so that `maskfold submit FILE` does not find trials.
    """
    return f"{competition}-{source.file.stem}-trials"


def trial_overrides(trial: Any) -> list[str]:
    """Return the `key=value` overrides of a trial that has started; an empty list for other trials."""
    return list(trial.user_attrs.get("words", []))
