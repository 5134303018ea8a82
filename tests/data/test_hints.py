"""The hint for a sound file with one wrong property names what to change."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import tifffile

from competition.data.cases import case_table
from competition.data.image_types import check_not_bomb
from competition.data.normalisation import channels_error
from competition.data.readers import read_header, read_image, read_labels
from competition.errors import MaskfoldError
from competition.explore import explore
from competition.submission.label_files import _save
from tests.host import competition, write_nifti

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def test_a_plain_file_named_gz_is_to_be_renamed(tmp_path: Path) -> None:
    plain = write_nifti(tmp_path / "a.nii", VOXELS)
    path = plain.rename(tmp_path / "b.nii.gz")
    for read in (read_header, read_image):
        with pytest.raises(MaskfoldError, match="NIfTI not compressed") as caught:
            read(path)
        assert "Rename it to b.nii," in caught.value.hint


def test_a_packed_file_named_nii_is_to_be_renamed(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", VOXELS)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(MaskfoldError, match="NIfTI compressed by gzip") as caught:
        read_image(path)
    assert "Rename it to a.nii.gz," in caught.value.hint


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npy", "a.npz", "a.tif"])
def test_complex_values(tmp_path: Path, name: str) -> None:
    values, path = VOXELS.astype(np.complex64), tmp_path / name
    if name.endswith(".tif"):
        tifffile.imwrite(path, values, photometric="minisblack")
    elif name.endswith(".gz"):
        write_nifti(path, values)
    else:
        (np.save if name.endswith(".npy") else np.savez)(path, values)
    for read in (read_header, read_image, read_labels):
        with pytest.raises(MaskfoldError, match=f"{re.escape(name)} .*complex") as caught:
            read(path, 3)
        assert "magnitude" in caught.value.hint


def test_an_intercept_that_is_no_number(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", VOXELS)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2f", raw, 112, 1.0, float("nan"))
    path.write_bytes(bytes(raw))
    with pytest.raises(MaskfoldError, match="scl_inter") as caught:
        read_image(path)
    assert "Set scl_inter to 0" in caught.value.hint


def test_label_values_that_are_no_integers_are_shown(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.float32)
    labels[0, 0, :2] = 0.5, 1.25
    with pytest.raises(MaskfoldError, match=r"not whole numbers: found 0\.5, 1\.25\."):
        read_labels(write_nifti(tmp_path / "a.nii.gz", labels))


def test_the_names_of_nnunet(tmp_path: Path) -> None:
    for number in range(3):
        write_nifti(tmp_path / f"imagesTr/liver_{number}_0000.nii.gz", VOXELS)
        write_nifti(tmp_path / f"labelsTr/liver_{number}.nii.gz", (VOXELS > 9).astype(np.uint8))
    train = {"images": "imagesTr/{id}.nii.gz", "masks": "labelsTr/{id}.nii.gz"}
    comp = competition(tmp_path, dimensions=3, train=train)
    with pytest.raises(MaskfoldError) as caught:
        case_table(comp)
    assert 'set train.images to "imagesTr/{id}_0000.nii.gz"' in caught.value.hint
    assert all("{id}_0000" in fault.hint for fault in explore(comp).faults if fault.kind == "files")


def test_label_files_do_not_have_the_images_window_and_intent(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header["cal_max"], image.header["cal_min"] = 400, -160
    image.header.set_intent("z score")
    (tmp_path / "im").mkdir()
    nibabel.save(image, tmp_path / "im/a.nii.gz")
    write_nifti(tmp_path / "la/a.nii.gz", (VOXELS > 9).astype(np.uint8))
    comp = competition(tmp_path, dimensions=3, train={"images": "im/{id}.nii.gz", "masks": "la/{id}.nii.gz"})
    row = next(case_table(comp).itertuples(index=False))
    header = nibabel.load(
        _save(tmp_path / "out/a", (VOXELS > 9).astype(np.uint8), tmp_path / "im/a.nii.gz", row, comp)
    ).header
    assert (float(header["cal_max"]), float(header["cal_min"]), header.get_intent()[0]) == (0.0, 0.0, "none")


@pytest.mark.parametrize(
    ("size", "unpacked", "free", "accepted"),
    [
        (6_462_350, 512 * 512 * 700 * 8, 3 * 2**30, True),  # a float64 label with one organ
        (2**20, 2**31, 2**40, True),
        (2**20, 3 * 2**30, 8 * 2**30, False),
        (2**20, 3 * 2**30, 64 * 2**30, True),
        (2**28, 3 * 2**30, 4 * 2**30, True),  # packed 12 times: no bomb
    ],
)
def test_a_decompression_bomb_is_judged_by_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, unpacked: int, free: int, accepted: bool
) -> None:
    path = tmp_path / "a.nii.gz"
    with path.open("wb") as file:
        file.truncate(size)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    if accepted:
        check_not_bomb(path, unpacked)
    else:
        with pytest.raises(MaskfoldError, match="unpack to 3.0 GiB, but only 8.0 GiB of memory are free"):
            check_not_bomb(path, unpacked)


def test_float64_labels_are_read_exactly(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (4, 5, 6)).astype(np.float64)
    array, _ = read_labels(write_nifti(tmp_path / "a.nii.gz", labels + 1e-5))
    assert array.dtype == np.int32 and np.array_equal(array, labels)
    labels[3, 4, 5] = np.nan
    with pytest.raises(MaskfoldError, match="found nan"):
        read_labels(write_nifti(tmp_path / "b.nii.gz", labels))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("p0.vtk", 's.WriteImage(s.ReadImage("p0.vtk"), "p0.nii.gz")'),
        ("p0.seg.vtk", 's.WriteImage(s.ReadImage("p0.seg.vtk"), "p0.nii.gz")'),
        ("p0.gipl", "SimpleITK"),
        ("p0.GIPL", "SimpleITK"),
        ("p0.img", "nib-convert p0.img p0.nii.gz"),
        ("p0.hdr", "nib-convert p0.img p0.nii.gz"),
        ("p0.xyz", "Convert the file to one of these formats."),
    ],
)
def test_formats_that_are_not_read_have_a_command(tmp_path: Path, name: str, command: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(MaskfoldError, match="an extension") as caught:
        read_image(tmp_path / name)
    assert command in caught.value.hint


def test_series_over_time(tmp_path: Path) -> None:
    first = (VOXELS > 9).astype(np.uint8)
    path = write_nifti(tmp_path / "a.nii.gz", np.stack([first, first, 1 - first], -1))
    with pytest.raises(MaskfoldError, match="3 channels") as caught:
        read_labels(path)
    assert "if the fourth axis is time, write a file for each volume" in caught.value.hint
    assert "If the fourth axis is time" in channels_error("b", 4, 3, "a", 3).hint


def test_a_missing_file_of_a_class_has_a_key(tmp_path: Path) -> None:
    for number in range(2):
        write_nifti(tmp_path / f"s{number}/ct.nii.gz", VOXELS)
        for organ in ("liver", "spleen")[: 2 - number]:
            write_nifti(tmp_path / f"s{number}/{organ}.nii.gz", (VOXELS > 9).astype(np.uint8))
    masks = {organ: f"{{id}}/{organ}.nii.gz" for organ in ("liver", "spleen")}
    train = {"images": "{id}/ct.nii.gz", "masks": masks}
    comp = competition(tmp_path, dimensions=3, classes=["liver", "spleen"], train=train)
    with pytest.raises(MaskfoldError, match=r"Case s1 has an image .* but no mask") as caught:
        case_table(comp)
    assert "train.missing_masks=empty" in caught.value.hint
