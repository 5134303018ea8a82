"""The files of a submission get the type that the host's sample stores, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import nibabel
import numpy as np
import pytest
from pydantic import ValidationError
from tifffile import imread, imwrite

from competition.config.competition import Competition
from competition.data.readers import read_header, read_labels
from competition.submission.formats import read_file_header, write_labels

SHAPE = (5, 6, 7)
TYPES = ("uint8", "int16", "int64", "uint64", "float32", "float64")


def volumes(root: Path) -> Competition:
    """Return a competition of volumes (X, Y, Z) whose only case is `a`."""
    return Competition(
        name="x",
        root=root,
        dimensions=3,
        classes=["one", "two"],
        train={"images": "{id}.nii.gz", "masks": "m/{id}.nii.gz"},
        array_axes="xyz",
    )


def case_row(image: str, shape: tuple[int, ...]) -> SimpleNamespace:
    """Return the columns of a case table that the writer reads."""
    return SimpleNamespace(
        id="a", images=json.dumps({"image": image}), shape=json.dumps(shape), spacing=json.dumps([1.0] * len(shape))
    )


@pytest.mark.parametrize("source", ["a.nii.gz", "a.npy"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["p.nii.gz", "p.nii", "p.mha", "p.tif"])
def test_each_type_is_written_and_read(tmp_path: Path, name: str, dtype: str, source: str) -> None:
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype) % 3
    if name.endswith(".mha"):
        pytest.importorskip("SimpleITK")
    if source.endswith(".npy"):
        np.save(tmp_path / source, np.zeros(SHAPE, np.float32))
    else:
        nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / source)
    path = tmp_path / "out" / name
    write_labels(path, labels, tmp_path / source, case_row(source, SHAPE), volumes(tmp_path))
    header = read_file_header(path, 3)
    expected = SHAPE if not name.endswith(".tif") else (SHAPE[1], SHAPE[0], SHAPE[2])
    assert header == (expected, dtype)
    if name.endswith(".mha"):
        import SimpleITK

        stored = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T
    elif name.endswith(".tif"):
        stored = imread(path).transpose(2, 1, 0)
    else:
        image = nibabel.load(path)
        stored = np.asanyarray(image.dataobj)
        assert image.get_data_dtype() == np.dtype(dtype)
    assert stored.dtype == np.dtype(dtype) and np.array_equal(stored, labels)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 4), (1, 6, 1), (1, 6, 4), (5, 1, 1), (5, 1, 4), (5, 6, 1)])
@pytest.mark.parametrize("name", ["p.nii.gz", "p.mha", "p.tif"])
def test_a_volume_that_is_one_voxel_wide_keeps_its_shape(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    if name.endswith(".mha"):
        pytest.importorskip("SimpleITK")
    labels = (np.arange(np.prod(shape)).reshape(shape) % 3).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.float32), np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "a.nii.gz")
    path = tmp_path / "out" / name
    write_labels(path, labels, tmp_path / "a.nii.gz", case_row("a.nii.gz", shape), volumes(tmp_path))
    stored = read_labels(path, 3)[0]
    assert np.array_equal(stored.transpose(1, 0, 2) if name.endswith(".tif") else stored, labels)


@pytest.mark.parametrize("source", ["a.png", "a.nii.gz"])
@pytest.mark.parametrize("name", ["p.nii.gz", "p.nii", "p.mha", "p.tif", "p.png"])
def test_a_picture_is_written_in_each_format(tmp_path: Path, name: str, source: str) -> None:
    if name.endswith(".mha"):
        pytest.importorskip("SimpleITK")
    labels = np.zeros((6, 7), np.uint8)
    labels[1, 2], labels[5, 3] = 1, 2
    comp = Competition(
        name="x",
        root=tmp_path,
        dimensions=2,
        classes=["one", "two"],
        train={"images": f"{{id}}{source[1:]}", "masks": "m/{id}.png"},
    )
    if source == "a.png":
        cv2.imwrite(str(tmp_path / source), labels)
        on_file_axes = labels if name.endswith((".tif", ".png")) else labels.T
    else:  # (X, Y), so that pictures are its transpose
        nibabel.save(nibabel.Nifti1Image(labels[..., None], np.diag([2.0, 3.0, 1.0, 1.0])), tmp_path / source)
        on_file_axes = labels.T if name.endswith((".tif", ".png")) else labels
    path = tmp_path / "out" / name
    write_labels(path, labels, tmp_path / source, case_row(source, labels.shape), comp)
    assert read_file_header(path, 2) == (on_file_axes.shape, "uint8")
    assert np.array_equal(read_labels(path, 2)[0], on_file_axes)
    if name == "p.nii.gz":
        expected = np.diag([2.0, 3.0, 1.0, 1.0]) if source == "a.nii.gz" else np.eye(4)
        assert np.array_equal(nibabel.load(path).affine, expected)


def test_values_of_classes_in_files_of_objects_are_refused() -> None:
    keys = {
        "name": "x",
        "root": ".",
        "dimensions": 2,
        "classes": ["one"],
        "instances": True,
        "train": {"images": "{id}.png", "masks": "m/{id}.png"},
    }
    Competition.model_validate({**keys, "submission": {"files": "{id}.png"}})
    with pytest.raises(ValidationError, match="instances"):
        Competition.model_validate({**keys, "submission": {"files": "{id}.png", "labels": [255]}})


def test_the_indices_of_a_palette_are_one_channel(tmp_path: Path) -> None:
    from PIL import Image

    labels = np.zeros((6, 7), np.uint8)
    labels[2:4, 3:5] = 2
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "p.png")
    colours = np.zeros((3, 256), np.uint16)
    imwrite(tmp_path / "p.tif", labels, photometric="palette", colormap=colours)
    for name in ("p.png", "p.tif"):
        assert read_file_header(tmp_path / name, 2) == ((6, 7), "uint8"), name
        assert read_header(tmp_path / name, 2, labels=True).channels == 1, name
        assert read_header(tmp_path / name, 2).channels == 3, f"{name}: as an image, it has colours"


@pytest.mark.parametrize(
    ("source", "shape"),
    [("a.mha", (6, 7)), ("a.mha", (6, 7, 1)), ("a.nhdr", (6, 7, 3)), ("a.mha", (6, 7, 3, 2))],
    ids=["picture", "one slice", "nhdr", "channels"],
)
def test_a_file_of_itk_gives_its_geometry(tmp_path: Path, source: str, shape: tuple[int, ...]) -> None:
    SimpleITK = pytest.importorskip("SimpleITK")
    image = SimpleITK.Image(shape, SimpleITK.sitkUInt8)
    image.SetSpacing([2.0, 3.0, 4.0, 5.0][: len(shape)])
    image.SetOrigin([7.0, 8.0, 9.0, 10.0][: len(shape)])
    SimpleITK.WriteImage(image, str(tmp_path / source))
    dims = 2 if shape[2:] in ((), (1,)) else 3
    comp = volumes(tmp_path).model_copy(update={"dimensions": dims})
    labels = np.arange(np.prod(shape[:dims])).reshape(shape[:dims]).astype(np.uint8) % 3
    for name in ("p.mha", "p.nii.gz"):
        write_labels(tmp_path / name, labels, tmp_path / source, case_row(source, labels.shape), comp)
    written = SimpleITK.ReadImage(str(tmp_path / "p.mha"))
    assert written.GetSpacing() == (2.0, 3.0, 4.0)[:dims] and written.GetOrigin() == (7.0, 8.0, 9.0)[:dims]
    assert nibabel.load(tmp_path / "p.nii.gz").affine[:2, 3].tolist() == [-7.0, -8.0]
