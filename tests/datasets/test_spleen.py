"""The spleen DICOM: read by pydicom and SimpleITK; geometry, Hounsfield units, and DICOM-SEG frame by frame."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from competition.datasets.phantoms import spleen
from competition.datasets.phantoms.dicom import SliceGrid, Study, write_segmentation

Patient = dict[str, list[tuple[Path, Any]]]  # files by kind of series


def kind(ds: Any) -> str:
    if ds.Modality == "SEG":
        return "seg"
    if "LOCALIZER" in ds.ImageType:
        return "localiser"
    return (
        "labels"
        if ds.SeriesDescription == spleen.LABEL_DESCRIPTION
        else "sharp"
        if "B70f" in ds.SeriesDescription
        else "ct"
    )


@pytest.fixture(scope="module")
def patients(phantoms) -> dict[str, Patient]:
    found: dict[str, Patient] = {}
    for path in sorted((phantoms["spleen"] / "dicom").rglob("*")):
        if path.is_file():
            ds = pydicom.dcmread(path)
            found.setdefault(ds.PatientID, defaultdict(list))[kind(ds)].append((path, ds))
    return found


def sorted_by_place(series: list[tuple[Path, Any]]) -> list[Any]:
    """Sort slices along the normal, computed from the tags."""
    first = series[0][1]
    normal = np.cross(
        [float(v) for v in first.ImageOrientationPatient[:3]], [float(v) for v in first.ImageOrientationPatient[3:]]
    )
    return sorted(
        (ds for _, ds in series), key=lambda ds: float(np.dot(normal, [float(v) for v in ds.ImagePositionPatient]))
    )


def test_folders_and_names_are_those_of_an_export(phantoms, patients):
    root = phantoms["spleen"] / "dicom"
    train, test = ({path.name for path in (root / part).iterdir()} for part in ("train", "test"))
    assert (len(train), len(test)) == (4, 1) and train | test == set(patients) == {f"PAT-{n:03d}" for n in range(1, 6)}
    for path in root.rglob("*"):
        if path.is_file():
            part, patient, study, name = path.relative_to(root).parts
            assert len(name) == 8 and int(name, 16) >= 0 and study.isdigit()
            assert pydicom.dcmread(path, stop_before_pixels=True).PatientID == patient


def test_kinds_of_series_are_mixed(phantoms, patients):
    (test,) = (path.name for path in (phantoms["spleen"] / "dicom" / "test").iterdir())
    assert not {"seg", "labels", "sharp"} & set(patients[test])
    held = [set(series) for name, series in patients.items() if name != test]
    assert all("ct" in kinds and len({"seg", "labels"} & kinds) == 1 for kinds in held)
    assert [sum(name in kinds for kinds in held) for name in ("seg", "labels", "sharp", "localiser")] == [3, 1, 1, 2]


def test_files_are_valid_and_belong_together(patients):
    uids = []
    for series in patients.values():
        everything = [ds for files in series.values() for _, ds in files]
        assert (
            len({ds.StudyInstanceUID for ds in everything}) == len({ds.FrameOfReferenceUID for ds in everything}) == 1
        )
        assert (
            len({ds.SeriesInstanceUID for ds in everything})
            == len(series)
            == len({ds.SeriesNumber for ds in everything})
        )
        for ds in everything:
            uids.append(ds.SOPInstanceUID)
            assert ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID and ds.SOPInstanceUID.is_valid
            assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
            tags = [element.tag for element in ds]
            assert tags == sorted(tags)
    assert len(set(uids)) == len(uids)


def test_hounsfield_units_are_those_of_an_abdomen(patients):
    for series in patients.values():
        ct = sorted_by_place(series["ct"])
        kinds = {
            (int(ds.RescaleIntercept), int(ds.RescaleSlope), ds.BitsAllocated, ds.PixelRepresentation) for ds in ct
        }
        assert kinds == {(-1024, 1, 16, 1)}
        hu = np.stack([ds.pixel_array for ds in ct]).astype(int) - 1024
        assert 24 <= len(hu) <= 40 and hu.shape[1:] == (96, 96)
        assert -1024 <= hu.min() < -990 and 300 < hu.max() <= 3071
        assert np.median(hu[:, :8, :8]) == pytest.approx(-1000, abs=15)  # air in a corner
        shares = [np.mean((hu > low) & (hu < high)) for low, high in ((-150, -50), (20, 200), (250, 3000))]
        assert shares[0] > 0.1 and shares[1] > 0.1 and 0.004 < shares[2] < 0.1  # fat, soft tissue, bone


def test_names_and_numbers_do_not_follow_the_slices(patients):
    rising = []
    for series in patients.values():
        ct = sorted_by_place(series["ct"])
        by_name = [ds.InstanceNumber for _, ds in sorted(series["ct"], key=lambda pair: pair[0].name)]
        assert by_name != sorted(by_name) and by_name != sorted(by_name, reverse=True)
        numbers = [ds.InstanceNumber for ds in ct]
        assert sorted(numbers) in (numbers, numbers[::-1])
        rising.append(numbers[0] == 1)
    assert 0 < sum(rising) < len(rising)


def test_one_is_oblique_and_its_slices_lie_along_their_normal(patients):
    oblique = 0
    for series in patients.values():
        for files in (files for name, files in series.items() if name in ("ct", "labels", "sharp")):
            slices = sorted_by_place(files)
            axes = np.array([float(v) for v in slices[0].ImageOrientationPatient]).reshape(2, 3)
            assert np.allclose(axes @ axes.T, np.eye(2), atol=1e-6)
            steps = np.diff([[float(v) for v in ds.ImagePositionPatient] for ds in slices], axis=0)
            assert np.allclose(steps, float(slices[0].SliceThickness) * np.cross(axes[0], axes[1]), atol=1e-4)
            oblique += not np.allclose(axes, [[1, 0, 0], [0, 1, 0]])
    assert oblique == 1


def test_simpleitk_reads_the_grid_of_the_hidden_truth(phantoms, patients):
    sitk = pytest.importorskip("SimpleITK")
    (path,) = (phantoms["spleen"] / "solution").iterdir()
    truth = nibabel.load(path)
    ds = patients[path.name.split(".")[0]]["ct"][0][1]
    reader = sitk.ImageSeriesReader()
    folder = str(patients[ds.PatientID]["ct"][0][0].parent)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, ds.SeriesInstanceUID))
    image = reader.Execute()
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.block([[axes, np.array(image.GetOrigin())[:, None]], [0, 0, 0, 1.0]])
    assert truth.shape == image.GetSize() and np.allclose(truth.affine, affine, atol=1e-4)
    hu = sitk.GetArrayFromImage(image).transpose(2, 1, 0)[np.asarray(truth.dataobj) > 0]
    assert 80 < np.median(hu) < 150 and len(hu) > 300


def labels_of(series: Patient) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return HU and mask (slices, rows, columns), and the mean position of the mask in mm, from the tags alone."""
    ct = sorted_by_place(series["ct"])
    hu = np.stack([ds.pixel_array for ds in ct]).astype(int) - 1024
    mask = np.zeros(hu.shape, bool)
    places = {tuple(float(v) for v in ds.ImagePositionPatient): k for k, ds in enumerate(ct)}
    if "labels" in series:
        for _, ds in series["labels"]:
            assert set(np.unique(ds.pixel_array)) <= {0, 1} and ds.RescaleIntercept == 0
            mask[places[tuple(float(v) for v in ds.ImagePositionPatient)]] = ds.pixel_array > 0
    else:
        ((_, seg),) = series["seg"]
        frames = np.atleast_3d(seg.pixel_array)
        for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
            k = places[tuple(float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient)]
            source = group.DerivationImageSequence[0].SourceImageSequence[0]
            assert source.ReferencedSOPInstanceUID == ct[k].SOPInstanceUID
            mask[k] = frame > 0
    where = np.argwhere(mask).mean(axis=0)
    row, column = np.array([float(v) for v in ct[0].ImageOrientationPatient]).reshape(2, 3)
    spacing = [float(v) for v in ct[0].PixelSpacing]
    first, second = (np.array([float(v) for v in ds.ImagePositionPatient]) for ds in ct[:2])
    return hu, mask, first + where[0] * (second - first) + where[1] * spacing[0] * column + where[2] * spacing[1] * row


