"""Folders with the names and structure of public data sets: the cases, classes and groups that `init` finds in them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.data.cases import case_rows, case_table
from competition.data.masks import load_mask
from competition.data.splits import group_values
from competition.errors import MaskfoldError
from competition.planning.choice import describe_candidates, order_candidates
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.layout import Layout
from tests.host import competition, write_nifti, write_png, write_text
from tests.planning.phantoms import affine, picture, table, volume

Maker = Callable[[Path], None]
SPACING = affine(1, 1, 1)


def candidates(root: Path) -> list[Layout]:
    return order_candidates(find_layouts(scan_folder(root)))


def only(root: Path) -> Layout:
    (layout,) = candidates(root)
    return layout


def binary(mask: np.ndarray) -> np.ndarray:
    return (mask > 0).astype(np.uint8) * 255


# BIDS


def bids(root: Path, contrasts: tuple[str, ...] = ("T1w",)) -> None:
    for subject in range(1, 6):
        for session in (1, 2) if subject != 3 else (1,):
            image, mask = volume(10 * subject + session)
            name = f"sub-{subject:02d}/ses-{session}/anat/sub-{subject:02d}_ses-{session}"
            for number, contrast in enumerate(contrasts):
                write_nifti(root / f"{name}_{contrast}.nii.gz", image + number, SPACING)
            truth = root / "derivatives" / "labels" / f"{name}_label-lesion_mask.nii.gz"
            write_nifti(truth, (mask > 0).astype(np.uint8), SPACING)
    write_text(root / "participants.tsv", "participant_id\tsex\nsub-01\tM\n")


def test_each_session_is_a_case_of_its_subject(tmp_path: Path) -> None:
    bids(tmp_path)
    layout = only(tmp_path)
    assert layout.images == "sub-*/ses-*/anat/{id}_T1w.nii.gz"
    assert layout.masks == "derivatives/labels/sub-*/ses-*/anat/{id}_label-lesion_mask.nii.gz"
    assert layout.cases == 9 and layout.ids[:2] == ("sub-01_ses-1", "sub-01_ses-2")
    assert layout.keys["group"] == "^(.+)[_-][^_-]+$"


def test_subjects_are_groups_although_few_have_a_second_session(tmp_path: Path) -> None:
    for subject in range(1, 9):
        for session in (1, 2) if subject == 1 else (1,):
            image, mask = picture(10 * subject + session)
            write_png(tmp_path / "images" / f"sub-{subject:02d}_ses-{session}.png", image)
            write_png(tmp_path / "labels" / f"sub-{subject:02d}_ses-{session}.png", mask)
    match = re.match(only(tmp_path).keys["group"], "sub-01_ses-2")
    assert match is not None and match[1] == "sub-01"


def test_the_contrasts_of_a_session_are_channels(tmp_path: Path) -> None:
    bids(tmp_path, ("T1w", "FLAIR"))
    layout = only(tmp_path)
    folder = "sub-*/ses-*/anat/{id}"
    assert layout.images == {"FLAIR": f"{folder}_FLAIR.nii.gz", "T1w": f"{folder}_T1w.nii.gz"} and layout.cases == 9


def test_a_tree_of_masks_beside_the_subjects(tmp_path: Path) -> None:
    """Without the rule for trees, `derivatives` is a fourth subject, which has none of the files of the others."""
    for number in range(1, 4):
        image, mask = volume(number)
        name = f"sub-{number:02d}/anat/sub-{number:02d}_T2w"
        write_nifti(tmp_path / f"{name}.nii.gz", image, SPACING)
        for value, kind in ((1, "seg"), (2, "lesion")):
            truth = tmp_path / "derivatives" / "labels" / f"{name}_{kind}-manual.nii.gz"
            write_nifti(truth, (mask == value).astype(np.uint8), SPACING)
    layout = only(tmp_path)
    assert layout.images == "{id}/anat/{id}_T2w.nii.gz" and layout.cases == 3
    assert layout.masks == {
        name: f"derivatives/labels/{{id}}/anat/{{id}}_T2w_{name}-manual.nii.gz" for name in ("lesion", "seg")
    }
    assert layout.keys["classes"] == ["lesion", "seg"]


def test_modalities_of_a_folder_named_after_a_session_are_channels(tmp_path: Path) -> None:
    for number in range(1, 6):
        image, mask = volume(number)
        stem = f"sub-stroke{number:04d}"
        for modality in ("adc", "dwi"):
            write_nifti(tmp_path / stem / "ses-0001" / "dwi" / f"{stem}_ses-0001_{modality}.nii.gz", image, SPACING)
        write_nifti(tmp_path / "derivatives" / stem / "ses-0001" / f"{stem}_ses-0001_msk.nii.gz", mask, SPACING)
    layout = only(tmp_path)
    assert isinstance(layout.images, dict) and list(layout.images) == ["adc", "dwi"] and layout.cases == 5


# Volumes


def test_long_numbers_of_volumes_are_ids_not_slices(tmp_path: Path) -> None:
    ids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10022528722236566367 + 137 * number}" for number in range(8)]
    for number, case_id in enumerate(ids):
        image, mask = volume(number)
        write_nifti(tmp_path / f"subset{number // 2}" / f"{case_id}.nii.gz", image, SPACING)
        write_nifti(tmp_path / "seg-lungs" / f"{case_id}.nii.gz", np.array([0, 3, 4], np.uint8)[mask], SPACING)
    points = [(case_id, -1.5, 2.5, 0.5) for case_id in ids]
    table(tmp_path / "sampleSubmission.csv", ("seriesuid", "coordX", "coordY", "probability"), points)
    layout = only(tmp_path)
    assert (layout.images, layout.masks) == ("subset*/{id}.nii.gz", "seg-lungs/{id}.nii.gz")
    assert layout.ids == tuple(ids) and layout.keys["label_values"] == [3, 4]
    assert "submission.sample" not in layout.keys  # a table of probabilities has no masks


def two_versions(root: Path) -> None:
    for number in range(12):
        image, mask = volume(number)
        place = (
            f"Utrecht/{number}" if number < 4 else f"Singapore/{number}" if number < 8 else f"Amsterdam/GE3T/{number}"
        )
        for kind in ("orig", "pre"):
            for channel in ("FLAIR", "T1"):
                write_nifti(root / place / kind / f"{channel}.nii.gz", image, SPACING)
        write_nifti(root / place / "wmh.nii.gz", mask, SPACING)


def test_two_versions_of_the_same_channels_are_a_choice(tmp_path: Path) -> None:
    two_versions(tmp_path / "wmh")
    found = candidates(tmp_path / "wmh")
    assert [layout.cases for layout in found] == [8, 8, 8, 4, 4, 4]
    names = [list(layout.images) for layout in found[:3] if isinstance(layout.images, dict)]
    assert names == [["FLAIR", "T1"], ["FLAIR", "T1"], ["orig_FLAIR", "orig_T1", "pre_FLAIR", "pre_T1"]]
    assert any("set ignore" in remark for remark in found[0].remarks)


def test_case_folders_at_several_depths_get_a_command_that_links_them(tmp_path: Path) -> None:
    two_versions(tmp_path / "wmh")
    advice = describe_candidates(candidates(tmp_path / "wmh"))[-1]
    assert "all 12 cases" in advice
    command = advice.partition("run init on that folder: ")[2].partition(" && maskfold init")[0]
    subprocess.run(command, shell=True, check=True)
    found = candidates(tmp_path / "wmh-cases")
    assert [layout.cases for layout in found] == [12, 12, 12] and found[0].masks == "{id}/wmh.nii.gz"


def test_test_images_are_not_set_if_their_pattern_matches_masks(tmp_path: Path) -> None:
    for split, first in (("training", 1), ("testing", 101)):
        for patient in range(first, first + 4):
            for frame in (1, 9):
                image, mask = volume(patient + frame)
                stem = tmp_path / split / f"patient{patient:03d}" / f"patient{patient:03d}_frame{frame:02d}"
                write_nifti(stem.with_name(f"{stem.name}.nii.gz"), image, SPACING)
                write_nifti(stem.with_name(f"{stem.name}_gt.nii.gz"), mask, SPACING)
    layout = candidates(tmp_path)[0]
    assert layout.images == "training/*/{id}.nii.gz" and layout.cases == 8 and layout.test is None
    assert any("that may be masks" in remark and "_gt.nii.gz" in remark for remark in layout.remarks)
    assert all("as test cases" not in note for note in layout.notes)


def test_results_among_the_test_images_are_told(tmp_path: Path) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "train" / "image" / f"{number}.png", image)
        write_png(tmp_path / "train" / "label" / f"{number}.png", binary(mask))
        write_png(tmp_path / "test" / f"{number}.png", picture(50 + number)[0])
        if number:
            write_png(tmp_path / "test" / f"{number}_predict.png", picture(80 + number)[0])
    [remark] = [remark for remark in only(tmp_path).remarks if "test images" in remark]
    assert remark.startswith("5 test images such as test/1_predict.png")


# Pictures


def test_slices_with_one_flat_mask_are_channels_within_a_region(tmp_path: Path) -> None:
    import tifffile

    for split, names in (("train", "123"), ("test", "ab")):
        for number, case_id in enumerate(names):
            image, mask = picture(number, (40 + number, 48))
            folder = tmp_path / split / case_id / "surface_volume"
            folder.mkdir(parents=True)
            for z in range(9):
                tifffile.imwrite(folder / f"{z:02d}.tif", image.astype(np.uint16) * 90 + z)
            inside = np.pad(np.ones((image.shape[0] - 2, 46), np.uint8), 1)
            write_png(folder.parent / "mask.png", binary(inside))
            if split == "train":
                write_png(folder.parent / "inklabels.png", binary(mask * inside))
    found = candidates(tmp_path)
    first = found[0]
    assert len(found) == 3 and first.cases == 3 and first.dimensions == 2
    assert (first.images, first.masks) == ("train/{id}/surface_volume/{c}.tif", "train/{id}/inklabels.png")
    assert first.keys["train.region"] == "train/{id}/mask.png" and first.test == "test/{id}/surface_volume/{c}.tif"
    assert first.keys["test.region"] == "test/{id}/mask.png"  # no prediction where the network is not trained
    assert "train.region" not in found[1].keys and found[2].masks == "train/{id}/mask.png"
    (tmp_path / "test" / "a" / "mask.png").unlink()
    first = candidates(tmp_path)[0]
    assert "test.region" not in first.keys and "set test.region" in " ".join(first.remarks)


def test_masks_of_single_slices_are_not_those_of_all_slices(tmp_path: Path) -> None:
    for patient in range(4):
        for number in range(10, 17):
            image, mask = picture(20 * patient + number)
            write_png(tmp_path / f"{patient + 49:03d}" / "brain" / f"{number}.png", image)
            if number == 12:
                write_png(tmp_path / f"{patient + 49:03d}" / "brain" / f"{number}_Seg.png", binary(mask))
    with pytest.raises(MaskfoldError) as caught:
        candidates(tmp_path)
    assert caught.value.status == 2


def test_files_that_may_be_frames_or_slices_are_a_question(tmp_path: Path) -> None:
    for number in range(21):
        image, mask = picture(number)
        for kind, array in (("images", image), ("masks", binary(mask))):
            write_png(tmp_path / f"video{number // 7}" / kind / f"frame{number % 7:03d}.png", array)
    frames, stacks = candidates(tmp_path)
    assert (frames.dimensions, frames.cases, frames.ids[0]) == (2, 21, "video0_frame000")
    assert (stacks.dimensions, stacks.cases) == (3, 3)
    assert any("slices of a volume" in remark for remark in stacks.remarks)


def breast(root: Path, moved: int) -> None:
    for kind in ("benign", "malignant", "normal"):
        for number in range(1, 7):
            image, mask = picture(number + len(kind), (40 + number, 48))
            several = kind == "benign" and number % 2 == 0
            first = mask == 1 if several else (mask > 0) & (kind != "normal")
            write_png(root / kind / f"{kind} ({number}).png", image)
            write_png(root / kind / f"{kind} ({number})_mask.png", binary(first))
            if several:
                second = np.roll(mask == 1, 1, axis=0) if moved else mask == 2
                write_png(root / kind / f"{kind} ({number})_mask_1.png", binary(second))


def test_further_masks_of_an_image_are_read_with_the_first(tmp_path: Path) -> None:
    breast(tmp_path, 0)
    layout = only(tmp_path)
    assert (layout.images, layout.masks, layout.cases) == ("*/{id}.png", "*/{id}_mask*.png", 18)
    assert not layout.keys.get("instances") and layout.listed is not None
    assert any("3 files, such as" in remark and "read together" in remark for remark in layout.remarks)


def test_further_masks_that_overlap_the_first_are_a_choice(tmp_path: Path) -> None:
    breast(tmp_path, 1)
    assert [layout.masks for layout in candidates(tmp_path)] == ["*/{id}_mask*.png", "*/{id}_mask.png"]


def test_superpixels_beside_the_images_are_no_cases(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        image, mask = picture(number)
        for folder, offset in (("Training_Data", 0), ("Test_Data", 50)):
            stem = tmp_path / folder / f"ISIC_{number + offset:07d}"
            write_png(stem.with_suffix(".jpg"), image)
            write_png(stem.with_name(f"{stem.name}_superpixels.png"), rng.integers(0, 255, (40, 48, 3), dtype=np.uint8))
        write_png(tmp_path / "Training_GroundTruth" / f"ISIC_{number:07d}_segmentation.png", binary(mask))
    found = {str(layout.images): layout for layout in candidates(tmp_path)}
    layout = found["Training_Data/{id}.jpg"]
    assert layout.cases == 6 and layout.listed is None and layout.test == "Test_Data/{id}.jpg"


def test_ends_of_several_words_are_classes_of_the_ids_of_another_folder(tmp_path: Path) -> None:
    names = ("globules", "milia_like_cyst", "negative_network", "pigment_network")
    for number in range(8):
        image, mask = picture(number)
        write_png(tmp_path / "Training_Input" / f"ISIC_{number:07d}.jpg", image)
        for index, name in enumerate(names):
            part = np.roll(binary(mask == 1), 9 * index, axis=0)
            write_png(tmp_path / "Training_GroundTruth" / f"ISIC_{number:07d}_attribute_{name}.png", part)
    layout = only(tmp_path)
    assert layout.images == "Training_Input/{id}.jpg" and layout.cases == 8
    assert isinstance(layout.masks, dict)
    assert list(layout.masks.values()) == [f"Training_GroundTruth/{{id}}_attribute_{name}.png" for name in names]
    assert layout.keys["classes"] == list(names)


def test_test_cases_beside_the_training_cases_are_left_out(tmp_path: Path) -> None:
    rows = []
    for split, count in (("train", 6), ("testA", 3), ("testB", 2)):
        for number in range(1, count + 1):
            image, mask = picture(number)
            write_png(tmp_path / f"{split}_{number}.bmp", image)
            write_png(tmp_path / f"{split}_{number}_anno.bmp", mask)
            rows.append((f"{split}_{number}", number // 2))
    table(tmp_path / "Grade.csv", ("name", " patient ID"), rows)
    layout = only(tmp_path)
    assert layout.ids == layout.listed == tuple(f"train_{number}" for number in range(1, 7))
    assert layout.keys["group"] == "Grade.csv: patient ID"
    assert any("5 labelled cases" in note for note in layout.notes)


def test_folders_of_splits_with_glued_names_are_no_cases(tmp_path: Path) -> None:
    for split in ("train", "test", "val"):
        for number in range(6):
            image, mask = picture(number)
            name = f"2016022{number}_165{number}34_1_361"
            write_png(tmp_path / f"{split}crop" / f"{split}crop" / f"{name}.jpg", image)
            write_png(tmp_path / f"{split}crop" / f"{split}crop" / f"{name}.png", binary(mask))
    layout = only(tmp_path)
    assert (layout.images, layout.masks) == ("traincrop/traincrop/{id}.jpg", "traincrop/traincrop/{id}.png")
    assert layout.cases == 6 and layout.test == "testcrop/testcrop/{id}.jpg"
    assert layout.keys["classes"] == ["foreground"]


def test_numbers_after_a_word_are_cases_not_channels(tmp_path: Path) -> None:
    for number in range(4):
        image, mask = volume(number)
        write_nifti(tmp_path / f"IMG_{number:04d}.nii.gz", image, SPACING)
        write_nifti(tmp_path / f"MASK_{number:04d}.nii.gz", mask, SPACING)
    layout = only(tmp_path)
    assert (layout.images, layout.masks, layout.cases) == ("IMG_{id}.nii.gz", "MASK_{id}.nii.gz", 4)


# Label values and names


def test_polygons_name_the_label_values(tmp_path: Path) -> None:
    for number in range(6):
        image, mask = picture(number)
        labels = np.where(mask == 1, 26, 7).astype(np.uint8)
        labels[mask == 2] = 0
        rows, columns = np.nonzero(mask == 1)
        box = [[int(columns.min()), int(rows.min())], [int(columns.max()), int(rows.max())]]
        corners = [box[0], [box[1][0], box[0][1]], box[1], [box[0][0], box[1][1]]]
        shapes = [
            {"label": "road", "polygon": [[0, 0], [47, 0], [47, 39], [0, 39]]},
            {"label": "car", "polygon": corners},
        ]
        stem = f"town_{number:06d}_000019"
        write_png(tmp_path / "leftImg8bit" / "train" / f"{stem}_leftImg8bit.png", image)
        folder = tmp_path / "gtFine" / "train"
        write_png(folder / f"{stem}_gtFine_labelIds.png", labels)
        numbers = labels.astype(np.uint16)
        numbers[labels == 26] = 26000 + number % 2
        write_png(folder / f"{stem}_gtFine_instanceIds.png", numbers)
        write_text(folder / f"{stem}_gtFine_polygons.json", json.dumps({"objects": shapes}))
    first, *others = candidates(tmp_path)
    assert str(first.masks).endswith("_gtFine_labelIds.png")
    assert others and all(str(layout.masks).endswith("_gtFine_instanceIds.png") for layout in others)
    assert first.keys["classes"] == ["road", "car"] and first.keys["label_values"] == [7, 26]


def trimaps(root: Path) -> None:
    for kind in ("Abyssinian", "great_pyrenees", "pug"):
        for number in (1, 2, 10):
            image, mask = picture(number + len(kind))
            write_png(root / "images" / f"{kind}_{number}.jpg", image)
            write_png(root / "annotations" / "trimaps" / f"{kind}_{number}.png", np.array([2, 1, 3], np.uint8)[mask])


def test_masks_without_0_are_a_choice_of_the_background(tmp_path: Path) -> None:
    trimaps(tmp_path)
    plain, other = candidates(tmp_path)
    assert plain.keys["classes"] == ["class_1", "class_2", "class_3"] and "background" not in plain.keys
    assert other.keys["background"] == 2 and other.keys["label_values"] == [1, 3]


def test_0_may_be_a_class_beside_an_ignored_255(tmp_path: Path) -> None:
    """Train ids: 0 is the road, 255 is ignored. No value is the background."""
    for number in range(4):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"a{number}.png", image)
        write_png(tmp_path / "labels" / f"a{number}.png", np.array([0, 13, 255], np.uint8)[mask])
    first = candidates(tmp_path)[0]
    assert first.keys["ignore"] == 255 and any("background" in text and "254" in text for text in first.remarks)
    comp = competition(
        tmp_path, classes=["road", "car"], label_values=[0, 13], ignore=255, background=254,
        train={"images": "images/{id}.png", "masks": "labels/{id}.png"},
    )  # fmt: skip
    for number, row in enumerate(case_rows(case_table(comp))):
        np.testing.assert_array_equal(load_mask(comp, row)[0], np.array([1, 2, 255])[picture(number)[1]])


def test_a_background_of_255_is_a_choice(tmp_path: Path) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"g{number:04d}.png", image)
        write_png(tmp_path / "cups" / f"g{number:04d}.bmp", np.array([255, 128, 0], np.uint8)[mask])
    plain, other = candidates(tmp_path)
    assert plain.keys["label_values"] == [128, 255]
    assert other.keys["background"] == 255 and other.keys["label_values"] == [0, 128]


@pytest.mark.parametrize("values", [[255, 0, 1], [255, 1, 2]])
def test_255_may_be_the_background_beside_small_values(tmp_path: Path, values: list[int]) -> None:
    labelled_pictures(tmp_path, values)
    ignored, plain, other = candidates(tmp_path)
    assert ignored.keys["ignore"] == 255 and "background" not in ignored.keys
    assert any("no mask has the value 0" in remark for remark in ignored.remarks) == (0 not in values)
    assert plain.keys["label_values"] == [value for value in values[1:] if value] + [255]
    assert other.name.endswith("255 is the background") and other.keys["background"] == 255
    assert other.keys["classes"] == [f"class_{value}" for value in values[1:]] and "ignore" not in other.keys


def test_255_is_no_background_if_0_is(tmp_path: Path) -> None:
    """255 covers a part of the edges, or a file calls 0 the background."""
    labelled_pictures(tmp_path / "part", [0, 1, 2], border=255)
    assert [layout.keys.get("background") for layout in candidates(tmp_path / "part")] == [None, None]
    labelled_pictures(tmp_path / "named", [255, 0, 1])
    write_text(tmp_path / "named" / "labels.json", '{"0": "background", "1": "tree", "255": "rim"}')
    assert [layout.keys.get("background") for layout in candidates(tmp_path / "named")] == [None, None]


@pytest.mark.parametrize(
    ("values", "names", "classes"),
    [
        ([255, 0, 1], {"0": "field", "1": "tree", "255": "background"}, ["field", "tree"]),
        ([255, 1, 2], {"1": "field", "2": "tree", "255": "background"}, ["field", "tree"]),
        ([255, 0, 1], {"255": "background"}, ["class_0", "class_1"]),
        ([255, 0, 0], {"0": "field", "255": "background"}, ["field"]),
    ],
)
def test_a_file_that_calls_255_the_background_decides(
    tmp_path: Path, values: list[int], names: dict[str, str], classes: list[str]
) -> None:
    labelled_pictures(tmp_path, values)
    write_text(tmp_path / "labels.json", json.dumps(names))
    layout = only(tmp_path)
    assert layout.keys["background"] == 255 and layout.keys["classes"] == classes and "ignore" not in layout.keys
    assert layout.reasons["background"] == "as labels.json names them"


def labelled_pictures(root: Path, values: list[int], border: int | None = None) -> None:
    """Write pictures with masks of three label values; the border is the value of the masks' first rows."""
    for number in range(6):
        image, mask = picture(number)
        labels = np.array(values, np.uint8)[mask]
        if border is not None:
            labels[:2] = border
        write_png(root / "images" / f"a{number}.png", image)
        write_png(root / "labels" / f"a{number}.png", labels)


