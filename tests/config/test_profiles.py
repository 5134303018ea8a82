"""The mask texts of every profile, derived by hand, and the description in the YAML."""

from __future__ import annotations

import csv
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from competition.config.competition import Competition, MetricConfig
from competition.config.profiles import PROFILES, profile_of, split_class
from competition.context import Context
from competition.data.cases import case_table
from competition.errors import MaskfoldError
from competition.export.runtime_cases import find_test_cases
from competition.rle import decode, encode
from competition.submission.reader import open_rows, read_submission
from competition.submission.testset import TestSet, host_id_suffix
from competition.submission.writer import write_submission
from tests.host import competition, write_png, write_text

# X touches the first and the last pixel of a 2 × 3 picture:   X X .
#                                                             . . X
# Columns from the top: X. X. .X, so pixels 1, 3 and 6. Rows from the left: XX. ..X, so pixels 1 to 2 and 6.
CORNERS = np.array([[1, 1, 0], [0, 0, 1]], bool)
FULL, EMPTY = np.ones((2, 3), bool), np.zeros((2, 3), bool)
COLUMN, ROW = ("1 1 3 1 6 1", "1 6"), ("1 2 6 1", "1 6")

GOLDEN = {  # name: corners, full, empty
    "dsb2018": (*COLUMN, ""),
    "carvana": (*ROW, ""),
    "tgs-salt": (*COLUMN, ""),
    "airbus": (*COLUMN, ""),
    # Relative: pixel 0 for 1; then 1 pixel after the end at 1, for 1; then 2 after the end at 3, for 1.
    "siim-acr": ("0 1 1 1 2 1", "0 6", "-1"),
    "severstal": (*COLUMN, ""),
    "clouds": (*COLUMN, ""),
    "hubmap-kidney": (*COLUMN, ""),
    "hubmap-organ": (*COLUMN, ""),
    "sartorius": (*ROW, ""),
    "uw-madison-gi-tract": (*ROW, ""),
    "vesuvius-ink": (*ROW, ""),
    "contrails": (*COLUMN, "-"),
    "sennet-hoa": (*ROW, "1 0"),
    "recodai": ("[1, 1, 3, 1, 6, 1]", "[1, 6]", "authentic"),
    # Counts 0 1 1 1 2 1 (background first); from the fourth on, differences to the count two before:
    # 0 1 1 0 1 0. Each below 16 is one letter, 48 + value: 0 1 1 0 1 0.  Full: 0 6.
    "hubmap-vasculature": ("011010", "06", ""),
}
HEADERS = {
    "dsb2018": "ImageId,EncodedPixels",
    "carvana": "img,rle_mask",
    "tgs-salt": "id,rle_mask",
    "airbus": "ImageId,EncodedPixels",
    "siim-acr": "ImageId,EncodedPixels",
    "severstal": "ImageId_ClassId,EncodedPixels",
    "clouds": "Image_Label,EncodedPixels",
    "hubmap-kidney": "id,predicted",
    "hubmap-organ": "id,rle",
    "sartorius": "id,predicted",
    "uw-madison-gi-tract": "id,class,predicted",
    "hubmap-vasculature": "id,height,width,prediction_string",
    "vesuvius-ink": "Id,Predicted",
    "contrails": "record_id,encoded_pixels",
    "sennet-hoa": "id,rle",
    "recodai": "case_id,annotation",
}


def test_all_profiles_are_here() -> None:
    assert set(PROFILES) == set(GOLDEN) == set(HEADERS)


# By the hosts' pages; docs/submission.md says which of them are confirmed.
HOST_METRICS = {
    "dsb2018": MetricConfig(name="mean_ap"),
    "carvana": MetricConfig(),
    "tgs-salt": MetricConfig(name="tgs_ap"),
    "airbus": MetricConfig(name="f2_iou"),
    "siim-acr": MetricConfig(),
    "severstal": MetricConfig(),
    "clouds": MetricConfig(),
    "hubmap-kidney": MetricConfig(),
    "hubmap-organ": MetricConfig(),
    "sartorius": MetricConfig(name="mean_ap"),
    "uw-madison-gi-tract": MetricConfig(name="uw_madison", both_empty=None),
    "vesuvius-ink": MetricConfig(name="fbeta", beta=0.5),
    "contrails": MetricConfig(average="global"),
    "sennet-hoa": MetricConfig(name="surface_dice", tolerance_mm=0.0),
}


def test_metrics_of_the_hosts() -> None:
    found = {name: profile.host_metric for name, profile in PROFILES.items()}
    assert {name: MetricConfig(**keys) for name, keys in found.items() if keys is not None} == HOST_METRICS
    assert {name for name, keys in found.items() if keys is None} == {"hubmap-vasculature", "recodai"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("airbus", "a.jpg"), ("carvana", "a.jpg"), ("severstal", "a.jpg"), ("clouds", "a.jpg"), ("dsb2018", "a")],
)
def test_ids_of_the_hosts(name: str, expected: str, tmp_path: Path) -> None:
    write_png(tmp_path / "test" / "a.png", np.zeros((2, 3), np.uint8))
    classes = list(PROFILES[name].classes) or ["x"]
    comp = competition(tmp_path, classes=classes, test={"images": "test/{id}.png"}, submission={"profile": name})
    assert TestSet.from_table(comp, case_table(comp, "test")).names == {"a": [expected]}