def test_labels_are_on_the_left_and_as_bright_as_their_neighbours(patients):
    for name, series in patients.items():
        if not {"seg", "labels"} & set(series):
            continue
        hu, mask, centre = labels_of(series)
        assert 300 < mask.sum() < 8000
        assert centre[0] > 40  # mm towards the patient's left
        assert 80 < np.median(hu[mask]) < 150
        best = max(
            2 * np.sum(mask & band) / (mask.sum() + band.sum())
            for low in range(60, 140, 10)
            for high in range(low + 20, 200, 10)
            for band in [(hu > low) & (hu < high)]
        )
        assert best < 0.5, name  # no window of Hounsfield units finds it


def test_segmentations_have_valid_headers(patients):
    lengths = []
    for series in patients.values():
        for _, seg in series.get("seg", []):
            assert (seg.SOPClassUID, seg.SegmentationType, seg.BitsAllocated) == (
                pydicom.uid.SegmentationStorage,
                "BINARY",
                1,
            )
            assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["Spleen"]
            assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series["ct"][0][1].SeriesInstanceUID
            assert len(seg.PixelData) == -(-seg.NumberOfFrames * 96 * 96 // 8) and len(seg.PixelData) % 2 == 0
            lengths.append((seg.NumberOfFrames, len(series["ct"])))
    assert any(frames == slices for frames, slices in lengths) and any(frames < slices for frames, slices in lengths)


def test_highdicom_reads_the_segmentation(patients):
    highdicom = pytest.importorskip("highdicom")
    read = 0
    for series in patients.values():
        for path, _ in series.get("seg", []):
            volume = highdicom.image.get_volume_from_series([ds for _, ds in series["ct"]])
            seg = highdicom.seg.segread(path).get_volume().match_geometry(volume)
            found = np.asarray(seg.array).reshape(volume.array.shape) > 0
            _, mask, _ = labels_of(series)
            assert found.sum() == mask.sum() and 80 < np.median(volume.array[found]) < 150
            read += 1
    assert read == 3


def test_two_grids_render_one_anatomy():
    patient = spleen.Abdomen(np.random.default_rng([1, 4, 9]))
    straight, turned = (
        SliceGrid.centred_at(np.zeros(3), (5, 40, 40), (10.0, 6.0, 6.0), turn=(angle, 0.0)) for angle in (0.0, 90.0)
    )
    (values, mask), (others, other_mask) = patient.render(straight.points()), patient.render(turned.points())
    back = np.rot90(others, k=-1, axes=(1, 2))  # its columns run to the back, its rows to the right
    assert np.allclose(turned.axes, [[0, 0, 1], [-1, 0, 0], [0, 1, 0]])
    assert (
        np.allclose(back, values, atol=1e-6)
        and np.array_equal(np.rot90(other_mask, k=-1, axes=(1, 2)), mask)
        and mask.any()
    )


def test_an_empty_segmentation_is_rejected(tmp_path):
    study = Study(tmp_path, "PAT-001", np.random.default_rng(0), 0)
    stack = SliceGrid.centred_at(np.zeros(3), (3, 8, 8), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="PAT-001 is empty"):
        write_segmentation(study, "ct", stack, np.zeros((3, 8, 8), np.uint8), backwards=False, all_frames=False)
