"""DICOM-SEG becomes masks on the image's grid, by positions; labels have one value over the whole folder."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from competition.dicom.convert import Conversion, convert_folder
from competition.errors import MaskfoldError
from tests.dicom.files import AXIAL, OBLIQUE, positions, uid, volume, write_segmentation, write_series

SHAPE = (7, 5, 6)
RNG = np.random.default_rng(3)
TRUTH = (RNG.random(SHAPE) < 0.3).astype(np.uint8)


def study(folder: Path, orientation: tuple[float, ...] = AXIAL, patient: str = "P1", **changes: object) -> str:
    """Write an image of SHAPE; return its SeriesInstanceUID."""
    write_series(folder / patient, volume(SHAPE), orientation=orientation, backwards=True, patient=patient, **changes)
    return uid(patient, changes.get("study", "study"), changes.get("series", "series"))


def frames_of(truth: np.ndarray, segment: int, places: np.ndarray, order: list[int] | None = None) -> list:
    """Axial frames of a mask (X, Y, Z)."""
    return [(segment, places[z], truth[:, :, z].T) for z in (range(truth.shape[2]) if order is None else order)]


def mask_of(output: Path, case: str = "P1") -> np.ndarray:
    """Return the mask, after a check of its dtype and grid."""
    image, mask = (nibabel.load(output / folder / f"{case}.nii.gz") for folder in ("imagesTr", "labelsTr"))
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, image.affine)
    return np.asanyarray(mask.dataobj)


def reasons(done: Conversion) -> str:
    return "; ".join(row.reason for row in done.rows if row.modality == "SEG")


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_frames_in_any_order_and_empty_ones_missing(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    series, places = study(tmp_path / "in", orientation), positions(6, orientation)
    truth = TRUTH.copy()
    truth[:, :, [0, 4]] = 0
    write_segmentation(
        tmp_path / "in/seg",
        frames_of(truth, 1, places, [3, 1, 5, 2]),
        {1: "Spleen"},
        orientation=orientation,
        image_series=series,
    )
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), truth)
    assert done.segments == {1: "Spleen"}
    (row,) = done.with_status("label")
    assert (row.id, row.file, row.slices) == ("P1", "labelsTr/P1.nii.gz", "4")


def test_several_segments(tmp_path: Path) -> None:
    series, places = study(tmp_path / "in"), positions(6)
    first, second = TRUTH == 1, (TRUTH == 0) & (RNG.random(SHAPE) < 0.5)
    write_segmentation(
        tmp_path / "in/seg",
        frames_of(second, 2, places) + frames_of(first, 1, places),
        {1: "liver", 2: "tumour"},
        image_series=series,
    )
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), first + 2 * second)
    assert done.with_status("label")[0].notes == ""


def test_another_orientation_than_the_image(tmp_path: Path) -> None:
    """Sagittal frames, with both of their axes turned round: pixel (r, c) is the voxel (x, 4 − c, 5 − r)."""
    series, places = study(tmp_path / "in"), positions(6)
    frames = []
    for x in range(SHAPE[0]):
        place = places[5] + np.array([0.8 * x, 0.7 * 4, 0])
        frames.append((1, place, TRUTH[x, ::-1, ::-1].T))
    write_segmentation(
        tmp_path / "in/seg",
        frames,
        {1: "spleen"},
        orientation=(0, -1, 0, 0, 0, -1),
        spacing=(2.5, 0.7),
        image_series=series,
    )
    convert_folder(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), TRUTH)


def test_a_part_of_the_image(tmp_path: Path) -> None:
    """Frames smaller than the image's slices."""
    series, places = study(tmp_path / "in"), positions(6)
    part = TRUTH[2:6, 1:4, 2:5]
    write_segmentation(
        tmp_path / "in/seg",
        frames_of(part, 1, places[2:5] + np.array([1.6, 0.7, 0])),
        {1: "spleen"},
        image_series=series,
    )
    convert_folder(tmp_path / "in", tmp_path / "out")
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:6, 1:4, 2:5] = part
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), expected)


