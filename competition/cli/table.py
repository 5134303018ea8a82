"""The table at the end of a run: fold × class, mean, interval, minutes, checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from competition.training.cv import CvSummary
    from competition.training.runs import CvRun


def cv_table(summary: CvSummary, run: CvRun) -> Table:
    """Rows are the folds, then all out-of-fold cases together with their 95 % intervals."""
    classes = run.exp.competition.classes
    table = Table(title=f"{run.name}: {summary.metric} and Dice per class, out of fold")
    table.add_column("fold")
    for name in (summary.metric, *(f"Dice {name}" for name in classes), "minutes"):
        table.add_column(name, justify="right", no_wrap=len(classes) < 4)
    table.add_column("checkpoint")
    for result in summary.folds:
        label = "full" if result["fold"] < 0 else str(result["fold"])
        label += f" seed {result['seed']}" if result["seed"] else ""
        dice = [number(result["dice"].get(name)) for name in classes]
        folder = run.member_folder(result["fold"], result["seed"]).name
        table.add_row(label, number(result["score"]), *dice, f"{result['minutes']:.1f}", folder)
    table.add_section()
    minutes = sum(result["minutes"] for result in summary.folds)
    table.add_row("all", number(summary.score), *(number(summary.dice.get(name)) for name in classes),
                  f"{minutes:.1f}", f"{summary.cases} cases")
    table.add_row("95 %", interval(summary.low, summary.high),
                  *(interval(summary.dice_low.get(name), summary.dice_high.get(name)) for name in classes), "", "")
    if summary.test_dice is not None:
        table.add_row("test", "", *(number(summary.test_dice.get(name)) for name in classes), "", "held-out share")
    return table


def number(value: float | None) -> str:
    """Four digits; a class that is nowhere present is absent, not 0 or 1."""
    return "absent" if value is None else f"{value:.4f}"


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval."""
    return "" if low is None or high is None else f"{low:.3f}–{high:.3f}"
