"""`result.json` selects the weights for all: the score, submissions, models and reports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from competition.config.competition import MetricConfig
from competition.data.masks import load_mask
from competition.export.mlflow_model import write_predictor_folder
from competition.export.predictor import Predictor
from competition.records import write_json
from competition.runs.checkpoint import save_weights
from competition.runs.fold import FoldResult
from competition.runs.oof import OofPredictions, OofStore
from competition.training.cross_validate import summarize_run
from competition.training.evaluator import Evaluator
from competition.training.soup_selection import compare_soup, format_soup
from tests.finished_runs import soft

# The rule

DICE = MetricConfig(name="dice")


def rows(scores: np.ndarray) -> pd.DataFrame:
    """Score rows of one class, one case per number."""
    return pd.DataFrame(
        {
            "id": [f"c{number}" for number in range(len(scores))],
            "fold": 0,
            "class": "ring",
            "score": scores,
            "dice": scores,
        }
    )


def planted(gains: list[float], noise: float, size: int = 30) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Scores without and with a soup that gains this much in each fold."""
    generator = np.random.default_rng(1)
    plain = generator.uniform(0.4, 0.8, size * len(gains))
    soup = plain + np.repeat(gains, size) + noise * generator.normal(size=len(plain))
    return rows(plain), rows(soup), {f"c{number}": number // size for number in range(len(plain))}


def test_a_soup_that_helps_is_kept_and_one_that_hurts_or_changes_nothing_is_dropped():
    helps = compare_soup(*with_metric(planted([0.05, 0.04, 0.06], 0.02)))
    assert helps["kept"] and helps["chosen"] == [0, 1, 2] and helps["nested"] == helps["soup"]
    assert helps["low"] > 0 and helps["gain"] == pytest.approx(0.05, abs=0.01)
    for gains in ([-0.05, -0.04, -0.06], [0.0, 0.0, 0.0]):
        found = compare_soup(*with_metric(planted(gains, 0.05)))
        assert not found["kept"] and found["chosen"] == [] and found["nested"] == found["plain"]


def with_metric(found):
    plain, soup, part_of = found
    return plain, soup, DICE, part_of, 3


def test_nested_each_fold_follows_the_others():
    """In fold 0 the soup is far better, in fold 1 worse: each fold follows the other, which is wrong twice."""
    plain, soup, part_of = planted([0.2, -0.1], 0.01)
    found = compare_soup(plain, soup, DICE, part_of, 3)
    assert found["chosen"] == [1]
    by_hand = np.mean([*plain["score"][:30], *soup["score"][30:]])
    assert found["nested"] == pytest.approx(by_hand, abs=1e-12)
    assert found["soup"] == pytest.approx(soup["score"].mean(), abs=1e-12) and found["nested"] < found["plain"]
    assert found["gain"] == pytest.approx((soup["score"] - plain["score"]).mean(), abs=1e-12)


def test_too_few_cases_for_an_interval_keep_the_plain_weights():
    plain, soup = rows(np.array([0.1])), rows(np.array([0.9]))
    found = compare_soup(plain, soup, DICE, {"c0": 0}, 3)
    assert not found["kept"] and found["low"] is None and found["nested"] == 0.1
    assert "selected: the last weights" in format_soup({"k": 2, "flattered": 0.9, "members": 0.9, **found})[-1]


# A run


def add_soup(run, noise: float) -> None:
    """Give each finished member a soup of other weights whose predictions have the given noise."""
    generator = np.random.default_rng(9)
    for fold, seed in run.members():
        folder = run.member_folder(fold, seed)
        result = FoldResult.read(folder)
        save_weights(
            folder / "soup.safetensors",
            {name: tensor * 0.5 for name, tensor in load_file(folder / "weights.safetensors").items()},
        )
        cases = run.cases[run.cases["id"].isin(run.folds.loc[run.folds["fold"] == fold, "id"])]
        judge = Evaluator(run.exp, cases, {}, torch.device("cpu"), torch.no_grad, lambda: None)
        store, lines = OofStore(folder / "soup_oof", run.exp.inference.store), []
        for row in judge.iter_cases():
            store.write(row.id, soft(load_mask(run.exp.competition, row), run.exp.output_channels, noise, generator))
            lines += judge.score(store.read(row.id), row, fold)[0]
        table = pd.DataFrame(lines)
        table.to_csv(folder / "soup_scores.csv", index=False)
        found = {
            "epochs": [1, 2],
            "score": float(table["score"].mean()),
            "dice": {"ring": 0.7},
            "flattered": 0.99,
            "plain": {"score": result.score, "dice": result.dice},
        }
        write_json(folder / "result.json", replace(result, soup=found).__dict__)


@pytest.mark.parametrize("seed", ["7", "[7, 8]"])
def test_a_soup_that_is_kept_predicts_everywhere_and_one_that_is_dropped_nowhere(finished, tiny, seed, tmp_path):
    run = finished(tiny(2, "training.soup=2", f"seed={seed}"), noise=1.2)
    before = summarize_run(run)
    assert before.soup is None
    add_soup(run, noise=0.0)  # the truth itself: every case gains
    summary = summarize_run(run)
    assert (
        summary.soup["kept"] and summary.soup["plain"] == pytest.approx(before.score) and summary.score > before.score
    )
    assert summary.score == pytest.approx(summary.soup["soup"]) and summary.soup["flattered"] == pytest.approx(0.99)
    assert {one.path.name for one in run.checkpoints()} == {"soup.safetensors"}
    results = [FoldResult.read(run.member_folder(*member)) for member in run.members()]
    assert [one.score for one in results] == [one.soup["score"] for one in results]
    case, folders = run.cases["id"].iloc[0], [run.member_folder(*member) for member in run.members()]
    mine = [folder for folder in folders if OofStore(folder / "oof").path(case).exists()]
    mean = np.mean([OofStore(folder / "soup_oof").read(case).astype(np.float64) for folder in mine], axis=0)
    np.testing.assert_allclose(OofPredictions(run).read(case), mean, atol=1e-3)
    write_predictor_folder(run, tmp_path / "packed")
    assert sorted(path.name for path in (tmp_path / "packed" / "fold_0").iterdir()) == [
        "result.json",
        "soup.safetensors",
    ]
    Predictor(tmp_path / "packed").predict([np.zeros((32, 32), np.uint8)])  # it finds its weights
    written = {folder: (folder / "result.json").stat().st_mtime_ns for folder in folders}
    assert summarize_run(run) == summary
    assert {folder: (folder / "result.json").stat().st_mtime_ns for folder in folders} == written  # nothing new to say
    worse(run)
    again = summarize_run(run)
    assert not again.soup["kept"] and again.score == pytest.approx(before.score)
    assert {one.path.name for one in run.checkpoints()} == {"weights.safetensors"}
    assert [FoldResult.read(folder).score for folder in folders] == [0.5] * len(folders)
    assert json.loads((run.folder / "summary.json").read_text())["soup"]["kept"] is False


def worse(run) -> None:
    """The soups' predictions become noise."""
    for fold, seed in run.members():
        folder = run.member_folder(fold, seed)
        shutil.rmtree(folder / "soup_oof")
        write_json(
            folder / "result.json",
            replace(FoldResult.read(folder), soup=None, weights="weights.safetensors", score=0.5, dice={}).__dict__,
        )
    add_soup(run, noise=3.0)


def test_the_page_tells_of_it(finished, tiny, tmp_path):
    from competition.report.results import RunResults
    from competition.report.scores import scores_section

    run = finished(tiny(2, "training.soup=2", "seed=[7, 8]"), noise=1.2)
    add_soup(run, noise=0.0)
    summarize_run(run)
    (tmp_path / "page").mkdir()
    text = str(scores_section(RunResults.load(run), Path(tmp_path / "page")))
    assert "soup of the 2 best checkpoints" in text and "selected: the soups" in text and "2 seeds:" in text
