"""A container for Grand Challenge: its entry point predicts made images, without Docker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from competition.data.cases import case_rows, case_table
from competition.data.readers import load_image
from competition.errors import MaskfoldError
from competition.export.bundle import ExportOptions, export_runs
from competition.export.container import check_container
from competition.export.grand_challenge import read_input, write_output
from competition.submission.label_files import predict_images


def test_the_entry_point_writes_the_labels_that_predict_writes(finished, tiny, tmp_path):
    SimpleITK = pytest.importorskip("SimpleITK")
    run = finished(tiny(3), "demo3d-tiny")
    comp = run.exp.competition
    bundle = tmp_path / "bundle"
    export_runs([run], bundle, options=ExportOptions(container="grand-challenge", output_slug="organs"))
    text = (bundle / "Dockerfile").read_text()
    assert "process.py" in text and "USER user" in text and (bundle / "container.json").exists()
    rows = case_rows(case_table(comp, "test"))
    socket = tmp_path / "input" / "images" / "mri"
    socket.mkdir(parents=True)
    direction = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    row = rows[0]
    image = SimpleITK.GetImageFromArray(load_image(comp, row).array[0].T)
    image.SetOrigin((5.0, -7.0, 11.0))
    image.SetSpacing(tuple(json.loads(row.spacing)))
    if run.exp.prepare.orientation is None:
        image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(socket / "scan.mha"))
    done = subprocess.run(
        [sys.executable, bundle / "process.py", "--input", tmp_path / "input", "--output", tmp_path / "output"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    labels = SimpleITK.ReadImage(str(tmp_path / "output" / "images" / "organs" / "scan.mha"))
    assert labels.GetOrigin() == image.GetOrigin() and labels.GetSpacing() == pytest.approx(image.GetSpacing())
    assert labels.GetDirection() == image.GetDirection()
    predict_images([run], Path(comp.root) / "imagesTs", tmp_path / "predicted")
    from competition.data.readers import read_labels

    expected = read_labels(tmp_path / "predicted" / f"{row.id}.nii.gz")[0]
    if run.exp.prepare.orientation is None:
        assert np.array_equal(SimpleITK.GetArrayFromImage(labels).T, expected)
    empty = subprocess.run(
        [sys.executable, bundle / "process.py", "--input", tmp_path / "none", "--output", tmp_path / "output"],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert empty.returncode == 1 and "Traceback" not in empty.stderr and "has no image folder" in empty.stderr


HEADER = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "TransformMatrix = 0 1 0 1 0 0 0 0 1\nOffset = 5 -7 11\nElementSpacing = 2 3 4\nDimSize = {size}\n"
    "ElementType = MET_UCHAR\nElementDataFile = {data}\n"
)


def test_an_image_of_the_socket_is_read_as_everywhere(tiny, tmp_path):
    pytest.importorskip("SimpleITK")
    comp, path = tiny(3).competition, tmp_path / "scan.mha"
    path.write_bytes(HEADER.format(size="2 3 4", data="LOCAL").encode() + bytes(range(24)))
    image, geometry = read_input(path, comp)
    assert np.array_equal(image.array[0].ravel("F"), np.arange(24)) and image.spacing == (2.0, 3.0, 4.0)
    assert geometry == ((2.0, 3.0, 4.0), (5.0, -7.0, 11.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    labels = image.array[0] % 3
    write_output(tmp_path / "labels.mha", labels, comp, geometry)
    again, same = read_input(tmp_path / "labels.mha", comp)
    assert np.array_equal(again.array[0], labels) and same == geometry


@pytest.mark.parametrize(
    ("size", "data"), [("2 3 4", "secret.raw"), ("2 3 4", "../secret.raw"), ("9999 9999 9999", "LOCAL")]
)
def test_an_image_of_the_socket_names_no_other_file_and_no_absurd_size(tiny, tmp_path, size, data):
    """ITK would read the bytes of another file as voxels."""
    pytest.importorskip("SimpleITK")
    (tmp_path / "socket").mkdir()
    for folder in (tmp_path, tmp_path / "socket"):
        (folder / "secret.raw").write_bytes(bytes(24))
    path = tmp_path / "socket" / "scan.mha"
    path.write_bytes(HEADER.format(size=size, data=data).encode() + bytes(24))
    with pytest.raises(MaskfoldError, match="scan.mha"):
        read_input(path, tiny(3).competition)


def test_a_tiff_of_the_socket_gets_the_spacing_of_the_yaml(tiny, tmp_path):
    """As in training; otherwise `prepare.spacing` would resample the image by a wrong factor."""
    from tifffile import imwrite

    comp = tiny(3, "competition.spacing=[2.0,3.0,4.0]").competition
    imwrite(tmp_path / "scan.tif", np.zeros((4, 3, 2), np.uint8), photometric="minisblack")
    image, _ = read_input(tmp_path / "scan.tif", comp)
    assert image.array.shape == (1, 2, 3, 4) and image.spacing == (2.0, 3.0, 4.0)


def test_the_container_writes_the_values_of_the_submission(tiny, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from competition.export import grand_challenge
    from competition.postprocessing.case import CasePrediction

    SimpleITK = pytest.importorskip("SimpleITK")
    submission = tiny(3).competition.submission.model_copy(update={"files": "{id}.mha", "labels": [30, 20]})
    comp = tiny(3).competition.model_copy(update={"submission": submission})
    bundle = SimpleNamespace(ensemble=SimpleNamespace(comp=comp), trust=(), settings=None)
    (tmp_path / "input/images/mri").mkdir(parents=True)
    path = tmp_path / "input/images/mri/scan.mha"
    SimpleITK.WriteImage(SimpleITK.Image(2, 1, 1, SimpleITK.sitkUInt8), str(path))
    path.rename(path.with_suffix(".MHA"))
    (tmp_path / "container.json").write_text(json.dumps({"input": None, "output": "organs"}))
    predictor = SimpleNamespace(predict=lambda case: (None, None))
    masks = np.array([[True, False], [False, True]]).reshape(2, 2, 1, 1)
    monkeypatch.setattr(grand_challenge.Bundle, "read", lambda *_: bundle)
    monkeypatch.setattr(grand_challenge, "EnsemblePredictor", lambda *_: predictor)
    monkeypatch.setattr(grand_challenge, "postprocess", lambda *_: CasePrediction(masks, None))
    assert grand_challenge.predict_sockets(tmp_path, tmp_path / "input", tmp_path / "output") == 1
    written = SimpleITK.ReadImage(str(tmp_path / "output/images/organs/scan.mha"))
    assert SimpleITK.GetArrayFromImage(written).ravel().tolist() == [30, 20]


def test_overlapping_classes_that_do_not_fit_into_one_file_are_refused_at_the_export(tiny):
    values = [[1, 2], [2, 3]]
    comp = tiny(3).competition.model_copy(update={"labels": "overlapping", "label_values": values})
    with pytest.raises(MaskfoldError, match="--container: the classes .* share label values") as refused:
        check_container("grand-challenge", comp)
    assert refused.value.status == 2 and "--label-map" not in refused.value.message + refused.value.hint


@pytest.mark.parametrize("images", ["{id}/ch_{c}.nii.gz", {"t1": "{id}/t1.nii.gz", "t2": "{id}/t2.nii.gz"}])
def test_channels_in_separate_files_are_refused_at_the_export(tiny, images):
    comp = tiny(3).competition
    comp = comp.model_copy(update={"train": comp.train.model_copy(update={"images": images})})
    with pytest.raises(MaskfoldError, match="--container: the images have .*channels in separate files") as refused:
        check_container("grand-challenge", comp)
    assert refused.value.status == 2


def test_an_unknown_container_is_refused(finished, tiny, tmp_path):
    with pytest.raises(MaskfoldError, match="grand-challenge"):
        export_runs([finished(tiny(2))], tmp_path / "bundle", options=ExportOptions(container="docker"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("slug", ["../../etc", "/tmp", "a/b", "Organs", "", "a--b", "a\nb"])
def test_a_slug_is_a_name_and_no_path(slug: str) -> None:
    for option, slugs in (("--input-slug", (slug, None)), ("--output-slug", (None, slug))):
        with pytest.raises(MaskfoldError, match=f"{option}: found .*, expected lower-case letters"):
            check_container("grand-challenge", None, *slugs)
