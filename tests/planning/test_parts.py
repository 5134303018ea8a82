"""The parts that recognise: words, endings of names, contents of files, run lengths, and the YAML that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from competition.explore.suggest import MAX_PATCH_PIXELS, patch_size
from competition.planning.classes.labels import _first_value, _names_of_lines
from competition.planning.folder import HostFolder
from competition.planning.layout import Layout
from competition.planning.layouts.coco import _expand
from competition.planning.layouts.content import is_lossy, role_of_file
from competition.planning.layouts.matching.held_out import structure
from competition.planning.layouts.series import Series, find_series, trimmed
from competition.planning.layouts.tables import Runs, find_base, find_overlap, is_relative
from competition.planning.lines import Line, format_value, to_yaml
from competition.planning.recipe import MUON, _optimizer, has_encoder_package, network_strides
from competition.planning.rules import Candidate, Grid
from competition.planning.sample import Sample, _name_classes
from competition.planning.words import is_channel_name, is_role_name, split_of, without_role_words
from competition.rle import encode
from competition.rle_text import RleFormat
from tests.host import write_png
from tests.planning.phantoms import picture


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("stage1_train/{id}.png", "train"),
        ("imagesTs/{id}.nii.gz", "test"),
        ("trainannot/{id}.png", "train"),
        ("val/images/{id}.png", "val"),
        ("contest/{id}.png", ""),
        ("latest/{id}.png", ""),
    ],
)
def test_splits_in_names(text: str, split: str) -> None:
    assert split_of(text) == split


def test_words() -> None:
    assert is_role_name("stage1_train") and is_role_name("labelsTr") and not is_role_name("liver")
    assert without_role_words("liver_masks") == "liver" and without_role_words("GroundTruth") == ""
    assert is_channel_name("t1ce") and is_channel_name("0001") and not is_channel_name("liver")
    assert structure("train/images/{id}.png") == structure("test/images/{id}.jpg") != structure("test/masks/{id}.png")


def patterns(*names: str) -> set[str]:
    return {item.pattern for item in find_series(HostFolder(Path(), tuple(sorted(names)), Path())) if not item.whole}


def test_endings_of_names() -> None:
    ids = ("a_1", "a_2", "b_1")
    assert patterns(*(f"{i}{end}" for i in ids for end in (".jpg", "_mask.gif"))) == {"{id}.jpg", "{id}_mask.gif"}
    ends = ("_flair.nii.gz", "_t1.nii.gz", "_seg.nii.gz")
    assert patterns(*(f"{i}{end}" for i in ids for end in ends)) == {f"{{id}}{end}" for end in ends}
    assert patterns(*(f"x/{i}.png" for i in "1234"), *(f"x/{i}.jpg" for i in "5678")) == {"x/{id}.*"}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (("21_training", "22_training"), {"{id}_training"}),
        (("image001", "image012"), {"image{id}"}),
        (("case_01_IMG", "case_02_IMG"), {"{id}_IMG", "case_{id}", "case_{id}_IMG"}),
        (("cat", "rat"), set()),
    ],
)
def test_common_parts_of_ids(ids: tuple[str, ...], expected: set[str]) -> None:
    series = Series("f/{id}.png", "single", {case_id: [f"f/{case_id}.png"] for case_id in ids})
    found = list(trimmed(series))
    assert {item.pattern for item in found} == {f"f/{name}.png" for name in expected}
    for item in found:
        for case_id, files in item.files.items():
            assert item.pattern.replace("{id}", case_id) == files[0]


def test_roles_of_files(tmp_path: Path) -> None:
    image, mask = picture(0)
    assert role_of_file(write_png(tmp_path / "i.png", image)) == "image"
    assert role_of_file(write_png(tmp_path / "m.png", mask)) == "mask"
    assert role_of_file(write_png(tmp_path / "e.png", mask * 0)) == "either"
    colours = np.array([(0, 0, 0), (200, 30, 0), (0, 30, 200)], np.uint8)
    assert role_of_file(write_png(tmp_path / "c.png", colours[mask])) == "colours"
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert role_of_file(tmp_path / "broken.png") == "unreadable"


def test_many_small_numbered_objects_are_a_mask(tmp_path: Path) -> None:
    cells = np.zeros((64, 64), np.uint16)
    for number in range(81):
        row, column = divmod(number, 9)
        cells[7 * row : 7 * row + 4, 7 * column : 7 * column + 4] = 3 * number + 1  # numbers may have gaps
    assert role_of_file(write_png(tmp_path / "cells.png", cells)) == "mask"
    rows, columns = np.mgrid[:64, :64]
    levels = np.where(rows < 32, 0, 100 * np.sin(rows / 9) ** 2 * np.cos(columns / 9) ** 2).astype(np.uint8)
    assert role_of_file(write_png(tmp_path / "levels.png", levels)) == "image"


@pytest.mark.parametrize(
    ("text", "names", "colours"),
    [
        ("background\nliver\n", {0: "background", 1: "liver"}, {}),
        ("left lung\nspleen, upper\n", {1: "left lung", 2: "spleen, upper"}, {}),
        ("background 0 0 0\nliver 255 0 0\n", {0: "background", 1: "liver"}, {(255, 0, 0): "liver"}),
        ("2: liver\n5: 3rd ventricle\n", {1: "2: liver", 2: "5: 3rd ventricle"}, {}),
        ("2: liver\n5: spleen\n", {2: "liver", 5: "spleen"}, {}),
        ("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncell:0,128,255::", {1: "cell"}, {(0, 128, 255): "cell"}),
    ],
)
def test_lines_that_name_classes(text: str, names: dict[int, str], colours: dict[tuple[int, ...], str]) -> None:
    found, coloured = _names_of_lines(text)
    assert names.items() <= found.items() and colours.items() <= coloured.items()


def test_soft_edges_are_no_classes() -> None:
    from scipy.ndimage import gaussian_filter

    mask = (picture(0, (96, 96))[1] > 0) * 255.0
    assert is_lossy(np.rint(gaussian_filter(mask, 0.7)).astype(np.uint8))
    assert not is_lossy(mask.astype(np.uint8)) and not is_lossy(picture(0)[1])
    assert not is_lossy((picture(0)[1] * 127).astype(np.uint8))


# Run lengths


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("base", [0, 1])
@pytest.mark.parametrize("edge", [slice(0, 4), slice(-4, None)])
def test_the_base_is_seen_at_an_edge(order: Any, base: Any, edge: slice) -> None:
    mask = np.zeros((30, 40), bool)
    if order == "row":
        mask[5:20, edge] = True
    else:
        mask[edge, 5:20] = True
    runs = [Runs((encode(mask, RleFormat(order, base)),), mask.shape, None)]
    found, why = find_base(runs, order, False)
    shows = base if (edge.start == 0) == (base == 0) else None  # runs at the other edge fit both
    assert (found == base and why) if shows is not None else not why


def test_relative_starts() -> None:
    mask = picture(0)[1] > 0
    assert not is_relative([Runs((encode(mask),), mask.shape, None)])
    assert is_relative([Runs((encode(mask, RleFormat(relative=True)),), mask.shape, None)])


def test_overlap_of_classes() -> None:
    assert find_overlap({"a": [("x", "1 3"), ("y", "4 2")], "b": [("x", "1 3 9 1")]}) is None
    assert find_overlap({"a": [("x", "1 3"), ("y", "4 2")], "b": [("x", "1 3"), ("y", "3 1")]}) == "b"


# YAML and rules


@pytest.mark.parametrize(
    "value",
    [
        "on",
        "1e3",
        "a: b",
        "{id}_*.png",
        "^(.+)[_-]",
        "a # b",
        "",
        "é\u2028x",
        "null",
        [1, [2, "x y"]],
        1.0e-3,
        20.0,
        None,
        True,
    ],
)
def test_values_are_read_back(value: Any) -> None:
    from competition.config.yaml import parse_yaml

    text = to_yaml([Line(("a", value if isinstance(value, str) else "b"), value, "why # not\nnow")], ["title"])
    assert list(parse_yaml(text).tree["a"].values()) == [value]
    assert format_value(value) in text
    assert yaml.safe_load(format_value({"k": [value]})) == {"k": [value]}


def test_a_long_reason_stands_above() -> None:
    text = to_yaml([Line(("a", "b"), 1, "word " * 60)], [])
    *above, last = text.splitlines()
    assert last == "  b: 1" and all(len(line) <= 120 for line in above)


@pytest.mark.parametrize(
    "shape", [(35, 50, 36), (512, 512, 20), (300, 300, 300), (3, 100, 100), (256, 256), (1400, 2100)]
)
def test_a_patch_fits_the_network(shape: tuple[int, ...]) -> None:
    size = patch_size(shape)
    assert np.prod(size) <= MAX_PATCH_PIXELS[len(size)]
    if len(size) == 3:
        left = np.array(size)
        for stride in network_strides(size):
            assert (left % np.array(stride) == 0).all()
            left //= np.array(stride)
    else:
        assert all(side % 32 == 0 for side in size)


def test_muon_is_planned_where_its_step_is_short_beside_that_of_the_network() -> None:
    assert has_encoder_package()
    grid = Grid(1.0, None, None, (512, 512))

    def target(patch: tuple[int, ...], batch: int) -> str:
        return str(_optimizer(Candidate(grid, "light", patch, batch, 300), None)[0].value["target"])

    assert target((256, 256), 4) == target((128, 128), 4) == target((24, 40, 24), 2) == MUON
    assert target((64, 64), 2) == target((128, 128), 2) == "torch.optim.AdamW"


def test_negative_run_lengths_of_coco_are_named() -> None:
    with pytest.raises(ValueError, match="found -4, expected no negative number"):
        _expand(np.array([-4, 8]), 2, 2)  # their sum is right
    with pytest.raises(ValueError, match="found a sum of 5, expected 4 pixels"):
        _expand(np.array([2, 3]), 2, 2)


def test_names_of_the_sample_replace_the_advice_to_rename_the_classes(tmp_path: Path) -> None:
    """With more than three classes, the user gets one remark on their names, and not two that contradict each other."""
    names = ("liver", "spleen", "heart", "aorta")
    layout = Layout(
        "masks",
        HostFolder(tmp_path, (), tmp_path),
        1,
        "{id}.png",
        2,
        keys={"classes": ["class_1", "class_2", "class_3", "class_4"]},
        remarks=("no file names the classes, so rename them", "another remark"),
    )
    (found,) = _name_classes(layout, Sample("sample.csv", "id", "rle", "class", names, 4, ()))
    assert found.remarks == (
        "another remark",
        "sample.csv has the classes liver, spleen, heart, aorta, so write these names in `classes`",
    )


@pytest.mark.parametrize(
    ("names", "count", "first"),
    [
        (["sky", "road", "car"], 3, 0),
        (["liver", "tumour"], 3, 1),
        (["background", "liver"], 3, 0),
        (["liver", "tumour", "ignore"], 3, 1),  # the values 1, 2 and 255
        ([], 3, 1),
    ],
)
def test_a_list_of_names_counts_from_0_or_1(names: list[str], count: int, first: int) -> None:
    assert _first_value(names, count) == first
