"""Training tables of known competitions, read with the profile alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from competition.config.competition import Competition
from competition.data.cache import cache_key
from competition.data.cases import case_table
from competition.data.masks import load_instances, load_mask
from competition.data.rle.order import OrderVote, check_order
from competition.data.rle.tables import rle_format
from competition.errors import MaskfoldError
from competition.rle import encode
from competition.rle_text import RleFormat
from tests.data.test_preprocessing import experiment
from tests.host import competition, write_png, write_text

SIZE = (7, 11)
COLUMN, ROW = RleFormat(order="column"), RleFormat(order="row")


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A rectangle, without its bottom row and right column; wide enough to have several runs either way."""
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


FIRST, LAST = box(0, 0, 2, 4), box(4, 8, 7, 11)  # LAST touches the last pixel
NONE = np.zeros(SIZE, bool)


def host(
    root: Path,
    profile: str,
    rows: list[str],
    ids: str = "abc",
    classes: tuple[str, ...] = ("thing",),
    size: tuple[int, int] = SIZE,
    **changes: Any,
) -> Competition:
    """`images/ID.png` of one size, the table's lines, and a YAML that names the profile."""
    for case_id in ids:
        write_png(root / "images" / f"{case_id}.png", np.zeros(size, np.uint8))
    write_text(root / "train.csv", "\n".join(rows) + "\n")
    train = {"images": "images/{id}.png", "rle": "train.csv", **changes.pop("train", {})}
    return competition(root, classes=list(classes), train=train, submission={"profile": profile}, **changes)


def masks(comp: Competition) -> dict[str, np.ndarray]:
    return {str(row.id): load_mask(comp, row) for row in case_table(comp).itertuples()}


def objects(comp: Competition) -> dict[str, np.ndarray]:
    return {str(row.id): load_instances(comp, row) for row in case_table(comp).itertuples()}


def test_sartorius_has_a_row_per_cell_along_the_rows(tmp_path: Path) -> None:
    rows = [
        f"{case},{encode(mask, ROW)},{SIZE[1]},{SIZE[0]},shsy5y"
        for case, mask in (("a", FIRST), ("a", LAST), ("b", LAST), ("a", box(3, 0, 5, 2)))
    ]
    comp = host(tmp_path, "sartorius", ["id,annotation,width,height,cell_type", *rows], instances=True)
    found = masks(comp)
    np.testing.assert_array_equal(found["a"][0], FIRST | LAST | box(3, 0, 5, 2))
    np.testing.assert_array_equal(found["b"][0], LAST)
    assert not found["c"].any()
    numbers = objects(comp)
    np.testing.assert_array_equal(numbers["a"], FIRST + 2 * LAST + 3 * box(3, 0, 5, 2))
    np.testing.assert_array_equal(numbers["b"], LAST)


@pytest.mark.parametrize("gap", [" ", ""])  # the second table of that host has no space
def test_siim_acr_has_several_rows_of_one_mask(gap: str, tmp_path: Path) -> None:
    fmt = RleFormat(order="column", relative=True, empty="-1")
    rows = [
        f"{case},{gap}{encode(mask, fmt)}"
        for case, mask in (("a", FIRST), ("a", LAST), ("b", NONE), ("c", LAST), ("a", box(1, 2, 5, 6)))
    ]
    comp = host(tmp_path, "siim-acr", [f"ImageId,{gap}EncodedPixels", *rows])
    table = case_table(comp)
    assert [json.loads(cell)["rows"] == [] for cell in table["masks"]] == [False, True, False]
    whole = FIRST | LAST | box(1, 2, 5, 6)
    found, numbers = masks(comp), objects(comp)
    for case_id, mask in (("a", whole), ("b", NONE), ("c", LAST)):
        np.testing.assert_array_equal(found[case_id][0], mask)
        np.testing.assert_array_equal(numbers[case_id], mask)  # one object, however many rows


STEEL = ("1", "2", "3", "4")