@pytest.mark.parametrize("largest", [255, 100])
def test_fractional_from_one_half_on_and_the_larger_fraction_wins(tmp_path: Path, largest: int) -> None:
    series, places = study(tmp_path / "in"), positions(6)
    one, two = (RNG.integers(0, largest + 1, SHAPE) for _ in range(2))
    write_segmentation(
        tmp_path / "in/seg",
        frames_of(two, 2, places) + frames_of(one, 1, places),
        {1: "a", 2: "b"},
        image_series=series,
        fractional=largest,
    )
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    expected = np.where(2 * np.maximum(one, two) < largest, 0, np.where(one > two, 1, 2))
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), expected)
    overlap = int(((2 * one >= largest) & (2 * two >= largest)).sum())
    assert f"voxels in more than one segment: {overlap}" in done.with_status("label")[0].notes


def test_one_value_per_label_over_the_folder_and_over_conversions(tmp_path: Path) -> None:
    """Files number their segments differently: the label decides, whatever its case."""
    places = positions(6)
    other = (1 - TRUTH) * (RNG.random(SHAPE) < 0.2)
    numbered = {"P1": {1: "Liver", 2: "Spleen"}, "P2": {1: "spleen", 2: "liver"}, "P3": {5: "SPLEEN ", 7: "Kidney"}}
    for patient, labels in numbered.items():
        series = study(tmp_path / "in", patient=patient)
        first, second = labels
        write_segmentation(
            tmp_path / "in" / patient / "seg",
            frames_of(TRUTH, first, places) + frames_of(other, second, places),
            labels,
            image_series=series,
            patient=patient,
        )
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    # Liver and spleen both are number 1 in some file: then alphabetical; the kidney is never lower than 7.
    assert {value: label.casefold() for value, label in done.segments.items()} == {1: "liver", 2: "spleen", 3: "kidney"}
    for patient, (first, second) in {"P1": (1, 2), "P2": (2, 1), "P3": (2, 3)}.items():
        np.testing.assert_array_equal(mask_of(tmp_path / "out", patient), first * TRUTH + second * other)

    series = study(tmp_path / "more", patient="P4")
    write_segmentation(
        tmp_path / "more/seg",
        frames_of(TRUTH, 1, places) + frames_of(other, 2, places),
        {1: "aorta", 2: "Kidney"},
        image_series=series,
        patient="P4",
    )
    convert_folder(tmp_path / "more", tmp_path / "out")
    np.testing.assert_array_equal(mask_of(tmp_path / "out", "P4"), 4 * TRUTH + 3 * other)
    with open(tmp_path / "out/segments.csv", newline="") as stream:
        assert [(row["value"], row["label"].casefold()) for row in csv.DictReader(stream)] == [
            ("1", "liver"),
            ("2", "spleen"),
            ("3", "kidney"),
            ("4", "aorta"),
        ]


def test_values_that_a_user_wrote_stay(tmp_path: Path) -> None:
    series, places = study(tmp_path / "in"), positions(6)
    write_segmentation(tmp_path / "in/seg", frames_of(TRUTH, 1, places), {1: "Spleen"}, image_series=series)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/segments.csv").write_text("value,label\n1,liver\n2,spleen\n")
    convert_folder(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), 2 * TRUTH)
    (tmp_path / "out/segments.csv").write_text("value,label\n1,liver\n1,spleen\n")
    with pytest.raises(MaskfoldError, match="value 1 and label spleen"):
        convert_folder(tmp_path / "in", tmp_path / "out")


def test_one_file_per_segment(tmp_path: Path) -> None:
    series, places = study(tmp_path / "in"), positions(6)
    other = (1 - TRUTH) * (RNG.random(SHAPE) < 0.5)
    write_segmentation(tmp_path / "in/a", frames_of(TRUTH, 1, places), {1: "liver"}, image_series=series)
    write_segmentation(
        tmp_path / "in/b", frames_of(other, 1, places), {1: "spleen"}, image_series=series, series="seg2"
    )
    (tmp_path / "in/a again").write_bytes((tmp_path / "in/a").read_bytes())
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), TRUTH + 2 * other)
    assert [row.ignored for row in done.with_status("label")] == ["a again is a copy of a", ""]


