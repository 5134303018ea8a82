"""Folders of well-known data sets, made small: what `maskfold init` finds in them by names and contents."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from competition.planning.choice import describe_candidates, order_candidates
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.layout import Layout
from competition.rle import encode
from competition.rle_text import RleFormat
from tests.host import write_nifti, write_png
from tests.planning.phantoms import picture, table, volume


def candidates(root: Path, maker: Callable[[Path], None]) -> list[Layout]:
    maker(root)
    return order_candidates(find_layouts(scan_folder(root)))


def only(root: Path, maker: Callable[[Path], None]) -> Layout:
    (layout,) = candidates(root, maker)
    return layout


def isic(root: Path) -> None:
    for number in range(8):
        image, mask = picture(number)
        case_id = f"ISIC_{number:07d}"
        write_png(root / "ISIC2018_Task1-2_Training_Input" / f"{case_id}.jpg", image)
        truth = (mask > 0).astype(np.uint8) * 255
        write_png(root / "ISIC2018_Task1_Training_GroundTruth" / f"{case_id}_segmentation.png", truth)
        write_png(root / "ISIC2018_Task1-2_Test_Input" / f"ISIC_{number + 90:07d}.jpg", picture(50 + number)[0])


def test_three_folders_with_long_names(tmp_path: Path) -> None:
    layout = only(tmp_path, isic)
    assert layout.images == "ISIC2018_Task1-2_Training_Input/{id}.jpg"
    assert layout.masks == "ISIC2018_Task1_Training_GroundTruth/{id}_segmentation.png"
    assert layout.test == "ISIC2018_Task1-2_Test_Input/{id}.jpg" and layout.keys["classes"] == ["foreground"]


def camvid(root: Path) -> None:
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        for number in range(count):
            image, mask = picture(number)
            write_png(root / split / f"{split}{number:03d}.png", image)
            write_png(root / f"{split}annot" / f"{split}{number:03d}.png", mask)


def test_glued_words_and_three_splits(tmp_path: Path) -> None:
    layout = only(tmp_path, camvid)
    assert (layout.images, layout.masks, layout.test) == ("train/{id}.png", "trainannot/{id}.png", "test/{id}.png")
    assert len(layout.notes) == 2 and "not used" in " ".join(layout.notes)


def uw_madison(root: Path) -> None:
    rows = []
    for case in range(3):
        for day in (0, 20 + case):
            image, mask = volume(case + day, (20, 24, 16))
            scaled = np.clip((image - 100) / 3, 0, 255).astype(np.uint8)
            name = f"case{case}_day{day}"
            for z in range(4, 10 + case):
                path = root / "train" / f"case{case}" / name / "scans" / f"slice_{z:04d}_24_20_1.50_1.50.png"
                write_png(path, scaled[:, :, z])
                for value, cls in ((1, "large_bowel"), (2, "small_bowel"), (3, "stomach")):
                    rows.append((f"{name}_slice_{z:04d}", cls, encode(mask[:, :, z] == value, RleFormat("row", 1))))
    table(root / "train.csv", ("id", "class", "segmentation"), rows)


def test_slices_of_days_of_cases_with_a_known_table(tmp_path: Path) -> None:
    layout = only(tmp_path, uw_madison)
    assert layout.images == "train/*/{id}/scans/slice_{z}_24_20_1.50_1.50.png" and layout.cases == 6
    assert layout.keys["submission.profile"] == "uw-madison-gi-tract" and layout.keys["metric.name"] == "uw_madison"
    assert layout.keys["group"] == "^(.+)[_-][^_-]+$"


def total_segmentator(root: Path) -> None:
    for number in range(6):
        image, mask = volume(number)
        write_nifti(root / f"s{number:04d}" / "ct.nii.gz", image)
        write_nifti(root / f"s{number:04d}" / "segmentations" / "liver.nii.gz", (mask == 1).astype(np.uint8))
        if number % 2:
            write_nifti(root / f"s{number:04d}" / "segmentations" / "spleen.nii.gz", (mask == 2).astype(np.uint8))


def test_classes_as_files_in_case_folders(tmp_path: Path) -> None:
    layout = only(tmp_path, total_segmentator)
    assert layout.masks == {name: f"{{id}}/segmentations/{name}.nii.gz" for name in ("liver", "spleen")}
    assert layout.keys["train.missing_masks"] == "empty" and layout.keys["labels"] == "exclusive"


def lits(root: Path) -> None:
    for number in range(6):
        image, mask = volume(number)
        write_nifti(root / f"volume-{number}.nii", image)
        write_nifti(root / f"segmentation-{number}.nii", mask)


def test_beginnings_of_names(tmp_path: Path) -> None:
    layout = only(tmp_path, lits)
    assert (layout.images, layout.masks) == ("volume-{id}.nii", "segmentation-{id}.nii")


def eyes(root: Path) -> None:
    for number in range(6):
        for eye in ("left", "right"):
            image, mask = picture(number + 30 * (eye == "left"))
            write_png(root / "images" / f"{number}_{eye}.png", image)
            write_png(root / "labels" / f"{number}_{eye}.png", mask)


def test_left_and_right_are_cases_not_channels(tmp_path: Path) -> None:
    layout = only(tmp_path, eyes)
    assert layout.images == "images/{id}.png" and layout.cases == 12 and layout.keys["group"] == "^(.+)[_-][^_-]+$"


def channel_folders(root: Path) -> None:
    for number in range(6):
        image, mask = volume(number)
        for name, array in (("t1", image), ("flair", image + 4), ("seg", mask)):
            write_nifti(root / name / f"{number:03d}.nii.gz", array)


def test_a_folder_for_each_channel(tmp_path: Path) -> None:
    layout = only(tmp_path, channel_folders)
    assert layout.images == {"flair": "flair/{id}.nii.gz", "t1": "t1/{id}.nii.gz"} and layout.masks == "seg/{id}.nii.gz"


def frames(root: Path) -> None:
    for number in range(6):
        patient = f"patient{number + 1:03d}"
        for frame in (1, 9 + number):
            image, mask = volume(number + frame)
            write_nifti(root / "training" / patient / f"{patient}_frame{frame:02d}.nii.gz", image)
            write_nifti(root / "training" / patient / f"{patient}_frame{frame:02d}_gt.nii.gz", mask)


def test_several_cases_in_the_folder_of_a_patient(tmp_path: Path) -> None:
    layout = candidates(tmp_path, frames)[0]
    assert layout.images == "*/{id}.nii.gz" and layout.masks == "*/{id}_gt.nii.gz"
    assert layout.cases == 12 and layout.keys["group"] == "^(.+)[_-][^_-]+$"


def numbered_objects(root: Path) -> None:
    for number in range(6):
        mask = np.zeros((64, 64), np.uint16)
        for index in range(9 + number):
            row, column = divmod(index, 4)
            mask[4 + 14 * row : 12 + 14 * row, 4 + 15 * column : 14 + 15 * column] = index + 1
        write_png(root / "images" / f"a{number}.png", picture(number, (64, 64))[0])
        write_png(root / "masks" / f"a{number}.png", mask)


def test_values_that_number_objects(tmp_path: Path) -> None:
    layout = only(tmp_path, numbered_objects)
    assert layout.keys["instances"] and layout.keys["train.object_numbers"]
    assert layout.keys["classes"] == ["foreground"] and "label_values" not in layout.keys and layout.remarks == ()


def objects_side_by_side(root: Path) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(root / "img" / f"a{number}.png", image)
        for value in (1, 2):
            write_png(root / "masks" / f"a{number}_{value}.png", (mask == value).astype(np.uint8) * 255)


def test_files_of_objects_side_by_side(tmp_path: Path) -> None:
    layout = only(tmp_path, objects_side_by_side)
    assert layout.masks == "masks/{id}_*.png" and layout.keys["instances"]


def named_by_the_sample(root: Path) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(root / "train" / "images" / f"a{number}.png", image)
        write_png(root / "train" / "masks" / f"a{number}.png", mask)
    write_png(root / "images" / "b1.png", picture(70)[0])
    write_png(root / "images" / "b2.png", picture(71)[0])
    rows = [(f"b{number}", name, "") for number in (1, 2) for name in ("ring", "grain")]
    table(root / "sample_submission.csv", ("id", "class", "rle"), rows)


def test_the_sample_finds_the_test_images_and_names_classes_in_an_order_that_is_asked(tmp_path: Path) -> None:
    found = candidates(tmp_path, named_by_the_sample)
    assert [layout.keys["classes"] for layout in found] == [["ring", "grain"], ["grain", "ring"]]
    assert all(layout.test == "images/{id}.png" for layout in found)


def test_the_sample_spells_the_classes(tmp_path: Path) -> None:
    def maker(root: Path) -> None:
        named_by_the_sample(root)
        (root / "classes.txt").write_text("background\nRing\nGrain\n")

    assert only(tmp_path, maker).keys["classes"] == ["ring", "grain"]


@pytest.mark.parametrize("first", ["a", "b"])
def test_names_that_do_not_belong_together_are_refused(tmp_path: Path, first: str) -> None:
    from competition.errors import MaskfoldError

    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"{first}{number}x{number * 7}.png", image)
        write_png(tmp_path / "masks" / f"q{number + 50}.png", mask)
    with pytest.raises(MaskfoldError, match="do not match") as caught:
        find_layouts(scan_folder(tmp_path))
    assert caught.value.status == 2


def words_in_ids(root: Path) -> None:
    rows = []
    for number in range(4):
        for eye in ("left", "right"):
            image, mask = picture(number + 30 * (eye == "left"))
            write_png(root / "eyes" / f"{eye}_{number}.png", image)
            if number or eye == "left":
                rows.append((f"{eye}_{number}", encode(mask > 0, RleFormat("column", 1))))
    table(root / "train.csv", ("image", "rle"), rows)


def test_a_table_names_whole_files(tmp_path: Path) -> None:
    layout = only(tmp_path, words_in_ids)
    assert layout.images == "eyes/{id}.png" and layout.cases == 8
    assert any("1 image without a row in train.csv" in remark for remark in layout.remarks)


def wells(root: Path) -> None:
    for number in range(12):
        name = f"exp3_well-B{number // 2 + 2:02d}_f{number % 2 + 1:02d}"
        image, mask = picture(number)
        for channel in range(2):
            write_png(root / f"{name}_ch{channel}.png", image + channel)
        write_png(root / "Masks" / f"{name}.png", mask)


def test_masks_belong_to_channels_although_their_names_end_in_fields(tmp_path: Path) -> None:
    layout = only(tmp_path, wells)
    assert layout.images == {"ch0": "{id}_ch0.png", "ch1": "{id}_ch1.png"} and layout.masks == "Masks/{id}.png"
    assert layout.cases == 12 and layout.keys["group"] == "^(.+)[_-][^_-]+$"


def scans_of_patients(root: Path) -> None:
    for number in range(6):
        for scan in (1, 2) if number != 3 else (1,):
            image, mask = volume(number + 20 * scan)
            folder = root / f"Patient {number + 1:02d}" / f"scan {scan}"
            write_nifti(folder / "T1.nii.gz", image)
            write_nifti(folder / "mask_final_v2.nii.gz", mask)


def test_scans_in_the_folders_of_patients_get_a_command_that_links_them(tmp_path: Path) -> None:
    found = candidates(tmp_path / "my thesis", scans_of_patients)
    lines = describe_candidates(found)
    assert [layout.cases for layout in found] == [6, 5] and "only the folders `scan 1`" in lines[0]
    assert "11 cases in all" in lines[-1] and len(lines) == 2
    command = lines[-1].partition("run init on that folder: ")[2].partition(" && maskfold init")[0]
    subprocess.run(command, shell=True, check=True)
    layout, *others = find_layouts(scan_folder(tmp_path / "my thesis-cases"))
    assert not others and layout.cases == 11 and layout.keys["group"] == "^(.+)[_-][^_-]+$"
    assert "Patient 03_scan 2" in layout.ids


def test_a_folder_of_blank_masks_is_named(tmp_path: Path) -> None:
    from competition.errors import MaskfoldError

    for number in range(6):
        write_png(tmp_path / "photos" / f"a{number}x{number * 7}.png", picture(number)[0])
        write_png(tmp_path / "Masks" / f"q{number + 50}.png", picture(number)[1] * 0)
    with pytest.raises(MaskfoldError, match=r"`Masks/.*all pixels have the same value") as caught:
        find_layouts(scan_folder(tmp_path))
    assert caught.value.status == 2 and "train.images" in caught.value.hint
