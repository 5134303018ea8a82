"""A registered model: the masks of `maskfold predict`, from arrays, files and tables, without pickled files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pandas as pd
import pytest

from competition.cli.main import main
from competition.errors import MaskfoldError
from competition.export.mlflow_model import model_fingerprint, pinned_requirements, write_predictor_folder
from competition.export.predictor import Predictor, iter_images
from competition.submission.label_files import predict_images
from tests.conftest import ROOT


def packed(run, tmp_path) -> Predictor:
    write_predictor_folder(run, tmp_path / "packed")
    return Predictor(tmp_path / "packed")


def test_volumes_from_files_arrays_and_tables(finished, tiny, demo3d, tmp_path):
    run = finished(tiny(3), "demo3d-tiny")
    done = predict_images([run], demo3d / "imagesTs", tmp_path / "out")
    files = [demo3d / "imagesTs" / f"{one.case_id}.nii.gz" for one in done]
    expected = [np.asarray(nibabel.load(one.files[0]).dataobj) for one in done]
    assert any(mask.any() for mask in expected)
    volumes = [nibabel.load(file) for file in files]
    arrays = [
        {"image": np.asarray(one.dataobj), "spacing": one.header.get_zooms()[:3], "affine": one.affine}
        for one in volumes
    ]
    model = packed(run, tmp_path)
    for images in ([str(file) for file in files], files, arrays, pd.DataFrame(arrays), pd.DataFrame({"image": files})):
        found = model.predict(images)
        assert [mask.dtype for mask in found] == [np.uint8] * len(files)
        for mask, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mask, wanted)
    model.predict([np.asarray(volumes[0].dataobj)])  # nobody says how it lies: as prepare.orientation asks for


def test_files_whose_axes_have_another_order_are_refused(finished, tiny, demo3d, tmp_path):
    """A TIFF volume is (Y, X, Z), but the network was trained on NIfTI files, (X, Y, Z)."""
    import tifffile

    model = packed(finished(tiny(3), "demo3d-tiny"), tmp_path)
    volume = np.zeros((4, 30, 24), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", volume)
    cv2.imwrite(str(tmp_path / "z.png"), volume[0])
    for image in (tmp_path / "a.tif", [str(tmp_path / "z.png")] * 4):
        with pytest.raises(MaskfoldError, match="have the axes yxz, expected xyz") as caught:
            model.predict([image])
        assert "transposed by (1, 0, 2)" in caught.value.hint
    assert model.predict([volume.transpose(2, 1, 0)])[0].shape == (24, 30, 4)


def test_slices_along_all_axes(finished, tiny, demo3d, tmp_path):
    run = finished(tiny(3, "patch={size: [32, 32], slices: 3, axes: [0, 1, 2]}"), "demo3d-tiny")
    done = predict_images([run], demo3d / "imagesTs", tmp_path / "out")
    found = packed(run, tmp_path).predict([demo3d / "imagesTs" / f"{one.case_id}.nii.gz" for one in done])
    for mask, one in zip(found, done, strict=True):
        np.testing.assert_array_equal(mask, np.asarray(nibabel.load(one.files[0]).dataobj))
    assert any(mask.any() for mask in found)


def test_pictures_and_what_the_search_found(finished, tiny, demo2d, tmp_path):
    run = finished(tiny(2, "postprocess={steps: [{threshold: 0.1}, {remove_small: 3}]}"))
    done = predict_images([run], demo2d / "test", tmp_path / "out")
    model = packed(run, tmp_path)
    arrays = [cv2.imread(str(next((demo2d / "test").glob(f"{one.case_id}.*"))), cv2.IMREAD_UNCHANGED) for one in done]
    for images in (arrays, [one[..., None] for one in arrays], [one[None] for one in arrays]):
        for mask, one in zip(model.predict(images), done, strict=True):
            np.testing.assert_array_equal(mask, cv2.imread(str(one.files[0]), cv2.IMREAD_UNCHANGED))
    assert any(sum(one.pixels.values()) for one in done)
    cut = model.predict([arrays[0][:40, :51]])[0]  # any size
    assert cut.shape == arrays[0][:40, :51].shape


def test_objects_are_numbered_as_in_files(finished, nuclei, tmp_path):
    exp = nuclei("postprocess={steps: [{threshold: 0.45}]}")
    run = finished(exp, "discs-tiny")
    images = Path(exp.competition.root) / "test"
    done = predict_images([run], images, tmp_path / "out")
    found = packed(run, tmp_path).predict(sorted(str(path) for path in images.iterdir()))
    for mask, one in zip(found, done, strict=True):
        assert mask.dtype == np.uint16
        np.testing.assert_array_equal(mask, cv2.imread(str(one.files[0]), cv2.IMREAD_UNCHANGED))


def test_overlapping_classes_are_stacked(finished, tiny, demo2d, tmp_path):
    run = finished(tiny(2, "competition.labels=overlapping"))
    done = predict_images([run], demo2d / "test", tmp_path / "out")
    found = packed(run, tmp_path).predict([next((demo2d / "test").glob(f"{done[0].case_id}.*"))])[0]
    assert found.shape[0] == 2
    for plane, file in zip(found, done[0].files, strict=True):
        np.testing.assert_array_equal(plane, cv2.imread(str(file), cv2.IMREAD_UNCHANGED))


def test_what_cannot_be_predicted_is_told(finished, tiny, tmp_path):
    model = packed(finished(tiny(2)), tmp_path)
    picture = np.zeros((40, 40), np.uint8)
    for wrong, words in (
        ("a.png", "str"),
        (picture, "ndarray"),
        ([picture[0]], "image 1"),
        ([picture.astype(complex)], "complex128"),
        ([{"image": picture, "spacings": 1}], "`spacings`"),
        ([{"image": picture, "spacing": (1.0,)}], "Spacing of image 1"),
        ([np.full((40, 40), np.nan)], "NaN"),
        ([tmp_path / "none.png"], r"none\.png"),
        (pd.DataFrame({"path": ["a"]}), "path.*`image`"),
        ([None], "image 1.*NoneType"),
    ):
        with pytest.raises(MaskfoldError, match=words):
            model.predict(wrong)
    assert model.predict([]) == []
    model.predict([picture])
    with pytest.raises(MaskfoldError, match=r"image 2\b.*\b3\b.*\b1\b"):
        model.predict([picture, np.zeros((40, 40, 3), np.uint8)])


def test_channels_slices_and_places(tiny, tmp_path):
    exp = tiny(3)
    train = exp.competition.train.model_copy(update={"images": {"t1": "{id}_a.npy", "t2": "{id}_b.npy"}})
    several = exp.model_copy(update={"competition": exp.competition.model_copy(update={"train": train})})
    volume = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    np.save(tmp_path / "t2.npy", volume[1])
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    one = next(iter_images([{"image": {"t2": tmp_path / "t2.npy", "t1": volume[0]}, "affine": affine}], several))
    np.testing.assert_array_equal(one.image.array, volume)
    assert one.image.spacing == (2.0, 3.0, 4.0)
    with pytest.raises(MaskfoldError, match="t1, t2"):
        next(iter_images([{"image": {"t1": volume[0]}}], several))
    for orientation in ("RAS", "LPI", "SAR"):
        turned = several.model_copy(update={"prepare": exp.prepare.model_copy(update={"orientation": orientation})})
        lying = next(iter_images([{"image": volume[0], "spacing": (2, 3, 4)}], turned)).image
        assert "".join(nibabel.aff2axcodes(lying.affine)) == orientation
        np.testing.assert_array_equal(np.linalg.norm(lying.affine[:3, :3], axis=0), (2, 3, 4))
    slices = [volume[0, ..., z] for z in range(7)]
    np.testing.assert_array_equal(next(iter_images([slices], several)).image.array, volume[:1])
    with pytest.raises(MaskfoldError, match=r"image 1\b.*\(1, 5, 6\)"):
        next(iter_images([[slices[0], slices[0][:2]]], several))


def test_the_fingerprint_follows_what_predicts(finished, tiny, tmp_path):
    run = finished(tiny(2))
    before = model_fingerprint(run)
    assert model_fingerprint(run) == before
    weights = run.member_folder(0, 0) / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert model_fingerprint(run) != before


def test_requirements_are_pinned_and_can_be_had():
    found = pinned_requirements()
    assert {line.split("==")[0] for line in found} >= {"mlflow", "torch"}
    assert not any("+" in line or " " in line for line in found)


LOAD = """
import json, sys
import mlflow, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
masks = model.predict(json.loads(sys.argv[2]))
numpy.savez(sys.argv[3], *masks)
import competition
print(competition.__file__)
"""


@pytest.mark.slow
def test_a_version_predicts_in_another_process(finished, tiny, demo2d, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = finished(tiny(2, "postprocess={steps: [{threshold: 0.2}]}"))

    def register(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["maskfold", "register", *words])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert left.value.code == 0, said.err
        return said.out

    assert "registered: demo2d, version 1\n" in register(str(run.folder))
    again = register(str(run.folder), "--best")
    assert "already registered: demo2d, version 1, also models:/demo2d@best" in again
    models = list((tmp_path / "mlruns" / "artifacts").rglob("MLmodel"))
    assert len(models) == 1
    held = [path.relative_to(models[0].parent) for path in models[0].parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in held} <= {".py", ".txt", ".yaml", ".json", ".safetensors", ""}  # no .pkl anywhere
    assert sum(path.suffix == ".safetensors" for path in held) == 2
    done = predict_images([run], demo2d / "test", tmp_path / "out")
    files = [str(next((demo2d / "test").glob(f"{one.case_id}.*"))) for one in done]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", LOAD, "models:/demo2d@best", json.dumps(files), str(tmp_path / "masks.npz")],
        cwd=elsewhere,
        env={**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlruns/mlflow.db"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert process.returncode == 0, process.stderr
    assert Path(process.stdout.split()[-1]).is_relative_to(models[0].parent)  # its own code, not the checkout's
    assert ROOT not in Path(process.stdout.split()[-1]).parents
    assert not list(elsewhere.iterdir())
    found = np.load(tmp_path / "masks.npz")
    for name, one in zip(found.files, done, strict=True):
        np.testing.assert_array_equal(found[name], cv2.imread(str(one.files[0]), cv2.IMREAD_UNCHANGED))
