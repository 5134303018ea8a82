"""Estimate the score of a run's submission, and find the best run of a competition by this score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from competition.config.competition import Competition
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError
from competition.postprocessing.tuning import load_tuning
from competition.runs.find import find_run
from competition.runs.run import FOLDS_FILE, RUNS_FOLDER, Run, load_run
from competition.runs.summary import SUMMARY_FILE, read_summary


class SubmittedScore(NamedTuple):
    """Hold the out-of-fold score of the masks that a submission of a run would contain.

    Attributes:
        value: score by the competition's metric.
        is_nested: whether the post-processing of each fold's cases was tuned on the other folds. If False, the score is
            the one in `summary.json`, or, if the tuned steps were not kept, the score of the YAML's steps.
    """

    value: float
    is_nested: bool

    @property
    def note(self) -> str:
        """A description of the score: whether it is nested, or without tuned steps."""
        return "post-processing tuned on the other folds" if self.is_nested else "no tuned post-processing"


def submitted_score(run: Run) -> SubmittedScore | None:
    """Return the expected score of a submission of the run, from stored results only.

    If `postprocess.tune` is set and there is a valid tuning result, return the nested score, otherwise the score in
    `summary.json`. Without a score, return None.

    Raises:
        MaskfoldError: `summary.json` cannot be read, or was edited.
    """
    tuned = load_tuning(run) if run.exp.postprocess.tune else None
    if tuned is not None:
        return SubmittedScore(float(tuned.score), tuned.kept)
    try:
        value = read_summary(run.folder).get("score")
        return None if value is None else SubmittedScore(float(value), False)
    except (OSError, ValueError, TypeError) as error:
        raise MaskfoldError(
            f"{run.folder / SUMMARY_FILE} cannot be read: {error}.",
            "Repeat the `maskfold cv` command of this run, which writes the file again.",
        ) from error


def best_run(
    name: str, overrides: Sequence[str] = (), trust: tuple[str, ...] = (), say: Callable[[str], None] = lambda _: None
) -> Run:
    """Find the run with the best score among all finished runs of a competition.

    Only scores by the competition's metric over all folds are compared; each is a `submitted_score`.

    Args:
        name: an experiment's YAML or a run of the competition; see `find_run`.
        overrides: `key=value` strings.
        trust: additional packages that `target` may name.
        say: function that receives a line for the user.

    Raises:
        MaskfoldError: no run of the competition has all its folds.
    """
    path = Path(name)
    is_yaml = path.suffix in (".yaml", ".yml") and not path.is_dir()
    exp = load_experiment(path, overrides, trust) if is_yaml else find_run(name, overrides, trust, say).exp
    comp = exp.competition
    candidates: list[tuple[SubmittedScore, float, Path]] = []  # (score, time, folder)
    for file in sorted(RUNS_FOLDER.glob(f"*/*/{SUMMARY_FILE}")):
        if (score := _comparable_score(file, comp, overrides)) is not None:
            candidates.append((score, file.stat().st_mtime, file.parent))
    if not candidates:
        raise MaskfoldError(
            f"No run of {comp.name} below {RUNS_FOLDER} has a score over all its folds.",
            "Finish a run with `maskfold cv`, or name a run instead of using --best.",
        )
    direction = comp.metric.direction
    score, _, folder = max(candidates, key=lambda candidate: (direction.rank(candidate[0].value), *candidate[1:]))
    count = len(candidates)
    say(
        f"the best of {count} finished run{'s' * (count > 1)} of {comp.name}, each by the score that it would submit: "
        f"{comp.metric.name} {score.value:.4f} ({score.note})"
    )
    return load_run(folder, trust, overrides)


def _comparable_score(summary: Path, comp: Competition, overrides: Sequence[str]) -> SubmittedScore | None:
    """Return a run's score by this competition's metric over all folds; None if the run has no such score."""
    from competition.data.splits import read_folds

    try:
        plain = read_summary(summary.parent)
        run_comp = load_experiment(summary.parent / "experiment.yaml", trust=None).competition
        folds = {int(fold) for fold in read_folds(summary.parent / FOLDS_FILE)["fold"] if fold >= 0}
        if run_comp.name != comp.name or run_comp.metric != comp.metric or plain.get("score") is None:
            return None
        complete = folds <= {result["fold"] for result in plain["folds"]}
        # no class of the run is built, so its packages need not be trusted here
        return submitted_score(load_run(summary.parent, None, overrides)) if complete else None
    except (OSError, ValueError, LookupError, TypeError, MaskfoldError):
        return None
