"""Volumes in the layouts of nnU-Net, the Decathlon and other hosts: vectors, colours, links, mixed extensions, gaps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.data.readers import load_image
from competition.errors import MaskfoldError
from competition.explore import explore
from tests.host import competition, write_nifti, write_png

TRAIN = {"images": "imagesTr/{id}.nii.gz", "masks": "labelsTr/{id}.nii.gz"}


def volume(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright cube in a noisy volume, and its mask."""
    labels = np.zeros((10, 12, 8), np.uint8)
    labels[2:6, 3:7, 2:5] = 1
    noise = np.random.default_rng(number).normal(100, 5, labels.shape)
    return (noise + 80 * labels).astype(np.float32), labels


def rows(comp: Any) -> list[SimpleNamespace]:
    return [SimpleNamespace(**row) for row in case_table(comp).to_dict("records")]


def test_a_vector_along_a_fifth_axis_is_channels(tmp_path: Path) -> None:
    for number in range(3):
        image, labels = volume(number)
        write_nifti(tmp_path / f"imagesTr/v{number}.nii.gz", np.stack([image, image * 2], -1)[:, :, :, None, :])
        write_nifti(tmp_path / f"labelsTr/v{number}.nii.gz", labels)
    comp = competition(tmp_path, dimensions=3, train=TRAIN)
    assert not explore(comp).faults
    for number, row in enumerate(rows(comp)):
        image, labels = volume(number)
        np.testing.assert_array_equal(load_image(comp, row).array, np.stack([image, image * 2]))
        np.testing.assert_array_equal(load_mask(comp, row)[0], labels)


def test_colours_of_a_volume_are_channels_and_of_a_label_file_are_refused(tmp_path: Path) -> None:
    image, labels = volume(0)
    colours = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"], colours["G"] = image.astype(np.uint8), 3
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), str(tmp_path / "imagesTr/v.nii.gz"))
    write_nifti(tmp_path / "labelsTr/v.nii.gz", labels)
    comp = competition(tmp_path, dimensions=3, train=TRAIN)
    [row] = rows(comp)
    assert row.channels == 3 and not explore(comp).faults
    np.testing.assert_array_equal(load_image(comp, row).array, [colours["R"], colours["G"], colours["B"]])
    colours["R"] = labels
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), str(tmp_path / "labelsTr/v.nii.gz"))
    with pytest.raises(MaskfoldError, match="3 channels"):
        load_mask(comp, rows(comp)[0])
    assert any("channels" in fault.message for fault in explore(comp).faults)


def test_folders_that_are_links(tmp_path: Path) -> None:
    image, labels = volume(0)
    write_nifti(tmp_path / "elsewhere/imagesTr/v.nii.gz", image)
    write_nifti(tmp_path / "elsewhere/labelsTr/v.nii.gz", labels)
    (tmp_path / "data").mkdir()
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).symlink_to(tmp_path / "elsewhere" / folder)
    comp = competition(tmp_path / "data", dimensions=3, train=TRAIN)
    [row] = rows(comp)
    np.testing.assert_array_equal(load_mask(comp, row)[0], labels)
    assert not explore(comp).faults


@pytest.mark.parametrize(("pattern", "found"), [("{id}.nii*", 4), ("{id}.nii.gz", 2)])
def test_packed_and_plain_files_in_one_folder(tmp_path: Path, pattern: str, found: int) -> None:
    for number in range(4):
        image, labels = volume(number)
        name = f"p{number}.nii" + (".gz" if number % 2 else "")
        write_nifti(tmp_path / "imagesTr" / name, image)
        write_nifti(tmp_path / "labelsTr" / name, labels)
    train = {"images": f"imagesTr/{pattern}", "masks": f"labelsTr/{pattern}"}
    comp = competition(tmp_path, dimensions=3, train=train)
    exploration = explore(comp)
    assert len(case_table(comp)) == found and not exploration.faults
    named = [remark.message for remark in exploration.remarks if "imagesTr/p0.nii" in remark.message]
    assert bool(named) == (found == 2), "files that no pattern matches are named"


