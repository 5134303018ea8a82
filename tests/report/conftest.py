"""Fixtures and functions for tests of reports: finished runs without training, and a parser of HTML pages.

The runs have out-of-fold predictions derived from the true masks, and learning curves.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from competition.data.masks import load_mask
from competition.records import write_json
from competition.report.run import write_report
from competition.report.viewer import viewer_script
from competition.runs.fold import FoldResult
from competition.runs.oof import OofPredictions, OofStore
from competition.runs.run import Run
from competition.training.cross_validate import open_run, summarize_run
from competition.training.evaluator import Evaluator
from tests.finished_runs import copy_of_run, is_shared, nuclei, run_key, soft

__all__ = ["nuclei"]

Predict = Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]


def write_member(
    run: Run, fold: int, seed: int, score: float | None, curves: list[dict[str, float]], time: float
) -> Path:
    """Write the result and the metrics of one fold and seed, and return their folder.

    Args:
        run: the run.
        fold: number of the fold.
        seed: seed of the training.
        score: score of the fold.
        curves: metrics of each epoch.
        time: time stamp of the metrics.
    """
    folder = run.member_folder(fold, seed)
    folder.mkdir(parents=True)
    result = FoldResult(
        fold=fold,
        seed=seed,
        score=score,
        dice={},
        epochs=len(curves),
        steps=10,
        minutes=1.5,
        peak_gib=0.1,
        threads=1,
        precision="32-true",
        device="cpu",
        torch="2",
        stopped="done",
    )
    lines = [
        json.dumps({"step": epoch, "epoch": epoch, "time": time, "metrics": metrics})
        for epoch, metrics in enumerate(curves, 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_json(folder / "result.json", asdict(result))
    return folder


@pytest.fixture
def made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, once: Callable[..., Path], serial_scoring: None
) -> Callable[..., Run]:
    """`made(exp, noise=0.3)`: make a finished run in `tmp_path`, which becomes the working folder.

    See `_make` for the arguments.
    """
    monkeypatch.chdir(tmp_path)

    def make(
        exp: Any,
        name: str = "demo-tiny",
        noise: float = 0.3,
        predict: Predict | None = None,
        seed: int = 0,
        time: float = 1000.0,
    ) -> Run:
        def build() -> Run:
            return _make(exp, name, noise, predict, seed, time)

        if predict is not None or not is_shared(exp.competition.root):
            return build()
        return copy_of_run(tmp_path, build, once, f"made-{run_key(exp, name, noise, seed, time)}")

    return make


def _make(exp: Any, name: str, noise: float, predict: Predict | None, seed: int, time: float) -> Run:
    """Write a finished run with learning curves below the working folder, and return it.

    Args:
        exp: the experiment.
        name: name of the experiment in the run's path.
        noise: strength of the noise in the out-of-fold predictions, see `tests.finished_runs.soft`.
        predict: function that makes the predictions instead, from true mask, row of the case table, and generator.
        seed: seed of the noise.
        time: time stamp of the metrics.
    """
    run = open_run(exp, name)
    run.write()
    generator = np.random.default_rng(seed)
    for fold, member in run.members():
        shift = 0.05 * (fold + 2 * member)
        curves = [
            {
                "train/loss": 2.0 / epoch + shift,
                "lr": 0.1**epoch,
                "val/score": 0.1 * epoch + shift,
                **{f"val/dice{cls}": 0.1 * epoch + shift for cls in ("", *(f"/{c}" for c in exp.competition.classes))},
            }
            for epoch in (1, 2, 3)
        ]
        folder = write_member(run, fold, member, None if fold < 0 else 0.5, curves, time)
        if fold < 0:
            continue
        ids = run.folds.loc[run.folds["fold"] == fold, "id"]
        evaluator = Evaluator(
            exp, run.cases[run.cases["id"].isin(ids)], {}, torch.device("cpu"), torch.no_grad, lambda: None
        )
        store, lines = OofStore(folder / "oof", exp.inference.store), []
        for row in evaluator.iter_cases():
            truth = load_mask(exp.competition, row)
            store.write(
                row.id,
                soft(truth, exp.output_channels, noise, generator)
                if predict is None
                else predict(truth, row, generator),
            )
            lines += evaluator.score(store.read(row.id), row, fold)[0]
        pd.DataFrame(lines).to_csv(folder / "scores.csv", index=False)
    summarize_run(run)
    return run


class Page(HTMLParser):
    """Parse an HTML page into its text, tags, attributes, scripts, and the cells of its tables.

    Args:
        path: the HTML file.

    Attributes:
        source: content of the file.
        text: visible text.
        open: names of the tags that are open at the current position; empty at the end.
        tags: names of all tags.
        attributes: (tag, name, value) of all attributes.
        scripts: contents of the `script` tags.
        tables: for each table, its rows as lists of texts.
    """

    VOID = {"meta", "img", "br", "input"}

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.text, self.open, self.tags = "", [], []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(self.source)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "small" and self.tables and "td" in self.open:
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        if "script" in self.open:
            self.scripts.append(data)
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def rows(self, first: str, *header: str) -> list[dict[str, str]]:
        """Return table rows as dictionaries: those whose first cell is `first`, in tables with the columns `header`."""
        return [
            dict(zip(table[0], row, strict=True))
            for table in self.tables
            if set(header) <= set(table[0])
            for row in table[1:]
            if row[0] == first
        ]


def check_self_contained(page: Page) -> None:
    """Check that a browser would load nothing for the page, and would run nothing but the script of the viewer."""
    assert not {"link", "iframe", "object", "embed", "base", "form", "audio", "video", "source"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert value.startswith("data:image/png;base64," if tag == "img" else "#"), (tag, value[:80])
        assert name != "style"
    styles = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in styles and "@import" not in styles
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if page.scripts:  # the viewer's data, which the browser does not run, and its script
        data, script = page.scripts
        assert ("script", "type", "application/json") in page.attributes and json.loads(data)["cases"]
        assert all(case["image"].startswith("data:image/jpeg;base64,") for case in json.loads(data)["cases"])
        assert script == str(viewer_script())
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    assert page.tags.count("script") == len(page.scripts)
    assert ("meta", "content", policy) in page.attributes


def report(run: Run) -> Page:
    """Write and parse the page of a run; check that it is self-contained and embeds the PNGs of its folder."""
    page = Page(write_report(run, run.folder / "report.html"))
    check_self_contained(page)
    inside = {
        base64.b64decode(value.partition(",")[2])
        for tag, name, value in page.attributes
        if (tag, name) == ("img", "src")
    }
    assert inside == {path.read_bytes() for path in (run.folder / "report").glob("*.png")}
    return page


def slow_dice(run: Run) -> pd.DataFrame:
    """Return the Dice of each case and class, calculated from the stored probabilities and the true masks."""
    oof, found = OofPredictions(run), []
    for row in oof.cases.itertuples(index=False):
        truth, best = load_mask(run.exp.competition, row)[0], oof.read(row.id).argmax(axis=0)
        for index, name in enumerate(run.exp.competition.classes, 1):
            total = int((truth == index).sum() + (best == index).sum())
            found.append(
                (
                    row.id,
                    oof.fold_of[row.id],
                    name,
                    2 * int(((truth == index) & (best == index)).sum()) / total if total else np.nan,
                )
            )
    return pd.DataFrame(found, columns=["id", "fold", "class", "dice"])
