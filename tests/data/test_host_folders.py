"""Folders as hosts publish them: extensions in capitals, ids spelt otherwise, other separators, few run lengths."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from PIL import Image

from competition.config.competition import Competition
from competition.config.loading import load_competition
from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.data.patterns import match_cases, unmatched_images
from competition.errors import MaskfoldError
from competition.explore import explore
from competition.rle import encode
from competition.rle_text import RleFormat

BASE: dict[str, Any] = {
    "name": "x",
    "root": "data",
    "dimensions": 2,
    "classes": ["cell"],
    "train": {"images": "train/{id}.png", "rle": "train.csv", "columns": {"id": "id", "mask": "rle"}},
    "metric": {"name": "dice"},
    "submission": {"columns": {"id": "id", "mask": "rle"}, "rle": {"order": "column", "base": 1}},
}
MASK_FILES = {"images": "train/{id}.png", "masks": "masks/{id}.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Host:
    return Host(tmp_path)


class Host:
    """A folder of pictures, each with one bright blob, and its truth."""

    def __init__(self, root: Path) -> None:
        self.root = root / "data"
        self.truth: dict[str, np.ndarray] = {}

    def add(self, names: list[str], shape: tuple[int, int] = (48, 64), contrast: int = 90) -> None:
        (self.root / "train").mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            random = np.random.default_rng(number)
            rows, columns = np.mgrid[: shape[0], : shape[1]]
            mask = ((rows - 20) / (8 + number % 4)) ** 2 + ((columns - 26) / (13 - number % 5)) ** 2 <= 1
            picture = (random.normal(80, 12, shape) + contrast * mask).clip(0, 255).astype(np.uint8)
            Image.fromarray(np.stack([picture] * 3, -1)).save(self.root / "train" / name, format="PNG")
            self.truth[name.rpartition(".")[0]] = mask

    def write_masks(self, name: str = "masks/{}.png") -> None:
        for case_id, mask in self.truth.items():
            path = self.root / name.format(case_id)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(path, format="PNG")

    def write_table(self, order: Any = "column", spelling: Any = str, separator: str = ",") -> None:
        fmt = RleFormat(order, 1, False, "")
        lines = [separator.join(("id", "rle"))]
        lines += [separator.join((spelling(case_id), encode(mask, fmt))) for case_id, mask in self.truth.items()]
        (self.root / "train.csv").write_text("\n".join(lines) + "\n")

    def load(self, **changes: Any) -> Competition:
        file = self.root.parent / "competition.yaml"
        file.write_text(yaml.safe_dump({**BASE, **changes}))
        return load_competition(file, [f"root={self.root}"])

    def assert_truth(self, comp: Competition) -> None:
        table = case_table(comp)
        assert table["id"].tolist() == sorted(self.truth)
        for row in table.itertuples():
            np.testing.assert_array_equal(load_mask(comp, row)[0], self.truth[str(row.id)])


# Names of files


def test_extensions_match_in_any_case(folder: Host) -> None:
    folder.add(["a.png", "b.PNG", "c.Png"])
    folder.write_masks()
    (folder.root / "masks/a.png").rename(folder.root / "masks/a.PNG")
    folder.assert_truth(folder.load(train=MASK_FILES))
    folder.write_table()
    folder.assert_truth(folder.load())


def test_the_name_before_the_extension_and_folders_match_exactly(tmp_path: Path) -> None:
    for name in ("i/A_image.PNG", "i/b_IMAGE.png", "k/c/images/c.JPG", "k/d/IMAGES/d.jpg", "v/e_0000.NII.GZ"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(match_cases(tmp_path, "i/{id}_image.png", "train.images")) == ["A"]
    assert match_cases(tmp_path, "k/{id}/images/{id}.jpg", "train.images")["c"].paths == ["k/c/images/c.JPG"]
    assert list(match_cases(tmp_path, "k/{id}/images/{id}.jpg", "train.images")) == ["c"]
    assert list(match_cases(tmp_path, "v/{id}_0000.nii.gz", "train.images")) == ["e"]


def test_two_spellings_of_one_file_are_two_files_of_one_id(folder: Host) -> None:
    folder.add(["a.png", "a.PNG"])
    folder.write_table()
    with pytest.raises(MaskfoldError, match=r"train/a\.PNG and train/a\.png"):
        case_table(folder.load())


def test_images_that_no_pattern_matches_are_remarked(folder: Host, caplog: pytest.LogCaptureFixture) -> None:
    folder.add(["a.png", "b.png", "c.bmp", "._d.png"])
    (folder.root / "train/Thumbs.db").touch()
    del folder.truth["c"], folder.truth["._d"]
    folder.write_table()
    comp = folder.load()
    assert unmatched_images(comp, "train") == ["train/c.bmp"]
    with caplog.at_level(logging.WARNING):
        folder.assert_truth(comp)
    assert "1 image file" in caplog.text and "train/c.bmp" in caplog.text
    remarks = [finding.message for finding in explore(comp).remarks]
    assert any("train/c.bmp" in remark for remark in remarks)


def test_masks_beside_their_images_are_no_images(folder: Host, caplog: pytest.LogCaptureFixture) -> None:
    folder.add(["a.png", "b.png"])
    folder.write_masks("train/{}_mask.png")
    comp = folder.load(train={"images": "train/{id}.png", "masks": "train/{id}_mask.png"})
    folder.assert_truth(comp)
    assert unmatched_images(comp, "train") == [] and not caplog.text


# Rows of tables


def test_skip_does_not_turn_an_image_into_an_empty_truth(folder: Host) -> None:
    names = [f"IMG_{number}.png" for number in range(4)]
    folder.add(names)
    folder.write_table(spelling=lambda case_id: case_id.lower() if case_id == "IMG_0" else case_id)
    with pytest.raises(MaskfoldError, match="img_0 has no image; nearest is IMG_0"):
        case_table(folder.load())
    del folder.truth["IMG_0"]
    comp = folder.load(on_bad_case="skip")
    folder.assert_truth(comp)
    assert [case_id for case_id, _ in case_table(comp).attrs["skipped"]] == ["IMG_0", "img_0"]


def test_an_image_with_a_row_stays_although_another_row_is_misspelt(folder: Host) -> None:
    folder.add(["a_1.png", "b.png"])
    folder.write_table()
    with (folder.root / "train.csv").open("a") as table:
        table.write("A-01,1 5\n")
    folder.assert_truth(folder.load(on_bad_case="skip"))


@pytest.mark.parametrize(("files", "rows"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_in_another_unicode_form(
    folder: Host, files: Literal["NFC", "NFD"], rows: Literal["NFC", "NFD"]
) -> None:
    folder.add([f"{unicodedata.normalize(files, 'café')}.png", "tea.png"])
    folder.write_table(spelling=lambda case_id: unicodedata.normalize(rows, case_id))
    folder.assert_truth(folder.load())


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_with_another_separator(folder: Host, separator: str) -> None:
    folder.add(["a.png", "b.png"])
    folder.write_table(separator=separator)
    folder.assert_truth(folder.load())


def test_json_instead_of_a_table(folder: Host) -> None:
    folder.add(["a.png"])
    (folder.root / "train.csv").write_text('{"a": "1 5"}')
    with pytest.raises(MaskfoldError, match="it is JSON"):
        case_table(folder.load())


def test_a_hint_names_no_column_that_is_not_near(folder: Host) -> None:
    folder.add(["a.png"])
    (folder.root / "train.csv").write_text("name,pixels\na,1 5\n")
    with pytest.raises(MaskfoldError) as error:
        case_table(folder.load())
    assert error.value.status == 2 and "train.columns.id" in error.value.hint
    assert "for example" not in error.value.hint


# Groups from a table with another id column


def test_the_id_column_of_a_group_table_is_found(folder: Host) -> None:
    folder.add([f"im{number}.png" for number in range(4)])
    folder.write_table()
    rows = "".join(f"im{number}.png,64,P{number // 2}\n" for number in range(4))
    (folder.root / "meta.csv").write_text(f"image_file,width_pixels,patient_number\n{rows}")
    table = case_table(folder.load(group="meta.csv:patient_number"))
    assert table["group"].tolist() == ["P0", "P0", "P1", "P1"]
    found = explore(folder.load(group="meta.csv:patient_number"))
    assert not found.faults and not [one for one in found.remarks if one.kind == "group"]


def test_a_group_table_without_the_ids_is_refused(folder: Host) -> None:
    folder.add(["im0.png", "im1.png"])
    folder.write_table()
    (folder.root / "meta.csv").write_text("image_file,copy,patient\nim0,im0,P\nim1,im1,P\n")
    with pytest.raises(MaskfoldError, match="image_file and copy") as error:
        case_table(folder.load(group="meta.csv:patient"))
    assert error.value.status == 2
    (folder.root / "meta.csv").write_text("image_file,patient\nother,P\n")
    with pytest.raises(MaskfoldError, match="the first is im0"):
        case_table(folder.load(group="meta.csv:patient"))


# Order of the run lengths


@pytest.mark.parametrize("shape", [(48, 64), (64, 64)])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_the_wrong_order_is_refused_from_one_clear_case_on(folder: Host, shape: tuple[int, int], count: int) -> None:
    folder.add([f"im{number}.png" for number in range(count)], shape)
    folder.write_table(order="row")
    with pytest.raises(MaskfoldError, match=r"submission\.rle\.order is column"):
        case_table(folder.load())
    folder.write_table(order="column")
    folder.assert_truth(folder.load())


def test_a_picture_without_contrast_is_no_evidence(folder: Host) -> None:
    folder.add(["im0.png", "im1.png"], (64, 64), contrast=0)
    folder.write_table(order="row")
    assert len(case_table(folder.load())) == 2
