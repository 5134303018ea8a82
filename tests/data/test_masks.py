"""Every format of ground truth becomes the same arrays, and invalid data raise an error."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from competition.config.competition import Competition
from competition.data.cases import case_table
from competition.data.masks import load_instances, load_mask, load_objects
from competition.data.objects import CaseObjects
from competition.data.readers import load_image
from competition.errors import MaskfoldError
from competition.rle import encode
from competition.rle_text import RleFormat
from tests.conftest import SHARED
from tests.host import competition, pictures, write_nifti, write_png, write_text

LABELS = np.array([[0, 1, 2, 2], [0, 1, 0, 255], [3, 0, 0, 0]], np.uint8)


def one_case(root: Path, mask: np.ndarray) -> None:
    write_png(root / "images" / "a.png", np.zeros(mask.shape[:2], np.uint8))
    write_png(root / "masks" / "a.png", mask)


def first_mask(comp: Competition) -> np.ndarray:
    return load_mask(comp, case_table(comp).iloc[0])


def test_exclusive_labels(tmp_path: Path) -> None:
    one_case(tmp_path, LABELS)
    comp = competition(tmp_path, classes=["a", "b", "c"], ignore=255)
    mask = first_mask(comp)
    np.testing.assert_array_equal(mask, LABELS[None])
    assert mask.dtype == np.uint8
    turned = competition(tmp_path, classes=["c", "a", "b"], label_values=[3, 1, 2], ignore=255)
    np.testing.assert_array_equal(first_mask(turned)[0], [[0, 2, 3, 3], [0, 2, 0, 255], [1, 0, 0, 0]])


def test_overlapping_classes_from_one_label_file(tmp_path: Path) -> None:
    one_case(tmp_path, LABELS)
    mask = first_mask(competition(tmp_path, classes=["a", "b", "c"], ignore=255, labels="overlapping"))
    assert mask.shape == (3, 3, 4) and mask.dtype == np.uint8
    for index in range(3):
        np.testing.assert_array_equal(mask[index], np.where(LABELS == 255, 255, index + 1 == LABELS))


def test_a_class_of_several_values(tmp_path: Path) -> None:
    one_case(tmp_path, LABELS)
    comp = competition(tmp_path, classes=["b", "other"], label_values=[2, [1, 3]], ignore=255)
    np.testing.assert_array_equal(first_mask(comp)[0], [[0, 2, 1, 1], [0, 2, 0, 255], [2, 0, 0, 0]])
    assert comp.output_label_values == [2, 1]
    # regions that contain one another, as tumours and their cores
    regions = competition(
        tmp_path, classes=["whole", "core"], label_values=[[1, 2, 3], [2, 3]], labels="overlapping", ignore=255
    )
    whole, core = first_mask(regions)
    np.testing.assert_array_equal(whole, [[0, 1, 1, 1], [0, 1, 0, 255], [1, 0, 0, 0]])
    np.testing.assert_array_equal(core, [[0, 0, 1, 1], [0, 0, 0, 255], [1, 0, 0, 0]])


@pytest.mark.parametrize("values", [[[1, 2], 2], [[1, 0], 2], [[], 2], [[1, 2]], [1, [255, 3]]])
def test_values_of_two_exclusive_classes_differ(tmp_path: Path, values: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"label_values|ignore"):
        competition(tmp_path, classes=["a", "b"], label_values=values, ignore=255)


def test_sixteen_bit_labels_and_negative_ones(tmp_path: Path) -> None:
    one_case(tmp_path, np.array([[0, 1000], [40000, 1000]], np.uint16))
    comp = competition(tmp_path, classes=["a", "b"], label_values=[1000, 40000])
    np.testing.assert_array_equal(first_mask(comp), [[[0, 1], [2, 1]]])
    write_nifti(tmp_path / "v.nii", np.zeros((2, 2, 1), np.uint8))
    write_nifti(tmp_path / "m/v.nii", np.array([[[0], [-1]], [[100000], [0]]], np.int32))
    comp = competition(
        tmp_path,
        dimensions=3,
        classes=["a", "b"],
        label_values=[-1, 100000],
        train={"images": "{id}.nii", "masks": "m/{id}.nii"},
    )
    np.testing.assert_array_equal(first_mask(comp)[0, :, :, 0], [[0, 1], [2, 0]])


def test_values_that_no_class_has(tmp_path: Path) -> None:
    one_case(tmp_path, LABELS)
    with pytest.raises(MaskfoldError) as error:
        first_mask(competition(tmp_path, classes=["a", "b"]))
    assert f"{tmp_path / 'masks/a.png'} has label values that belong to no class: found 3, 255." in error.value.message
    assert "label_values" in error.value.hint and "ignore" in error.value.hint
    one_case(tmp_path, np.array([[0, 3]], np.uint8))
    with pytest.raises(MaskfoldError, match=r"a\.png has a label value that belongs to no class: found 3\."):
        first_mask(competition(tmp_path, classes=["a", "b"]))
    one_case(tmp_path, np.array([[0, 255]], np.uint8))
    with pytest.raises(MaskfoldError, match=r"label value .*found 255.*competition.label_values=\[255\]"):
        first_mask(competition(tmp_path))
    one_case(tmp_path, np.arange(12, dtype=np.uint8).reshape(3, 4))
    with pytest.raises(MaskfoldError, match=r"found 2, 3, 4, 5, 6 and 5 more"):
        first_mask(competition(tmp_path))


def test_smeared_jpeg_masks_say_so(tmp_path: Path) -> None:
    write_png(tmp_path / "images/a.png", np.zeros((32, 32), np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[5:20, 3:19] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/a.jpg", quality=60)
    comp = competition(tmp_path, label_values=[255], train={"images": "images/{id}.png", "masks": "masks/{id}.jpg"})
    with pytest.raises(MaskfoldError, match="JPEG"):
        first_mask(comp)


@pytest.mark.parametrize("place", [(0, 0), (2, 3), None])
def test_one_pixel_the_last_pixel_and_none(tmp_path: Path, place: tuple[int, int] | None) -> None:
    mask = np.zeros((3, 4), np.uint8)
    if place is not None:
        mask[place] = 1
    one_case(tmp_path, mask)
    comp = competition(tmp_path, instances=True)
    row = case_table(comp).iloc[0]
    np.testing.assert_array_equal(load_mask(comp, row)[0], mask)
    np.testing.assert_array_equal(load_instances(comp, row), mask)
    text = encode(mask, RleFormat())
    write_text(tmp_path / "t.csv", f"id,rle\na,{text}\n")
    comp = competition(tmp_path, instances=True, train={"images": "images/{id}.png", "rle": "t.csv"})
    row = case_table(comp).iloc[0]
    np.testing.assert_array_equal(load_mask(comp, row)[0], mask)
    np.testing.assert_array_equal(load_instances(comp, row), mask)


PER_CLASS: dict[str, Any] = {
    "classes": ["liver", "tumour"],
    "train": {"images": "images/{id}.png", "masks": {"tumour": "tumour/{id}.png", "liver": "liver/{id}.png"}},
}


def per_class(root: Path) -> tuple[np.ndarray, np.ndarray]:
    liver, tumour = np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8)
    liver[1:3, :2], tumour[3, 4] = 255, 1
    write_png(root / "images/a.png", liver)
    write_png(root / "liver/a.png", liver)
    write_png(root / "tumour/a.png", tumour)
    return liver > 0, tumour > 0


def test_one_file_per_class(tmp_path: Path) -> None:
    liver, tumour = per_class(tmp_path)
    np.testing.assert_array_equal(first_mask(competition(tmp_path, **PER_CLASS))[0], liver + 2 * tumour)
    mask = first_mask(competition(tmp_path, labels="overlapping", **PER_CLASS))
    np.testing.assert_array_equal(mask, np.stack([liver, tumour]))


def test_class_files_that_are_missing_overlap_or_are_grey(tmp_path: Path) -> None:
    liver, _ = per_class(tmp_path)
    write_png(tmp_path / "tumour/a.png", (np.arange(20).reshape(4, 5) < 6).astype(np.uint8))
    with pytest.raises(MaskfoldError, match="ase a has 1 pixel in.*labels=overlapping"):
        first_mask(competition(tmp_path, **PER_CLASS))
    mask = first_mask(competition(tmp_path, labels="overlapping", **PER_CLASS))
    assert mask.sum(axis=0).max() == 2 and mask[0].sum() == liver.sum()
    write_png(tmp_path / "tumour/a.png", np.arange(20, dtype=np.uint8).reshape(4, 5))
    with pytest.raises(MaskfoldError, match=r"tumour/a\.png of the class tumour .*found 1, 2, 3, 4, 5,"):
        first_mask(competition(tmp_path, **PER_CLASS))
    (tmp_path / "tumour/a.png").rename(tmp_path / "tumour/b.png")
    with pytest.raises(MaskfoldError, match=r"ase b has a mask \(train.masks.tumour"):
        case_table(competition(tmp_path, **PER_CLASS))
    (tmp_path / "tumour/b.png").unlink()
    pictures(tmp_path, ["b"], (4, 5))
    for cls in ("tumour", "liver"):
        write_png(tmp_path / cls / "b.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(
        MaskfoldError, match=r"ase a has an image \(images/a\.png\) but no mask: no file matches train.masks.tumour"
    ):
        case_table(competition(tmp_path, **PER_CLASS))


def test_ignored_pixels_of_class_files(tmp_path: Path) -> None:
    per_class(tmp_path)
    write_png(tmp_path / "tumour/a.png", np.array([[7] * 5, [0] * 5, [0] * 5, [1] * 5], np.uint8))
    mask = first_mask(competition(tmp_path, ignore=7, **PER_CLASS))
    assert (mask[0, 0] == 255).all() and (mask[0, 3] == 2).all() and mask[0, 1].tolist() == [1, 1, 0, 0, 0]
    mask = first_mask(competition(tmp_path, ignore=7, labels="overlapping", **PER_CLASS))
    assert (mask[:, 0] == 255).all() and (mask[1, 3] == 1).all() and (mask[0, 3] == 0).all()


def test_folder_of_instances(tmp_path: Path) -> None:
    first, second = np.zeros((2, 4, 6), np.uint8)
    first[:2, :3], second[1:, 2:5] = 255, 255  # they overlap in one pixel
    write_png(tmp_path / "a/images/a.png", first)
    write_png(tmp_path / "a/masks/1.png", first)
    write_png(tmp_path / "a/masks/2.png", second)
    write_png(tmp_path / "b/images/b.png", first)
    (tmp_path / "b/masks").mkdir()
    comp = competition(tmp_path, instances=True, train={"images": "{id}/images/{id}.png", "masks": "{id}/masks/*.png"})
    table = case_table(comp)
    a, b = table.iloc[0], table.iloc[1]
    np.testing.assert_array_equal(load_mask(comp, a)[0], (first | second) > 0)
    instances = load_instances(comp, a)
    assert instances.dtype == np.int32 and instances[1, 2] == 2
    np.testing.assert_array_equal(instances, np.where(second, 2, first > 0))
    assert not load_mask(comp, b).any() and not load_instances(comp, b).any()
    write_png(tmp_path / "a/masks/3.png", np.zeros((5, 6), np.uint8))
    with pytest.raises(MaskfoldError, match=r"a/images/a\.png has 4×6, and a/masks/3\.png has 5×6"):
        case_table(comp)
    write_png(tmp_path / "c/images/c.png", first)
    with pytest.raises(MaskfoldError, match=r"ase c has an image \(c/images/c\.png\) but no folder of masks"):
        case_table(comp)
    with pytest.raises(MaskfoldError, match=r"train\.masks .*the 2 classes in competition\.classes") as error:
        case_table(competition(tmp_path, classes=["x", "y"], train=comp.train.model_dump(by_alias=True)))
    assert error.value.status == 2


def whole_objects(objects: CaseObjects) -> dict[int, np.ndarray]:
    """Each object as a mask of the case."""
    masks = {number: objects.labels == number for number in range(1, len(objects.class_of))}
    for part in objects.hidden:
        assert part.mask.any() and not masks[part.number][part.box][part.mask].any()
        masks[part.number][part.box] |= part.mask
    return masks


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("kind", ["rle", "files"])
def test_objects_that_overlap_keep_all_their_pixels(tmp_path: Path, kind: str, order: str) -> None:
    rng = np.random.default_rng(3)
    for attempt in range(5):
        given = [np.zeros((9, 13), bool) for _ in range(6)]
        for mask in given:
            row, column = rng.integers(0, 6), rng.integers(0, 9)
            mask[row : row + rng.integers(1, 5), column : column + rng.integers(1, 5)] = True
        given[4] = given[1].copy()  # a copy
        root = tmp_path / str(attempt)
        write_png(root / "images" / "a.png", np.zeros((9, 13), np.uint8))
        if kind == "rle":
            fmt = RleFormat(order=order)
            write_text(root / "train.csv", "id,rle\n" + "".join(f"a,{encode(mask, fmt)}\n" for mask in given))
            train = {"images": "images/{id}.png", "rle": "train.csv", "rle_format": {"order": order}}
        else:
            for number, mask in enumerate(given):
                write_png(root / "masks" / "a" / f"{number}.png", mask.astype(np.uint8))
            train = {"images": "images/{id}.png", "masks": "masks/{id}/*.png"}
        comp = competition(root, instances=True, train=train)
        objects = load_objects(comp, case_table(comp).iloc[0])
        found = whole_objects(objects)
        assert len(found) == 6 and objects.empty == 0
        for number, mask in enumerate(given, start=1):
            np.testing.assert_array_equal(found[number], mask)
        expected = np.zeros((9, 13), np.int32)
        for number, mask in enumerate(given, start=1):
            expected[mask] = number
        np.testing.assert_array_equal(objects.labels, expected)
        assert objects.labels.dtype == np.int32
        one_class = objects.of_class(np.any(given, axis=0), 0)
        assert one_class.sizes().tolist() == [mask.sum() for mask in given]


def test_objects_of_overlapping_classes_belong_to_their_class(tmp_path: Path) -> None:
    """A pixel in two classes counts for the object of each, and not as an object of the other class."""
    first, second = np.zeros((2, 5, 8), np.uint8)
    first[1:4, 0:5], second[1:4, 3:8] = 1, 1
    for name, mask in (("x", first), ("y", second)):
        write_png(tmp_path / name / "a.png", mask)
    write_png(tmp_path / "images" / "a.png", first)
    train = {"images": "images/{id}.png", "masks": {"x": "x/{id}.png", "y": "y/{id}.png"}}
    comp = competition(tmp_path, classes=["x", "y"], labels="overlapping", instances=True, train=train)
    objects = load_objects(comp, case_table(comp).iloc[0])
    assert [objects.of_class(mask == 1, index).sizes().tolist() for index, mask in enumerate((first, second))] == [
        [15],
        [15],
    ]


def test_components_of_label_files_are_instances(tmp_path: Path) -> None:
    labels = np.array([[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 1]], np.uint8)  # touching at a corner is together
    one_case(tmp_path, labels)
    comp = competition(tmp_path, classes=["a", "b"], instances=True)
    np.testing.assert_array_equal(
        load_instances(comp, case_table(comp).iloc[0]), [[1, 0, 0, 3], [0, 1, 0, 3], [0, 0, 0, 2]]
    )


def rle_host(root: Path, rows: str, **changes: Any) -> Competition:
    """Three pictures of 3×4 and a table."""
    for case_id in ("a", "b", "c"):
        write_png(root / "images" / f"{case_id}.png", np.zeros((3, 4), np.uint8))
    write_text(root / "train.csv", rows)
    return competition(root, **{"train": {"images": "images/{id}.png", "rle": "train.csv"}} | changes)


def loaded(comp: Competition) -> dict[str, np.ndarray]:
    return {row.id: load_mask(comp, row)[0] for row in case_table(comp).itertuples()}


def test_rows_of_one_image_are_united_and_absent_images_are_empty(tmp_path: Path) -> None:
    comp = rle_host(tmp_path, "id,rle\na,1 2\nb,\na.png,12 1\n", instances=True)
    masks = loaded(comp)
    np.testing.assert_array_equal(masks["a"], [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert not masks["b"].any() and not masks["c"].any()
    np.testing.assert_array_equal(
        load_instances(comp, case_table(comp).iloc[0]), [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2]]
    )


def test_ids_with_extension_in_the_pattern_too(tmp_path: Path) -> None:
    comp = rle_host(tmp_path, "id,rle\na,1 2\nb.png,1 1\n", train={"images": "images/{id}", "rle": "train.csv"})
    masks = loaded(comp)
    assert masks["a.png"].sum() == 2 and masks["b.png"].sum() == 1


def test_formats_of_run_lengths(tmp_path: Path) -> None:
    comp = rle_host(
        tmp_path,
        "id,rle\na,0 2 1 1\nb,-1\n",
        train={
            "images": "images/{id}.png",
            "rle": "train.csv",
            "rle_format": {"order": "row", "base": 0, "relative": True, "empty": "-1"},
        },
    )
    masks = loaded(comp)
    np.testing.assert_array_equal(masks["a"], [[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert not masks["b"].any()
    comp = rle_host(tmp_path, "id,rle\na,1 2\n", submission={"rle": {"order": "row"}})
    assert loaded(comp)["a"][0].tolist() == [1, 1, 0, 0]


TWO: dict[str, Any] = {
    "classes": ["big", "small"],
    "train": {
        "images": "images/{id}.png",
        "rle": "train.csv",
        "columns": {"id": "Image", "class": "Kind", "mask": "Runs"},
    },
}


def test_classes_of_a_table(tmp_path: Path) -> None:
    comp = rle_host(
        tmp_path, "\ufeffKind,Extra,Image,Runs\nsmall,x,a,1 1\nbig,x,a,3 2\n2,,b,1 1\n,,c,\n\n1,,b,3 1\n", **TWO
    )
    masks = loaded(comp)
    np.testing.assert_array_equal(masks["a"], [[2, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(masks["b"][:, 0], [2, 0, 1])
    assert not masks["c"].any()
    one_missing = rle_host(tmp_path, "Image,Kind,Runs\na,small,1 1\n", **TWO, labels="overlapping")
    table = case_table(one_missing)
    mask = load_mask(one_missing, table.iloc[0])
    assert mask.shape == (2, 3, 4) and mask[0].sum() == 0 and mask[1].sum() == 1


@pytest.mark.parametrize(
    ("rows", "changes", "wrong", "cure"),
    [
        ("ID,rle\na,1 1\n", {}, "train.csv has no column `id`: found ID, rle", "train.columns.id, for example to `ID`"),
        ("id,EncodedPixels\na,1 1\n", {}, "has no column `rle`", "Set train.columns.mask"),
        ("Image,Kid,Runs\na,big,1 1\n", TWO, "has no column `Kind`", "train.columns.class, for example to `Kid`"),
        ("id,rle\na,1 1\n", {"classes": ["x", "y"]}, "has no column for the class", "train.columns.class"),
        ("id,rle\na,1 1\nab,1 1\nd,1 1\n", {}, "line 3: the id ab has no image; nearest is", "remove the row"),
        ("id,rle\nx,1 1\ny,1 1\n", {}, "None of the ids in", "train.columns.id"),
        (
            "Image,Kind,Runs\na,big,1 1\n\nb,smal,1 1\n",
            TWO,
            "line 4: unknown class: found `smal`, expected one of big, small; nearest is small",
            "change competition.classes",
        ),
        ("id,rle\na,1 1,2\n", {}, "cannot be read as a table", "CSV"),
        ("", {}, "cannot be read as a table", "CSV"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, rows: str, changes: dict[str, Any], wrong: str, cure: str) -> None:
    with pytest.raises(MaskfoldError) as error:
        case_table(rle_host(tmp_path, rows, **changes))
    assert wrong in error.value.message and "train.csv" in error.value.message
    assert cure in error.value.hint


def test_missing_table_shows_what_is_there(tmp_path: Path) -> None:
    comp = rle_host(tmp_path, "id,rle\n", train={"images": "images/{id}.png", "rle": "trian.csv"})
    with pytest.raises(MaskfoldError, match=r"trian\.csv does not exist.* train\.csv") as error:
        case_table(comp)
    assert error.value.status == 2


@pytest.mark.parametrize("runs", ["12 2", "0 1", "1", "1 x", "5 1 1 1", "1 0", "99999999999999999999 1"])
def test_runs_that_cannot_be_decoded_name_file_line_and_id(tmp_path: Path, runs: str) -> None:
    comp = rle_host(tmp_path, f"id,rle\nb,1 1\nb,{runs}\n")
    for load in (load_mask, load_instances):
        with pytest.raises(MaskfoldError, match=r"train\.csv, line 3, id b: .*train\.rle_format"):
            load(comp, case_table(comp).iloc[1])


def test_strangers_and_bad_rows_are_left_out_under_skip(tmp_path: Path) -> None:
    comp = rle_host(tmp_path, "id,rle\na,1 1\nb,13 1\nelsewhere,1 1\n", on_bad_case="skip")
    table = case_table(comp)
    assert table["id"].tolist() == ["a", "c"]
    reasons = dict(table.attrs["skipped"])
    assert set(reasons) == {"b", "elsewhere"} and "line 3" in reasons["b"] and "line 4" in reasons["elsewhere"]


def test_changed_tables_are_read_again(tmp_path: Path) -> None:
    assert loaded(rle_host(tmp_path, "id,rle\na,1 1\n"))["a"].sum() == 1
    assert loaded(rle_host(tmp_path, "id,rle\na,1 12\n"))["a"].sum() == 12


def test_run_lengths_of_a_volume_and_of_its_slices(tmp_path: Path) -> None:
    """A row may speak of the whole stack, or of one slice by several names."""
    for case_id in ("c1_day2", "c3"):
        for z in (1, 2):
            write_png(tmp_path / case_id / f"slice_{z:04d}_9.png", np.zeros((3, 4), np.uint8))
    volume = np.zeros((3, 4, 2), bool)
    volume[2, 3, 1] = volume[0, 0, 0] = True
    write_text(
        tmp_path / "train.csv",
        "id,rle\n" + f"c3,{encode(volume, RleFormat())}\n"
        "c1_day2_slice_0001,1 2\nc1_day2_slice_0002,\nc1_day2_0002,12 1\n",
    )
    comp = competition(tmp_path, dimensions=3, train={"images": "{id}/slice_{z}_9.png", "rle": "train.csv"})
    masks = loaded(comp)
    np.testing.assert_array_equal(masks["c3"], volume)
    np.testing.assert_array_equal(masks["c1_day2"][:, 0, 0], [1, 1, 0])
    assert masks["c1_day2"][2, 3].tolist() == [0, 1] and masks["c1_day2"].sum() == 3


def test_slice_name_of_two_cases_is_not_guessed(tmp_path: Path) -> None:
    for case_id in ("p", "q"):
        write_png(tmp_path / case_id / "s_1.png", np.zeros((3, 4), np.uint8))
    write_text(tmp_path / "train.csv", "id,rle\ns_1,1 2\np_1,1 1\n")
    comp = competition(tmp_path, dimensions=3, train={"images": "{id}/s_{z}.png", "rle": "train.csv"})
    with pytest.raises(MaskfoldError, match="line 2: the id s_1 has no image"):
        case_table(comp)


def test_every_kind_of_row_is_taken(tmp_path: Path) -> None:
    """A Series hides its column `shape` behind an attribute of its own."""
    pictures(tmp_path, ["a"])
    comp = competition(tmp_path, instances=True)
    table = case_table(comp)
    rows = [
        table.iloc[0],
        next(table.itertuples()),
        next(table.itertuples(index=False)),
        SimpleNamespace(**table.iloc[0].to_dict()),
    ]
    for row in rows:
        assert load_image(comp, row).array.shape == load_mask(comp, row).shape == (1, *load_instances(comp, row).shape)


def test_mask_that_changed_after_the_table_was_made(tmp_path: Path) -> None:
    pictures(tmp_path, ["a"])
    comp = competition(tmp_path)
    row = case_table(comp).iloc[0]
    write_png(tmp_path / "masks/a.png", np.zeros((6, 9), np.uint8))
    with pytest.raises(MaskfoldError, match="case a .*found 6×9, expected 6×8"):
        load_mask(comp, row)


@pytest.mark.skipif(not (SHARED / "nuclei").is_dir(), reason="needs the real data")
def test_real_nuclei() -> None:
    comp = competition(
        SHARED / "nuclei",
        classes=["nucleus"],
        instances=True,
        train={
            "images": "stage1_train/{id}/images/{id}.png",
            "rle": "stage1_train_labels.csv",
            "columns": {"id": "ImageId", "mask": "EncodedPixels"},
        },
    )
    for row in case_table(comp).iloc[::80].itertuples():
        image, mask, instances = load_image(comp, row), load_mask(comp, row), load_instances(comp, row)
        assert image.array.shape[1:] == mask.shape[1:] == instances.shape
        np.testing.assert_array_equal(mask[0] > 0, instances > 0)
        assert instances.max() == len(json.loads(row.masks)["rows"])
