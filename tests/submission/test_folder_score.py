"""`maskfold score FOLDER --truth FOLDER`: scores, matching of ids, geometry, classes, and errors in words."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from tifffile import imwrite
from typer.testing import CliRunner

from competition.cli.main import app
from competition.cli.score_folder import _missing_lines
from competition.errors import MaskfoldError
from competition.metrics.surface import hd95, surface_dice
from competition.submission.folder_score import parse_classes, score_folder
from tests.host import write_png

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def save_nifti(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), affine), path)


def boxes(shift: int = 0) -> np.ndarray:
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[2 + shift : 6 + shift, 2:6, 2:6] = 1
    labels[2 + shift : 6 + shift, 6:9, 2:6] = 2
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases; the predictions of the second are shifted by a voxel, the third lacks class 2 in both folders."""
    predictions, truth = tmp_path / "pred", tmp_path / "true"
    for case, shift in (("a", 0), ("b", 1), ("c", 2)):
        own, true = boxes(shift), boxes()
        if case == "c":
            own, true = own * (own == 1), true * (true == 1)
        save_nifti(predictions / f"{case}.nii.gz", own)
        save_nifti(truth / f"{case}.nii.gz", true)
    return predictions, truth


def test_scores_equal_the_metrics(folders):
    scores = score_folder(*folders, ["dice", "hd95", "nsd", "panoptic_quality"], tolerances=[0.5, 1.0])
    table = scores.table.set_index(["id", "class"])
    assert list(table.columns[:5]) == ["dice", "hd95", "nsd_0.5mm", "nsd_1mm", "panoptic_quality"]
    mask, truth = boxes(1) == 2, boxes() == 2
    row = table.loc["b", "2"]
    assert row["dice"] == 0.75 and row["hd95"] == hd95(mask, truth, (1, 2, 3))
    assert row["nsd_0.5mm"] == surface_dice(mask, truth, (1, 2, 3), 0.5) != row["nsd_1mm"]
    assert row["panoptic_quality"] == pytest.approx(0.6)
    assert table.loc["c", "2"][["dice", "hd95", "nsd_1mm"]].isna().all(), "a class in neither file has no score"
    mean, low, high, count = scores.estimate("dice", "2")
    assert (mean, count) == (0.875, 2) and low < mean < high
    assert scores.estimate("dice")[3] == 3


def test_formats_may_differ(tmp_path, folders):
    simple_itk = pytest.importorskip("SimpleITK")
    for path in folders[0].iterdir():
        image = simple_itk.ReadImage(str(path))
        simple_itk.WriteImage(image, str(tmp_path / "pred" / path.name.replace(".nii.gz", ".mha")))
        path.unlink()
    assert score_folder(*folders).table["dice"].tolist()[:3] == [1.0, 1.0, 0.75]


@pytest.mark.parametrize("size", [10, 12], ids=["square", "oblong"])
def test_formats_with_another_order_of_axes(tmp_path, size):
    """`predict` writes NIfTI for volumes and PNG for pictures, whatever the format of the images and labels is."""
    volume = np.pad(boxes(), ((0, 0), (0, size - 10), (0, 0)))[:size]
    for folder in ("pred", "true", "pred2", "true2"):
        (tmp_path / folder).mkdir()
    save_nifti(tmp_path / "pred" / "a.nii.gz", volume)
    imwrite(tmp_path / "true" / "a.tif", volume.transpose(2, 1, 0), photometric="minisblack")
    write_png(tmp_path / "pred2" / "a.png", volume[:, :, 3].T)
    save_nifti(tmp_path / "true2" / "a.nii.gz", volume[:, :, 3])
    for name, dimensions in (("", 3), ("2", 2)):
        scores = score_folder(tmp_path / f"pred{name}", tmp_path / f"true{name}", ["dice"], dimensions=dimensions)
        assert scores.table["dice"].tolist() == [1.0, 1.0]


def test_pictures_and_classes(tmp_path):
    for name, value in (("pred", 255), ("true", 1)):
        (tmp_path / name).mkdir()
        labels = np.zeros((20, 30), np.uint8)
        labels[4:9, 4:9] = value
        labels[0, 0] = 7 if name == "true" else value
        write_png(tmp_path / name / "x.png", labels)
    folders = tmp_path / "pred", tmp_path / "true"
    with pytest.raises(MaskfoldError, match="No label value is in both folders") as caught:
        score_folder(*folders, ignore=7)
    assert "--classes object=255+1" in caught.value.hint
    scores = score_folder(*folders, ["dice"], classes="cell=1+255", ignore=7)
    assert scores.table.to_dict("records")[0] | {"tp": 25} == {
        "id": "x", "class": "cell", "dice": 1.0, "tp": 25, "fp": 0, "fn": 0
    }  # fmt: skip
    assert score_folder(*folders, ["dice"], classes="cell=1+255").table["fp"].tolist() == [1]


