"""The hint for a sound file with one wrong property names what to change."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from competition.data.cases import case_table
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
        with pytest.raises(MaskfoldError, match="not compressed, unlike its name") as caught:
            read(path)
        assert "Rename it to b.nii," in caught.value.hint


def test_a_packed_file_named_nii_is_to_be_renamed(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", VOXELS)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(MaskfoldError, match="compressed by gzip, unlike its name") as caught:
        read_image(path)
    assert "Rename it to a.nii.gz," in caught.value.hint


def test_complex_values(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", VOXELS.astype(np.complex64))
    with pytest.raises(MaskfoldError, match="complex") as caught:
        read_image(path)
    assert "magnitude" in caught.value.hint


def test_an_intercept_that_is_no_number(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", VOXELS)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2f", raw, 112, 1.0, float("nan"))
    path.write_bytes(bytes(raw))
    with pytest.raises(MaskfoldError, match="no finite scl_inter") as caught:
        read_image(path)
    assert "Set it to 0" in caught.value.hint


def test_label_values_that_are_no_integers_are_shown(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.float32)
    labels[0, 0, :2] = 0.5, 1.25
    with pytest.raises(MaskfoldError, match=r"not integers: found 0\.5, 1\.25\."):
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