def test_a_file_that_names_the_background_decides(tmp_path: Path) -> None:
    trimaps(tmp_path)
    write_text(tmp_path / "classes.txt", "1: animal\n2: background\n3: rim\n")
    layout = only(tmp_path)
    assert layout.keys["background"] == 2 and layout.keys["classes"] == ["animal", "rim"]


@pytest.mark.parametrize(
    ("file", "text", "names", "is_remarked"),
    [
        ("classes.txt", "sky\nroad\ncar\n", ["road", "car"], True),
        ("classes.txt", "road\ncar\n", ["road", "car"], False),
        ("classes.txt", "sky\nroad\ncar\nbus\n", ["sky", "road"], False),
        ("classes.json", '["unlabeled", "road", "car"]', ["road", "car"], False),
        ("labels.json", '{"sky": 0, "road": 1, "car": 2}', ["road", "car"], True),
        ("labels.txt", "__ignore__\n_background_\nroad\ncar\n", ["road", "car"], False),
    ],
)
def test_a_list_of_names_may_begin_with_the_name_of_0(
    tmp_path: Path, file: str, text: str, names: list[str], is_remarked: bool
) -> None:
    """The masks have the values 0, 1 and 2. A list of three names begins with that of 0, which may be a class."""
    labelled_pictures(tmp_path, [0, 1, 2])
    write_text(tmp_path / file, text)
    layout = only(tmp_path)
    assert layout.keys["classes"] == names and "label_values" not in layout.keys and "background" not in layout.keys
    assert any(f"{file} calls it sky" in remark for remark in layout.remarks) == is_remarked


