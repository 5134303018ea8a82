"""Predict a folder of images and write label files on their grid."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest

from competition.data.cases import case_rows, case_table
from competition.ensembling.ensemble import EnsemblePredictor
from competition.errors import MaskfoldError
from competition.postprocessing.pipeline import postprocess
from competition.runs.blend import Ensemble
from competition.submission.label_files import competition_for_folder, predict_images


def test_volumes_keep_their_affine_and_grid(finished, tiny, demo3d, tmp_path):
    run = finished(tiny(3), "demo3d-tiny")
    images = Path(shutil.copytree(demo3d / "imagesTs", tmp_path / "scans"))
    done = predict_images([run], images, tmp_path / "out")
    rows = {row.id: row for row in case_rows(case_table(run.exp.competition, "test"))}
    ensemble = EnsemblePredictor(Ensemble((run,), (1.0,)), next(iter(rows.values())))
    assert len(done) == len(rows) == 2
    for one in done:
        found = nibabel.load(one.files[0])
        source = nibabel.load(images / f"{one.case_id}.nii.gz")
        np.testing.assert_array_equal(found.affine, source.affine)
        assert found.shape == source.shape and found.get_data_dtype() == np.uint8
        labels = np.asarray(found.dataobj)
        masks = postprocess(ensemble.probabilities(rows[one.case_id]), run.exp.competition, run.exp.postprocess).masks
        for value, mask in enumerate(masks, start=1):
            np.testing.assert_array_equal(labels == value, mask)
        assert one.pixels == {
            name: int(mask.sum()) for name, mask in zip(run.exp.competition.classes, masks, strict=True)
        }


@pytest.mark.parametrize("dims", [2, 3])
def test_the_first_cases_are_drawn(finished, tiny, tmp_path, dims):
    exp = tiny(dims)
    run = finished(exp, f"demo{dims}d-tiny")
    images = exp.competition.root / ("test" if dims == 2 else "imagesTs")
    done = predict_images([run], images, tmp_path / "out", pictures=1)
    drawn = list((tmp_path / "out" / "pictures").iterdir())
    assert [path.name for path in drawn] == [f"{done[0].case_id}.png"] and len(done) > 1
    picture = cv2.imread(str(drawn[0]))
    assert picture.std() > 10
    if dims == 3:
        assert picture.shape[0] > picture.shape[1]  # three slices above one another, image beside prediction


def test_pictures_of_another_kind_and_size(finished, tiny, tmp_path):
    run = finished(tiny(2))
    (tmp_path / "photos").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (37, 51), np.uint8)
    cv2.imwrite(str(tmp_path / "photos" / "one.jpg"), picture)
    cv2.imwrite(str(tmp_path / "photos" / "two.jpg"), picture[:, :20])
    predict_images([run], tmp_path / "photos", tmp_path / "out")
    shapes = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in (tmp_path / "out").iterdir()}
    assert shapes == {"one": (37, 51), "two": (37, 20)}


def test_objects_are_numbered(finished, nuclei, tmp_path):
    exp = nuclei("postprocess={steps: [{threshold: 0.0}]}")  # everything is one object
    run = finished(exp, "discs-tiny")
    done = predict_images([run], exp.competition.root / "test", tmp_path / "out")
    labels = cv2.imread(str(done[0].files[0]), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16 and np.unique(labels).tolist() == [1] and len(done) == 3


def test_overlapping_classes_have_a_file_each(finished, tiny, demo2d, tmp_path):
    run = finished(tiny(2, "competition.labels=overlapping"))
    done = predict_images([run], demo2d / "test", tmp_path / "out")
    assert [path.name for path in done[0].files] == [f"{done[0].case_id}_{name}.png" for name in ("ring", "grain")]


def test_folders_that_cannot_be_predicted(tiny, tmp_path):
    comp = tiny(2).competition
    with pytest.raises(MaskfoldError, match="--images: found"):
        competition_for_folder(comp, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MaskfoldError, match="contains no image"):
        competition_for_folder(comp, tmp_path / "empty")
    for name in ("a.jpg", "b.bmp"):
        (tmp_path / "empty" / name).write_bytes(b"x")
    with pytest.raises(MaskfoldError, match=r"1 \.bmp, 1 \.jpg"):
        competition_for_folder(comp, tmp_path / "empty")


def test_images_are_never_overwritten(finished, tiny, demo3d, tmp_path):
    run = finished(tiny(3), "demo3d-tiny")
    images = Path(shutil.copytree(demo3d / "imagesTs", tmp_path / "scans"))
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(MaskfoldError, match="--output: found"):
        predict_images([run], images, tmp_path / "other" / ".." / "scans")
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_label_files_of_one_name_are_refused(finished, tiny, tmp_path):
    run = finished(tiny(2, "competition.labels=overlapping"))
    second = run.exp.competition.classes[1]
    (tmp_path / "photos").mkdir()
    classes = [second, f"b_{second}"]
    comp = run.exp.competition.model_copy(update={"classes": classes})
    run = replace(run, exp=run.exp.model_copy(update={"competition": comp}))
    for name in ("a", "a_b"):
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.png"), np.zeros((40, 40), np.uint8))
    with pytest.raises(MaskfoldError, match="Two label files would have the name"):
        predict_images([run], tmp_path / "photos", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_the_images_is_refused_from_any_level(finished, tiny, demo2d, tmp_path):
    run = finished(tiny(2))
    images = Path(shutil.copytree(demo2d / "test", tmp_path / "copy" / "test"))
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(MaskfoldError, match="the image"):
        predict_images([run], tmp_path / "copy", images)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_channels_are_found_by_the_competitions_names(tiny, tmp_path):
    comp = tiny(2).competition
    train = comp.train.model_copy(update={"images": {"t1": "train/{id}/t1.png", "t2": "train/{id}/t2.png"}})
    comp = comp.model_copy(update={"train": train, "test": None})
    for name in ("t1", "t2"):
        (tmp_path / "p1").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "p1" / f"{name}.png"), np.zeros((4, 4), np.uint8))
    found = competition_for_folder(comp, tmp_path)
    assert found.test is not None and found.test.images == {"t1": "{id}/t1.png", "t2": "{id}/t2.png"}
    assert case_table(found, "test")["id"].tolist() == ["p1"]
