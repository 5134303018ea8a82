"""Tables that name classes: at the end of ids, in a column, or only in the sample submission."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from competition.config.loading import load_competition
from competition.data.cases import case_rows, case_table
from competition.data.masks import load_mask
from competition.planning.choice import order_candidates
from competition.planning.find import find_layouts
from competition.planning.folder import scan_folder
from competition.planning.layout import Layout
from competition.rle import encode
from competition.rle_text import RleFormat
from tests.host import write_png, write_text
from tests.planning.conftest import Start
from tests.planning.phantoms import picture, table

NAMES = {1: "ring", 2: "grain"}
FORMAT = RleFormat("column", 1)


def only(root: Path) -> Layout:
    (layout,) = order_candidates(find_layouts(scan_folder(root)))
    return layout


def ends_of_ids(root: Path) -> None:
    """Rows such as `x0.png_ring`; the sample has the same form."""
    rows = []
    for number in range(6):
        image, mask = picture(number)
        write_png(root / "train_images" / f"x{number}.png", image)
        rows += [(f"x{number}.png_{name}", encode(mask == value, FORMAT)) for value, name in NAMES.items()]
    test = []
    for number in (7, 8):
        write_png(root / "test_images" / f"x{number}.png", picture(number)[0])
        test += [(f"x{number}.png_{name}", "") for name in NAMES.values()]
    table(root / "train.csv", ("Image_Label", "Pixels"), rows)
    table(root / "sample_submission.csv", ("Image_Label", "Pixels"), test)


def test_ids_that_end_in_class_names(start: Start) -> None:
    done = start(ends_of_ids)
    comp = load_competition(done.competition)
    assert comp.classes == ["ring", "grain"] and done.layout.cases == 6 and done.exploration.faults == []
    assert (comp.train.columns.id, comp.train.columns.cls) == ("Image_Label", None)
    assert (comp.submission.columns.id, comp.submission.columns.cls) == ("Image_Label", None)
    for number, row in enumerate(case_rows(case_table(comp))):
        np.testing.assert_array_equal(load_mask(comp, row)[0], picture(number)[1])


def masks_and_sample(root: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for number in range(6):
        image, mask = picture(number)
        write_png(root / "train" / "images" / f"a{number}.png", image)
        write_png(root / "train" / "masks" / f"a{number}.png", mask)
    for number in (1, 2):
        write_png(root / "test" / "images" / f"b{number}.png", picture(70 + number)[0])
    write_text(root / "classes.txt", "background\nring\ngrain\n")
    table(root / "sample_submission.csv", header, rows)


@pytest.mark.parametrize("cells", [("ring", "grain"), ("1", "2")])
def test_the_class_column_of_the_sample(tmp_path: Path, cells: tuple[str, ...]) -> None:
    rows = [(f"b{number}", cell, "x", "") for number in (1, 2) for cell in cells]
    masks_and_sample(tmp_path, ("img", "organ", "usage", "rle"), rows)
    layout = only(tmp_path)
    assert layout.keys["submission.columns"] == {"id": "img", "class": "organ", "mask": "rle"}
    assert layout.keys["classes"] == ["ring", "grain"] and layout.test == "test/images/{id}.png"


def test_ids_of_the_sample_that_end_in_class_names(tmp_path: Path) -> None:
    masks_and_sample(
        tmp_path, ("id", "rle"), [(f"b{number}_{name}", "") for number in (1, 2) for name in NAMES.values()]
    )
    layout = only(tmp_path)
    assert layout.keys["submission.columns"] == {"id": "id", "class": None, "mask": "rle"}
    assert layout.reasons["submission.sample"] == "4 rows, 4 of them with a test image"
    assert not any("no test image" in remark for remark in layout.remarks)


def test_a_row_without_a_test_image_is_named(tmp_path: Path) -> None:
    masks_and_sample(tmp_path, ("id", "rle"), [("b1", ""), ("b2", ""), ("b9", "")])
    expected = "1 of 3 rows of sample_submission.csv has no test image in the folder: line 4, id b9"
    assert expected in only(tmp_path).remarks


def test_at_most_three_rows_without_a_test_image_are_named(tmp_path: Path) -> None:
    rows = [("b1", ""), ("b2", ""), *((f"c{number}", "") for number in range(4))]
    masks_and_sample(tmp_path, ("id", "rle"), rows)
    (remark,) = (remark for remark in only(tmp_path).remarks if "no test image" in remark)
    assert remark.endswith(": line 4, id c0, line 5, id c1, line 6, id c2, …")


@pytest.mark.parametrize(
    ("header", "rows", "named"),
    [
        (("id", "rle"), [("b1", ""), ("b2", ""), ("b1", "")], "b1 (lines 2 and 4)"),
        (
            ("id", "organ", "rle"),
            [("b1", "ring", ""), ("b1", "grain", ""), ("b2", "ring", ""), ("b2", "ring", ""), ("b2", "grain", "")],
            "b2 with the class ring (lines 4 and 5)",
        ),
    ],
)
def test_a_duplicate_row_of_the_sample_is_named(
    tmp_path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]], named: str
) -> None:
    masks_and_sample(tmp_path, header, rows)
    (remark,) = (remark for remark in only(tmp_path).remarks if "several rows" in remark)
    assert remark.startswith(f"sample_submission.csv has several rows for {named}. `maskfold submit` refuses this file")


def test_rows_of_several_classes_are_no_duplicates(tmp_path: Path) -> None:
    rows = [(f"b{number}", cell, "") for number in (1, 2) for cell in ("ring", "grain")]
    masks_and_sample(tmp_path, ("id", "organ", "rle"), rows)
    assert not any("several rows" in remark for remark in only(tmp_path).remarks)


def test_the_sample_may_list_only_some_classes_of_the_training_table(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        image, mask = picture(number)
        write_png(tmp_path / "train_images" / f"x{number}.png", image)
        rows += [(f"x{number}", name, encode(mask == value, FORMAT)) for value, name in NAMES.items()]
    write_png(tmp_path / "test_images" / "x7.png", picture(7)[0])
    write_png(tmp_path / "test_images" / "x8.png", picture(8)[0])
    table(tmp_path / "train.csv", ("picture", "kind", "rle"), rows)
    table(tmp_path / "sample_submission.csv", ("picture", "kind", "rle"), [("x7", "ring", ""), ("x8", "ring", "")])
    layout = only(tmp_path)
    assert layout.keys["submission.columns"] == {"id": "picture", "class": "kind", "mask": "rle"}
    assert layout.keys["classes"] == ["ring", "grain"]


def test_a_sample_of_probabilities_has_no_masks(tmp_path: Path) -> None:
    masks_and_sample(tmp_path, ("id", "x", "score"), [(f"b{number}", "3", "0.5") for number in (1, 2)])
    assert "submission.sample" not in only(tmp_path).keys


def test_a_column_with_as_many_values_as_classes_names_no_classes(tmp_path: Path) -> None:
    """Each id has one row, so the heights distinguish no rows of an id."""
    masks_and_sample(tmp_path, ("id", "height", "rle"), [("b1", "40", ""), ("b2", "44", "")])
    layout = only(tmp_path)
    assert layout.keys["submission.columns"] == {"id": "id", "class": None, "mask": "rle"}
    assert layout.keys["classes"] == ["ring", "grain"]


def test_a_column_that_numbers_the_rows_of_an_image_names_no_classes(tmp_path: Path) -> None:
    rows = []
    for number in range(8):
        image, mask = picture(number)
        write_png(tmp_path / "train" / f"x{number}.png", image)
        parts = [mask == 1, mask == 2, np.roll(mask == 1, 20, axis=1), np.roll(mask == 2, 20, axis=0)]
        rows += [(f"x{number}", index, encode(part, FORMAT)) for index, part in enumerate(parts[: 1 + number % 4])]
    table(tmp_path / "train.csv", ("image", "object_id", "rle"), rows)
    layouts = order_candidates(find_layouts(scan_folder(tmp_path)))
    assert all(layout.keys["instances"] and layout.keys["classes"] == ["foreground"] for layout in layouts)
    assert all(layout.keys["columns"]["class"] is None for layout in layouts)


def test_the_images_that_the_sample_names_are_test_cases_although_training_images_lie_beside_them(
    tmp_path: Path,
) -> None:
    rows = [(f"test_{number}", "") for number in range(8, 10)]
    for number in range(10):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"{'test' if number > 7 else 'train'}_{number}.png", image)
        if number <= 7:
            write_png(tmp_path / "masks" / f"{number}.png", mask)
    table(tmp_path / "sample_submission.csv", ("id", "rle"), rows)
    layout = only(tmp_path)
    assert (layout.images, layout.test) == ("images/train_{id}.png", "images/{id}.png")
    assert layout.test_listed == ("test_8", "test_9")


@pytest.mark.parametrize("in_table", [True, False])
def test_images_of_the_training_folder_that_the_sample_names_are_no_training_cases(
    tmp_path: Path, in_table: bool
) -> None:
    """Images without a row would be read as empty masks, but the sample names two of the three."""
    rows, names = [], ["q30", "a17", "m24", "c81", "z55", "k62", "e48", "t93"]
    for number, name in enumerate(names):
        image, mask = picture(number)
        write_png(tmp_path / "images" / f"{name}.png", image)
        if number > 2:
            rows.append((name, encode(mask == 1, FORMAT)))
            if not in_table:
                write_png(tmp_path / "masks" / f"{name}.png", mask)
    if in_table:
        table(tmp_path / "train.csv", ("picture", "rle"), rows)
    table(tmp_path / "sample_submission.csv", ("picture", "rle"), [("q30", ""), ("m24", "")])
    layout = order_candidates(find_layouts(scan_folder(tmp_path)))[0]
    assert layout.test == layout.images == "images/{id}.png" and layout.test_listed == ("m24", "q30")
    assert layout.listed == tuple(sorted([*names[3:], *(["a17"] if in_table else [])]))
    if in_table:
        (remark,) = (remark for remark in layout.remarks if "row" in remark)
        assert remark.startswith("1 image without a row")
