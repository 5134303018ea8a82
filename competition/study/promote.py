"""The best trials once more, on all folds, against the YAML as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from competition.config import MaskfoldError
from competition.scoring.summary import Gain, cv_score, gain_interval
from competition.study.search import Search, best
from competition.study.trial import trials_name, words_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Promoted:
    """A trial on all folds.

    Attributes:
        number: of the trial.
        words: `key=value`, what it differs in.
        run: the run's folder.
        score: over all folds.
        unseen: over the folds that the study did not use; None where it used all.
        gain: against trial 0 on those folds' cases, with its paired 95 % interval. Where the study used all folds, on
            all cases: then it flatters what was chosen by them.
    """

    number: int
    words: list[str]
    run: str
    score: float
    unseen: float | None
    gain: Gain | None


def promote(search: Search, count: int, say: Callable[[str], None]) -> list[Promoted]:
    """Trains the best trials, and trial 0, on every fold; folds that the study trained are not trained again.

    The study chose by the scores of its own folds, so those flatter what it chose. The others do not.

    Args:
        search: the study.
        count: how many of the best.
        say: takes lines for the user.

    Returns:
        Trial 0 first, then the best ones.

    Raises:
        MaskfoldError: no trial is complete, or a fold fails.
    """
    chosen = list(best(search, count))
    own = [trial for trial in search.finished if trial.user_attrs.get("own")]
    if not own:
        raise MaskfoldError(f"Trial 0 of {search.name} is not finished.", "Run more trials.")
    asked = search.source.load().folds.run
    used = set(asked) if isinstance(asked, list) else None  # None: all
    tables: dict[int, pd.DataFrame] = {}
    found: list[Promoted] = []
    for trial in [own[0], *(trial for trial in chosen if trial.number != own[0].number)]:
        run, scores = _train(search, words_of(trial), trial.number, say)
        tables[trial.number] = scores
        metric, groups = run.exp.competition.metric, _groups(run)
        if used is not None and set(scores["fold"]) <= used:
            used = None  # every fold by its number
        unseen, reference = (
            table if used is None else table[~table["fold"].isin(used)] for table in (scores, tables[own[0].number])
        )
        gain = None if trial is own[0] else gain_interval(reference, unseen, metric, groups=groups)
        found.append(
            Promoted(
                trial.number,
                words_of(trial),
                str(run.folder),
                cv_score(scores, metric),
                None if used is None else cv_score(unseen, metric),
                gain,
            )
        )
    return found


def _train(search: Search, words: list[str], number: int, say: Callable[[str], None]) -> tuple[Any, pd.DataFrame]:
    """One trial's run with all its folds, and its scores."""
    from competition.scoring.score_table import read_scores
    from competition.tracking.shipper import Shipper
    from competition.training.cv import prepare_run, run_cv
    from competition.training.lock import alone
    from competition.training.runs import open_run

    exp = search.source.load(words)
    exp = exp.model_copy(update={"folds": replace_run(exp.folds)})
    run = open_run(exp, trials_name(search.source, exp.competition.name))
    say(f"trial {number} on all folds: {' '.join(words)}")
    run = prepare_run(run, lambda _: None, search.source.trust)
    with (
        alone(run.folder, say=say),
        Shipper(run.folder, exp, name=f"trial {number} · {run.folder.name}", study=search.folder),
    ):
        run_cv(run, lambda line: say(f"  {line}"), search.source.trust)
    return run, read_scores(run.folder / "scores.csv")


def replace_run(folds: Any) -> Any:
    """The folds section without `run`: all of them."""
    return folds.model_copy(update={"run": None})


def _groups(run: Any) -> dict[str, str] | None:
    cases = run.cases
    return dict(zip(cases["id"], cases["group"], strict=True)) if run.exp.competition.group else None
