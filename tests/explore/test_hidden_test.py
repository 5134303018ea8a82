"""A test set that the host keeps to itself: `cv`, `submit` and `explore` name the bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from competition.cli.train import _next_command
from competition.config.loading import load_competition
from competition.data.cases import case_table
from competition.errors import MaskfoldError
from competition.explore import explore
from tests.host import competition, pictures, write_text


@pytest.mark.parametrize(("tests", "command"), [(0, "export"), (2, "export"), (12, "submit")])
def test_a_hidden_test_set_needs_a_bundle(tmp_path: Path, tests: int, command: str) -> None:
    pictures(tmp_path, [f"c{number}" for number in range(60)])
    (tmp_path / "test").mkdir()
    for number in range(tests):
        shutil.copy(tmp_path / "images/c0.png", tmp_path / f"test/t{number}.png")
    comp = competition(tmp_path, test={"images": "test/{id}.png"}, submission={"sample": "s.csv"})
    assert _next_command(Path("mine.yaml"), comp, [], 60).startswith(f"Next: maskfold {command} mine.yaml")
    found = explore(comp)
    hints = [one.hint for one in found.remarks if one.kind == "files" and one.split == "test"]
    assert found.faults == [] and any("maskfold export" in hint for hint in hints) == (command == "export")
    if not tests:
        with pytest.raises(MaskfoldError, match=r"test\.images: .*`test/\{id\}\.png` matches no file") as caught:
            case_table(comp, "test")
        assert "maskfold export RUN" in caught.value.hint


def test_few_training_cases_have_few_test_cases(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c"])
    shutil.copytree(tmp_path / "images", tmp_path / "test")
    (tmp_path / "test/c.png").unlink()
    comp = competition(tmp_path, test={"images": "test/{id}.png"}, submission={"sample": "s.csv"})
    assert "maskfold submit" in _next_command(Path("mine.yaml"), comp, [], 3)
    assert not any("export" in one.hint for one in explore(comp).findings)


def test_classes_are_names(tmp_path: Path) -> None:
    file = write_text(
        tmp_path / "competition.yaml",
        "name: x\nroot: .\ndimensions: 2\nclasses: [1, 2, 4]\ntrain: {images: 'i/{id}.png', masks: 'm/{id}.png'}\n",
    )
    with pytest.raises(MaskfoldError, match=r"must be names, found \[1, 2, 4\]; .*label_values: \[1, 2, 4\]") as caught:
        load_competition(file)
    assert caught.value.status == 2 and "line 4" in caught.value.message
    load_competition(file, ["classes=[class_1, class_2, x]", "label_values=[1, 2, 4]"])


def test_a_class_in_all_of_few_cases_is_not_rare(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c", "d"])
    assert not [one for one in explore(competition(tmp_path)).findings if one.kind == "class"]
