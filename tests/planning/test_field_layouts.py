"""Layouts of real competitions and hospitals: what `init` reads, what it asks, and what it refuses with a reason."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from competition.config.loading import load_competition
from competition.data.case_files import count_test_images
from competition.data.cases import case_table
from competition.errors import MaskfoldError
from competition.planning.choice import describe_candidates, order_candidates
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.init import remarks_of
from competition.planning.layout import Layout
from tests.host import write_nifti, write_png, write_text
from tests.planning import field_phantoms as made
from tests.planning.conftest import Start
from tests.planning.field_phantoms import colour
from tests.planning.phantoms import affine, picture, table, volume

Maker = Callable[[Path], None]


def candidates(root: Path) -> list[Layout]:
    return order_candidates(find_layouts(scan_folder(root)))


def only(root: Path) -> Layout:
    (layout,) = candidates(root)
    return layout


# One reading: images, masks, number of training cases, test images
READ = {
    made.overlay_folder: ("images/{id}.png", "masks/{id}.png", 6, None),
    made.overlay_names: ("{id}.png", "{id}_mask.png", 6, None),
    made.vis_names: ("images/{id}.png", "masks/{id}.png", 6, None),
    made.unnamed_overlay: ("img/{id}.png", "gt/{id}.png", 6, None),
    made.unnamed_grey_overlay: ("img/{id}.png", "gt/{id}.png", 6, None),
    made.listed_splits: ("images/{id}.png", "masks/{id}.png", 6, "images/{id}.png"),
    made.kits: ("{id}/imaging.nii.gz", "{id}/segmentation.nii.gz", 6, "{id}/imaging.nii.gz"),
    made.gaps: ("images/{id}.png", "masks/{id}.png", 6, None),
    made.spacenet: ("PS-RGBNIR/{id}.tif", "masks/{id}_mask.tif", 6, None),
    made.hubmap: ("train/{id}.tiff", None, 3, "test/{id}.tiff"),
    made.kvasir: ("images/{id}.png", "masks/{id}.png", 6, None),
    made.amos: ("imagesTr/{id}.nii.gz", "labelsTr/{id}.nii.gz", 6, "imagesTs/{id}.nii.gz"),
    made.btcv: ("Training/img/img{id}.nii.gz", "Training/label/label{id}.nii.gz", 6, "Testing/img/img{id}.nii.gz"),
    made.promise: ("training_data/{id}.mhd", "training_data/{id}_segmentation.mhd", 6, "test_data/{id}.mhd"),
    made.lits: ("volume-{id}.nii", "segmentation-{id}.nii", 6, None),
    made.head_circumference: ("training_set/{id}.png", "training_set/{id}_Annotation.png", 6, "test_set/{id}.png"),
    made.split_folders: ("train/images/{id}.png", "train/labels/{id}.png", 6, "test/images/{id}.png"),
    made.reversed_split_folders: ("images/train/{id}.png", "labels/train/{id}.png", 6, "images/test/{id}.png"),
    made.umlauts: ("Fälle Köln/{id}.png", "Masken/{id}.png", 6, None),
    made.links: ("images/{id}.png", "masks/{id}.png", 6, None),
    made.broken_links: ("images/{id}.png", "masks/{id}.png", 4, None),
    made.isic: (
        "ISIC2018_Task1-2_Training_Input/{id}.png",
        "ISIC2018_Task1_Training_GroundTruth/{id}_segmentation.png",
        6,
        "ISIC2018_Task1-2_Test_Input/{id}.png",
    ),
    made.segthor: ("train/{id}/{id}.nii.gz", "train/{id}/GT.nii.gz", 6, "test/{id}.nii.gz"),
    made.covid: (
        "COVID-19-CT-Seg_20cases/{id}.nii.gz",
        {name: f"{name}_Mask/{{id}}.nii.gz" for name in ("Infection", "Lung")},
        5,
        None,
    ),
    made.slicer: ("{id}.nii.gz", "{id}.seg.nii.gz", 6, None),
    made.german_hospital: ("*/{id}/Aufnahme.nii.gz", "*/{id}/Maske.nii.gz", 8, None),
    made.busi: ("*/{id}.png", "*/{id}_mask.png", 12, None),
    made.deep_globe: ("train/{id}_sat.png", "train/{id}_mask.png", 6, "test/{id}_sat.png"),
}
# A question: the candidates' images and masks, in this order
ASKED = {
    made.pascal_voc: [
        ("JPEGImages/{id}.jpg", "SegmentationClass/{id}.png"),
        ("JPEGImages/{id}.jpg", "SegmentationObject/{id}.png"),
    ],
    made.clinic: [
        ("PNG/Original/{id}.png", "PNG/Ground Truth/{id}.png"),
        ("TIF/Original/{id}.tif", "TIF/Ground Truth/{id}.tif"),
    ],
    made.acdc: [("*/{id}.nii.gz", "*/{id}_gt.nii.gz"), ("{id}/{id}_4d.nii.gz", "{id}/{id}_frame01_gt.nii.gz")],
    made.doctors: [("{id}/T1.nii.gz", f"{{id}}/mask_dr_{name}.nii.gz") for name in ("mueller", "weiss")],
    made.drive: [
        ("training/images/{id}_training.tif", "training/1st_manual/{id}_manual1.gif"),
        ("training/images/{id}_training.tif", "training/mask/{id}_training_mask.gif"),
    ],
}
# A refusal: what the message and the hint say
REFUSED = {
    made.carvana: r"train_masks\.zip is still packed.*Unpack train_masks\.zip",
    made.monuseg: r"Annotations/TCGA-18-0\.xml may describe the objects",
    made.hubmap_json: r"0aa05346ff\.json may describe the objects",
    made.supervisely: r"ds0/ann/c0\.png\.json may describe the objects",
    made.chaos: r"has DICOM files.*maskfold dicom",
    made.colour_masks: r"are in colours.*255 0 0",
    made.whole_arrays: r"If one file contains many images, write a file for each",
    made.cellpose_npy: r"`\{id\}_seg\.npy` cannot be read: .*pickled Python objects",
    made.slice_masks: r"`images/\{id\}\.nii\.gz`, but masks of single slices: 8 masks of 4 volumes.*docs/init\.md",
    made.slice_stacks_partly: r"slice_\{z\}\.png`, but masks of single slices: 16 masks of 4 volumes",
}


@pytest.mark.parametrize("maker", READ, ids=lambda maker: maker.__name__)
def test_a_folder_is_read_without_a_question(maker: Maker, tmp_path: Path) -> None:
    maker(tmp_path / "data")
    layout = only(tmp_path / "data")
    assert (layout.images, layout.masks, layout.cases, layout.test) == READ[maker]


@pytest.mark.parametrize("maker", ASKED, ids=lambda maker: maker.__name__)
def test_a_folder_with_several_readings_is_a_question(maker: Maker, tmp_path: Path) -> None:
    maker(tmp_path / "data")
    found = candidates(tmp_path / "data")
    assert list(dict.fromkeys((layout.images, layout.masks) for layout in found)) == ASKED[maker]
    lines = [line.partition(". ")[2] for line in describe_candidates(found)]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("maker", REFUSED, ids=lambda maker: maker.__name__)
def test_a_folder_that_cannot_be_read_is_refused_with_the_reason(maker: Maker, tmp_path: Path) -> None:
    maker(tmp_path / "data")
    with pytest.raises(MaskfoldError) as caught:
        candidates(tmp_path / "data")
    assert caught.value.status == 2
    assert re.search(REFUSED[maker], f"{caught.value.message} {caught.value.hint}", re.DOTALL)


def test_a_file_for_each_class_channel_and_band(tmp_path: Path) -> None:
    made.total_segmentator(tmp_path / "classes")
    layout = only(tmp_path / "classes")
    assert layout.images == "{id}/ct.nii.gz" and list(layout.masks or ()) == ["colon", "liver", "spleen"]
    assert layout.listed == tuple(f"s{number:04d}" for number in range(5))  # the column split of meta.csv
    assert layout.test == "{id}/ct.nii.gz" and layout.test_listed == ("s0005",)
    made.brats23(tmp_path / "channels")
    layout = only(tmp_path / "channels")
    assert isinstance(layout.images, dict) and list(layout.images) == ["t1c", "t1n", "t2f", "t2w"]
    assert layout.masks == "{id}/{id}-seg.nii.gz" and "such as BraTS-GLI-00000" in layout.reasons["group"]
    made.bands(tmp_path / "bands")
    layout = only(tmp_path / "bands")
    assert isinstance(layout.images, dict) and list(layout.images) == ["B02", "B03", "B04", "B08"]


def test_the_whole_mask_comes_before_masks_of_single_objects(tmp_path: Path) -> None:
    made.kits23(tmp_path / "data")
    first, *others = candidates(tmp_path / "data")
    assert first.masks == "{id}/segmentation.nii.gz" and others
    assert all("/instances/" in str(layout.masks) for layout in others)


# Overlays


def test_overlays_that_the_pattern_of_the_images_matches_are_no_cases(start: Start) -> None:
    done = start(made.overlay_names)
    assert case_table(load_competition(done.competition))["id"].tolist() == [f"c{number}" for number in range(6)]
    assert done.exploration.faults == []


@pytest.mark.parametrize("maker", [made.overlay_names, made.unnamed_overlay], ids=lambda maker: maker.__name__)
def test_overlays_are_told(maker: Maker, tmp_path: Path) -> None:
    maker(tmp_path)
    assert sum("6 pictures, such as" in remark and "the paint" in remark for remark in only(tmp_path).remarks) == 1


@pytest.mark.parametrize("maker", [made.overlay_folder, made.unnamed_overlay], ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("further", [False, True])
def test_overlays_are_not_counted_again_as_unused_images(maker: Maker, further: bool, start: Start) -> None:
    def with_another(root: Path) -> None:
        maker(root)
        if further:
            write_png(root / "plan.png", made.colour(1)[0])

    remarks = remarks_of(start(with_another, folder="data", measures=False))
    assert sum("6 pictures, such as" in remark for remark in remarks) == 1
    count = len([remark for remark in remarks if "change train.images" in remark])
    assert count == further
    assert any("1 image file of 19 is not used, such as plan.png." in remark for remark in remarks) == further


def test_channels_that_differ_everywhere_are_no_overlays(tmp_path: Path) -> None:
    for number in range(4):
        image, mask = made.colour(number)
        write_png(tmp_path / "red" / f"c{number}.png", image[..., 0])
        write_png(tmp_path / "nir" / f"c{number}.png", 255 - image[..., 0] // 2)
        write_png(tmp_path / "masks" / f"c{number}.png", mask)
    assert only(tmp_path).images == {"nir": "nir/{id}.png", "red": "red/{id}.png"}


def test_visible_light_beside_another_band_is_no_overlay(tmp_path: Path) -> None:
    for number in range(4):
        image, mask = made.colour(number)
        write_png(tmp_path / "vis" / f"c{number}.png", image[..., 0])
        write_png(tmp_path / "nir" / f"c{number}.png", 255 - image[..., 0] // 2)
        write_png(tmp_path / "masks" / f"c{number}.png", mask)
    assert {"nir": "nir/{id}.png", "vis": "vis/{id}.png"} in [layout.images for layout in candidates(tmp_path)]


def test_overlays_alone_are_the_images(tmp_path: Path) -> None:
    for number in range(4):
        image, mask = made.colour(number)
        write_png(tmp_path / "overlay" / f"c{number}.png", made.painted(image, mask))
        write_png(tmp_path / "masks" / f"c{number}.png", mask)
    assert only(tmp_path).images == "overlay/{id}.png"


# The list of candidates


def test_candidates_with_equal_texts_name_their_differences(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture(1)[0])
    host = scan_folder(tmp_path)
    channels = [{"t1": "{id}_t1.png", "t2": f"{{id}}_t2{end}.png"} for end in ("", "_registered")]
    layouts = [Layout("x", host, 5, images, 2, "{id}_seg.png", keys={"classes": ["a"]}) for images in channels]
    layouts.append(Layout("x", host, 5, channels[0], 2, "{id}_seg.png", keys={"classes": ["a"], "ignore": 255}))
    lines = describe_candidates(order_candidates(layouts))
    assert len({line.partition(". ")[2] for line in lines}) == 3
    assert "train.images.t2: {id}_t2_registered.png" in lines[1] and "ignore: 255" in lines[2]
    assert "train.images.t1" not in "".join(lines)  # equal in all of them


# Lists of cases, and cases without masks


def test_only_listed_cases_of_pascal_voc_are_training_cases(tmp_path: Path) -> None:
    made.pascal_voc(tmp_path)
    first = candidates(tmp_path)[0]
    assert first.ids == first.listed == tuple(f"2007_{number:06d}" for number in range(7))  # of 8 masks, 12 images
    assert first.test is None and not any("without a mask" in remark for remark in first.remarks)
    assert "255 is ignored" in first.name and first.keys["ignore"] == 255


def test_the_cases_of_a_test_list_are_test_cases(tmp_path: Path) -> None:
    made.listed_splits(tmp_path)
    layout = only(tmp_path)
    assert layout.listed == tuple(f"c{number}" for number in range(6)) and layout.test_listed == ("c6", "c7")


def test_cases_for_training_and_test_are_used_for_training(tmp_path: Path) -> None:
    made.listed_splits(tmp_path)
    write_text(tmp_path / "test.txt", "c4\nc5\nc6\n")
    layout = only(tmp_path)
    assert layout.listed == tuple(f"c{number}" for number in range(6)) and layout.test_listed == ("c6",)
    (remark,) = (remark for remark in layout.remarks if "both" in remark)
    assert remark.startswith("2 cases are in both the training and the test set")
    assert ": c4 (line 1 of test.txt, line 5 of train.txt), c5 (line 2 of test.txt, line 6 of train.txt). " in remark


def test_without_a_training_list_all_cases_that_are_not_for_test_are_for_training(tmp_path: Path) -> None:
    made.listed_splits(tmp_path)
    (tmp_path / "train.txt").rename(tmp_path / "README")
    write_text(tmp_path / "val.txt", "c4.png\nc5.png\n")
    layout = only(tmp_path)
    assert layout.listed == tuple(f"c{number}" for number in range(6)) and layout.test_listed == ("c6", "c7")


def test_a_test_list_names_the_images_of_the_test_folder_not_training_images_of_the_same_name(tmp_path: Path) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "train" / "images" / f"{number:03d}.png", image)
        write_png(tmp_path / "train" / "masks" / f"{number:03d}.png", mask)
    for number in range(3):
        write_png(tmp_path / "test" / "images" / f"{number:03d}.png", picture(20 + number)[0])
    write_text(tmp_path / "test.txt", "".join(f"test/images/{number:03d}.png\n" for number in range(3)))
    layout = only(tmp_path)
    assert layout.cases == 6 and layout.listed is None and layout.test == "test/images/{id}.png"


def test_a_row_of_a_table_for_training_and_test_is_named(start: Start) -> None:
    def maker(root: Path) -> None:
        made.listed_splits(root)
        for name in ("train", "test"):
            (root / f"{name}.txt").unlink()
        rows = [(f"c{number}.png", "train" if number < 6 else "test") for number in range(8)]
        table(root / "split.csv", ("filename", "set"), [*rows, ("c2.png", "test")])

    done = start(maker, folder="twice")
    comp = load_competition(done.competition)
    assert len(case_table(comp)) == 6 and case_table(comp, "test")["id"].tolist() == ["c6", "c7"]
    (remark,) = (remark for remark in done.layout.remarks if "both" in remark)
    assert remark == (
        "1 case is in both the training and the test set of split.csv, and is used for training only: "
        "c2 (lines 4 and 10). Correct the table and run init again"
    )


def test_a_text_of_other_words_is_no_list(tmp_path: Path) -> None:
    made.listed_splits(tmp_path)
    for name in ("train", "test"):
        write_text(tmp_path / f"{name}.txt", "Please cite our paper.\nc1\n")
    assert only(tmp_path).cases == 8


def test_the_last_cases_without_masks_are_test_cases(start: Start) -> None:
    done = start(made.kits)
    comp = load_competition(done.competition)
    assert len(case_table(comp)) == 6 and case_table(comp, "test")["id"].tolist() == ["case_00006", "case_00007"]
    assert count_test_images(comp) == 2
    assert any("2 images without a mask, whose names come last" in remark for remark in done.layout.remarks)


def test_many_listed_cases_are_written_into_tables(start: Start) -> None:
    def maker(root: Path) -> None:
        for number in range(70):
            image, mask = picture(number)
            write_png(root / "images" / f"c{number}.png", image)
            if number < 35:
                write_png(root / "masks" / f"c{number}.png", mask)

    comp = load_competition(start(maker, folder="many").competition)
    assert isinstance(comp.train.cases, str) and comp.test is not None and isinstance(comp.test.cases, str)
    assert len(case_table(comp)) == len(case_table(comp, "test")) == count_test_images(comp) == 35


def test_a_broken_link_is_told_and_its_case_is_no_test_case(tmp_path: Path) -> None:
    made.broken_links(tmp_path)
    layout = only(tmp_path)
    assert any("2 links, such as masks/c4.png" in remark for remark in layout.remarks) and layout.test is None


def test_a_packed_archive_beside_the_data_is_told(tmp_path: Path) -> None:
    made.kvasir(tmp_path)
    (tmp_path / "more.zip").write_bytes(b"PK")
    assert any("more.zip is packed" in remark for remark in only(tmp_path).remarks)


def test_labelled_validation_cases_of_a_data_set_with_a_json_file_are_told(tmp_path: Path) -> None:
    made.amos(tmp_path)
    assert "2 labelled cases in imagesVa: not used" in only(tmp_path).notes


# Masks of single classes beside a file with all of them

CLASS_MASKS = {"heart": "{id}/labels/heart.nii.gz", "liver": "{id}/labels/liver.nii.gz"}


@pytest.mark.parametrize("name", ["all_labels", "segmentation", "organs"])
def test_a_file_that_repeats_the_classes_is_not_used(tmp_path: Path, name: str) -> None:
    made.all_labels(name)(tmp_path)
    layout = only(tmp_path)
    assert layout.masks == CLASS_MASKS and layout.keys["classes"] == ["heart", "liver"] and layout.cases == 6
    expected = f"{{id}}/labels/{name}.nii.gz contains the same classes as the files of single classes, and is not used"
    assert expected in layout.remarks


def test_a_file_with_a_further_class_is_a_choice(tmp_path: Path) -> None:
    made.all_labels(further=200)(tmp_path)
    first, second = candidates(tmp_path)
    assert first.masks == CLASS_MASKS and second.masks == "{id}/labels/all_labels.nii.gz"
    assert any("all_labels.nii.gz has several label values, and is not used" in remark for remark in first.remarks)


# Masks of a field of view


@pytest.mark.parametrize("name", ["fov", "ROI", "region", "field_of_view"])
def test_the_masks_of_a_field_of_view_come_last(tmp_path: Path, name: str) -> None:
    view = np.zeros((40, 48), np.uint8)
    view[2:38, 2:46] = 255
    for number in range(6):
        image, mask = colour(number)
        write_png(tmp_path / "images" / f"c{number}.png", image)
        write_png(tmp_path / name / f"c{number}.png", view)
        if number:  # the masks of the field of view have more cases
            write_png(tmp_path / "manual" / f"c{number}.png", np.where(view > 0, mask, 0).astype(np.uint8))
    found = candidates(tmp_path)
    assert [layout.masks for layout in found] == ["manual/{id}.png", "manual/{id}.png", f"{name}/{{id}}.png"]
    assert [layout.keys.get("train.region") for layout in found] == [f"{name}/{{id}}.png", None, None]


# Archives of arrays


@pytest.mark.parametrize(
    ("keys", "is_volume"),
    [
        (("image", "label"), False),
        (("img", "mask"), False),
        (("x", "y"), False),
        (("arr_0", "arr_1"), False),
        (("imgs", "gts", "spacing"), True),
    ],
)
def test_the_command_for_arrays_writes_a_folder_that_init_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...], is_volume: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("data/my set")
    made.npz_pairs(keys, is_volume)(root)
    with pytest.raises(MaskfoldError) as caught:
        candidates(root)
    assert caught.value.status == 2 and all(key in caught.value.message for key in keys)
    assert ("array_axes" in caught.value.hint) == is_volume
    command, _, rest = caught.value.hint.partition("python -c ")[2].partition(" && ")
    assert rest.startswith("maskfold init 'data/my set-arrays'")
    subprocess.run(f"{sys.executable} -c {command}", shell=True, check=True)
    layout = only(Path("data/my set-arrays"))
    assert (layout.images, layout.masks, layout.cases) == ("images/{id}.npy", "masks/{id}.npy", 6)
    assert layout.dimensions == (3 if is_volume else 2)


def test_arrays_of_unknown_names_and_values_leave_the_names_to_the_user(tmp_path: Path) -> None:
    tmp_path.joinpath("data").mkdir()
    for number in range(3):
        image = picture(number)[0]
        np.savez(tmp_path / "data" / f"c{number}.npz", first=image, second=255 - image)
    with pytest.raises(MaskfoldError, match=r"first \(40×48\), second \(40×48\)") as caught:
        candidates(tmp_path / "data")
    assert '"IMAGE"' in caught.value.hint and "in place of IMAGE and MASK" in caught.value.hint


# Masks of single slices, and outlines


@pytest.mark.parametrize(
    ("maker", "name", "keys"),
    [
        (made.sparse_volumes(3), "3 is ignored", {"ignore": 3, "classes": ["class_1", "class_2"]}),
        (made.sparse_volumes(0, 1, 2), "1 is the background", {"ignore": 0, "background": 1, "label_values": [2, 3]}),
        (made.sparse_volumes(255), "255 is ignored", {"ignore": 255}),
    ],
)
def test_a_value_that_fills_whole_slices_is_asked(
    tmp_path: Path, maker: Maker, name: str, keys: dict[str, object]
) -> None:
    maker(tmp_path)
    first, *others = candidates(tmp_path)
    assert others and name in first.name and first.keys | keys == first.keys
    assert any("fills whole slices" in remark for remark in first.remarks)


def test_single_drawn_slices_between_empty_slices_are_told(tmp_path: Path) -> None:
    made.sparse_volumes(0)(tmp_path / "sparse")
    assert any("only single slices" in remark for remark in only(tmp_path / "sparse").remarks)
    made.lits(tmp_path / "whole")
    assert not any("single slices" in remark for remark in only(tmp_path / "whole").remarks)


def test_a_stack_whose_slices_are_wholly_unlabelled_is_asked(tmp_path: Path) -> None:
    for number in range(4):
        image, mask = volume(number)
        scaled = np.clip((image - 100) / 3, 0, 255).astype(np.uint8)
        for place in range(10):
            drawn = mask[:, :, place + 3] if place % 3 == 1 else np.full(mask.shape[:2], 9, np.uint8)
            write_png(tmp_path / "images" / f"P{number}" / f"slice_{place:03d}.png", scaled[:, :, place + 3])
            write_png(tmp_path / "masks" / f"P{number}" / f"slice_{place:03d}.png", drawn)
    first, *others = candidates(tmp_path)
    assert first.keys["ignore"] == 9 and others


def test_the_script_for_single_slices_makes_volumes_that_init_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made.slice_masks(Path("data/mine"))
    text = (Path(__file__).parents[2] / "docs" / "init.md").read_text(encoding="utf-8")
    script = text.partition("## Masks of single slices")[2].partition("```python\n")[2].partition("```")[0]
    subprocess.run([sys.executable, "-c", script], check=True)
    first = candidates(Path("data/mine-drawn"))[0]
    assert (first.images, first.masks, first.cases) == ("images/{id}.nii.gz", "labels/{id}.nii.gz", 4)
    assert first.keys["ignore"] == 255 and first.dimensions == 3


def test_outlines_are_told(tmp_path: Path) -> None:
    made.head_circumference(tmp_path / "lines")
    layout = only(tmp_path / "lines")
    assert any("closed lines" in remark for remark in layout.remarks)
    assert layout.keys["classes"] == ["foreground"]  # not `set`, from `training_set`
    made.kvasir(tmp_path / "areas")
    assert not any("closed lines" in remark for remark in only(tmp_path / "areas").remarks)


def test_a_net_of_lines_is_no_outline(tmp_path: Path) -> None:
    for number in range(4):
        image = picture(number, (64, 64))[0]
        net = np.zeros((64, 64), np.uint8)
        net[8 + number :: 16] = 255
        net[:, 8 + number :: 16] = 255
        write_png(tmp_path / "images" / f"c{number}.png", image)
        write_png(tmp_path / "masks" / f"c{number}.png", net)
    assert not any("closed lines" in remark for remark in only(tmp_path).remarks)


# Groups


def test_the_number_of_a_patient_within_the_ids_is_the_group(start: Start) -> None:
    def maker(root: Path) -> None:
        for patient in range(5):
            for week in range(2):
                image, mask = picture(10 * patient + week)
                name = f"{10 + week}-05-2021_PAT{patient:03d}_w{patient + week}"
                write_png(root / "images" / f"{name}.png", image)
                write_png(root / "masks" / f"{name}.png", mask)

    comp = load_competition(start(maker, folder="patients").competition)
    assert set(case_table(comp)["group"]) == {f"PAT{number:03d}" for number in range(5)}


def test_folders_of_days_are_no_groups_but_their_patients_are(start: Start) -> None:
    comp = load_competition(start(made.german_hospital).competition)
    assert set(case_table(comp)["group"]) == {f"Pat_{number:03d}" for number in range(4)}

    def days(root: Path) -> None:
        for day in range(1, 10):
            for scan in range(2):
                image, mask = volume(10 * day + scan)
                folder = root / f"{day:02d}-03-2021" / f"s{day}x{scan}"
                write_nifti(folder / "image.nii.gz", image, affine(1, 1, 2))
                write_nifti(folder / "mask.nii.gz", mask, affine(1, 1, 2))

    assert load_competition(start(days).competition).group is None


def test_a_table_of_groups_wins_over_the_ids(tmp_path: Path) -> None:
    for number in range(8):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"scan_PAT{number // 2}_{number}.png", image)
        write_png(tmp_path / "masks" / f"scan_PAT{number // 2}_{number}.png", mask)
    rows = [(f"scan_PAT{number // 2}_{number}", f"F{number // 4}") for number in range(8)]
    table(tmp_path / "meta.csv", ("image", "subject_id"), rows)
    assert only(tmp_path).keys["group"] == "meta.csv:subject_id"
