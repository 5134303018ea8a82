"""Predictions made elsewhere become runs that take part in submit, compare and report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from competition.cli.exchange import import_command
from competition.data.cases import case_rows, case_table
from competition.data.masks import load_mask
from competition.ensembling.compare import compare_two_runs
from competition.errors import MaskfoldError
from competition.export.bundle import export_runs
from competition.importing.importer import import_notes, import_predictions
from competition.importing.reading import ReadingOptions
from competition.importing.splits import format_splits, read_splits
from competition.io import sha256_of_file
from competition.postprocessing.ranking import best_run
from competition.runs.find import find_run
from competition.runs.imported import stored_tests
from competition.runs.run import RUNS_FOLDER, Run
from competition.runs.summary import read_run_scores
from competition.submission.label_files import predict_images
from competition.submission.submit import submit
from competition.training.cross_validate import open_run, summarize_run


def _one_hot(comp: Any, row: Any) -> np.ndarray:
    """Return the truth as probabilities (P, *shape) float32, slightly soft."""
    truth = load_mask(comp, row)
    if comp.labels == "overlapping":
        return (truth == 1).astype(np.float32) * 0.8 + 0.1
    planes = np.stack([truth[0] == number for number in range(comp.output_channels)]).astype(np.float32)
    return planes * 0.7 + 0.3 / len(planes)


def _write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".npz"):  # as nnU-Net does: (C, Z, Y, X)
        axes = (0, *range(values.ndim - 1, 0, -1)) if values.ndim == 4 else (0, 1, 2)
        values = values.transpose(axes) if values.ndim == 4 else values[:, None]
        np.savez_compressed(path, probabilities=values)
    elif path.name.endswith(".npy"):
        np.save(path, values)
    else:
        raise AssertionError(path)


@pytest.fixture
def elsewhere(
    tiny: Callable[..., Any], finished: Callable[..., Run], tmp_path: Path
) -> Callable[..., tuple[Run, Path]]:
    """`elsewhere(3, ".npz")`: a run of our own, and a folder of perfect predictions with the same folds."""

    def make(dimensions: int = 2, extension: str = ".npz") -> tuple[Run, Path]:
        run = finished(tiny(dimensions), f"demo{dimensions}d-tiny")
        comp, folder = run.exp.competition, tmp_path / "elsewhere"
        for row in case_rows(run.cases):
            place = folder / f"fold_{run.fold_of()[row.id]}" / "validation"
            _write(place / f"{row.id}{extension}", _one_hot(comp, row))
        for row in case_rows(case_table(comp, "test")):
            shape = (comp.output_channels, *json.loads(row.shape))
            values = np.full(shape, 0.1 / max(1, shape[0] - 1), np.float32)
            values[0] = 0.9
            _write(folder / "test" / f"{row.id}{extension}", values)
        return run, folder

    return make


@pytest.mark.parametrize(("dimensions", "extension"), [(2, ".npz"), (3, ".npz"), (3, ".npy")])
def test_an_import_is_scored_and_takes_part_in_a_blend(elsewhere, dimensions, extension):
    own, folder = elsewhere(dimensions, extension)
    done = import_predictions(own.exp.competition, folder, "other")
    assert done.is_new and done.predicted == len(own.cases) and not done.seen and not done.missing
    assert done.score == pytest.approx(1.0), "the axes are those of the images"
    run = find_run(done.run.folder.name)
    assert run.fold_of() == own.fold_of()
    assert find_run(f"{own.exp.competition.name}-other").folder == run.folder, "found by its name alone"
    lines: list[str] = []
    blend = submit([own, run], "auto", say=lines.append)
    assert blend.expected is not None and blend.validation.rows > 0
    said = json.loads(blend.summary_path.read_text())
    assert said["weights"]["single"][1] == pytest.approx(1.0) and said["weights"]["nested"] is not None
    assert compare_two_runs(own, run).rows.keys() == set(own.cases["id"])


def test_the_same_files_find_the_same_run_and_a_changed_file_makes_another(elsewhere, tmp_path):
    own, folder = elsewhere()
    comp = own.exp.competition
    first = import_predictions(comp, folder, "other")
    before = {path: path.stat().st_mtime_ns for path in first.run.folder.rglob("*")}
    shutil.move(folder, tmp_path / "moved")
    again = import_predictions(comp, tmp_path / "moved", "other")
    assert not again.is_new and again.run.folder == first.run.folder
    assert {path: path.stat().st_mtime_ns for path in first.run.folder.rglob("*")} == before
    path = next((tmp_path / "moved" / "fold_0" / "validation").iterdir())
    _write(path, np.load(path)["probabilities"][::-1, 0].copy())
    assert import_predictions(comp, tmp_path / "moved", "other").run.folder != first.run.folder


def test_a_stored_prediction_of_an_import_is_checked_like_all_others(elsewhere):
    own, folder = elsewhere()
    run = import_predictions(own.exp.competition, folder, "other").run
    store = run.oof().stores[0][0]
    a, b = store.ids()[:2]
    shutil.copy(store.path(a), store.path(b))
    with pytest.raises(MaskfoldError, match=f"{b}.* is damaged"):  # the two cases have different shapes
        run.oof().read(b)
    scores = run.folder / "scores.csv"
    scores.write_text(scores.read_text().replace("1.0", "0.9", 1))
    with pytest.raises(MaskfoldError):
        read_run_scores(run.folder)


def test_an_edited_score_of_an_import_is_refused(elsewhere):
    own, folder = elsewhere()
    run = import_predictions(own.exp.competition, folder, "other").run
    path = run.folder / "fold_0" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "score": 0.5}))
    for read in (lambda: compare_two_runs(own, run), lambda: submit([own, run], "auto"), lambda: summarize_run(run)):
        with pytest.raises(MaskfoldError, match=r"fold_0/result\.json was (changed|edited)") as caught:
            read()
        assert "maskfold import" in caught.value.hint


def test_predictions_of_another_import_are_refused(elsewhere):
    own, folder = elsewhere()
    comp = own.exp.competition
    first = import_predictions(comp, folder, "first").run
    for path in [*folder.glob("fold_*/validation/*"), *folder.glob("test/*")]:
        _write(path, np.load(path)["probabilities"][:, 0] * 0.999)
    second = import_predictions(comp, folder, "second").run
    case = first.oof().stores[0][0].ids()[0]
    test = stored_tests(first).ids()[0]
    shutil.copy(second.oof().stores[0][0].path(case), first.oof().stores[0][0].path(case))
    shutil.copy(stored_tests(second).path(test), stored_tests(first).path(test))
    with pytest.raises(MaskfoldError, match="made with other weights"):
        first.oof().read(case)
    with pytest.raises(MaskfoldError, match="made with other weights"):
        stored_tests(first).read(test)
    assert second.oof().read(case).any() and stored_tests(second).read(test).any()


def test_commands_that_need_networks_refuse_an_import(elsewhere, tmp_path):
    own, folder = elsewhere()
    run = import_predictions(own.exp.competition, folder, "other").run
    for refuse in (
        lambda: export_runs([run], tmp_path / "bundle"),
        lambda: predict_images([run], Path(own.exp.competition.root) / "test", tmp_path / "out"),
        lambda: next(run.networks(1)),
        lambda: open_run(run.exp, "demo2d-other"),
    ):
        with pytest.raises(MaskfoldError, match="import") as caught:
            refuse()
        assert caught.value.status == 2
    lines: list[str] = []
    assert best_run(str(own.folder), say=lines.append).folder == own.folder
    assert "was imported, so it has no networks" in lines[0]


def test_cases_of_unknown_folds_count_as_seen(elsewhere, tmp_path):
    own, folder = elsewhere()
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.glob("fold_*/validation/*"):
        shutil.copy(path, flat)
    comp, ids = own.exp.competition, own.cases["id"].tolist()
    with pytest.raises(MaskfoldError, match="folds of these cases are unknown"):
        import_predictions(comp, flat, "other")
    fold_of = {case: fold for case, fold in own.fold_of().items() if case != ids[0]}
    (tmp_path / "splits_final.json").write_text(format_splits(fold_of, "nnunet"))
    done = import_predictions(comp, flat, "other", splits=tmp_path / "splits_final.json")
    assert list(done.seen) == [ids[0]] and done.predicted == len(ids) - 1
    assert ids[0] not in done.run.oof().fold_of and done.run.fold_of()[ids[0]] == -1
    assert any("seen in training" in note for note in import_notes(done))
    assert any("not in `maskfold submit`" in note for note in import_notes(done))
    with pytest.raises(MaskfoldError, match="no prediction of"):
        submit([own, done.run])


def test_a_group_in_two_of_their_folds_counts_as_seen(elsewhere):
    own, folder = elsewhere()
    comp = own.exp.competition.model_copy(update={"group": "(.)$"})  # the last digit of the id
    done = import_predictions(comp, folder, "other")
    cases = case_table(comp)
    fold_of = own.fold_of()
    for case, group in zip(cases["id"], cases["group"], strict=True):
        folds = {fold_of[other] for other, name in zip(cases["id"], cases["group"], strict=True) if name == group}
        assert (case in done.seen) == (len(folds) > 1)


def test_folders_and_splits_must_agree(elsewhere):
    own, folder = elsewhere()
    swapped = {case: 1 - fold for case, fold in own.fold_of().items()}
    (folder / "splits_final.json").write_text(format_splits(swapped, "nnunet"))
    with pytest.raises(MaskfoldError, match="but its prediction is in fold_"):
        import_predictions(own.exp.competition, folder, "other")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda values: np.where(values > 0.5, np.nan, values), "NaN"),
        (lambda values: values * 20 - 10, "expected probabilities from 0 to 1"),
        (lambda values: values * 0.5, "add up to"),
        (lambda values: values[:, :-1], "wrong shape"),
        (lambda values: np.concatenate([values, values]), "channels, expected"),
    ],
)
def test_values_and_shapes_are_checked_and_nothing_half_is_left(elsewhere, spoil, message):
    own, folder = elsewhere(2, ".npy")
    path = sorted(folder.glob("fold_1/validation/*"))[0]
    np.save(path, spoil(np.load(path)))
    with pytest.raises(MaskfoldError, match=message) as caught:
        import_predictions(own.exp.competition, folder, "other")
    assert path.name in caught.value.message and caught.value.hint
    assert [run.parent.name for run in RUNS_FOLDER.glob("*/*")] == [own.name]
    assert not list(RUNS_FOLDER.parent.glob(".import*"))


def test_ids_are_checked(elsewhere):
    own, folder = elsewhere()
    path = sorted(folder.glob("fold_0/validation/*"))[0]
    shutil.copy(path, folder / "fold_1" / "validation")
    with pytest.raises(MaskfoldError, match="has two predictions"):
        import_predictions(own.exp.competition, folder, "other")
    (folder / "fold_1" / "validation" / path.name).rename(folder / "fold_1" / "validation" / f"x{path.name}")
    with pytest.raises(MaskfoldError, match=f"nearest is {path.stem}"):
        import_predictions(own.exp.competition, folder, "other")


def test_flipped_probabilities_differ_from_the_labels_beside_them(elsewhere):
    own, folder = elsewhere(3)
    comp = own.exp.competition
    for row in case_rows(own.cases):
        source = next(iter(json.loads(row.images).values()))
        labels = _one_hot(comp, row).argmax(axis=0).astype(np.uint8)
        affine = nibabel.load(Path(comp.root) / source).affine
        place = folder / f"fold_{own.fold_of()[row.id]}" / "validation"
        nibabel.save(nibabel.Nifti1Image(labels, affine), place / f"{row.id}.nii.gz")
    assert import_predictions(comp, folder, "other").score == pytest.approx(1.0)
    path = sorted(folder.glob("fold_0/validation/*.npz"))[0]
    np.savez(path, probabilities=np.load(path)["probabilities"][:, :, ::-1])
    with pytest.raises(MaskfoldError, match="differ in"):
        import_predictions(comp, folder, "flipped")


def test_label_files_become_probabilities_of_0_and_1(elsewhere, tmp_path):
    import cv2

    own, _ = elsewhere()
    comp, folder = own.exp.competition, tmp_path / "labels"
    for row in case_rows(own.cases):
        place = folder / f"fold_{own.fold_of()[row.id]}"
        place.mkdir(parents=True, exist_ok=True)
        truth = load_mask(comp, row)
        if comp.labels == "overlapping":
            for index, name in enumerate(comp.classes):
                cv2.imwrite(str(place / f"{row.id}_{name}.png"), (truth[index] == 1).astype(np.uint8) * 255)
        else:
            values = np.zeros(truth.shape[1:], np.uint8)
            for number, value in enumerate(comp.output_label_values, start=1):
                values[truth[0] == number] = value
            cv2.imwrite(str(place / f"{row.id}.png"), values)
    done = import_predictions(comp, folder, "labels")
    assert done.score == pytest.approx(1.0) and done.layout == "folders by fold"
    assert set(np.unique(done.run.oof().read(own.cases["id"].iloc[0]))) <= {0.0, 1.0}


def test_a_picture_with_the_probability_1_of_255_is_not_a_label(elsewhere, tmp_path):
    """The value 1 of one file means 1/255 if other files have values up to 255."""
    import cv2

    own, _ = elsewhere()
    comp, folder = own.exp.competition, tmp_path / "pictures"
    if len(comp.classes) > 1:
        comp = comp.model_copy(update={"classes": comp.classes[:1], "label_values": [[1, 2]]})
    rows = case_rows(case_table(comp))
    for number, row in enumerate(rows):
        (folder / f"fold_{number % 2}").mkdir(parents=True, exist_ok=True)
        picture = np.full(json.loads(row.shape), 1 if number == 0 else 200, np.uint8)
        cv2.imwrite(str(folder / f"fold_{number % 2}" / f"{row.id}.png"), picture)
    oof = import_predictions(comp, folder, "pictures").run.oof()
    assert oof.read(rows[0].id)[-1].max() == pytest.approx(1 / 255, abs=1e-3)
    assert oof.read(rows[1].id)[-1].min() == pytest.approx(200 / 255, abs=1e-3)


def test_the_order_of_channels_can_be_set(elsewhere):
    own, folder = elsewhere(3, ".npy")
    comp = own.exp.competition
    names = ["background", *comp.classes] if comp.labels == "exclusive" else list(comp.classes)
    for path in folder.rglob("*.npy"):
        np.save(path, np.load(path)[::-1])
    done = import_predictions(comp, folder, "other", options=ReadingOptions(channels=tuple(names[::-1])))
    assert done.score == pytest.approx(1.0)
    with pytest.raises(MaskfoldError, match="--channels"):
        import_predictions(comp, folder, "other", options=ReadingOptions(channels=("a", *names[1:])))


def test_an_import_of_test_predictions_alone_has_no_score(elsewhere):
    own, folder = elsewhere()
    for path in folder.glob("fold_*"):
        shutil.rmtree(path)
    done = import_predictions(own.exp.competition, folder, "other")
    assert done.score is None and done.predicted == 0
    assert submit([own, find_run(done.run.folder.name)], [0.5, 0.5]).validation.rows > 0


def test_a_run_that_is_better_than_the_blend_is_named(elsewhere):
    own, folder = elsewhere()
    done = import_predictions(own.exp.competition, folder, "other")
    assert done.score == pytest.approx(1.0)
    said: list[str] = []
    result = submit([own, done.run], [0.9, 0.1], say=said.append)
    assert result.expected is not None and result.expected.score < 0.9999
    (note,) = [line for line in said if "alone" in line]
    assert f"{done.run.name}/{done.run.folder.name}" in note and "1.0000" in note
    said.clear()
    submit([own], say=said.append)
    submit([own, done.run], [0.0, 1.0], say=said.append)
    assert not [line for line in said if "alone" in line], "a run is not compared with itself"


def test_a_changed_test_image_is_refused(elsewhere, tmp_path):
    own, folder = elsewhere()
    root = tmp_path / "data"
    shutil.copytree(own.exp.competition.root, root)
    comp = own.exp.competition.model_copy(update={"root": root})
    done = import_predictions(comp, folder, "other")
    table = case_rows(case_table(comp, "test"))
    first, second = (root / next(iter(json.loads(row.images).values())) for row in table[:2])
    shutil.copy(second, first)
    with pytest.raises(MaskfoldError, match="picture_004"):
        submit([done.run])


def test_the_command_prints_the_score_and_a_report_can_be_written(elsewhere, capsys, tmp_path):
    from competition.config.loading import write_yaml
    from competition.report.run import write_report

    own, folder = elsewhere()
    plain = own.exp.competition.model_dump(by_alias=True, mode="json")
    write_yaml(plain, tmp_path / "competition.yaml")
    arguments = dict.fromkeys(("oof", "test", "splits", "axes", "channels"))
    import_command(folder, tmp_path / "competition.yaml", "other", [], kind="auto", trust=(), **arguments)
    out = capsys.readouterr().out
    assert "1.0000 out of fold" in out and "Next: maskfold submit RUN" in out
    run = find_run(f"{own.exp.competition.name}-other")
    page = write_report(run, tmp_path / "report.html").read_text()
    assert "imported" in page
    # nothing about the network, its training and its memory, which only the other program knows
    assert "The cases were predicted out of fold in 2 folds by networks of another program" in page
    assert not [text for text in ("The network was", "steps</td>", "peak memory", "PyTorch") if text in page]
    with pytest.raises(MaskfoldError, match="--kind"):
        import_command(folder, tmp_path / "competition.yaml", "other", [], kind="x", trust=(), **arguments)


@pytest.mark.parametrize(
    ("without", "command"), [("test", "maskfold compare RUN"), ("fold_*", "maskfold submit RUN {} --weights 0.5,0.5")]
)
def test_the_next_command_works_with_what_was_imported(elsewhere, capsys, tmp_path, without, command):
    from competition.config.loading import write_yaml

    own, folder = elsewhere()
    for path in folder.glob(without):
        shutil.rmtree(path)
    plain = own.exp.competition.model_dump(by_alias=True, mode="json")
    write_yaml(plain, tmp_path / "competition.yaml")
    arguments = dict.fromkeys(("oof", "test", "splits", "axes", "channels"))
    import_command(folder, tmp_path / "competition.yaml", "other", [], kind="auto", trust=(), **arguments)
    name = find_run(f"{own.exp.competition.name}-other").folder.name
    assert f"Next: {command.format(name)}" in capsys.readouterr().out


def test_a_killed_import_leaves_no_run(elsewhere, monkeypatch):
    own, folder = elsewhere()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("competition.training.cross_validate.summarize_run", stop)
    with pytest.raises(KeyboardInterrupt):
        import_predictions(own.exp.competition, folder, "other")
    assert not list(RUNS_FOLDER.glob("demo2d-other/*")) and not list(RUNS_FOLDER.glob("*/*/.*"))


def test_folds_survive_the_way_through_nnunets_file(tmp_path):
    fold_of = {"a": 0, "b": 1, "c": 0, "d": -1, "e": -2}
    for form, name in (("nnunet", "splits_final.json"), ("csv", "folds.csv")):
        (tmp_path / name).write_text(format_splits(fold_of, form))
    assert json.loads((tmp_path / "splits_final.json").read_text())[1] == {"train": ["a", "c", "d"], "val": ["b"]}
    assert read_splits(tmp_path / "splits_final.json") == {"a": 0, "b": 1, "c": 0, "d": None}
    assert read_splits(tmp_path / "folds.csv") == {"a": 0, "b": 1, "c": 0, "d": None, "e": None}
    (tmp_path / "splits_final.json").write_text('[{"train": ["a"], "val": ["a"]}]')
    with pytest.raises(MaskfoldError, match="trains on the case a"):
        read_splits(tmp_path / "splits_final.json")
    (tmp_path / "splits_final.json").write_text('{"train": 3}')
    with pytest.raises(MaskfoldError, match="damaged"):
        read_splits(tmp_path / "splits_final.json")


def test_folds_writes_those_of_a_run(finished, tiny, tmp_path, capsys):
    from competition.cli.exchange import folds_command

    run = finished(tiny(2))
    folds_command(str(run.folder), [], "nnunet", tmp_path / "out.json", ())
    validated = {case: number for number, fold in enumerate(json.loads((tmp_path / "out.json").read_text()))
                 for case in fold["val"]}  # fmt: skip
    assert validated == run.fold_of()
    digest = sha256_of_file(tmp_path / "out.json")
    with pytest.raises(MaskfoldError, match="ends in .csv"):
        folds_command(str(run.folder), [], "csv", tmp_path / "out.json", ())
    assert sha256_of_file(tmp_path / "out.json") == digest
