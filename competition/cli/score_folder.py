"""Run `maskfold score FOLDER --truth FOLDER`, and print the scores of a folder of label files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from rich.console import Console

from competition.cli.console import format_columns, format_interval, progress_bar
from competition.errors import MaskfoldError
from competition.records import finite_or_none
from competition.text import and_more, format_count, format_number

if TYPE_CHECKING:
    from competition.submission.folder_score import FolderScores

MAX_ROWS = 30  # maximum number of rows of cases that are printed
MISSING = ("error", "skip", "empty")


def score_folder_command(
    predictions: Path,
    truth: Path,
    metrics: str,
    tolerances: str,
    classes: str | None,
    ignore: int | None,
    dimensions: int | None,
    missing: str,
    output: Path | None,
    trust: tuple[str, ...],
) -> None:
    """Run `maskfold score FOLDER --truth FOLDER`; see `competition.cli.commands_submit.score` for the arguments."""
    if missing not in MISSING:
        raise MaskfoldError(
            f"--missing: found {missing}, expected one of {', '.join(MISSING)}.", "Correct --missing.", status=2
        )
    if output is not None and (output.is_dir() or output.suffix.lower() not in (".csv", ".tsv")):
        raise MaskfoldError(
            f"--output: found {output}, expected the name of a CSV file.", "Write for example -o scores.csv.", status=2
        )
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    limits = _parse_tolerances(tolerances)

    from competition.submission.folder_score import score_folder

    console = Console(highlight=False)
    scores = score_folder(
        predictions,
        truth,
        names,
        tolerances=limits,
        classes=classes,
        ignore=ignore,
        dimensions=dimensions,
        missing=cast(Literal["error", "skip", "empty"], missing),
        trust=trust,
        progress=progress_bar(console, "cases scored"),
    )
    for line in (*_case_lines(scores), "", *_summary_lines(scores), *_missing_lines(scores, missing)):
        console.print(line, soft_wrap=True, markup=False)
    if output is not None:
        from competition.tables import write_table

        output.parent.mkdir(parents=True, exist_ok=True)
        write_table(scores.table, output)
        console.print(f"{output}: scores of each case and class", soft_wrap=True, markup=False)


def _parse_tolerances(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value < float("inf") for value in values):
        raise MaskfoldError(
            f"--tolerances: found {text}, expected one or more lengths in mm, separated by commas.",
            "Write for example --tolerances 1,2,5.",
            status=2,
        )
    return values


def _case_lines(scores: FolderScores) -> list[str]:
    """Return the lines of a table with one row per case and class.

    If there are more than `MAX_ROWS` rows, only the rows with the worst values of the first metric are shown.
    """
    table, first = scores.table, next(iter(scores.metrics))
    rows = table
    title = []
    if len(table) > MAX_ROWS:
        direction = scores.metrics[first].direction
        order = table[first].map(direction.rank).where(table[first].notna()).sort_values(kind="stable")
        rows = table.loc[order.index[:MAX_ROWS]]
        title = [
            f"The {MAX_ROWS} rows with the worst {first}, of {len(table)} rows (to save all rows, add -o scores.csv)"
        ]
    cells = [
        [str(row["id"]), str(row["class"]), *(_number(row[name]) for name in scores.metrics)]
        for row in rows.to_dict("records")
    ]
    return title + format_columns(["case", "class", *scores.metrics], cells)


def _summary_lines(scores: FolderScores) -> list[str]:
    """Return lines with each metric's mean over the cases and its 95 % interval.

    The lines form a table with one row per class. If there are several classes, a last row has the means over all
    pairs of case and class.
    """
    rows = []
    classes = scores.classes
    for cls in [*classes, ""] if len(classes) > 1 else classes:
        estimates = [scores.estimate(name, cls) for name in scores.metrics]
        values = [
            f"{_number(mean)} {format_interval(finite_or_none(low), finite_or_none(high))}".strip()
            for mean, low, high, _ in estimates
        ]
        rows.append([cls or "all", str(max(count for *_, count in estimates)), *values])
    header = ["class", "cases", *(_label(scores, name) for name in scores.metrics)]
    return [
        *format_columns(header, rows),
        "Means with 95 % intervals, over the cases in which the prediction or the truth has the class",
    ]


def _number(value: float) -> str:
    return format_number(finite_or_none(value))


def _label(scores: FolderScores, column: str) -> str:
    from competition.config.metric import Direction

    return column if scores.metrics[column].direction is Direction.HIGHER else f"{column} (lower is better)"


def _missing_lines(scores: FolderScores, missing: str) -> list[str]:
    lines = []
    for ids, kind, lack in ((scores.missing, "case", "a prediction"), (scores.extra, "prediction", "truth")):
        done = "scored as empty" if missing == "empty" and ids is scores.missing else "left out"
        if ids:
            names = f"{', '.join(ids[:5])}{and_more(len(ids), 5, 'id')}"
            lines.append(f"warning: {format_count(len(ids), kind)} without {lack}, {done}: {names}")
    return lines
