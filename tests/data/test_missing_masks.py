"""One file per class: a missing file may be a class that the case does not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.errors import MaskfoldError
from tests.host import competition, pictures, write_png


def test_a_missing_file_of_a_class_may_be_an_empty_mask(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c"])
    for name, ids in (("liver", "abc"), ("spleen", "a")):
        for case_id in ids:
            mask = np.zeros((6, 8), np.uint8)
            mask[(0 if name == "liver" else 4) :][:2, :3] = 1
            write_png(tmp_path / name / f"{case_id}.png", mask)
    train = {"images": "images/{id}.png", "masks": {"liver": "liver/{id}.png", "spleen": "spleen/{id}.png"}}
    keys = {"classes": ["liver", "spleen"], "train": train}
    with pytest.raises(MaskfoldError, match=r"Case b has an image .* but no mask.* 1 more case has"):
        case_table(competition(tmp_path, **keys))
    comp = competition(tmp_path, **{**keys, "train": train | {"missing_masks": "empty"}})
    rows = list(case_table(comp).itertuples(index=False))
    assert [np.unique(load_mask(comp, row)).tolist() for row in rows] == [[0, 1, 2], [0, 1], [0, 1]]
    with pytest.raises(ValidationError, match="needs one mask file per class"):
        competition(tmp_path, train={"images": "i/{id}.png", "masks": "m/{id}.png", "missing_masks": "empty"})


def test_which_file_is_missing_is_part_of_the_hash(tmp_path: Path) -> None:
    pictures(tmp_path, ["a"])
    train = {"images": "images/{id}.png", "masks": {"liver": "liver/{id}.png", "spleen": "spleen/{id}.png"}}
    keys = {"classes": ["liver", "spleen"], "train": train | {"missing_masks": "empty"}}
    mask = np.eye(6, 8, dtype=np.uint8)
    hashes = set()
    for name in ("liver", "spleen"):
        for folder in ("liver", "spleen"):
            write_png(tmp_path / folder / "other.png", mask)  # so that each pattern matches a file
        path = write_png(tmp_path / name / "a.png", mask)
        comp = competition(tmp_path, on_bad_case="skip", **keys)
        hashes.add(case_table(comp).iloc[0]["hash"])
        path.unlink()
    assert len(hashes) == 2


def test_a_missing_folder_of_objects_may_be_empty(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b"])
    mask = np.eye(6, 8, dtype=np.uint8)
    for name in ("liver/a/1", "liver/b/1", "spleen/a/1"):
        write_png(tmp_path / f"{name}.png", mask)
    masks = {"liver": "liver/{id}/*.png", "spleen": "spleen/{id}/*.png"}
    keys = {"classes": ["liver", "spleen"], "labels": "overlapping", "instances": True}
    train = {"images": "images/{id}.png", "masks": masks}
    with pytest.raises(MaskfoldError, match=r"Case b has an image .* but no folder of masks"):
        case_table(competition(tmp_path, train=train, **keys))
    comp = competition(tmp_path, train=train | {"missing_masks": "empty"}, **keys)
    assert [load_mask(comp, row).any(axis=(1, 2)).tolist() for row in case_table(comp).itertuples(index=False)] == [
        [True, True],
        [True, False],
    ]


def test_a_case_without_an_object_among_masks_in_one_folder(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b"])
    write_png(tmp_path / "objects" / "a_1.png", np.eye(6, 8, dtype=np.uint8))
    train = {"images": "images/{id}.png", "masks": "objects/{id}_*.png"}
    with pytest.raises(MaskfoldError, match=r"Case b has an image .* but no mask") as caught:
        case_table(competition(tmp_path, instances=True, train=train))
    assert "masks/{id}/*.png" in caught.value.hint  # a folder for each case can be empty
