"""Find the run with the best score among all finished runs of a competition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from competition.config.competition import Competition
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError
from competition.runs.find import find_run
from competition.runs.imported import is_imported
from competition.runs.run import FOLDS_FILE, RUNS_FOLDER, Run, load_run
from competition.runs.summary import SUMMARY_FILE, RunScores, read_summary, run_scores


def best_run(
    name: str, overrides: Sequence[str] = (), trust: tuple[str, ...] = (), say: Callable[[str], None] = lambda _: None
) -> Run:
    """Return the run with the best score among a competition's finished runs that have networks.

    Runs are compared by the score of the masks that would be submitted, over all folds (see
    `competition.runs.summary.run_scores`). Imported runs have no networks and are left out.

    Args:
        name: name of an experiment's YAML or of a run, in a form that `find_run` accepts. All runs of the same
            competition are compared.
        overrides: `key=value` strings, e.g. `competition.root=/elsewhere`.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list.
        say: function that receives lines for the user.

    Raises:
        MaskfoldError: no such run of the competition has a score over all its folds.
    """
    path = Path(name)
    is_yaml = path.suffix in (".yaml", ".yml") and not path.is_dir()
    exp = load_experiment(path, overrides, trust) if is_yaml else find_run(name, overrides, trust, say).exp
    comp = exp.competition
    candidates: list[tuple[RunScores, float, Path]] = []  # (score, time, folder)
    for file in sorted(RUNS_FOLDER.glob(f"*/*/{SUMMARY_FILE}")):
        if (score := _comparable_score(file, comp, overrides)) is not None:
            candidates.append((score, file.stat().st_mtime, file.parent))
    candidates = _without_imported(candidates, comp, say)
    if not candidates:
        raise MaskfoldError(
            f"--best: below {RUNS_FOLDER}, no trained run of {comp.name} with the competition's present metric has "
            "finished all its folds.",
            "Finish a run with `maskfold cv`, or name a run instead of --best.",
        )
    direction = comp.metric.direction
    score, _, folder = max(candidates, key=lambda candidate: (direction.rank(candidate[0].value), *candidate[1:]))
    said = f"expected score of a submission: {comp.metric.name} {score.value:.4f} ({score.note})"
    if len(candidates) == 1:
        say(f"--best: {folder.name} is the only finished trained run of {comp.name}; {said}")
    else:
        say(f"--best: {folder.name} is the best of {len(candidates)} finished trained runs of {comp.name}; {said}")
    return load_run(folder, trust, overrides)


def _without_imported(
    candidates: list[tuple[RunScores, float, Path]], comp: Competition, say: Callable[[str], None]
) -> list[tuple[RunScores, float, Path]]:
    """Return the candidates that have networks; tell the user if an imported run scores better than all of them."""
    trained: list[tuple[RunScores, float, Path]] = []
    imported: list[tuple[RunScores, float, Path]] = []
    for candidate in candidates:
        exp = load_experiment(candidate[2] / "experiment.yaml", trust=None)
        (imported if is_imported(exp) else trained).append(candidate)

    def rank(candidate: tuple[RunScores, float, Path]) -> float:
        return comp.metric.direction.rank(candidate[0].value)

    best = max(imported, key=rank, default=None)
    if best is not None and (not trained or rank(best) > max(map(rank, trained))):
        say(
            f"note: {best[2].parent.name}/{best[2].name} has the best score ({best[0].value:.4f}), but was "
            "imported, so it has no networks, and --best ignores it"
        )
    return trained


def _comparable_score(summary: Path, comp: Competition, overrides: Sequence[str]) -> RunScores | None:
    """Return the scores of a run if it can be compared with other runs of a competition; otherwise None.

    A run can be compared if its competition and metric are those of `comp`, and all folds of the run are finished.

    Args:
        summary: path of the run's `summary.json`.
        comp: the competition.
        overrides: `key=value` strings.
    """
    from competition.data.splits import read_folds

    try:
        plain = read_summary(summary.parent)
        run_comp = load_experiment(summary.parent / "experiment.yaml", trust=None).competition
        folds = {int(fold) for fold in read_folds(summary.parent / FOLDS_FILE)["fold"] if fold >= 0}
        if run_comp.name != comp.name or run_comp.metric != comp.metric or plain.get("score") is None:
            return None
        complete = folds <= {result["fold"] for result in plain["folds"]}
        # trust every package here, because the function builds no object of the run
        return run_scores(load_run(summary.parent, None, overrides), plain) if complete else None
    except (OSError, ValueError, LookupError, TypeError, MaskfoldError):
        return None
