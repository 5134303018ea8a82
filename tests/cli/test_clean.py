"""`maskfold clean` lists, asks, and deletes only what it listed and what nothing has named since."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from competition.cli import clean as clean_module
from competition.cli.clean import clean_command, format_bytes
from competition.cli.main import main
from tests.cleaning.conftest import Make, make_run, project
from tests.cleaning.test_candidates import OLD, in_submission

__all__ = ["make_run", "project"]


def call(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["maskfold", "clean", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_it_lists_and_deletes_only_with_consent(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(OLD)
    other = make_run("1" * 12)
    in_submission(other, make_run)
    assert call("--dry-run", monkeypatch=monkeypatch) == 0
    listed = capsys.readouterr().out
    for words in (f"unfinished run  {run}", "60 days ago", "1 of its 2 folds is finished", "nothing was deleted"):
        assert words in listed
    assert f"kept: {other}, because the submission submissions/demo2d/tiny.json names it" in listed
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert call(monkeypatch=monkeypatch) == 2 and "--yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("competition.cli.console.typer.confirm", lambda question: False)
    assert call(monkeypatch=monkeypatch) == 1 and "Nothing was deleted" in capsys.readouterr().err
    assert run.exists()
    assert call("--yes", monkeypatch=monkeypatch) == 0 and "Freed" in capsys.readouterr().out
    assert not run.exists() and other.exists()
    assert call("--yes", monkeypatch=monkeypatch) == 0 and "Nothing to delete" in capsys.readouterr().out
    assert call("--older-than", "soon", monkeypatch=monkeypatch) == 2


def test_a_run_that_a_submission_names_before_the_answer_stays(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(OLD)
    monkeypatch.setattr(clean_module, "confirm_or_exit", lambda *_: in_submission(run, make_run))
    clean_command(dry_run=False, older_than="30d", keep_best=None, yes=False)
    assert run.exists() and f"kept: {run}, because" in capsys.readouterr().out


def test_a_project_without_runs_has_nothing_to_delete(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch=monkeypatch) == 0
    assert "Nothing to delete" in capsys.readouterr().out and os.listdir(project) == []


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.5 KiB"), (48 * 2**20, "48 MiB"), (2**41, "2,048 GiB")],
)
def test_sizes_have_a_unit(size: int, text: str) -> None:
    assert format_bytes(size) == text
