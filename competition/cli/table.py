"""The table at the end of a run: fold × class, mean, interval, minutes, checkpoint; many classes are rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from competition.training.cv import CvSummary
    from competition.training.runs import CvRun


MOST_COLUMNS = 3  # of classes; more are rows


def cv_table(summary: CvSummary, run: CvRun) -> Table:
    """Rows are the folds, then all out-of-fold cases together with their 95 % intervals; of many classes, rows are those."""
    if len(run.exp.competition.classes) > MOST_COLUMNS:
        return _class_rows(summary, run)
    classes = run.exp.competition.classes
    table = Table(title=f"{run.name}: {summary.metric} and Dice per class, out of fold", caption=left_out(run))
    table.add_column("fold")
    for name in (summary.metric, *(f"Dice {name}" for name in classes), "minutes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checkpoint")
    for result in summary.folds:
        dice = [_of(result, result["dice"].get(name)) for name in classes]
        folder = run.member_folder(result["fold"], result["seed"]).name
        table.add_row(_label(result), _of(result, result["score"]), *dice, f"{result['minutes']:.1f}", folder)
    table.add_section()
    minutes = sum(result["minutes"] for result in summary.folds)
    table.add_row("all", *_all(summary, classes), f"{minutes:.1f}", f"{summary.cases} cases")
    table.add_row(
        "95 %",
        interval(summary.low, summary.high),
        *(interval(summary.dice_low.get(name), summary.dice_high.get(name)) for name in classes),
        "",
        "",
    )
    for seed, alone in (summary.seeds or {"alone": {}})["alone"].items():
        values = [number(alone["score"]), *(number(alone["dice"].get(name)) for name in classes)]
        table.add_row(f"seed {seed}", *values, "", f"alone, {summary.seeds['folds'] if summary.seeds else 0} folds")
    if summary.test_dice is not None:
        table.add_row(
            "test",
            number(summary.test_score),
            *(number(summary.test_dice.get(name)) for name in classes),
            "",
            "held-out share",
        )
    return table


def _class_rows(summary: CvSummary, run: CvRun) -> Table:
    """A row for the metric and one for each class; columns are the folds, all cases, their interval, the test share."""
    table = Table(title=f"{run.name}: {summary.metric} and Dice per class, out of fold", caption=left_out(run))
    table.add_column("fold")
    folds = summary.folds
    tested = summary.test_dice
    for name in (*map(_label, folds), "all", "95 %", *(["test"] if tested is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(
        summary.metric,
        *(_of(one, one["score"]) for one in folds),
        _all(summary, [])[0],
        interval(summary.low, summary.high),
        *([number(summary.test_score)] if tested is not None else []),
    )
    table.add_section()
    for name in run.exp.competition.classes:
        table.add_row(
            f"Dice {name}",
            *(_of(one, one["dice"].get(name)) for one in folds),
            _all(summary, [name])[1],
            interval(summary.dice_low.get(name), summary.dice_high.get(name)),
            *([number(tested.get(name))] if tested is not None else []),
        )
    table.add_section()
    table.add_row(
        "minutes",
        *(f"{one['minutes']:.1f}" for one in folds),
        f"{sum(one['minutes'] for one in folds):.1f}",
        f"{summary.cases} cases",
    )
    return table


def left_out(run: CvRun) -> str | None:
    """How many cases the scores do not speak of; None where they speak of all."""
    count = len(run.skipped)
    are = "is" if count == 1 else "are"
    return (
        f"{count} of {count + len(run.cases)} cases {are} left out (competition.on_bad_case: skip)" if count else None
    )


def _label(result: dict[str, Any]) -> str:
    """A fold's name, with its seed where that is not the first."""
    label = "full" if result["fold"] < 0 else str(result["fold"])
    return label + (f" seed {result['seed']}" if result["seed"] else "")


def _of(result: dict[str, Any], value: float | None) -> str:
    """A number of one fold; a fit on all cases validates nothing, so it has none."""
    return "" if result["fold"] < 0 else number(value)


def _all(summary: CvSummary, classes: list[str]) -> list[str]:
    """The numbers of all folds together: of the metric, then of the classes; none where nothing was validated."""
    if not summary.cases:
        return [""] * (1 + len(classes))
    return [number(summary.score), *(number(summary.dice.get(name)) for name in classes)]


def number(value: float | None) -> str:
    """Four digits; a class that is nowhere present is absent, not 0 or 1."""
    return "absent" if value is None else f"{value:.4f}"


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval."""
    return "" if low is None or high is None else f"{low:.3f}–{high:.3f}"
