"""What `maskfold predict` prints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from competition.cli.submit import predict_command


@pytest.mark.parametrize(("count", "last"), [(5, None), (6, "and 1 more case"), (8, "and 3 more cases")])
def test_a_shortened_list_says_how_many_cases_it_leaves_out(
    count: int, last: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = SimpleNamespace(exp=SimpleNamespace(competition=SimpleNamespace(dimensions=2)))
    found = [SimpleNamespace(files=[Path(f"out/a{number}.png")], pixels={"cell": 7}) for number in range(count)]
    monkeypatch.setattr("competition.runs.find.find_run", lambda *_: run)
    monkeypatch.setattr("competition.submission.label_files.predict_images", lambda *_, **__: found)
    predict_command(["run"], Path("images"), Path("out"), 0, ())
    said = capsys.readouterr().out.splitlines()
    shown = [line for line in said if line.startswith("out/a")]
    assert shown == [f"out/a{number}.png: pixels per class: cell 7" for number in range(min(5, count))]
    assert said[-2] == (last or shown[-1]) and said[-1] == f"{count} cases, {count} files in out"
