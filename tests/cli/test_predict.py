"""What `maskfold predict` prints, and which options `maskfold score` refuses for a CSV."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from competition.cli.submit import predict_command
from competition.errors import MaskfoldError


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


@pytest.mark.parametrize("words", [["--ignore", "255"], ["--missing", "skip", "--metrics", "dice"], ["--classes", "1"]])
def test_options_for_label_files_are_refused_for_a_csv(tmp_path: Path, words: list[str]) -> None:
    from competition.cli.commands_submit import score

    names = {word.removeprefix("--"): value for word, value in zip(words[::2], words[1::2], strict=True)}
    options: dict[str, Any] = {"metrics": "dice,hd95,nsd", "tolerances": "1,2,3", "missing": "error", **names}
    with pytest.raises(MaskfoldError, match=f"{words[0]}.* no effect on the score of a CSV") as refusal:
        score(tmp_path / "a.csv", competition=tmp_path / "competition.yaml", **options)
    assert refusal.value.status == 2