def test_two_readers_of_one_organ_are_refused(tmp_path: Path) -> None:
    series, places = study(tmp_path / "in"), positions(6)
    for name in ("a", "b"):
        write_segmentation(
            tmp_path / "in" / name, frames_of(TRUTH, 1, places), {1: "spleen"}, image_series=series, series=name
        )
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out/labelsTr").exists()
    assert [row.reason for row in done.with_status("refused")] == [
        "2 segmentations of P1 contain the label `spleen` (a, b), expected one; keep one of these files"
    ] * 2


@pytest.mark.parametrize(
    ("shift", "spacing", "reason"),
    [
        ((0.4, 0, 0), (0.7, 0.8), "its voxels are shifted by up to"),
        ((0, 0, 1.25), (0.7, 0.8), "its voxels are shifted by up to"),
        ((0, 0, 0), (0.7, 0.7), "its voxels are shifted by up to"),
        ((0, 0, 0), (1.4, 1.6), "in size or direction"),
        ((0, 0, 5.0), (0.7, 0.8), "labelled voxels outside of the image"),
    ],
)
def test_grids_that_do_not_agree(tmp_path: Path, shift: tuple, spacing: tuple[float, float], reason: str) -> None:
    series = study(tmp_path / "in")
    write_segmentation(
        tmp_path / "in/seg",
        frames_of(TRUTH, 1, positions(6) + np.array(shift)),
        {1: "spleen"},
        spacing=spacing,
        image_series=series,
    )
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert reason in reasons(done)
    assert not (tmp_path / "out/labelsTr").exists()
    assert len(done.with_status("converted")) == 1


def test_the_image_is_referenced_or_the_only_one_that_matches(tmp_path: Path) -> None:
    """Without a reference, two images of one grid are ambiguous; an image of another grid is not a candidate."""
    places = positions(6)
    study(tmp_path / "in/one", series="one")
    write_series(tmp_path / "in/coarse", volume((4, 4, 3)), spacing=(1.5, 1.5), series="coarse", SeriesNumber=2)
    write_segmentation(tmp_path / "in/seg", frames_of(TRUTH, 1, places), {1: "spleen"})
    done = convert_folder(tmp_path / "in", tmp_path / "first")
    assert done.with_status("label")[0].id == "P1_s1"
    study(tmp_path / "in/two", series="two", SeriesNumber=3)
    done = convert_folder(tmp_path / "in", tmp_path / "second")
    assert (
        reasons(done)
        == "several images have the grid of the mask, and the mask does not refer to exactly one of them: P1_s1, P1_s3"
    )
    write_segmentation(
        tmp_path / "in/seg", frames_of(TRUTH, 1, places), {1: "spleen"}, image_series=uid("P1", "study", "two")
    )
    assert convert_folder(tmp_path / "in", tmp_path / "third").with_status("label")[0].id == "P1_s3"


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    study(tmp_path / "in")
    write_segmentation(
        tmp_path / "in/seg", frames_of(TRUTH, 1, positions(6)), {1: "spleen"}, image_series=uid("nowhere")
    )
    assert (
        reasons(convert_folder(tmp_path / "in", tmp_path / "out"))
        == "the image series to which it refers is not in the folder"
    )


def test_an_image_that_was_refused(tmp_path: Path) -> None:
    series = study(tmp_path / "in")
    (tmp_path / "in/P1/IM0003").unlink()
    write_segmentation(tmp_path / "in/seg", frames_of(TRUTH, 1, positions(6)), {1: "spleen"}, image_series=series)
    assert (
        reasons(convert_folder(tmp_path / "in", tmp_path / "out")) == "the image series to which it refers was refused"
    )


