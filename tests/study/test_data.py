"""A study belongs to the data that its trials were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from competition.errors import ChangedDataError
from competition.study.promote import promote_best_trials
from competition.study.study import StudyNames, run_study
from tests.host import flip_png
from tests.study.quick import YAML


def delete_half_of_the_cases(place: Path) -> None:
    for path in sorted((place / "images").iterdir())[::2]:
        path.unlink()
        (place / "masks" / path.name).unlink()


def test_other_data_are_another_study(quick, place):
    search = quick()
    run_study(search, 2, lambda line: None)
    assert quick().name == search.name and len(quick().finished) == 2
    delete_half_of_the_cases(place)
    other = quick()
    assert other.name != search.name and other.folder != search.folder and other.finished == []
    run_study(other, 1, lambda line: None)
    assert len(quick().finished) == 1 and len(search.finished) == 2


def test_no_trial_runs_on_data_that_changed_while_the_study_was_open(quick, place):
    search = quick()
    run_study(search, 1, lambda line: None)
    delete_half_of_the_cases(place)
    with pytest.raises(ChangedDataError, match="The data of demo2d have changed since the study was opened"):
        run_study(search, 3, lambda line: None)
    assert [trial.state.name for trial in search.finished] == ["COMPLETE", "FAIL"]
    assert "have changed" in search.finished[1].user_attrs["reason"]
    with pytest.raises(ChangedDataError):
        promote_best_trials(search, 1, lambda line: None)


@pytest.fixture
def old_study(quick, monkeypatch):
    """A study of two trials with the name that version 0.1 gave it."""
    with monkeypatch.context() as patch:
        patch.setattr(StudyNames, "find", lambda names, storage: names.old)
        search = quick(YAML)
        run_study(search, 2, lambda line: None)
    return search


def test_an_old_study_of_the_same_data_is_resumed(old_study, quick):
    search = quick()
    assert search.name == old_study.name and len(search.finished) == 2


def test_an_old_study_of_other_data_is_left_alone(old_study, quick, place, caplog):
    delete_half_of_the_cases(place)
    search = quick()
    assert search.name != old_study.name and search.finished == []
    assert f"The data have changed since the study {old_study.name}" in caplog.text
    assert len(old_study.finished) == 2


def test_an_old_study_with_changed_masks_is_left_alone(old_study, quick, place):
    flip_png(min((place / "masks").iterdir()))
    assert quick().name != old_study.name


def test_an_old_study_whose_runs_were_deleted_is_resumed(old_study, quick):
    import shutil

    shutil.rmtree("mlruns/runs")
    assert quick().name == old_study.name


@pytest.fixture
def fold_file(place: Path, tmp_path: Path) -> Path:
    path = tmp_path / "folds.csv"
    write_folds_file(path, place, 0)
    return path


def write_folds_file(path: Path, place: Path, first: int) -> None:
    """Two folds; `first` is the fold of the first case."""
    ids = sorted(file.stem for file in (place / "images").iterdir())
    lines = [f"{case},{(number + first) % 2 if number < 2 else number % 2}" for number, case in enumerate(ids)]
    path.write_text("\n".join(["id,fold", *lines, ""]))


IN_A_FILE = YAML.replace("folds: {k: 2}", "folds: {scheme: file, file: folds.csv}")


def test_other_folds_in_the_same_file_are_another_study(fold_file, quick, place):
    """Scores of trials on other folds cannot be compared."""
    search = quick(IN_A_FILE)
    run_study(search, 2, lambda line: None)
    assert quick(IN_A_FILE).name == search.name
    write_folds_file(fold_file, place, 1)
    other = quick(IN_A_FILE)
    assert other.name != search.name and other.finished == []
    write_folds_file(fold_file, place, 0)
    assert len(quick(IN_A_FILE).finished) == 2


def test_no_trial_runs_on_folds_that_changed_while_the_study_was_open(fold_file, quick, place):
    search = quick(IN_A_FILE)
    run_study(search, 1, lambda line: None)
    write_folds_file(fold_file, place, 1)
    with pytest.raises(ChangedDataError, match=r"changed since it was opened: folds\.file\."):
        run_study(search, 3, lambda line: None)
    assert [trial.state.name for trial in search.finished] == ["COMPLETE", "FAIL"]
    with pytest.raises(ChangedDataError):
        promote_best_trials(search, 1, lambda line: None)