def test_a_table_with_tabs_names_the_classes(tmp_path: Path) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"a{number}.png", image)
        write_png(tmp_path / "annotations" / f"a{number}.png", mask)
    write_text(tmp_path / "objectInfo.txt", "Idx\tRatio\tName\n1\t0.6\twall\n2\t0.4\tbuilding, edifice\n")
    assert only(tmp_path).keys["classes"] == ["wall", "building, edifice"]


def test_a_folder_that_names_the_kind_of_its_masks_names_no_class(tmp_path: Path) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "JPEGImages" / f"a{number}.jpg", image)
        write_png(tmp_path / "SegmentationClass" / f"a{number}.png", binary(mask))
    assert only(tmp_path).keys["classes"] == ["foreground"]


@pytest.mark.parametrize(
    ("file", "text", "classes", "values"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, ring\n2, grain\n", ["ring", "grain"], None),
        (
            "label_class_dict.csv",
            "name,r,g,b\nback,0,0,0\nring,90,90,90\ngrain,200,200,200\n",
            ["ring", "grain"],
            [90, 200],
        ),
    ],
)
def test_tables_of_pixel_values_and_of_greys_name_the_classes(
    tmp_path: Path, file: str, text: str, classes: list[str], values: list[int] | None
) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / f"a{number}.jpg", image)
        write_png(tmp_path / f"a{number}_mask.png", mask if values is None else np.array([0, *values], np.uint8)[mask])
    write_text(tmp_path / file, text)
    layout = only(tmp_path)
    assert layout.keys["classes"] == classes and layout.keys.get("label_values") == values