def test_overlaps_go_to_the_higher_value_and_are_counted(tmp_path: Path) -> None:
    series, places = study(tmp_path / "in"), positions(6)
    everywhere = np.ones(SHAPE, np.uint8)
    write_segmentation(
        tmp_path / "in/seg",
        frames_of(TRUTH, 2, places) + frames_of(everywhere, 1, places),
        {1: "liver", 2: "tumour"},
        image_series=series,
    )
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), 1 + TRUTH)
    assert done.with_status("label")[0].notes.startswith(f"voxels in more than one segment: {TRUTH.sum()}")


def test_a_voxel_in_three_segments_counts_once(tmp_path: Path) -> None:
    series, places = study(tmp_path / "in"), positions(6)
    write_segmentation(
        tmp_path / "in/seg",
        [frame for segment in (1, 2, 3) for frame in frames_of(TRUTH, segment, places)],
        {1: "liver", 2: "tumour", 3: "necrosis"},
        image_series=series,
    )
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), 3 * TRUTH)
    assert done.with_status("label")[0].notes.startswith(f"voxels in more than one segment: {TRUTH.sum()};")


def test_a_broken_segmentation_leaves_its_image(tmp_path: Path) -> None:
    series = study(tmp_path / "in")
    path = write_segmentation(
        tmp_path / "in/seg", frames_of(TRUTH, 1, positions(6)), {1: "spleen"}, image_series=series
    )
    dataset = dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    dataset.save_as(path)
    assert (
        reasons(convert_folder(tmp_path / "in", tmp_path / "out"))
        == "frame 3 of seg has no position, orientation or pixel spacing"
    )
    path.write_bytes(path.read_bytes()[:-3])
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert "seg is truncated" in reasons(done)
    assert len(done.with_status("converted")) == 1


def test_more_pixels_than_memory(tmp_path: Path) -> None:
    series = study(tmp_path / "in")
    path = write_segmentation(
        tmp_path / "in/seg", frames_of(TRUTH, 1, positions(6)) * 30, {1: "spleen"}, image_series=series
    )
    dataset = dcmread(path)
    dataset.Rows = dataset.Columns = 65535
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = encapsulate([b"\0" * 64] * 180)
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.save_as(path)
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert "GiB of memory are free" in reasons(done)
    assert len(done.with_status("converted")) == 1


def test_a_segmentation_of_highdicom_is_read(tmp_path: Path) -> None:
    """An independent writer: several segments, without empty frames."""
    hd = pytest.importorskip("highdicom")
    from pydicom.sr.coding import Code

    paths = write_series(
        tmp_path / "in",
        volume(SHAPE),
        orientation=OBLIQUE,
        backwards=True,
        StudyTime="101010",
        StudyID="1",
        AccessionNumber="1",
        PatientSex="O",
        ReferringPhysicianName="",
        PositionReferenceIndicator="",
    )
    truth = np.stack([TRUTH, (1 - TRUTH) * (RNG.random(SHAPE) < 0.5)], axis=-1).astype(np.uint8)
    truth[:, :, 3] = 0
    organ, spleen = Code("123037004", "SCT", "Anatomical Structure"), Code("78961009", "SCT", "Spleen")
    algorithm = hd.AlgorithmIdentificationSequence("test", Code("123110", "DCM", "Artificial Intelligence"), "1")
    described = [
        hd.seg.SegmentDescription(number, name, organ, spleen, "AUTOMATIC", algorithm)
        for number, name in enumerate(("spleen", "liver"), 1)
    ]
    written = hd.seg.Segmentation(
        [dcmread(path) for path in paths],
        np.ascontiguousarray(truth.transpose(2, 1, 0, 3)),
        "BINARY",
        described,
        series_instance_uid=uid("hd"),
        series_number=5,
        sop_instance_uid=uid("hd", 1),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    )
    written.save_as(tmp_path / "in/hd.dcm")
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert done.segments == {1: "spleen", 2: "liver"}
    np.testing.assert_array_equal(mask_of(tmp_path / "out"), truth[..., 0] + 2 * truth[..., 1])
