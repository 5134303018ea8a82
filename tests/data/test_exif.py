"""Images that carry an EXIF orientation: remarks, and `train.exif` for training, test and bundles."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from competition.config.competition import Competition
from competition.data.cache import cache_key
from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.data.readers import load_image
from competition.errors import MaskfoldError
from competition.explore import explore
from competition.export.predictor import _read
from competition.runs.identity.hashing import drop_keys_without_effect
from tests.host import competition, write_png

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32), dtype=np.uint8)
MASK = np.zeros((24, 32), np.uint8)
MASK[2:9, 4:20] = 1


def turned_host(root: Path, mask: np.ndarray, **train: str) -> Competition:
    """One picture with orientation 6, which viewers turn clockwise, one without, and a test picture with it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("images", "test"):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(PIXELS).save(root / folder / "a.png", exif=exif)
    write_png(root / "images" / "b.png", PIXELS[::-1])
    write_png(root / "masks" / "a.png", mask)
    write_png(root / "masks" / "b.png", MASK)
    files = {"images": "images/{id}.png", "masks": "masks/{id}.png", **train}
    return competition(root, train=files, test={"images": "test/{id}.png"})


def test_images_are_turned_everywhere_or_nowhere(tmp_path: Path) -> None:
    upright = np.rot90(MASK, -1)
    comp = turned_host(tmp_path, upright, exif="apply")
    for split in ("train", "test"):
        row = case_table(comp, split).iloc[0]
        np.testing.assert_array_equal(load_image(comp, row).array[0], np.rot90(PIXELS, -1))
        assert row["shape"] == "[32, 24]"
    train, test = case_table(comp).iloc[0], tmp_path / "test" / "a.png"
    np.testing.assert_array_equal(load_mask(comp, train)[0], upright)
    np.testing.assert_array_equal(_read(str(test), comp, "a").array[0], np.rot90(PIXELS, -1))
    as_stored = turned_host(tmp_path, MASK)
    np.testing.assert_array_equal(load_image(as_stored, case_table(as_stored).iloc[0]).array[0], PIXELS)
    np.testing.assert_array_equal(_read(str(test), as_stored, "a").array[0], PIXELS)


def test_explore_and_cv_remark_on_orientations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    message = "1 train image (images/a.png) has an EXIF orientation"
    comp = turned_host(tmp_path, MASK)
    with caplog.at_level(logging.WARNING):
        case_table(comp)
    assert [record.getMessage() for record in caplog.records if message in record.getMessage()]
    found = {one.split: one for one in explore(comp).remarks if one.kind == "exif"}
    assert set(found) == {"train", "test"} and message in found["train"].message
    assert "train.exif=apply" in found["train"].hint
    caplog.clear()
    for decided in (
        turned_host(tmp_path, MASK, exif="ignore"),
        turned_host(tmp_path, np.rot90(MASK, -1), exif="apply"),
    ):
        assert not [one for one in explore(decided).remarks if one.kind == "exif"]
    assert not caplog.records


def test_a_mask_on_the_turned_image_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match=r"images/a.png has 24×32, and masks/a.png has 32×24") as caught:
        case_table(turned_host(tmp_path, np.rot90(MASK, -1)))
    assert "train.exif=apply" in caught.value.hint


def test_hashes_change_only_with_the_key(tmp_path: Path, tiny) -> None:
    keys, plains = {}, {}
    for choice in ("default", "ignore", "apply"):
        comp = turned_host(tmp_path, MASK, **({} if choice == "default" else {"exif": choice}))
        exp = tiny(2).model_copy(update={"competition": comp})
        row = case_table(turned_host(tmp_path, MASK)).iloc[0]
        keys[choice], plains[choice] = cache_key(row, exp), comp.model_dump(mode="json")
        drop_keys_without_effect(plains[choice])
    assert keys["default"] == keys["ignore"] != keys["apply"]
    assert plains["default"] == plains["ignore"] and "exif" not in plains["default"]["train"]
    assert plains["apply"]["train"]["exif"] == "apply"