@pytest.mark.parametrize("joined", [True, False])
def test_severstal_by_its_header(joined: bool, tmp_path: Path) -> None:
    truth = {"a": ("4", LAST), "b": ("2", FIRST)}
    if joined:
        rows = ["ImageId_ClassId,EncodedPixels"]
        rows += [
            f"{case}.jpg_{cls},{encode(mask, COLUMN) if cls == there else ''}"
            for case, (there, mask) in truth.items()
            for cls in STEEL
        ]
    else:
        rows = ["ImageId,ClassId,EncodedPixels"]
        rows += [f"{case}.jpg,{cls},{encode(mask, COLUMN)}" for case, (cls, mask) in truth.items()]
    comp = host(tmp_path, "severstal", rows, classes=STEEL)
    found, numbers = masks(comp), objects(comp)
    for case, (cls, mask) in truth.items():
        np.testing.assert_array_equal(found[case][0], mask * int(cls))
        np.testing.assert_array_equal(numbers[case], mask)
    assert not found["c"].any()


def test_severstal_under_the_columns_of_a_user(tmp_path: Path) -> None:
    """Columns that the YAML names win, and an id without a class column still holds its class."""
    rows = ["Key,Runs,EncodedPixels,ImageId_ClassId", f"a.jpg_3,{encode(LAST, COLUMN)},1 1,b.jpg_1"]
    comp = host(tmp_path, "severstal", rows, classes=STEEL, train={"columns": {"id": "Key", "mask": "Runs"}})
    np.testing.assert_array_equal(masks(comp)["a"][0], LAST * 3)
    assert not masks(comp)["b"].any()


SKY = ("Fish", "Flower", "Gravel", "Sugar")


