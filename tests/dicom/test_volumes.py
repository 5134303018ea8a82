"""Series to volumes: order, spacing, affine, values and dtype, compared with hand calculation and SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from competition.dicom.convert import Conversion, convert_folder
from tests.conftest import SHARED
from tests.dicom.files import (
    AXIAL,
    MR_ENHANCED,
    OBLIQUE,
    expected_affine,
    frame_item,
    header,
    item,
    positions,
    save,
    set_pixels,
    uid,
    volume,
    write_series,
)

SPACING = (0.7, 0.8)


def converted(folder: Path, output: Path) -> tuple[Conversion, Any]:
    """Convert a folder with one volume."""
    done = convert_folder(folder, output)
    assert [row.status for row in done.rows] == ["converted"], [row.reason for row in done.rows]
    return done, nibabel.load(output / done.rows[0].file)


@pytest.mark.parametrize(
    "orientation", [AXIAL, OBLIQUE, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)], ids=["axial", "oblique", "sagittal"]
)
@pytest.mark.parametrize("origin", [(-40.0, 12.5, -300.0), (3.0, -7.0, 2.0)], ids=["negative", "across zero"])
def test_positions_give_order_spacing_and_affine(tmp_path: Path, orientation: tuple[float, ...], origin: Any) -> None:
    array, places = volume(), positions(4, orientation, origin)
    write_series(tmp_path / "in", array, places=places, orientation=orientation, spacing=SPACING, backwards=True)
    done, image = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array)
    expected = expected_affine(places, orientation, SPACING)
    np.testing.assert_allclose(image.affine, expected, atol=1e-4)
    np.testing.assert_allclose(image.get_qform(), expected, atol=1e-4)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.header.get_zooms(), (0.8, 0.7, 2.5), rtol=1e-6)
    assert (done.rows[0].shape, done.rows[0].spacing) == ("6x5x4", "0.8x0.7x2.5")


def test_agrees_with_simpleitk(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    rescale = [(1.0, -1024.0), (1.0, -1000.0), (2.0, 0.0), (3.0, 7.0)]
    paths = write_series(tmp_path / "in", volume(), orientation=OBLIQUE, rescale=rescale, backwards=True)
    _, image = converted(tmp_path / "in", tmp_path / "out")
    assert_equals_simpleitk(sitk, str(tmp_path / "in"), dcmread(paths[0]).SeriesInstanceUID, image)


def assert_equals_simpleitk(sitk: Any, folder: str, series: str, image: Any) -> None:
    """Check that SimpleITK reads the same array and, in LPS, the same affine."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, series, False, True)
    reference = sitk.ReadImage(names)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), sitk.GetArrayFromImage(reference).transpose(2, 1, 0))
    affine = np.eye(4)
    affine[:3, :3] = np.array(reference.GetDirection()).reshape(3, 3) * np.array(reference.GetSpacing())
    affine[:3, 3] = reference.GetOrigin()
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ affine, atol=1e-4)


def test_slopes_of_each_slice(tmp_path: Path) -> None:
    array, rescale = volume(), [(0.5, 1.0), (0.25, -3.0), (1.0, 0.0), (2.0, 0.125)]
    write_series(tmp_path / "in", array, rescale=rescale)
    _, image = converted(tmp_path / "in", tmp_path / "out")
    assert image.get_data_dtype() == np.float32
    for z, (slope, intercept) in enumerate(rescale):
        np.testing.assert_allclose(np.asanyarray(image.dataobj)[:, :, z], array[:, :, z] * slope + intercept, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "rescale", "dtype"),
    [
        (np.array([0, 4095], np.uint16), (1.0, -1024.0), np.int16),
        (np.array([0, 65535], np.uint16), (1.0, 0.0), np.float32),
        (np.array([0, 65535], np.uint16), (1.0, -32768.0), np.int16),
        (np.array([-32768, 32767], np.int16), (1.0, 0.0), np.int16),
        (np.array([-32768, 32767], np.int16), (1.0, -1.0), np.float32),
        (np.array([0, 255], np.uint8), (1.0, 0.0), np.int16),
        (np.array([0, 10], np.int16), (1.5, 0.0), np.float32),
    ],
)
def test_dtype_holds_the_values(tmp_path: Path, values: np.ndarray, rescale: tuple[float, float], dtype: type) -> None:
    array = np.resize(values, (4, 4, 3))
    write_series(tmp_path / "in", array, rescale=[rescale] * 3)
    _, image = converted(tmp_path / "in", tmp_path / "out")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array.astype(np.float64) * rescale[0] + rescale[1])


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    array = volume()
    for path in write_series(tmp_path / "in", array):
        dataset = dcmread(path)
        if syntax == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            swapped = Dataset()  # pydicom keeps the byte order of a dataset that it read
            swapped.update(dataset)
            swapped.file_meta, dataset = dataset.file_meta, swapped
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        little = syntax != ExplicitVRBigEndian
        dataset.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=little)
    _, image = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array)


