"""`maskfold review` writes a page and a CSV, keeps answers, and refuses files that it would overwrite."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from competition.cli.train import review_command
from competition.errors import MaskfoldError
from tests.report.conftest import Page, check_self_contained
from tests.review.conftest import PlantedRun


def test_page_and_table(planted: PlantedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, page = [str(planted.run.folder)], tmp_path / "reports" / "review.html"
    review_command(words, page, 3, ())
    shown = capsys.readouterr().out
    assert "of 40 cases: " in shown and "exchanged masks" in shown and f"competition.train.exclude={tmp_path}" in shown
    with (tmp_path / "reports" / "review.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows[:10]} & set(planted.planted)) >= 9
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    parsed = Page(page)
    check_self_contained(parsed)
    assert len(list((tmp_path / "reports" / "review").glob("finding_*.png"))) == 3 == parsed.tags.count("img")
    assert all(row["id"] in parsed.text for row in rows[:10])
    with (tmp_path / "reports" / "review.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([rows[0] | {"exclude": "x"}, *rows[1:]])
    review_command(words, page, 0, ())
    assert "The answers for 1 case that were already in " in capsys.readouterr().out


def test_refusals(planted: PlantedRun, tmp_path: Path) -> None:
    words = [str(planted.run.folder)]
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    for output, message in (
        (tmp_path / "page.csv", "expected a file name that ends in .html"),
        (tmp_path / "mine.html", "mine.csv has no column `id`"),
    ):
        with pytest.raises(MaskfoldError, match=message) as caught:
            review_command(words, output, 0, ())
        assert caught.value.status == 2
    with pytest.raises(MaskfoldError, match="found 2 runs, expected 1"):
        review_command([*words, "other"], None, 0, ())
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"