def test_missing_files_are_named_in_both_directions(folders):
    predictions, truth = folders
    (predictions / "a.nii.gz").unlink()
    save_nifti(predictions / "z.nii.gz", boxes())
    with pytest.raises(MaskfoldError, match=r"no prediction for 1 case: a; no true labels for 1 prediction: z"):
        score_folder(*folders)
    skipped = score_folder(*folders, missing="skip")
    assert (skipped.missing, skipped.extra) == (["a"], ["z"]) and skipped.table["id"].unique().tolist() == ["b", "c"]
    assert _missing_lines(skipped, "skip") == [
        "warning: 1 case without a prediction, left out: a",
        "warning: 1 prediction without truth, left out: z",
    ]
    empty = score_folder(*folders, missing="empty").table
    assert empty[empty["id"] == "a"]["dice"].tolist() == [0, 0] and np.isfinite(empty[empty["id"] == "a"]["hd95"]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, t: save_nifti(p / "a.nii.gz", boxes()[:-1]), "differ in shape"),
        (lambda p, t: save_nifti(p / "a.nii.gz", boxes(), np.diag([1.0, 2.0, 3.3, 1.0])), "affines of case a differ"),
        (lambda p, t: save_nifti(p / "a.nii.gz", boxes(), np.diag([-1.0, 2.0, 3.0, 1.0])), "affines of case a differ"),
        (lambda p, t: (p / "a.nii.gz").write_bytes((p / "a.nii.gz").read_bytes()[:60]), "a.nii.gz"),
        (lambda p, t: save_nifti(p / "a.nii", boxes()), "two files"),
        (lambda p, t: save_nifti(p / "a.nii.gz", np.arange(960).reshape(12, 10, 8) % 256), "expected label values"),
        (lambda p, t: [file.rename(p / f"x{file.name}") for file in p.iterdir()], "has the same name as a file"),
        (lambda p, t: [file.unlink() for file in p.iterdir()], "no label file"),
    ],
)
def test_faults_are_named(folders, change, words):
    change(*folders)
    with pytest.raises(MaskfoldError, match=words):
        score_folder(*folders)


@pytest.mark.parametrize("text", ["", "a", "a=", "1,1", "a=1,a=2", "0", "a=1+b", "a=-1"])
def test_invalid_classes(text):
    with pytest.raises(MaskfoldError, match="--classes"):
        parse_classes(text)


def test_metrics_are_checked(folders):
    for names, words in ((["dic"], "nearest: dice"), (["uw_madison"], "slices"), (["os.path.join"], "trust")):
        with pytest.raises(MaskfoldError, match=words):
            score_folder(*folders, names)


def test_an_own_metric(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_folder_metric.py").write_text(
        "from competition.metrics import metric\n@metric(higher_is_better=False)\n"
        "def error(fp, fn, spacing):\n    return (fp + fn) * spacing[2]\n"
    )
    scores = score_folder(*folders, ["my_folder_metric.error"], trust=["my_folder_metric"])
    assert scores.table["error"].tolist()[:3] == [0, 0, 3 * 32]


def test_the_command(folders, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["score", str(folders[0]), "--truth", str(folders[1]), "-o", str(tmp_path / "s.csv")])
    assert done.exit_code == 0, done.output
    assert "hd95 (lower is better)" in done.output and "nsd_3mm" in done.output
    assert pd.read_csv(tmp_path / "s.csv", dtype={"class": str})["class"].tolist() == ["1", "2"] * 3
    for words, message in (
        ([str(folders[0])], "--truth"),
        ([str(tmp_path / "s.csv")], "--competition"),
        ([str(folders[0]), "--truth", str(folders[1]), "root=x"], "are for a CSV"),
        ([str(folders[0]), "--truth", str(folders[1]), "--missing", "no"], "--missing"),
        ([str(folders[0]), "--truth", str(folders[1]), "--tolerances", "a"], "--tolerances"),
        ([str(folders[0]), "--truth", str(folders[1]), "-o", str(tmp_path)], "--output"),
    ):
        failed = run(app, ["score", *words])
        assert isinstance(failed.exception, MaskfoldError) and message in str(failed.exception), words


@pytest.mark.parametrize(
    ("name", "words"), [("=HYPERLINK(1)", "formula"), ("a\nb", "line break"), ("a\x9bb", "control")]
)
def test_names_that_would_break_a_table_or_a_terminal_are_refused(folders, name, words):
    predictions, truth = folders
    for folder in folders:
        path = sorted(folder.iterdir())[0]
        path.rename(folder / f"{name}.nii.gz")
    with pytest.raises(MaskfoldError, match=words) as caught:
        score_folder(predictions, truth)
    assert caught.value.status == 2