# Groups


@pytest.mark.parametrize(
    ("ids", "group"),
    [
        (
            [f"patient{p:04d}_{view}_{phase}" for p in range(4) for view in ("2CH", "4CH") for phase in ("ED", "ES")],
            "patient0001",
        ),
        ([f"site{s}_p{p}_{z}" for s in range(3) for p in range(4) for z in range(2)], "site1_p2"),
        ([f"{kind}_{number}" for kind in ("Abyssinian", "great_pyrenees", "pug") for number in range(4)], None),
        ([f"{year}_{number:06d}" for year in range(2007, 2011) for number in range(5)], None),
        ([f"20190{day}_MR{number}" for day in (301, 907, 430) for number in range(3)], None),
        ([f"2019-0{day}_MR{number}" for day in ("3-01", "9-07", "4-30") for number in range(3)], None),
        ([f"2019-0{month}-0{day}" for month in (1, 2, 3) for day in (1, 2, 3)], None),
        ([f"190{day}_MR{number}" for day in (301, 907, 430) for number in range(3)], None),
        ([f"190{number}_{scan}" for number in (301, 907, 430, 399) for scan in range(3)], "190399"),
        ([f"2019{number}_{scan}" for number in (1301, 9907, 4430, 5399) for scan in range(3)], "20191301"),
    ],
)
def test_the_beginning_of_an_id_is_a_group_only_if_it_may_be_a_patient(
    tmp_path: Path, ids: list[str], group: str | None
) -> None:
    for number, case_id in enumerate(ids):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"{case_id}.png", image)
        write_png(tmp_path / "labels" / f"{case_id}.png", mask)
    layout = only(tmp_path)
    if group is None:
        assert "group" not in layout.keys and "group" in layout.reasons
        assert any(re.search("they are (dates|kinds of cases)", remark) for remark in layout.remarks)
        return
    groups = {match[1] for case_id in ids if (match := re.match(layout.keys["group"], case_id))}
    assert group in groups and len(groups) in (4, 12)