@pytest.mark.parametrize("size", [(1400, 2100), (350, 525)])
def test_clouds_join_id_and_label_on_their_own_grid(size: tuple[int, int], tmp_path: Path) -> None:
    small = {"Fish": box(340, 500, 350, 525, (350, 525)), "Sugar": box(344, 20, 350, 522, (350, 525))}
    rows = [
        f"{case}.jpg_{cls},{encode(_larger(small[cls], 4), COLUMN) if case == 'a' and cls in small else ''}"
        for case in "ab"
        for cls in SKY
    ]
    comp = host(tmp_path, "clouds", ["Image_Label,EncodedPixels", *rows], "ab", SKY, size, labels="overlapping")
    found = masks(comp)
    expected = np.stack([_larger(small.get(cls, np.zeros((350, 525), bool)), size[0] // 350) for cls in SKY])
    np.testing.assert_array_equal(found["a"], expected)
    assert not found["b"].any()
    fish, sugar = expected[0], expected[3]
    np.testing.assert_array_equal(objects(comp)["a"], np.where(sugar, 2, fish))


def _larger(mask: np.ndarray, times: int) -> np.ndarray:
    return mask.repeat(times, 0).repeat(times, 1)


def test_an_uneven_grid_is_brought_to_the_picture(tmp_path: Path) -> None:
    """A pixel takes the value at its centre; on the rows, the centres of 3 pixels on 1400 are at 233, 700 and 1166."""
    mask = np.zeros((1400, 2100), bool)
    mask[:700], mask[1166:1168] = True, True
    rows = ["Image_Label,EncodedPixels", f"a_Fish,{encode(mask, COLUMN)}"]
    comp = host(tmp_path, "clouds", rows, "a", SKY, (3, 5))
    np.testing.assert_array_equal(masks(comp)["a"][0], np.repeat([[1], [0], [1]], 5, axis=1))


def test_uw_madison_names_slices(tmp_path: Path) -> None:
    classes, depth = ("large_bowel", "small_bowel", "stomach"), 3
    volume = np.zeros((3, *SIZE, depth), bool)
    volume[0, ..., 0], volume[1, ..., 2], volume[2, ..., 2], volume[2, ..., 1] = FIRST, LAST, box(5, 9, 7, 11), LAST
    rows = ["id,class,segmentation"]
    for case in ("case123_day20", "case123_day0"):
        for z in range(depth):
            write_png(
                tmp_path / f"train/case123/{case}/scans/slice_{z + 1:04d}_266_266_1.50_1.50.png",
                np.zeros(SIZE, np.uint8),
            )
            rows += [
                f"{case}_slice_{z + 1:04d},{cls},{encode(volume[at, ..., z], ROW) if case[-2:] == '20' else ''}"
                for at, cls in enumerate(classes)
            ]
    write_text(tmp_path / "train.csv", "\n".join(rows) + "\n")
    comp = competition(
        tmp_path,
        dimensions=3,
        classes=list(classes),
        labels="overlapping",
        train={"images": "train/*/{id}/scans/slice_{z}_*.png", "rle": "train.csv"},
        submission={"profile": "uw-madison-gi-tract"},
    )
    found = masks(comp)
    np.testing.assert_array_equal(found["case123_day20"], volume)
    assert not found["case123_day0"].any()
    seen = objects(comp)["case123_day20"]  # a row is an object; the later one is seen
    for z, expected in enumerate((1 * FIRST, 2 * LAST, np.where(box(5, 9, 7, 11), 4, 3 * LAST))):
        np.testing.assert_array_equal(seen[..., z], expected)


def test_tgs_salt(tmp_path: Path) -> None:
    comp = host(tmp_path, "tgs-salt", ["id,rle_mask", f"a,{encode(FIRST | LAST, COLUMN)}", "b,"])
    np.testing.assert_array_equal(masks(comp)["a"][0], FIRST | LAST)
    np.testing.assert_array_equal(objects(comp)["a"], FIRST | LAST)
    assert not masks(comp)["b"].any()


def test_train_rle_format_goes_before_the_profile(tmp_path: Path) -> None:
    rows = ["id,rle_mask", f"a,{encode(LAST, RleFormat(order='row', base=0))}", "b,none"]
    comp = host(tmp_path, "tgs-salt", rows, train={"rle_format": {"order": "row", "base": 0, "empty": "none"}})
    np.testing.assert_array_equal(masks(comp)["a"][0], LAST)
    assert not masks(comp)["b"].any()
    with pytest.raises(MaskfoldError, match=r"train\.csv, line 3, id b: .*submission\.profile"):
        load_mask(host(tmp_path, "tgs-salt", rows), case_table(host(tmp_path, "tgs-salt", rows)).iloc[1])


def test_a_table_of_plain_columns_is_taken_too(tmp_path: Path) -> None:
    """`{id: id, mask: rle}` cannot be told from columns that nobody wrote."""
    comp = host(
        tmp_path,
        "siim-acr",
        ["id,rle", f"a,{encode(LAST, RleFormat(relative=True))}"],
        train={"columns": {"id": "id", "mask": "rle"}},
    )
    np.testing.assert_array_equal(masks(comp)["a"][0], LAST)


@pytest.mark.parametrize(
    ("profile", "header", "classes", "changes", "wrong", "cure"),
    [
        (
            "siim-acr",
            "ImageId,Pixels",
            ("thing",),
            {},
            "submission.profile siim-acr: found (`ImageId`, `Pixels`), expected (`ImageId`, ` EncodedPixels`) or "
            "(`ImageId`, `EncodedPixels`).",
            "train.columns",
        ),
        (
            "severstal",
            "Image,EncodedPixels",
            STEEL,
            {},
            "expected (`ImageId`, `ClassId`, `EncodedPixels`) or (`ImageId_ClassId`, `EncodedPixels`).",
            "submission.profile",
        ),
        (
            "sartorius",
            "id,annotation",
            ("thing",),
            {"train": {"columns": {"id": "id", "mask": "annotations"}}},
            "has no column `annotations`: found id, annotation.",
            "train.columns.mask, for example to `annotation`",
        ),
        ("tgs-slat", "id,rle_mask", ("thing",), {}, "submission.profile: found `tgs-slat`", "tgs-salt"),
        ("clouds", "Image_Label,EncodedPixels", ("Fish",), {}, "submission.profile clouds: found Fish", "class names"),
    ],
)
def test_a_table_that_is_not_the_hosts(
    tmp_path: Path, profile: str, header: str, classes: tuple[str, ...], changes: dict[str, Any], wrong: str, cure: str
) -> None:
    cells = ",".join(["a"] * (header.count(",") + 1))
    with pytest.raises(MaskfoldError) as error:
        case_table(host(tmp_path, profile, [header, cells], classes=classes, **changes))
    assert wrong in error.value.message and cure in error.value.hint and error.value.status == 2


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("a.jpg", "line 3: the id contains no class: found a.jpg, expected for example `a.jpg_Fish`"),
        ("a.jpg_Fisch", "line 3: unknown class: found `Fisch`, expected one of Fish, Flower, Gravel, Sugar"),
        ("d.jpg_Fish", "line 3: the id d.jpg has no image"),
    ],
)
def test_joined_ids_that_are_wrong(name: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match=wrong.replace(".", r"\.")):
        case_table(
            host(tmp_path, "clouds", ["Image_Label,EncodedPixels", "a.jpg_Sugar,1 1", f"{name},1 1"], classes=SKY)
        )


@pytest.mark.parametrize(
    ("profile", "header", "other"),
    [
        ("tgs-salt", "id,rle_mask", {"order": "row"}),
        ("siim-acr", "ImageId, EncodedPixels", {"order": "row", "relative": True, "empty": "-1"}),
        ("sartorius", "id,annotation", {"order": "column"}),
    ],
)
def test_a_profile_whose_order_is_wrong_is_refused_with_a_cure_that_works(
    profile: str, header: str, other: dict[str, Any], tmp_path: Path
) -> None:
    size, ids = (30, 44), "abcdefgh"
    fmt = RleFormat(**other)
    truth = {case: box(3 + at, 5, 11 + at, 15, size) for at, case in enumerate(ids)}
    rows = [header, *(f"{case},{encode(mask, fmt)}" for case, mask in truth.items())]
    with pytest.raises(MaskfoldError, match=f"the order of submission.profile {profile} is .*8 of 8") as error:
        case_table(host(tmp_path, profile, rows, ids, size=size))
    assert error.value.status == 2 and "or correct submission.profile" in error.value.hint
    said = yaml.safe_load("{" + error.value.hint.partition("{")[2].partition("}")[0] + "}")
    assert said == other
    found = masks(host(tmp_path, profile, rows, ids, size=size, train={"rle_format": said}))
    for case, mask in truth.items():
        np.testing.assert_array_equal(found[case][0], mask)


def test_the_order_is_looked_for_on_the_grid_of_the_table(tmp_path: Path) -> None:
    """The pictures are square, so that only the profile's grid tells the order."""
    rows = [
        f"{case}_Fish,{encode(box(100, 200 + 9 * at, 600, 900, (1400, 2100)), ROW)}" for at, case in enumerate("abcdef")
    ]
    comp = host(tmp_path, "clouds", ["Image_Label,EncodedPixels", *rows], "abcdef", SKY, (40, 40))
    with pytest.raises(MaskfoldError, match="6 of 6 .* indicate row"):
        case_table(comp)


def test_the_order_without_a_profile_names_both_keys() -> None:
    found = OrderVote("row", 9, 9)
    with pytest.raises(MaskfoldError, match=r"submission\.rle\.order is column") as error:
        check_order(found, RleFormat(base=0), "t.csv", "submission.rle")
    assert (
        "submission.rle.order to row" in error.value.hint
        and "train.rle_format to {order: row, base: 0}" in error.value.hint
    )


def test_the_cache_follows_the_format_that_is_used() -> None:
    row = SimpleNamespace(id="one", split="train", hash="abc")

    def key(train: dict[str, Any], classes: tuple[str, ...] = ("thing",), **submission: Any) -> str:
        train = {"images": "images/{id}.png", "rle": "train.csv"} | train
        return cache_key(row, experiment(2, {"classes": list(classes), "train": train, "submission": submission}))

    default = key({})
    assert default == key({}, rle={"order": "column"}) == key({}, profile="tgs-salt")  # the same arrays
    assert key({}, profile="sartorius") == key({"rle_format": {"order": "row"}}) == key({}, rle={"order": "row"})
    assert key({}, profile="sartorius") != default
    own = {"order": "row", "relative": True}
    assert key({"rle_format": own}, profile="sartorius") == key({"rle_format": own})
    # One mask of several rows, and a grid of its own, cannot be said without the profile.
    said = {"rle_format": {"relative": True, "empty": "-1"}}
    assert key({}, profile="siim-acr") == key(said, profile="siim-acr") != key(said)
    assert key({}, SKY, profile="clouds") != key({}, SKY)


def test_the_format_without_a_profile_is_what_the_yaml_says(tmp_path: Path) -> None:
    train = {"images": "images/{id}.png", "rle": "train.csv"}
    other: dict[str, Any] = {"order": "row", "base": 0, "relative": True, "empty": "-"}
    for rle, fmt in (({}, RleFormat()), (other, RleFormat("row", 0, True, "-"))):
        assert rle_format(competition(tmp_path, train=train, submission={"rle": rle})) == fmt
        assert rle_format(competition(tmp_path, train=train | {"rle_format": rle})) == fmt
