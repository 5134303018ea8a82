"""A fault rejects its own series with a reason; the other series is converted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import UID, JPEGLossless

from competition.dicom.convert import Conversion, convert_folder
from competition.errors import MaskfoldError
from tests.conftest import SHARED
from tests.dicom.files import AXIAL, item, positions, uid, volume, write_series

SOUND = volume(seed=9)
Fault = Callable[[Path], object]


def both(tmp_path: Path, write: Fault) -> Conversion:
    """Convert a faulty series and a sound one of another patient; the sound one must be converted."""
    write(tmp_path / "in/faulty")
    write_series(tmp_path / "in/sound", SOUND, patient="P2")
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(tmp_path / "out/imagesTr/P2.nii.gz").dataobj), SOUND)
    return done


def removed(folder: Path) -> None:
    write_series(folder, volume((6, 5, 6)))[2].unlink()


def two_removed(folder: Path) -> None:
    paths = write_series(folder, volume((6, 5, 9)))
    paths[4].unlink()
    paths[5].unlink()


def cut_pixels(folder: Path) -> None:
    path = write_series(folder, volume())[1]
    path.write_bytes(path.read_bytes()[:-7])


def cut_first_slice(folder: Path) -> None:
    """The remaining slices would still be an even stack."""
    path = write_series(folder, volume())[0]
    path.write_bytes(path.read_bytes()[:-30])


def cut_before_pixels(folder: Path) -> None:
    path = write_series(folder, volume())[1]
    dataset = dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)


def cut_header(folder: Path) -> None:
    path = write_series(folder, volume())[1]
    dataset = dcmread(path)
    dataset.RequestAttributesSequence = Sequence([item(RequestedProcedureID="77")])
    dataset["RequestAttributesSequence"].is_undefined_length = True
    dataset.save_as(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"SQ") + 20])


def uneven(folder: Path) -> None:
    places = positions(5)
    places[3:, 2] += 0.8
    write_series(folder, volume((6, 5, 5)), places=places)


def tilted(folder: Path) -> None:
    places = positions(4)
    places[:, 1] += np.arange(4) * 0.6
    write_series(folder, volume(), places=places)


def twice(folder: Path) -> None:
    write_series(folder, volume(), AcquisitionNumber=1)
    write_series(folder, volume(seed=1), prefix="again", tag="again", AcquisitionNumber=2)


def one_name_two_pixels(folder: Path) -> None:
    write_series(folder, volume())
    for path in write_series(folder / "again", volume(seed=1))[1:]:
        path.unlink()


def mixed_sizes(folder: Path) -> None:
    write_series(folder, volume())
    write_series(folder / "more", volume((8, 5, 2)), places=positions(6)[4:], tag="more")


def mixed_spacings(folder: Path) -> None:
    write_series(folder, volume())
    write_series(folder / "more", volume((6, 5, 2)), places=positions(6)[4:], spacing=(0.9, 0.8), tag="more")


def planes(folder: Path) -> None:
    write_series(folder, volume((6, 5, 1)))
    write_series(folder / "more", volume((6, 5, 1)), orientation=(0, 1, 0, 0, 0, -1), tag="more")


def no_decoder(folder: Path, syntax: UID = JPEGLossless) -> None:
    for path in write_series(folder, volume()):
        dataset = dcmread(path)
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)


def a_film(folder: Path) -> None:
    no_decoder(folder, UID("1.2.840.10008.1.2.4.100"))


def two_patients(folder: Path) -> None:
    write_series(folder, volume((6, 5, 2)))
    for path in write_series(folder / "more", volume((6, 5, 2)), places=positions(4)[2:], tag="more"):
        dataset = dcmread(path)
        dataset.PatientID = "P3"
        dataset.save_as(path)


def bomb(folder: Path) -> None:
    """64 frames of 65,535 × 65,535 pixels in a file of one kilobyte."""
    path = write_series(folder, volume((6, 5, 1)))[0]
    dataset = dcmread(path)
    dataset.Rows = dataset.Columns = 65535
    dataset.PixelData = encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True
    dataset.BitsAllocated = 32
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.5")  # RLE: any size may be packed
    dataset.NumberOfFrames = 64
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            item(
                PlanePositionSequence=Sequence([item(ImagePositionPatient=["0", "0", str(z)])]),
                PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[str(one) for one in AXIAL])]),
                PixelMeasuresSequence=Sequence([item(PixelSpacing=["1", "1"])]),
            )
            for z in range(64)
        ]
    )
    dataset.save_as(path)


def frames_without_positions(folder: Path) -> None:
    for path in write_series(folder, volume()):
        dataset = dcmread(path)
        dataset.NumberOfFrames = 3
        dataset.PixelData = dataset.PixelData * 3
        dataset.save_as(path)


def tags(**changes: object) -> Fault:
    return lambda folder: write_series(folder, volume(), **changes)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (removed, "a slice is missing between -297.50 and -292.50 mm"),
        (two_removed, "2 slices are missing between -292.50 and -285.00 mm"),
        (cut_pixels, "IM0002 is truncated: found 53 bytes of pixels, expected 60"),
        (cut_first_slice, "IM0001 is truncated: found 30 bytes of pixels, expected 60"),
        (cut_before_pixels, "IM0002 is truncated: found no pixels"),
        (cut_header, "IM0002 is truncated: the file ends within its header"),
        (uneven, "not evenly spaced: their distances are 2.5 to 3.3 mm"),
        (tilted, "the gantry was tilted: slices shift sideways by up to 1.8 mm (13.5°)"),
        (twice, "several acquisitions: slices with different pixels and different AcquisitionNumber share 4 positions"),
        (one_name_two_pixels, "have the same SOPInstanceUID"),
        (mixed_sizes, "different sizes: 4 of 6×5, 2 of 8×5"),
        (mixed_spacings, "different pixel spacings: 4 of 0.7×0.8, 2 of 0.9×0.8"),
        (planes, "slices have 2 orientations"),
        pytest.param(
            no_decoder,
            "JPEG Lossless, Non-Hierarchical (Process 14), and no decoder",
            marks=pytest.mark.skipif(get_decoder(JPEGLossless).is_available, reason="a decoder is installed"),
        ),
        (a_film, "no decoder"),
        (two_patients, "have 2 different patient ids"),
        (bomb, "GiB of memory are free"),
        (tags(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localiser"),
        (tags(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "mosaics"),
        (tags(ImagePositionPatient=None), "no position in the patient, so their order and spacing are unknown"),
        (tags(PixelSpacing=None), "no pixel spacing"),
        (tags(PixelSpacing=["0", "0.7"]), "found a pixel spacing of 0 mm, expected"),
        (tags(PhotometricInterpretation="PALETTE COLOR"), "colours: found PALETTE COLOR"),
        (
            tags(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]),
            "an invalid orientation: found 1, 0, 0, 1, 0, 0",
        ),
        (frames_without_positions, "3 frames, but not every frame has a position"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_has_its_reason(tmp_path: Path, write: Fault, reason: str) -> None:
    done = both(tmp_path, write)
    (row,) = done.with_status("refused")
    assert reason in row.reason
    assert (row.patient, row.file) == ("P1", "")
    assert [path.name for path in (tmp_path / "out/imagesTr").iterdir()] == ["P2.nii.gz"]


def test_a_series_without_images_is_refused(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        for path in write_series(folder, volume(), Modality="RTSTRUCT", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3"):
            dataset = dcmread(path)
            del dataset.PixelData, dataset.Rows, dataset.Columns
            dataset.save_as(path)

    assert both(tmp_path, write).with_status("refused")[0].reason.startswith("RTSTRUCT contains contours")


def test_an_instance_number_that_is_no_number_is_as_none(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "in", SOUND, InstanceNumber=11111):
        path.write_bytes(path.read_bytes().replace(b"11111 ", b"--1   "))
    done = convert_folder(tmp_path / "in", tmp_path / "out")
    assert [row.patient for row in done.with_status("converted")] == ["P1"]
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(tmp_path / "out/imagesTr/P1.nii.gz").dataobj), SOUND)


def test_copies_are_ignored_and_named(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        paths = write_series(folder, volume())
        shutil.copy(paths[1], folder / "copy of it")
        another = dcmread(paths[2])
        another.SOPInstanceUID = uid("sent again")
        another.save_as(folder / "sent again")
        (folder / "half a copy").write_bytes(paths[3].read_bytes()[:-9])

    done = both(tmp_path, write)
    assert len(done.with_status("converted")) == 2
    row = next(row for row in done.rows if row.patient == "P1")
    image = nibabel.load(tmp_path / "out" / row.file)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume())
    assert all(name in row.ignored for name in ("copy of it", "sent again is a copy", "half a copy is truncated"))


def test_files_of_an_unknown_series_have_a_row(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (path, *others) = write_series(folder, volume())
        path.write_bytes(path.read_bytes()[:300])
        for other in others:
            other.unlink()

    done = both(tmp_path, write)
    (row,) = done.with_status("refused")
    assert (row.series, row.slices) == ("", "1")
    assert row.reason == "faulty/IM0001 is truncated, or has no SeriesInstanceUID"


@pytest.mark.parametrize("seed", range(6))
def test_arbitrary_bytes_never_stop_the_others(tmp_path: Path, seed: int) -> None:
    """Bytes are overwritten and files truncated at random; the sound series is always converted."""
    rng = np.random.default_rng(seed)

    def write(folder: Path) -> None:
        for path in write_series(folder, volume((6, 5, 12)), rescale=[(1.0, 0.0)] * 12):
            content = bytearray(path.read_bytes())
            for place in rng.integers(132, len(content), rng.integers(1, 40)):
                content[place] = rng.integers(256)
            path.write_bytes(content[: rng.integers(140, len(content))] if rng.random() < 0.3 else content)

    both(tmp_path, write)


@pytest.mark.skipif(not (SHARED / "dicom/study").is_dir(), reason="the real study is missing")
def test_the_real_study_with_faults(tmp_path: Path) -> None:
    """One slice removed, one file truncated, one duplicated, in three of five series."""
    by_series: dict[str, list[Path]] = {}
    for path in sorted((SHARED / "dicom/study").iterdir()):
        copy = tmp_path / "in" / path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
        by_series.setdefault(dcmread(path, specific_tags=["SeriesDescription"]).SeriesDescription, []).append(copy)

    def height(path: Path) -> float:
        return float(dcmread(path, specific_tags=["ImagePositionPatient"]).ImagePositionPatient[2])

    sorted(by_series["T2_reg"], key=height)[9].unlink()
    cut = by_series["FLAIR_reg"][3]
    cut.write_bytes(cut.read_bytes()[:90000])
    shutil.copy(by_series["T1post"][5], tmp_path / "in/again")
    rows = {row.description: row for row in convert_folder(tmp_path / "in", tmp_path / "out").rows}
    assert {name: row.status for name, row in rows.items()} == {
        "T2_reg": "refused",
        "FLAIR_reg": "refused",
        "T1post": "converted",
        "T1pre_reg": "converted",
        "HippoCrop": "converted",
    }
    assert rows["T2_reg"].reason.startswith("a slice is missing between")
    assert rows["FLAIR_reg"].reason.startswith(f"{cut.name} is truncated")
    # The copy or the original may sort first: one of them is ignored.
    words = set(rows["T1post"].ignored.split())
    assert {"again", by_series["T1post"][5].name} <= words and not words & {cut.name}
    assert rows["T1post"].shape == "280x320x22"


def test_links_to_folders_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "study", SOUND)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "study", target_is_directory=True)
    with pytest.raises(
        MaskfoldError, match="links to folders, which the command does not follow: .*in/linked"
    ) as caught:
        convert_folder(tmp_path / "in", tmp_path / "out")
    assert "the link points to" in caught.value.hint
    write_series(tmp_path / "in/sound", SOUND, patient="P2")
    said: list[str] = []
    convert_folder(tmp_path / "in", tmp_path / "out", say=said.append)
    assert any("links to folders are not followed" in line and "in/linked" in line for line in said)
