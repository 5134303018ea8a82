"""Layouts of public data sets: folders that are read as one, masks of several images, and what cannot be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from competition.errors import MaskfoldError
from competition.planning.choice import order_candidates
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.layout import Layout
from tests.host import write_nifti, write_png, write_text
from tests.planning.phantoms import affine, coco, picture, volume

Maker = Callable[[Path], None]


def candidates(root: Path) -> list[Layout]:
    return order_candidates(find_layouts(scan_folder(root)))


def pairs(root: Path) -> set[tuple[object, object, int]]:
    return {(str(layout.images), str(layout.masks), layout.cases) for layout in candidates(root)}


# Sibling folders


def test_folders_of_cities_are_one_data_set(tmp_path: Path) -> None:
    for seed, (split, city) in enumerate((("train", "aachen"), ("train", "bonn"), ("test", "berlin"), ("val", "ulm"))):
        for number in range(3):
            image, mask = picture(10 * seed + number)
            write_png(tmp_path / f"leftImg/{split}/{city}/{city}_{number:03d}.png", image)
            if split != "test":
                write_png(tmp_path / f"fine/{split}/{city}/{city}_{number:03d}_labels.png", mask)
    [layout] = candidates(tmp_path)
    assert (layout.images, layout.masks) == ("leftImg/train/*/{id}.png", "fine/train/*/{id}_labels.png")
    assert (layout.cases, layout.test) == (6, "leftImg/test/*/{id}.png")
    assert any("val" in note for note in layout.notes)


def test_batches_of_volumes_are_one_data_set(tmp_path: Path) -> None:
    for number in range(8):
        image, mask = volume(number)
        folder = tmp_path / f"Training Batch {1 + number // 4}"
        write_nifti(folder / f"volume-{number}.nii", image, affine(1, 1, 1))
        write_nifti(folder / f"segmentation-{number}.nii", mask, affine(1, 1, 1))
    assert pairs(tmp_path) == {("Training Batch */volume-{id}.nii", "Training Batch */segmentation-{id}.nii", 8)}


def test_parts_of_the_training_data_are_one_data_set_beside_the_test_data(tmp_path: Path) -> None:
    for number in range(8):
        image, mask = volume(number)
        folder = tmp_path / f"TrainingData_Part{1 + number // 4}"
        write_nifti(folder / f"Case{number:02d}.nii", image, affine(1, 1, 1))
        write_nifti(folder / f"Case{number:02d}_segmentation.nii", mask, affine(1, 1, 1))
    for number in range(3):
        write_nifti(tmp_path / "TestData" / f"Case{number:02d}.nii", volume(90 + number)[0], affine(1, 1, 1))
    first = candidates(tmp_path)[0]
    assert (first.images, first.masks) == ("TrainingData_Part*/{id}.nii", "TrainingData_Part*/{id}_segmentation.nii")
    assert first.cases == 8


def test_folders_that_share_ids_are_not_one_data_set(tmp_path: Path) -> None:
    for number in range(4):
        image, mask = picture(number)
        for folder in ("site_a", "site_b"):
            write_png(tmp_path / folder / f"c{number}.png", image if folder == "site_a" else 255 - image)
        write_png(tmp_path / "masks" / f"c{number}.png", mask)
    assert not any("*" in str(layout.images) for layout in candidates(tmp_path))


# The masks of an image


def test_masks_belong_to_the_images_of_their_own_folder(tmp_path: Path) -> None:
    for sequence in ("01", "02"):
        for number in range(4):
            image, mask = picture(int(sequence) * 10 + number)
            write_png(tmp_path / sequence / f"t{number:03d}.png", image)
            write_png(tmp_path / f"{sequence}_GT" / "SEG" / f"man_seg{number:03d}.png", mask)
    assert pairs(tmp_path) == {(f"{name}/t{{id}}.png", f"{name}_GT/SEG/man_seg{{id}}.png", 4) for name in ("01", "02")}


def test_each_phase_of_a_patient_has_its_own_mask(tmp_path: Path) -> None:
    for patient in range(4):
        for phase in ("ED", "ES"):
            image, mask = volume(2 * patient + (phase == "ES"))
            stem = tmp_path / f"patient{patient:03d}" / f"patient{patient:03d}_{phase}"
            write_nifti(stem.with_name(f"{stem.name}.nii.gz"), image, affine(1, 1, 1))
            write_nifti(stem.with_name(f"{stem.name}_gt.nii.gz"), mask, affine(1, 1, 1))
    first = candidates(tmp_path)[0]
    assert (first.images, first.masks, first.cases) == ("*/{id}.nii.gz", "*/{id}_gt.nii.gz", 8)
    for layout in candidates(tmp_path):
        assert ("ED" in str(layout.images)) == ("ED" in str(layout.masks))


@pytest.mark.parametrize("moved", [1, 30])
def test_masks_that_nearly_agree_may_be_two_opinions(tmp_path: Path, moved: int) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"s{number}.png", image)
        write_png(tmp_path / "ah" / f"s{number}.png", (mask > 0).astype(np.uint8) * 255)
        write_png(tmp_path / "vk" / f"s{number}.png", np.roll(mask > 0, moved, axis=0).astype(np.uint8) * 255)
    names = [layout.name for layout in candidates(tmp_path)]
    assert names[0] == "a mask file for each class" and len(names) == (3 if moved == 1 else 1)


def test_further_masks_of_an_image_are_told(tmp_path: Path) -> None:
    for number in range(5):
        image, mask = picture(number)
        write_png(tmp_path / f"benign ({number}).png", image)
        write_png(tmp_path / f"benign ({number})_mask.png", (mask == 1).astype(np.uint8) * 255)
    write_png(tmp_path / "benign (2)_mask_1.png", (picture(2)[1] == 2).astype(np.uint8) * 255)
    first = candidates(tmp_path)[0]
    assert first.cases == 5
    assert any("additional masks" in remark and "benign (2)_mask_1.png" in remark for remark in first.remarks)


# Label values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({0: 2, 1: 1, 2: 3}, "no mask has the value 0, .* most frequent value is 2"),
        ({0: 255, 1: 128, 2: 0}, "0 is read as the background, but the value 255 covers"),
        ({0: 0, 1: 128, 2: 255}, None),
    ],
)
def test_a_background_that_is_not_0_is_told(tmp_path: Path, values: dict[int, int], words: str | None) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"e{number}.png", image)
        write_png(tmp_path / "gts" / f"e{number}.png", np.vectorize(values.get)(mask).astype(np.uint8))
    layout = candidates(tmp_path)[0]
    found = [remark for remark in layout.remarks if "background" in remark]
    if words is None:
        assert not found
    else:
        [remark] = found
        assert re.match(words, remark)


# Truth that Maskfold does not read


def _outlines(root: Path) -> None:
    for number in range(3):
        write_png(root / "tissue" / f"t{number}.png", picture(number)[0])
        write_text(root / "annotations" / f"t{number}.xml", "<Annotations/>")


def _other_format(root: Path) -> None:
    for folder in ("images", "labels-ah"):
        write_text(root / folder / "im0001.ppm", "P6")


def _other_size(root: Path) -> None:
    for number in range(3):
        image, mask = picture(number)
        write_png(root / "images" / f"s{number}.png", np.kron(image, np.ones((2, 2), np.uint8)))
        write_png(root / "masks" / f"s{number}.png", mask)


@pytest.mark.parametrize(
    ("maker", "words"),
    [
        (_outlines, r"annotations/t0\.xml may describe the objects"),
        (_other_format, r"only files such as images/im0001\.ppm"),
        (_other_size, r"sizes differ: in s0, the image has 80×96 and the mask has 40×48"),
    ],
)
def test_a_refusal_names_what_is_wrong(tmp_path: Path, maker: Maker, words: str) -> None:
    maker(tmp_path)
    with pytest.raises(MaskfoldError, match=words) as caught:
        candidates(tmp_path)
    assert caught.value.status == 2 and caught.value.hint


# COCO


def test_the_validation_file_of_coco_is_not_a_choice(tmp_path: Path) -> None:
    coco(tmp_path)
    file = tmp_path / "annotations" / "instances.json"
    content = json.loads(file.read_text())
    for name in ("train", "val"):
        (file.parent / f"instances_{name}.json").write_text(json.dumps(content))
    file.unlink()
    [layout] = candidates(tmp_path)
    assert layout.keys["coco"].path == "annotations/instances_train.json"
    assert "annotations/instances_val.json" in " ".join(layout.notes)


def test_a_coco_file_finds_the_images_nearest_to_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        coco(tmp_path / name)
    used = {layout.keys["coco"].path: layout.images for layout in candidates(tmp_path)}
    assert used == {f"{name}/annotations/instances.json": f"{name}/images/{{id}}.png" for name in ("one", "two")}
