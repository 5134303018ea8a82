"""NRRD, NHDR, MHA and MHD files: voxels, spacing and affine equal those of the same volume as NIfTI."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from competition.config.axes import file_axes
from competition.config.competition import Competition
from competition.data.content.digests import file_stamp, remembered_digest
from competition.data.image_types import file_digest
from competition.data.readers import has_reader, read_header, read_image, read_labels, strip_extension
from competition.errors import MaskfoldError

SimpleITK = pytest.importorskip("SimpleITK")
ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")


def volume(dtype=np.int16, components: int = 0):
    """Return a volume of 5×6×7 voxels (X, Y, Z) that is turned, with anisotropic spacing."""
    shape = (7, 6, 5, components) if components else (7, 6, 5)
    array = (1000 * np.random.default_rng(0).random(shape) - (500 if np.dtype(dtype).kind != "u" else 0)).astype(dtype)
    image = SimpleITK.GetImageFromArray(array, isVector=bool(components))
    turn = SimpleITK.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5)
    image.SetDirection(turn.GetMatrix())
    image.SetSpacing((0.7, 1.5, 3.0))
    image.SetOrigin((-12.0, 34.5, 7.25))
    return image


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_a_volume_equals_its_nifti(tmp_path: Path, ending: str, dtype) -> None:
    for name in (f"a{ending}", "a.nii.gz"):
        SimpleITK.WriteImage(volume(dtype), str(tmp_path / name))
    image, nifti = read_image(tmp_path / f"a{ending}"), read_image(tmp_path / "a.nii.gz")
    assert image.array.shape == (1, 5, 6, 7) and image.array.dtype == nifti.array.dtype
    assert np.array_equal(image.array, nifti.array)
    assert image.spacing == pytest.approx(nifti.spacing) and image.has_spacing
    assert image.affine == pytest.approx(nifti.affine, abs=1e-4)
    header, expected = read_header(tmp_path / f"a{ending}"), read_header(tmp_path / "a.nii.gz")
    assert (header.shape, header.channels, header.dtype) == (expected.shape, expected.channels, expected.dtype)
    assert header.affine == pytest.approx(image.affine) and header.in_patient_space


@pytest.mark.parametrize("ending", ENDINGS)
def test_components_are_channels(tmp_path: Path, ending: str) -> None:
    SimpleITK.WriteImage(volume(np.uint8, components=3), str(tmp_path / f"a{ending}"))
    image = read_image(tmp_path / f"a{ending}")
    expected = SimpleITK.GetArrayFromImage(volume(np.uint8, components=3)).transpose(3, 2, 1, 0)
    assert np.array_equal(image.array, expected) and read_header(tmp_path / f"a{ending}").channels == 3


def test_labels_axes_and_names(tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.Cast(volume(np.uint8), SimpleITK.sitkUInt8), str(tmp_path / "a.seg.nrrd"), True)
    labels, affine = read_labels(tmp_path / "a.seg.nrrd")
    assert labels.shape == (5, 6, 7) and labels.dtype == np.uint8 and affine is not None
    assert has_reader("A.MHA") and strip_extension("a.seg.nrrd") == "a.seg"
    comp = Competition(
        name="x", root=".", dimensions=3, classes=["a"], train={"images": "{id}.mha", "masks": "{id}.mha"}
    )
    assert file_axes(comp, "a.nrrd") == file_axes(comp, "{id}.MHD") == "xyz"


def test_a_volume_with_one_slice_is_a_2d_image(tmp_path: Path) -> None:
    SimpleITK.WriteImage(volume()[:, :, :1], str(tmp_path / "a.mha"))
    assert read_image(tmp_path / "a.mha", 2).array.shape == (1, 5, 6)
    SimpleITK.WriteImage(volume(), str(tmp_path / "b.mha"))
    with pytest.raises(MaskfoldError, match="5×6×7"):
        read_image(tmp_path / "b.mha", 2)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_the_digest_covers_the_voxels_of_another_file(tmp_path: Path, ending: str) -> None:
    SimpleITK.WriteImage(volume(), str(tmp_path / f"a{ending}"), False)
    before = file_digest(tmp_path / f"a{ending}")
    (voxels,) = (path for path in tmp_path.iterdir() if path.name != f"a{ending}")
    content = bytearray(voxels.read_bytes())
    content[10] ^= 1
    voxels.write_bytes(content)
    assert file_digest(tmp_path / f"a{ending}") != before


@pytest.mark.parametrize("name", ["../b.raw", "/etc/passwd", "LIST", "slice%03d.raw 1 7 1"])
def test_voxels_in_other_folders_are_refused(tmp_path: Path, name: str) -> None:
    SimpleITK.WriteImage(volume(), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text().replace("a.zraw", name).replace("a.raw", name)
    (tmp_path / "a.mhd").write_text(text)
    for read in (read_image, read_header, file_digest):
        with pytest.raises(MaskfoldError, match="expected one file in the same folder"):
            read(tmp_path / "a.mhd")


META = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\n"
NAMED_TWICE = "ElementDataFile = own.raw\nElementDataFile = ../secret.raw\n"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mha", f"{META}ElementDataFile = ../secret.raw\n"),
        ("a.mha", f"{META}ElementDataFile = own.raw\n"),  # its digest would not cover own.raw
        ("a.mha", f"{META}ElementDataFile = LOCAL\n#PAD\nElementDataFile = ../secret.raw\n"),
        ("a.mhd", f"{META} ElementDataFile = ../secret.raw\nElementDataFile = own.raw\n"),
        ("a.mhd", f"{META}elementdatafile = own.raw\nElementDataFile = ../secret.raw\n"),
        ("a.mhd", f"{META}Color =\n{NAMED_TWICE}"),  # ITK reads the next line as the value, and takes the last one
        ("a.mhd", f"{META}Comment = x\r{NAMED_TWICE}"),
        ("a.mhd", f"{META}#PAD\nElementDataFile = own.raw\n"),
        ("a.nrrd", f"{NRRD}data file: ../secret.raw\n\n"),
        ("a.nrrd", f"{NRRD}# x\rDataFile: ../secret.raw\n\n"),
        ("a.nrrd", f"{NRRD}#PAD\ndata file: ../secret.raw\n\n"),
        ("a.nhdr", f"{NRRD}datafile: ../secret.raw\n\n"),
        ("a.nhdr", f"{NRRD}data file: own.raw\nDATAFILE: ../secret.raw\n\n"),
        ("a.mhd", f"{META}ElementDataFile = ..\n"),
    ],
)
def test_no_spelling_of_a_header_reads_another_file(tmp_path: Path, name: str, header: str) -> None:
    (tmp_path / "secret.raw").write_bytes(b"1" * 512)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/own.raw").write_bytes(bytes(512))
    path = tmp_path / "d" / name
    path.write_text(header.replace("#PAD", "#" * 2**20), newline="")
    for read in (read_image, read_header, file_digest):
        with pytest.raises(MaskfoldError, match="voxels are in|its header has"):
            read(path)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_the_stamp_of_a_header_covers_the_file_with_its_voxels(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    SimpleITK.WriteImage(volume(), str(path), False)
    (voxels,) = (file for file in tmp_path.iterdir() if file != path)
    for file in (path, voxels):
        os.utime(file, (1, 1))
    before, digest = file_stamp(path), remembered_digest(path)
    content = bytearray(voxels.read_bytes())
    content[10] ^= 1
    voxels.write_bytes(content)
    assert file_stamp(path) != before and remembered_digest(path) != digest


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_are_errors(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    SimpleITK.WriteImage(volume(), str(path))
    largest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(MaskfoldError, match="a"):
        read_image(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(MaskfoldError, match=f"a{ending}"):
        read_header(path)
    with pytest.raises(MaskfoldError, match="does not exist"):
        read_image(tmp_path / f"b{ending}")


def test_without_simpleitk_the_message_has_the_install_line(tmp_path: Path, monkeypatch) -> None:
    SimpleITK.WriteImage(volume(), str(tmp_path / "a.nrrd"))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(MaskfoldError, match="SimpleITK") as caught:
        read_image(tmp_path / "a.nrrd")
    assert caught.value.status == 2 and "pip install 'maskfold[itk]'" in caught.value.hint