def test_a_channel_that_one_case_lacks(tmp_path: Path) -> None:
    for number in range(4):
        image, labels = volume(number)
        for channel in (0, 1):
            if (number, channel) != (2, 1):
                write_nifti(tmp_path / f"imagesTr/liver_{number:03}_000{channel}.nii.gz", image)
        write_nifti(tmp_path / f"labelsTr/liver_{number:03}.nii.gz", labels)
    images = {name: f"imagesTr/{{id}}_000{channel}.nii.gz" for channel, name in enumerate(("t1", "t2"))}
    comp = competition(tmp_path, dimensions=3, train={**TRAIN, "images": images})
    with pytest.raises(MaskfoldError, match="Case liver_002 has no channel t2") as caught:
        case_table(comp)
    assert "on_bad_case=skip" in caught.value.hint
    assert [fault.case for fault in explore(comp).faults] == ["liver_002"]
    skipping = competition(tmp_path, dimensions=3, train={**TRAIN, "images": images}, on_bad_case="skip")
    assert case_table(skipping)["id"].tolist() == ["liver_000", "liver_001", "liver_003"]
    assert not explore(skipping).faults


def test_a_large_label_file_of_one_organ_in_float64_is_judged_by_the_free_memory(tmp_path: Path) -> None:
    """It packs several hundred times, as a file of zeros would; 22 MB unpacked, of 512×512×700 in the host's case."""
    labels = np.zeros((128, 128, 170), np.float64)
    labels[50:80, 50:75, 70:90] = 1
    write_nifti(tmp_path / "imagesTr/v.nii.gz", labels.astype(np.uint8))
    path = write_nifti(tmp_path / "labelsTr/v.nii.gz", labels)
    assert labels.nbytes / path.stat().st_size > 100
    comp = competition(tmp_path, dimensions=3, train=TRAIN)
    [row] = rows(comp)
    assert load_mask(comp, row)[0].sum() == 30 * 25 * 20 and json.loads(row.shape) == [128, 128, 170]


@pytest.mark.parametrize("masks", ["*/{id}_mask.png", "*/{id}_mask*.png"])
def test_masks_beside_the_images_of_several_folders_are_no_cases(masks: str, tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / f"patient{number // 2}"
        write_png(folder / f"p{number}.png", np.full((6, 8), 9 * number, np.uint8))
        write_png(folder / f"p{number}_mask.png", np.eye(6, 8, dtype=np.uint8))
    write_png(tmp_path / "patient1" / "p3_mask_1.png", np.eye(6, 8, 3, dtype=np.uint8))
    if masks == "*/{id}_mask.png":
        (tmp_path / "patient1" / "p3_mask_1.png").unlink()
    comp = competition(tmp_path, train={"images": "*/{id}.png", "masks": masks})
    assert list(case_table(comp)["id"]) == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize("missing", ["error", "empty"])
def test_masks_beside_the_images_with_upper_case_extensions_are_no_cases(missing: str, tmp_path: Path) -> None:
    for number in range(2):
        write_png(tmp_path / f"{number}.PNG", np.full((6, 8), 9 * number, np.uint8))
        write_png(tmp_path / f"{number}_mask.PNG", np.eye(6, 8, dtype=np.uint8))
    train = {"images": "{id}.png", "masks": {"cell": "{id}_mask.png"}, "missing_masks": missing}
    assert list(case_table(competition(tmp_path, train=train))["id"]) == ["0", "1"]


@pytest.mark.parametrize("missing", ["error", "empty"])
def test_slices_of_masks_beside_the_slices_of_images_are_no_cases(missing: str, tmp_path: Path) -> None:
    for case_id in "ab":
        for z in range(3):
            write_png(tmp_path / f"{case_id}_{z:02d}.png", np.full((6, 8), z, np.uint8))
            write_png(tmp_path / f"{case_id}_mask_{z:02d}.png", np.eye(6, 8, dtype=np.uint8))
    train = {"images": "{id}_{z}.png", "masks": {"cell": "{id}_mask_{z}.png"}, "missing_masks": missing}
    assert list(case_table(competition(tmp_path, dimensions=3, train=train))["id"]) == ["a", "b"]


def test_regions_beside_the_test_images_are_no_cases(tmp_path: Path) -> None:
    for name in ("train/a", "train/a_mask", "train/a_roi", "test/c", "test/c_roi", "test/d", "test/d_roi"):
        write_png(tmp_path / f"{name}.png", np.eye(6, 8, dtype=np.uint8))
    train = {"images": "train/{id}.png", "masks": "train/{id}_mask.png", "region": "train/{id}_roi.png"}
    for region in ("test/{id}_roi.png", "test*/{id}_roi.png"):
        comp = competition(tmp_path, train=train, test={"images": "test/{id}.png", "region": region})
        assert list(case_table(comp, "test")["id"]) == ["c", "d"]
