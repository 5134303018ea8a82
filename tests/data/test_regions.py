"""JPEG masks with a threshold, a region mask per case, and one pattern for all channel files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from competition.data.cases import case_table, data_hash
from competition.data.masks import IGNORED, load_instances, load_mask, unpredicted_pixels
from competition.data.patterns import match_cases, unmatched_images
from competition.data.readers import load_image
from competition.errors import MaskfoldError
from competition.explore import explore
from competition.metrics.scoring import score_class
from competition.runs.identity.hashing import drop_keys_without_effect
from tests.host import competition, pictures, write_png, write_text

SIZE = (24, 32)
IMAGES = {"images": "images/{id}.png"}


def disc(seed: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return ((rows - 11 - seed) ** 2 + (columns - 14) ** 2) < 49


def write_jpeg(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array, [cv2.IMWRITE_JPEG_QUALITY, 60])


def rows_of(comp: Any) -> list[Any]:
    return list(case_table(comp).itertuples(index=False))


# Threshold


@pytest.mark.parametrize("per_class", [False, True])
def test_jpeg_masks_with_a_threshold(tmp_path: Path, per_class: bool) -> None:
    pictures(tmp_path, ["a", "b"], SIZE)
    for number, case_id in enumerate("ab"):
        write_jpeg(tmp_path / "jpeg" / f"{case_id}.jpg", disc(number) * np.uint8(255))
    masks: Any = {"cell": "jpeg/{id}.jpg"} if per_class else "jpeg/{id}.jpg"
    with pytest.raises(MaskfoldError) as caught:
        load_mask(comp := competition(tmp_path, train=IMAGES | {"masks": masks}), rows_of(comp)[0])
    assert "train.threshold" in caught.value.hint
    for values in (None, [255]):
        comp = competition(tmp_path, train=IMAGES | {"masks": masks, "threshold": 128}, label_values=values)
        for number, row in enumerate(rows_of(comp)):
            assert np.array_equal(load_mask(comp, row)[0], disc(number))
            assert np.array_equal(load_instances(comp, row), disc(number))
    assert explore(comp).faults == []


def test_the_threshold_is_part_of_the_datas_hash(tmp_path: Path) -> None:
    pictures(tmp_path, ["a"], SIZE)
    tables = [
        case_table(competition(tmp_path, train=IMAGES | {"masks": "masks/{id}.png", **keys}))
        for keys in ({}, {"threshold": None}, {"threshold": 1}, {"threshold": 2})
    ]
    hashes = [data_hash(table) for table in tables]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_where_a_threshold_makes_no_sense(tmp_path: Path) -> None:
    masks = IMAGES | {"masks": "m/{id}.png", "threshold": 128}
    with pytest.raises(ValidationError, match="requires one class, or one file per class"):
        competition(tmp_path, classes=["a", "b"], train=masks)
    with pytest.raises(ValidationError, match="cannot be combined"):
        competition(tmp_path, train=masks, ignore=9)
    with pytest.raises(ValidationError, match="needs mask files"):
        competition(tmp_path, train=IMAGES | {"rle": "t.csv", "threshold": 128})


def test_keys_that_are_off_are_not_hashed(tmp_path: Path) -> None:
    plain = competition(tmp_path).model_dump(mode="json", by_alias=True)
    drop_keys_without_effect(plain)
    assert not {"threshold", "region"} & set(plain["train"])


# Region


def region(number: int = 0) -> np.ndarray:
    inside = np.zeros(SIZE, np.uint8)
    inside[:, : 12 + number] = 255
    return inside


def with_regions(root: Path, ids: str = "ab") -> dict[str, str]:
    pictures(root, list(ids), SIZE)
    for number, case_id in enumerate(ids):
        write_png(root / "masks" / f"{case_id}.png", disc(number).astype(np.uint8))
        write_png(root / "regions" / f"{case_id}.png", region(number))
    return IMAGES | {"masks": "masks/{id}.png", "region": "regions/{id}.png"}


@pytest.mark.parametrize("labels", ["exclusive", "overlapping"])
def test_pixels_outside_the_region_are_ignored(tmp_path: Path, labels: str) -> None:
    comp = competition(tmp_path, train=with_regions(tmp_path), labels=labels)
    assert comp.has_ignored_pixels
    for number, row in enumerate(rows_of(comp)):
        inside = region(number) > 0
        mask = load_mask(comp, row)[0]
        assert np.array_equal(mask, np.where(inside, disc(number), IGNORED))
        assert np.array_equal(load_instances(comp, row) > 0, disc(number) & inside)
        wrong = disc(number) | ~inside  # everything outside is predicted
        assert score_class(wrong, load_mask(comp, row), comp, 0, (1.0, 1.0))["dice"] == 1.0
    found = explore(comp)
    assert found.faults == [] and found.cases[0].truth is not None
    assert found.cases[0].truth.ignored == int((region(0) == 0).sum())


def test_the_threshold_of_masks_does_not_apply_to_a_region_of_zeros_and_ones(tmp_path: Path) -> None:
    train = with_regions(tmp_path) | {"threshold": 128}
    mask, outside = disc() * np.uint8(255), []
    for value in (1, 255):
        for case_id in "ab":
            write_png(tmp_path / "masks" / f"{case_id}.png", mask)
            write_png(tmp_path / "regions" / f"{case_id}.png", (region() != 0) * np.uint8(value))
        comp = competition(tmp_path, train=train, test={"images": "images/{id}.png", "region": "regions/{id}.png"})
        row = rows_of(comp)[0]
        outside += [load_mask(comp, row)[0] == IGNORED, unpredicted_pixels(comp, row)]
        outside.append(unpredicted_pixels(comp, case_table(comp, "test").iloc[0]))
    for found in outside:
        np.testing.assert_array_equal(found, region() == 0)


def test_a_region_with_run_lengths(tmp_path: Path) -> None:
    with_regions(tmp_path)
    write_text(tmp_path / "train.csv", "id,rle\na,1 24 300 10\nb,400 24\n")
    train = IMAGES | {"rle": "train.csv", "region": "regions/{id}.png"}
    comp = competition(tmp_path, train=train)
    first, second = (load_mask(comp, row)[0] for row in rows_of(comp))
    assert (first[:, 0] == 1).all() and (first[:, 12:] == IGNORED).all() and set(np.unique(first)) == {0, 1, IGNORED}
    assert (second[:, 13:] == IGNORED).all() and not (second == 1).any()
    assert not load_instances(comp, rows_of(comp)[1]).any()


def test_the_region_is_part_of_the_datas_hash_and_may_be_missing(tmp_path: Path) -> None:
    train = with_regions(tmp_path)
    comp = competition(tmp_path, train=train)
    hashes = {data_hash(case_table(comp))}
    write_png(tmp_path / "regions" / "a.png", region(3))
    hashes.add(data_hash(case_table(comp)))
    hashes.add(data_hash(case_table(competition(tmp_path, train={k: v for k, v in train.items() if k != "region"}))))
    assert len(hashes) == 3
    write_png(tmp_path / "regions" / "a.png", np.ones((5, 5), np.uint8))
    with pytest.raises(MaskfoldError, match=r"regions/a\.png"):
        case_table(comp)
    (tmp_path / "regions" / "a.png").unlink()
    with pytest.raises(MaskfoldError, match="Case a has no region"):
        case_table(comp)
    assert {fault.case for fault in explore(comp).faults} == {"a"}
    assert case_table(competition(tmp_path, train=train, on_bad_case="skip"))["id"].tolist() == ["b"]


# Channel files


def fragments(root: Path, channels: int = 12, ids: str = "ab") -> dict[str, str]:
    """As Vesuvius: a folder per fragment with channel files, its labels and the mask of its region."""
    rng = np.random.default_rng(0)
    for number, case_id in enumerate(ids):
        for channel in range(channels):
            values = rng.integers(0, 255, SIZE, dtype=np.uint8)
            values[0, 0] = channel
            write_png(root / "train" / case_id / "surface_volume" / f"{channel}.png", values)
        write_png(root / "train" / case_id / "inklabels.png", disc(number).astype(np.uint8))
        write_png(root / "train" / case_id / "mask.png", region(number))
    return {
        "images": "train/{id}/surface_volume/{c}.png",
        "masks": "train/{id}/inklabels.png",
        "region": "train/{id}/mask.png",
    }


@pytest.mark.parametrize("channels", [4, 12])  # 4: the last is no transparency; 12: in the order of numbers
def test_one_pattern_for_all_channel_files(tmp_path: Path, channels: int) -> None:
    comp = competition(tmp_path, train=fragments(tmp_path, channels))
    table = case_table(comp)
    assert table["channels"].tolist() == [channels] * 2
    for row in table.itertuples(index=False):
        assert list(json.loads(row.images)) == [str(number) for number in range(channels)]
        assert load_image(comp, row).array[:, 0, 0].tolist() == list(range(channels))
    found = explore(comp)
    assert found.faults == [] and [len(case.stats or []) for case in found.cases] == [channels] * 2
    assert unmatched_images(comp, "train") == []
    assert list(match_cases(tmp_path, comp.train.images, "train.images")) == ["a", "b"]  # type: ignore[arg-type]


def test_a_missing_channel_file_is_named(tmp_path: Path) -> None:
    train = fragments(tmp_path)
    (tmp_path / "train/b/surface_volume/7.png").unlink()
    with pytest.raises(MaskfoldError, match="Case b has no channel 7"):
        case_table(competition(tmp_path, train=train))
    assert case_table(competition(tmp_path, train=train, on_bad_case="skip"))["id"].tolist() == ["a"]


def test_two_files_of_one_channel_number_are_named(tmp_path: Path) -> None:
    train = fragments(tmp_path)
    for case_id in "ab":
        folder = tmp_path / "train" / case_id / "surface_volume"
        (folder / "02.png").write_bytes((folder / "2.png").read_bytes())
    with pytest.raises(MaskfoldError, match=r"two files for the id a: .*/02\.png and .*/2\.png"):
        case_table(competition(tmp_path, train=train))


def test_channels_are_of_images_and_in_one_pattern(tmp_path: Path) -> None:
    train = fragments(tmp_path)
    with pytest.raises(MaskfoldError, match="which stands for channels"):
        case_table(competition(tmp_path, train=train | {"masks": "train/{id}/{c}.png"}))
    several: Any = {"x": train["images"], "y": train["masks"]}
    with pytest.raises(MaskfoldError, match="has several patterns") as caught:
        case_table(competition(tmp_path, train=train | {"images": several}))
    assert caught.value.status == 2
