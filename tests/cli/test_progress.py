"""The bars of running folds on a terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from competition.cli.console import progress_bar
from competition.cli.progress import FoldBars
from competition.training.fold_process import LogTail
from competition.training.timing.progress import BAR_MARK, BAR_VARIABLE, wants_bar


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
    (tmp_path / "fold_0" / "output.txt").write_text(f"{BAR_MARK}0.9 of an earlier process\n")
    return SimpleNamespace(members=lambda: [(0, 0), (1, 0)], member_folder=lambda fold, seed: tmp_path / f"fold_{fold}")


def write(folder: Path, line: str) -> None:
    with open(folder / "output.txt", "a") as file:
        file.write(f"{line}\n")


def test_a_bar_follows_each_running_fold(run, tmp_path):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    with FoldBars(run, console) as bars:
        assert wants_bar()
        bars.update()
        assert not bars._tasks
        write(tmp_path / "fold_0", f"{BAR_MARK}0.2500 step 5 of about 20")
        write(tmp_path / "fold_1", "12 cases")
        bars.update()
        (task,) = bars._progress.tasks
        assert (task.fields["fold"], task.completed, task.description) == ("fold_0", 0.25, "step 5 of about 20")
        (tmp_path / "fold_0" / "result.json").touch()
        bars.update()
        assert not bars._progress.tasks
    assert BAR_VARIABLE not in os.environ and "fold_0" in shown.getvalue()


def test_no_bar_where_the_output_is_a_file(run):
    shown = io.StringIO()
    with FoldBars(run, Console(file=shown)) as bars:
        assert not wants_bar()
        bars.update()
    assert shown.getvalue() == ""


def test_lines_of_the_bar_are_not_lines_for_the_user(tmp_path):
    said: list[str] = []
    tail = LogTail(SimpleNamespace(folder=tmp_path), said.append)
    write(tmp_path, f"{BAR_MARK}0.25 step 5 of 20")
    write(tmp_path, "epoch 1")
    tail.read()
    assert said == [f"{tmp_path.name} | epoch 1"]


@pytest.mark.parametrize(
    ("count", "lines"), [(3, ["1 of 3", "2 of 3", "3 of 3"]), (25, ["2 of 25", "24 of 25", "25 of 25"])]
)
def test_lines_of_progress_end_with_the_last_case(count: int, lines: list[str]) -> None:
    console = Console(file=io.StringIO(), width=80)
    assert list(progress_bar(console, "cases read")(iter(range(count)), count)) == list(range(count))
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [said[0], said[-2], said[-1]] == [f"{line} cases read" for line in lines]