def test_ids_by_the_training_table(tmp_path: Path) -> None:
    """Without a profile the training table shows the host's ids; ids that differ among themselves show nothing."""
    for case_id in ("a", "b"):
        write_png(tmp_path / "images" / f"{case_id}.png", np.zeros((2, 3), np.uint8))
    train, test = {"images": "images/{id}.png", "rle": "train.csv"}, {"images": "images/{id}.png"}
    for table, expected in (("a.tif,1 2\nb.tif,", "a.tif"), ("a,1 2\nb,", "a"), ("a.tif,1 2\nb,", "a")):
        write_text(tmp_path / "train.csv", f"id,rle\n{table}\n")
        comp = competition(tmp_path, train=train, test=test)
        assert TestSet.from_table(comp, case_table(comp, "test")).names["a"] == [expected]
        assert find_test_cases(comp, host_id_suffix(comp), Context()).test_set.names["a"] == [expected]


def test_unknown_ids_need_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "dsb2018", replace(PROFILES["dsb2018"], id_suffix=None))
    write_png(tmp_path / "test" / "a.png", np.zeros((2, 3), np.uint8))
    comp = competition(tmp_path, test={"images": "test/{id}.png"}, submission={"profile": "dsb2018"})
    table = case_table(comp, "test")
    with pytest.raises(MaskfoldError, match="unknown whether the ids of the profile dsb2018") as caught:
        TestSet.from_table(comp, table)
    assert caught.value.status == 2 and "submission.sample" in caught.value.hint
    assert TestSet.from_table(comp, table, with_sample=False).names == {"a": ["a"]}
    write_text(tmp_path / "sample.csv", "ImageId,EncodedPixels\na.gif,\n")
    comp = comp.model_copy(update={"submission": comp.submission.model_copy(update={"sample": "sample.csv"})})
    assert TestSet.from_table(comp, table).sample.keys == (("a.gif", None),)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_texts(name: str) -> None:
    fmt = PROFILES[name].rle
    for mask, text in zip((CORNERS, FULL, EMPTY), GOLDEN[name], strict=True):
        if fmt.container == "coco_zlib":
            from competition.rle_text import decompress_counts

            if mask.any():
                assert decompress_counts(encode(mask, fmt), mask.size) == text
        else:
            assert encode(mask, fmt) == text
            assert np.array_equal(decode(text, mask.shape, fmt), mask)


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - {"clouds", "hubmap-vasculature"}))
def test_golden_files(name: str, tmp_path: Path) -> None:
    profile = PROFILES[name]
    cls = profile.classes[0] if profile.classes else None
    masks = [(case, cls, mask) for case, mask in (("a", CORNERS), ("b", FULL), ("c", EMPTY))]
    write_submission(masks, profile, tmp_path / "s.csv")
    with open(tmp_path / "s.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert ",".join(rows[0]) == HEADERS[name]
    ids = [f"{case}_{cls}" if profile.class_in_id else case for case in "abc"]
    middle = [cls] if profile.class_column else []
    assert rows[1:] == [[id_, *middle, text] for id_, text in zip(ids, GOLDEN[name], strict=True)]
    back = list(read_submission(tmp_path / "s.csv", profile, dict.fromkeys("abc", (2, 3))))
    assert [entry.class_name for entry in back] == [cls] * 3
    for entry, mask in zip(back, (CORNERS, FULL, EMPTY), strict=True):
        assert np.array_equal(entry.mask, mask)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tile_1_class_2", ("tile_1", "class_2")),
        ("tile_class_1", ("tile", "class_1")),
        ("a.jpg_fish", ("a.jpg", "fish")),
        ("tile_1_other", ("tile_1", "other")),  # no class of the list: the last underscore
        ("tile", ("", "tile")),
    ],
)
def test_a_class_with_underscores_is_split_from_the_id(text: str, expected: tuple[str, str]) -> None:
    assert split_class(text, ("class_1", "class_2", "fish", "1")) == expected


def test_a_file_of_classes_with_underscores_is_read_back(tmp_path: Path) -> None:
    comp = Competition.model_validate(
        {
            "name": "x", "root": str(tmp_path), "dimensions": 2, "classes": ["class_1", "class_2"],
            "labels": "overlapping",
            "train": {"images": "{id}.png", "masks": {"class_1": "{id}_1.png", "class_2": "{id}_2.png"}},
        }
    )  # fmt: skip
    profile = profile_of(comp)
    masks = [("tile_1", cls, mask) for cls, mask in (("class_1", CORNERS), ("class_2", EMPTY))]
    write_submission(masks, profile, tmp_path / "s.csv")
    back = list(read_submission(tmp_path / "s.csv", profile, {"tile_1": (2, 3)}))
    assert [entry.class_name for entry in back] == ["class_1", "class_2"]
    assert np.array_equal(back[0].mask, CORNERS)


