"""The scripts in `benchmarks/` run, use public functions only, and compare what is the same."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.warm import WarmProcesses

FOLDER = ROOT / "benchmarks"


def run_script(warm: WarmProcesses, folder: Path, name: str, *words: str) -> str:
    """Run a script to its end; return what it printed."""
    process = warm.start("tests.forked:script", FOLDER / name, *words, cwd=folder)
    said, errors = process.communicate(280)
    assert process.returncode == 0, errors[-2000:]
    return said


def test_the_table_of_ratios_at_the_smallest_sizes(tmp_path: Path, warm: WarmProcesses) -> None:
    before = sorted(FOLDER.rglob("*.md"))
    said = run_script(warm, tmp_path, "all.py", "--small")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "|" in line]
    header, _, *table = rows
    assert header == ["what", "Maskfold, ms", "rival", "rival, ms", "ratio"]
    rivals = {row[2] for row in table}
    assert {"MONAI", "MONAI, buffer_steps=1", "MONAI, one by one", "pycocotools", "Kaggle's snippet"} <= rivals
    extra = {"batchgeneratorsv2, nnU-Net's list, one by one", "fill_voids", "edt"}
    assert extra | {"scipy", "cc3d largest_k"} <= rivals
    assert len(table) == 2 * 2 * 2 + 2 + 2 * (2 + 2 + 2) + 2 * 2
    for row in table:
        is_missing = row[3] == "not installed"
        assert float(row[1]) > 0 and (row[4] == "" if is_missing else float(row[4]) > 0)
        assert not is_missing or row[2] in extra
    assert "cores" in said and "torch " in said
    assert sorted(FOLDER.rglob("*.md")) == before  # only a whole measurement is saved


def test_the_tables_of_growth_at_the_smallest_sizes(tmp_path: Path, warm: WarmProcesses) -> None:
    said = run_script(warm, tmp_path, "scale.py", "--cases", "10", "20", "--runs", "1", "3", "--trials", "2", "4")
    rows = {line.split("|")[1].strip(): line.count("|") for line in said.splitlines() if line.startswith("| ")}
    assert {"processor seconds for cases", "processor seconds for runs", "processor seconds for trials"} <= rows.keys()
    assert {"prepare the cases", "predict and score out of fold", "compare two runs"} <= rows.keys()
    assert {
        "predict the test images and write the CSV",
        "find the latest run by its YAML",
        "read the ledger",
    } <= rows.keys()
    assert {"open the study", "find the best trial", "draw the next trial", "write `trials.json`"} <= rows.keys()
    assert set(rows.values()) == {5} and "peak memory" in said  # each row has two times and their growth


@pytest.mark.parametrize("script", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_a_script_imports_names_that_exist_and_are_public(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "competition":
            for alias in node.names:
                assert not alias.name.startswith("_"), f"{script.name} imports {alias.name}"
                module = __import__(str(node.module), fromlist=[alias.name])
                assert hasattr(module, alias.name), f"{script.name}: {node.module} has no {alias.name}"


@pytest.mark.parametrize(
    ("script", "words", "printed"),
    [
        ("networks.py", ["--small"], "optimizer, "),
        ("preparation.py", ["4", "8"], "in the cache"),
        ("objects.py", ["--smallest"], "check µs a row"),
    ],
)
def test_a_script_runs_at_its_smallest_size(
    tmp_path: Path, warm: WarmProcesses, script: str, words: list[str], printed: str
) -> None:
    assert printed in run_script(warm, tmp_path, script, *words)