def test_files_without_preamble_and_with_any_name(tmp_path: Path) -> None:
    array = volume()
    for place, path in enumerate(write_series(tmp_path / "in", array)):
        whole = path.read_bytes()
        path.unlink()
        name = ["a/scan.JPG", "b/1.2.3", "c/d/no name", "DICOMFILE"][place]
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(whole)
    bare = dcmread(tmp_path / "in/b/1.2.3")
    del bare.file_meta
    bare.preamble = None
    bare.save_as(tmp_path / "in/b/1.2.3", implicit_vr=True, little_endian=True)
    (tmp_path / "in/readme.txt").write_text("not DICOM")
    (tmp_path / "in/empty").touch()
    assert (tmp_path / "in/b/1.2.3").read_bytes()[128:132] != b"DICM"
    _, image = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array)


@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_file_is_a_series(tmp_path: Path, shared: bool) -> None:
    array, places = volume(), positions(4, OBLIQUE)
    order, slopes = [2, 0, 3, 1], [1.0, 2.0, 3.0, 4.0]
    dataset = header(SOPClassUID=MR_ENHANCED, Modality="MR", SOPInstanceUID=uid("enhanced"))
    groups = [frame_item(places[z], OBLIQUE, SPACING) for z in order]
    for z, group in zip(order, groups, strict=True):
        group.PixelValueTransformationSequence = Sequence([item(RescaleSlope=str(slopes[z]), RescaleIntercept="5")])
    if shared:
        common = item(
            PlaneOrientationSequence=groups[0].PlaneOrientationSequence,
            PixelMeasuresSequence=groups[0].PixelMeasuresSequence,
        )
        dataset.SharedFunctionalGroupsSequence = Sequence([common])
        for group in groups:
            del group.PlaneOrientationSequence, group.PixelMeasuresSequence
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    set_pixels(dataset, array.transpose(2, 1, 0)[order])
    dataset.NumberOfFrames = 4
    save(dataset, tmp_path / "in/enhanced.dcm")
    _, image = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array * np.array(slopes) + 5)
    np.testing.assert_allclose(image.affine, expected_affine(places, OBLIQUE, SPACING), atol=1e-4)


def test_a_single_slice_takes_its_thickness(tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume((6, 5, 1)))
    done, image = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_allclose(image.header.get_zooms(), (0.8, 0.7, 2.5), rtol=1e-6)
    assert "a single slice" in done.rows[0].notes


def test_notes_do_not_prevent_the_conversion(tmp_path: Path) -> None:
    write_series(tmp_path / "in", volume(), PhotometricInterpretation="MONOCHROME1", SliceThickness="1")[0].unlink()
    done, image = converted(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume()[:, :, 1:])
    assert all(note in done.rows[0].notes for note in ("MONOCHROME1", "1 mm thick and 2.5 mm apart", "start at 2"))


@pytest.mark.skipif(not (SHARED / "dicom/study").is_dir(), reason="the real study is missing")
def test_the_real_study_agrees_with_simpleitk(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    folder = SHARED / "dicom/study"
    done = convert_folder(folder, tmp_path / "out")
    assert sorted((row.status, row.shape, row.spacing) for row in done.rows) == [
        ("converted", "280x320x22", "0.6875x0.6875x6.5")
    ] * 4 + [("converted", "34x50x40", "1x1x1")]
    for row in done.rows:
        assert_equals_simpleitk(sitk, str(folder), row.series, nibabel.load(tmp_path / "out" / row.file))