@pytest.mark.parametrize(
    ("column", "values", "used"),
    [
        ("subject_id", [f"S{number // 2}" for number in range(8)], True),
        ("subject_id", ["S1", "S1", "S2", *["NA"] * 5], False),
        ("sequence_id", [str(number // 2) for number in range(8)], True),
        ("lesion_id", [f"HAM_{number // 2}" for number in range(8)], True),
    ],
)
def test_a_column_groups_the_cases_unless_values_are_missing(
    tmp_path: Path, column: str, values: list[str], used: bool
) -> None:
    for number in range(8):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"x{number}y.png", image)
        write_png(tmp_path / "masks" / f"x{number}y.png", mask)
    table(tmp_path / "meta.csv", ("image", column), [(f"x{number}y", value) for number, value in enumerate(values)])
    assert only(tmp_path).keys.get("group") == (f"meta.csv:{column}" if used else None)


def with_table(root: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Layout:
    """Return the layout of pictures 001, 002, … with a table."""
    for number in range(1, 9):
        image, mask = picture(number)
        write_png(root / "images" / f"{number:03d}.png", image)
        write_png(root / "masks" / f"{number:03d}.png", mask)
    table(root / "meta.csv", header, rows)
    return only(root)


def test_a_spreadsheet_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "clinical" / "Patients.XLSX", "PK")
    layout = with_table(tmp_path, ("image", "size"), [])
    assert any(remark.startswith("clinical/Patients.XLSX is not read") for remark in layout.remarks)


def test_attributes_of_patients_are_no_groups(tmp_path: Path) -> None:
    header = ("image", "patient_age", "num_lesions", "lesion_type", "Patient ID (new)", "patient_id")
    rows = [(f"{n:03d}", str(40 + n % 3), str(n % 2), "ab"[n % 2], f"N{n // 3}", f"P{n // 2}") for n in range(1, 9)]
    assert with_table(tmp_path / "all", header, rows).keys["group"] == "meta.csv:patient_id"
    assert (
        with_table(tmp_path / "new", header[:5], [row[:5] for row in rows]).keys["group"].endswith(":Patient ID (new)")
    )
    layout = with_table(tmp_path / "none", header[:4], [row[:4] for row in rows])
    assert "group" not in layout.keys and not any("meta.csv" in remark for remark in layout.remarks)


@pytest.mark.parametrize(
    ("header", "row", "problem"),
    [
        (("id", "patient"), lambda n: (str(n), f"P{n // 2}"), "column id does not contain the id 001"),
        (("image", "patient"), lambda n: (f"{min(n, 7):03d}", f"P{min(n, 7) // 2}"), "does not contain the id 008"),
        (("image", "patient"), lambda n: (f"{n:03d}", "" if n == 3 else f"P{n // 2}"), "no patient for the case 003"),
        (
            ("image", "file", "patient"),
            lambda n: (f"{n:03d}", f"{n:03d}.png", f"P{n // 2}"),
            "several columns may contain the ids (image and file)",
        ),
    ],
)
def test_a_column_of_patients_that_cannot_be_used_is_named(
    tmp_path: Path, header: tuple[str, ...], row: Callable[[int], tuple[str, ...]], problem: str
) -> None:
    """Otherwise a patient might be in two folds, and nobody would notice."""
    layout = with_table(tmp_path, header, [row(number) for number in range(1, 9)])
    assert "group" not in layout.keys and any(problem in remark for remark in layout.remarks)
    assert layout.reasons["group"] == "no column of patients in the host's tables could be used"


@pytest.mark.parametrize(
    ("name", "further", "group", "groups"),
    [
        ("meta.tsv", [], "meta.tsv:patient", 4),
        ("meta.csv", [("x3y", "P1")], "meta.csv:patient", 4),  # the same row twice
        ("meta.csv", [("x3y", "P0")], None, None),  # another patient for the same image
    ],
)
def test_a_table_with_tabs_or_with_repeated_rows_groups_the_cases(
    tmp_path: Path, name: str, further: list[tuple[str, str]], group: str | None, groups: int | None
) -> None:
    for number in range(8):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"x{number}y.png", image)
        write_png(tmp_path / "masks" / f"x{number}y.png", mask)
    rows = [*((f"x{number}y", f"P{number // 2}") for number in range(8)), *further]
    separator = "\t" if name.endswith(".tsv") else ","
    (tmp_path / name).write_text("\n".join(separator.join(row) for row in [("image", "patient"), *rows]) + "\n")
    layout = only(tmp_path)
    assert layout.keys.get("group") == group
    if group is None:
        assert any("patient" in remark and "x3y" in remark for remark in layout.remarks)
        return
    comp = Competition.model_validate(
        {
            "name": "table",
            "root": str(tmp_path),
            "dimensions": 2,
            "classes": ["a"],
            "train": {"images": "images/{id}.png", "masks": "masks/{id}.png"},
            "group": group,
        }
    )
    assert len(set(group_values(comp, list(layout.ids), "group") or [])) == groups