def test_vasculature_file(tmp_path: Path) -> None:
    import base64
    import zlib

    other = np.zeros((2, 3), bool)
    other[1, 0] = True  # counts 1 1 4
    masks = [("a", None, CORNERS, 0.5), ("a", None, other), ("b", None, EMPTY)]
    write_submission(masks, PROFILES["hubmap-vasculature"], tmp_path / "s.csv")
    packed = [base64.b64encode(zlib.compress(text, 9)).decode() for text in (b"011010", b"114")]
    assert (tmp_path / "s.csv").read_text() == (
        f"id,height,width,prediction_string\na,2,3,0 0.5 {packed[0]} 0 1 {packed[1]}\nb,2,3,\n"
    )
    entries = list(read_submission(tmp_path / "s.csv", PROFILES["hubmap-vasculature"], {"a": (2, 3), "b": (2, 3)}))
    assert [len(entry.objects) for entry in entries] == [2, 0]
    assert np.array_equal(entries[0].objects[1], other)


def test_recodai_joins_the_lists_of_objects(tmp_path: Path) -> None:
    first, last = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    first[0, 0] = last[1, 2] = True
    write_submission([("a", None, first), ("a", None, last)], PROFILES["recodai"], tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == 'case_id,annotation\na,"[1, 1];[6, 1]"\n'


def test_clouds_are_brought_to_their_grid(tmp_path: Path) -> None:
    mask = np.zeros((1400, 2100), bool)
    mask[:4, :] = True  # the grid's first row
    mask[1396:, 2097:] = True  # 3 of 4 columns of the last pixel
    write_submission(
        [("a.jpg", "Fish", mask), ("a.jpg", "Sugar", mask[::-1] & False)], PROFILES["clouds"], tmp_path / "s.csv"
    )
    rows = (tmp_path / "s.csv").read_text().splitlines()
    firsts = " ".join(f"{1 + 350 * column} 1" for column in range(525))
    assert rows == ["Image_Label,EncodedPixels", f"a.jpg_Fish,{firsts} {350 * 525} 1", "a.jpg_Sugar,"]


@pytest.mark.parametrize("header", ["ImageId_ClassId,EncodedPixels", "ImageId,EncodedPixels,ClassId"])
def test_severstal_follows_its_sample(header: str, tmp_path: Path) -> None:
    joined = header.startswith("ImageId_ClassId")
    rows = [f"b.jpg_{cls},1 1" if joined else f"b.jpg,1 1,{cls}" for cls in (2, 1)]
    sample = write_text(tmp_path / "sample.csv", "\n".join([header, *rows]) + "\n")
    write_submission([("b", "1", CORNERS), ("b", "2", EMPTY)], PROFILES["severstal"], tmp_path / "s.csv", sample)
    expected = ["b.jpg_2,", "b.jpg_1,1 1 3 1 6 1"] if joined else ["b.jpg,,2", "b.jpg,1 1 3 1 6 1,1"]
    assert (tmp_path / "s.csv").read_text().splitlines() == [header, *expected]


def test_own_description(tmp_path: Path) -> None:
    write_text(tmp_path / "sample.csv", "predicted,id,class\n1 1,a,x\n")
    comp = competition(
        tmp_path,
        classes=["x", "y"],
        submission={
            "sample": "sample.csv",
            "columns": {"id": "id", "class": "class", "mask": "predicted"},
            "rle": {"base": 0},
        },
    )
    profile = profile_of(comp)
    assert profile.columns == ("predicted", "id", "class")
    assert (profile.rows, profile.classes, profile.rle.base) == ("image_class", ("x", "y"), 0)
    assert profile_of(competition(tmp_path, instances=True)).rows == "object"
    assert not profile_of(competition(tmp_path, instances=True)).overlap_allowed
    assert profile_of(competition(tmp_path, submission={"profile": "tgs-salt"})) is PROFILES["tgs-salt"]


def test_a_compressed_sample_has_a_message(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sample.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sample.csv", "id,rle\n" + "a,1 1\n" * 99)
    profile = profile_of(competition(tmp_path, submission={"sample": "sample.csv.zip"}))
    assert profile.columns == ("id", "rle")
    with pytest.raises(MaskfoldError, match=r"Cannot read .*sample\.csv\.zip as a CSV"):
        open_rows(tmp_path / "sample.csv.zip", profile)


def test_wrong_profiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match="tgs-salt"):
        profile_of(competition(tmp_path, submission={"profile": "tgs-slat"}))
    with pytest.raises(MaskfoldError, match="Fish, Flower"):
        profile_of(competition(tmp_path, submission={"profile": "clouds"}))
