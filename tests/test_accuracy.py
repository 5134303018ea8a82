"""`benchmarks/accuracy.py`: its table, its resumption, and all recipes at the smallest size."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from competition.config.competition import Competition
from competition.config.loading import load_competition
from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "accuracy.py"


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def demo() -> Competition:
    return load_competition(ROOT / "experiments" / "demo2d" / "competition.yaml")


def row(recipe: str, scores: list[float], fold: int = 0, seed: int = 0, **words: Any) -> dict[str, Any]:
    cases = [
        {"id": f"{fold}-{number}", "class": "ring", "score": score, "dice": score}
        for number, score in enumerate(scores)
    ]
    keys = {"data": "demo2d", "recipe": recipe, "digest": "", "minutes": 3.0, "seed": seed, "fold": fold}
    return {**keys, "steps": 10, "processor_seconds": 90.0, "wall_seconds": 99.0, "cases": cases, **words}


def test_the_table_compares_with_the_default_case_by_case(accuracy: ModuleType) -> None:
    rows = [
        row("other", [0.6, 0.7, 0.8], processor_seconds=80.0),
        row("init", [0.5, 0.6, 0.9]),
        row("init", [0.4, 0.4, 0.4], fold=1),  # the other recipe has not run this fold
    ]
    _, _, first, second = accuracy.table_lines(rows, {"demo2d": demo()})
    assert [cell.strip() for cell in first.split("|")][1:5] == ["demo2d", "3", "init", "0.5333"]
    cells = [cell.strip() for cell in second.split("|")]
    assert cells[3:5] == ["other", "0.7000"] and cells[5].startswith("+0.0333 (")
    assert cells[6:9] == ["2, 1 of 3", "10", "80"]


def test_each_seed_counts_and_only_the_newest_content(accuracy: ModuleType) -> None:
    rows = [
        row("init", [0.5, 0.5]),
        row("init", [0.7, 0.7], seed=1),
        row("mine", [0.1, 0.1], digest="old"),
        row("mine", [0.6, 0.6], digest="new"),
        row("mine", [0.8, 0.8], digest="new", seed=1),
    ]
    _, _, first, second = accuracy.table_lines(rows, {"demo2d": demo()})
    assert "| 0.6000 |" in first and "| 0.7000 | +0.1000 (" in second and "4, 0 of 4" in second


def test_a_line_that_was_cut_off_is_ignored_and_kept_apart(accuracy: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    accuracy.append_row(path, row("init", [0.5]))
    path.write_bytes(path.read_bytes() + b'{"data": "demo2')
    assert len(accuracy.read_rows(path)) == 1
    accuracy.append_row(path, row("init", [0.6], fold=1))
    assert [one["fold"] for one in accuracy.read_rows(path)] == [0, 1]


def test_finished_folds_are_not_run_again(
    accuracy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, float, int]] = []

    def result(fold: int) -> dict[str, Any]:
        return {key: value for key, value in row("", [0.5, 0.6], fold).items() if key not in accuracy.KEYS}

    def run_own(data: Any, recipe: Any, minutes: float, seed: int, fold: int, work: Path) -> Any:
        calls.append((recipe.name, minutes, fold))
        return {**result(fold), "processor_seconds": 70.0 + fold}

    def run_rival(data: Any, recipe: Any, seconds: float, seed: int, fold: int, work: Path) -> Any:
        calls.append((recipe.name, seconds, fold))
        if fold == 1 and len(calls) < 5:
            raise RuntimeError("out of luck")
        return result(fold)

    comp = demo()
    monkeypatch.setattr(accuracy, "run_own", run_own)
    monkeypatch.setattr(accuracy, "run_rival", run_rival)
    monkeypatch.setattr(accuracy, "open_data", lambda name, *_: accuracy.Data(name, SCRIPT, comp, SCRIPT))
    words = ["accuracy.py", "--data", "demo2d", "--recipes", "hand_tuned", "init", "-w", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert accuracy.main() == 1
    # The rival gets the processor seconds of the default on the same fold.
    assert calls == [("init", 3.0, 0), ("hand_tuned", 70.0, 0), ("init", 3.0, 1), ("hand_tuned", 71.0, 1)]
    assert "hand_tuned, fold 1: failed: out of luck" in capsys.readouterr().out
    assert accuracy.main() == 0 and calls[4:] == [("hand_tuned", 71.0, 1)]
    monkeypatch.setattr(sys, "argv", [*words, "--table"])
    assert accuracy.main() == 0 and len(calls) == 5
    assert capsys.readouterr().out.count("| demo2d |") == 2 * 2


@pytest.mark.parametrize("word", ["nonsense", "mine=missing.yaml"])
def test_an_unknown_recipe_is_named(accuracy: ModuleType, word: str) -> None:
    with pytest.raises(SystemExit, match=word.partition("=")[2] or "found nonsense, expected init, hand_tuned"):
        accuracy.parse_recipe(word)


@pytest.mark.slow  # each recipe trains a network
@pytest.mark.timeout(1200)  # minutes on a busy machine
@pytest.mark.parametrize("name", ["demo2d", "demo3d"])
def test_all_recipes_at_the_smallest_size(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--data", name, "--small", "-w", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [one["recipe"] for one in rows] == ["init", "monai_tutorial", "hand_tuned"]
    ids = [{case["id"] for case in one["cases"]} for one in rows]
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) == 4 and all(one["steps"] >= 4 for one in rows)
    assert all(f"| {one['recipe']} |" in done.stdout for one in rows)
