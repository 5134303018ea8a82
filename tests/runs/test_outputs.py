"""Outputs of commands never reach a run's folder or the data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from competition.config.competition import Competition
from competition.errors import MaskfoldError
from competition.runs.outputs import check_output


def comp(root: Path | str, **train: str) -> Competition:
    return Competition.model_validate(
        {
            "name": "n",
            "root": str(root),
            "dimensions": 2,
            "classes": ["a"],
            "train": {"images": "img/{id}.png", "masks": "masks/{id}.png", **train},
            "test": {"images": "test/{id}/image.png"},
            "submission": {"sample": "tables/sample.csv"},
        }
    )


def is_refused(path: Path | str, competition: Competition) -> bool:
    try:
        check_output([Path(path)], [competition])
    except MaskfoldError as error:
        assert error.status == 2 and str(path) in error.message
        return True
    return False


def test_nothing_is_written_into_the_folder_of_the_data(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for name in ("data", "data/img", "data/new", "data/tables/sample.csv", "link/new"):
        assert is_refused(tmp_path / name, comp(tmp_path / "data")), name
    for name in ("data2", "work/a.csv", "data.csv"):
        assert not is_refused(tmp_path / name, comp(tmp_path / "data")), name


def test_in_a_working_folder_with_data_the_folders_of_images_and_the_tables_are_protected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test" / "7").mkdir(parents=True)
    (tmp_path / "test" / "7" / "image.png").touch()
    for name in ("img", "img/more/x", "masks/a.csv", "test", "test/7/out", "tables/sample.csv"):
        assert is_refused(name, comp(".")), name
    for name in ("submissions/n/a.csv", "tables/mine.csv", "mlruns", "image.html"):
        assert not is_refused(name, comp(".")), name
    Path("3").mkdir()
    Path("3/image.png").touch()
    assert is_refused("3/a.csv", comp(".", images="{id}/image.png", masks="{id}/mask.png"))
    assert not is_refused("submissions/n/a.csv", comp(".", images="{id}/image.png", masks="{id}/mask.png"))
    flat = comp(".", images="{id}.png", masks="{id}_mask.png")
    assert is_refused("x.png", flat) and is_refused(".", flat) and not is_refused("x.csv", flat)


def test_folders_of_images_that_are_links_are_protected(tmp_path, monkeypatch):
    for name in ("data", "disk", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "data" / "img").symlink_to(tmp_path / "disk")
    assert is_refused(tmp_path / "disk" / "out", comp(tmp_path / "data"))


def test_nothing_is_written_into_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "experiment.yaml").touch()
    check_output([run / "a.csv"])  # a folder with an experiment is not a run yet
    (run / "cases.csv").touch()
    for path in (run, run / "a.csv", run / "fold_0" / "new"):
        with pytest.raises(MaskfoldError, match="in the folder of the run"):
            check_output([path])


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_each_command_refuses_such_an_output(finished, tiny):
    from competition.export.bundle import export_runs
    from competition.report.compare import check_comparison_output
    from competition.report.run import write_report
    from competition.submission.label_files import predict_images
    from competition.submission.submit import submit

    run, root = finished(tiny(2)), tiny(2).competition.root
    before, data = contents(run.folder), contents(root)
    for folder in (run.folder, root):
        for command in (
            lambda folder=folder: submit([run], output=folder / "new.csv"),
            lambda folder=folder: write_report(run, folder / "fold_0.html"),
            lambda folder=folder: check_comparison_output(folder, [run, run]),
            lambda folder=folder: export_runs([run], folder / "bundle"),
            lambda folder=folder: predict_images([run], root / "test", folder / "masks"),
        ):
            with pytest.raises(MaskfoldError) as refusal:
                command()
            assert refusal.value.status == 2
    assert contents(run.folder) == before and contents(root) == data
