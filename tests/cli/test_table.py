"""The final table of a run contains every fold, class and interval."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from competition.cli.console import _fold_label, cv_table
from competition.training.cross_validate import CvSummary


def shown(classes: list[str], width: int = 80, skipped: tuple[tuple[str, str], ...] = (), **more: Any) -> str:
    """Return the table of two folds as in a log; the second class is absent from the second fold."""
    folds = [
        {
            "fold": fold,
            "seed": 0,
            "score": 0.5 + fold / 10,
            "minutes": 1.5,
            "dice": {
                name: None if (fold, place) == (1, 1) else 0.1 * place + fold / 100
                for place, name in enumerate(classes)
            },
        }
        for fold in (0, 1)
    ]
    summary = CvSummary(
        "dice",
        0.5678,
        0.4321,
        0.6543,
        dict.fromkeys(classes, 0.7654),
        dict.fromkeys(classes, 0.111),
        dict.fromkeys(classes, 0.999),
        12,
        folds,
        **more,
    )
    run: Any = SimpleNamespace(
        name="mine-net",
        skipped=list(skipped),
        cases=range(7),
        exp=SimpleNamespace(competition=SimpleNamespace(classes=classes), seeds=[7]),
        member_folder=lambda fold, seed: SimpleNamespace(name=f"fold_{fold}"),
    )
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(cv_table(summary, run))
    return console.export_text()


def test_few_classes_are_columns() -> None:
    text = shown(["left", "right"], width=120)
    assert [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")] == [
        "0",
        "1",
        "all",
        "95 %",
    ]
    assert "Dice left" in text and "fold_1" in text and "0.432–0.654" in text and text.count("absent") == 1


def test_many_classes_are_rows_within_80_columns() -> None:
    classes = ["body", "bone", "bladder", "rectum", "prostate"]
    text = shown(classes, test_dice={**dict.fromkeys(classes, 0.25), "rectum": None}, test_score=0.3333)
    assert "…" not in text
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in text.splitlines()
        if line.startswith("│")
    }
    assert list(rows) == ["dice", *(f"Dice {name}" for name in classes), "minutes"]
    assert rows["dice"] == ["0.5000", "0.6000", "0.5678", "0.432–0.654", "0.3333"]
    assert rows["Dice bone"] == ["0.1000", "absent", "0.7654", "0.111–0.999", "0.2500"]
    assert rows["Dice rectum"][-1] == "absent"
    assert rows["minutes"][:4] == ["1.5", "1.5", "3.0", "12 cases"]


def test_skipped_cases_are_below_the_table() -> None:
    for classes in (["left"], ["body", "bone", "bladder", "rectum", "prostate"]):
        assert "skipped" not in shown(classes)
        text = shown(classes, width=120, skipped=(("a", "cut"), ("b", "cut")))
        assert "2 of 9 cases are skipped (competition.on_bad_case: skip)" in text


def test_folds_and_seeds_are_named_by_the_seed_itself() -> None:
    """The rows of the folds and the rows of the seeds below them name the same seeds."""
    assert _fold_label({"fold": 2, "seed": 0}, [7]) == "2"
    assert [_fold_label({"fold": 2, "seed": place}, [7, 9]) for place in (0, 1)] == ["2 seed 7", "2 seed 9"]
    assert _fold_label({"fold": -1, "seed": 1}, [7, 9]) == "full seed 9"
