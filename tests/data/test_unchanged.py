"""Files that changed after the case table was made are refused, whatever holds the truth."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.data import preprocessing
from competition.data.cases import case_rows, case_table
from competition.data.content import digests
from competition.data.content.unchanged import (
    check_files_belong,
    check_truth_unchanged,
    load_unchanged_image,
    load_unchanged_mask,
    load_unchanged_objects,
)
from competition.data.masks import load_instances, load_mask
from competition.data.preprocessing import preprocess_case, preprocess_cases
from competition.data.readers import load_image
from competition.errors import ChangedDataError, MaskfoldError
from tests.host import competition, pictures, write_nifti, write_png, write_text

MASK = np.zeros((6, 8), np.uint8)
OTHER = MASK.copy()
MASK[1:3, 2:5], OTHER[4:, :3] = 1, 1


def labels(root: Path) -> tuple[Competition, Path, Path]:
    pictures(root, ["a", "b"])
    return competition(root), root / "images/a.png", root / "masks/a.png"


def volumes(root: Path) -> tuple[Competition, Path, Path]:
    for name in "ab":
        write_nifti(root / "i" / f"{name}.nii.gz", np.full((5, 6, 4), ord(name), np.int16))
        mask = {"a": MASK, "b": OTHER}[name][:5, :6]
        write_nifti(root / "m" / f"{name}.nii.gz", np.stack([mask] * 4, axis=-1))
    comp = competition(root, dimensions=3, train={"images": "i/{id}.nii.gz", "masks": "m/{id}.nii.gz"})
    return comp, root / "i/a.nii.gz", root / "m/a.nii.gz"


def classes(root: Path) -> tuple[Competition, Path, Path]:
    pictures(root, ["a", "b"])
    for name, mask in (("liver", MASK), ("spleen", OTHER)):
        for case_id in "ab":
            write_png(root / name / f"{case_id}.png", mask)
    masks = {"liver": "liver/{id}.png", "spleen": "spleen/{id}.png"}
    comp = competition(root, classes=["liver", "spleen"], train={"images": "images/{id}.png", "masks": masks})
    return comp, root / "images/a.png", root / "spleen/a.png"


def instances(root: Path) -> tuple[Competition, Path, Path]:
    pictures(root, ["a", "b"])
    for case_id in "ab":
        for number, mask in enumerate((MASK, OTHER)):
            write_png(root / "objects" / case_id / f"{number}.png", mask)
    comp = competition(root, train={"images": "images/{id}.png", "masks": "objects/{id}/*.png"}, instances=True)
    return comp, root / "images/a.png", root / "objects/a/1.png"


def stacks(root: Path) -> tuple[Competition, Path, Path]:
    for case_id in "ab":
        for z in range(3):
            write_png(root / case_id / f"image_{z}.png", np.full((6, 8), 50 * z + ord(case_id), np.uint8))
            write_png(root / case_id / f"mask_{z}.png", MASK)
    train = {"images": "{id}/image_{z}.png", "masks": "{id}/mask_{z}.png"}
    return competition(root, dimensions=3, train=train), root / "a/image_1.png", root / "a/mask_1.png"


def run_lengths(root: Path) -> tuple[Competition, Path, Path]:
    pictures(root, ["a", "b"])
    table = write_text(root / "train.csv", "id,rle\na,3 4\na,20 2\nb,1 5\n")
    train = {"images": "images/{id}.png", "rle": "train.csv", "columns": {"id": "id", "mask": "rle"}}
    return competition(root, train=train), root / "images/a.png", table


def change(path: Path) -> None:
    """Exchange a file for another one that is as valid: the same file of case b, or other run lengths."""
    if path.suffix == ".csv":
        write_text(path, path.read_text().replace("a,20 2", "a,20 3"))
    elif path.parent.name in ("objects", "a"):
        write_png(path, MASK if path.name == "1.png" else OTHER)
    elif path.parent.parent.name == "objects":
        write_png(path, MASK)
    elif path.parent.name == "spleen":
        write_png(path, np.rot90(OTHER, 2))
    else:
        shutil.copy(path.with_name(path.name.replace("a.", "b.")), path)


KINDS = [labels, volumes, classes, instances, stacks, run_lengths]


@pytest.mark.parametrize("make", KINDS)
def test_a_changed_truth_is_refused_and_names_its_case(tmp_path: Path, make: Callable[..., Any]) -> None:
    comp, _, truth = make(tmp_path)
    rows = case_rows(case_table(comp))
    for row in rows:
        np.testing.assert_array_equal(load_unchanged_mask(comp, row), load_mask(comp, row))
        np.testing.assert_array_equal(load_unchanged_objects(comp, row).labels, load_instances(comp, row))
    assert check_truth_unchanged(comp, rows) == 0
    change(truth)
    assert load_mask(comp, rows[0]).shape  # it is as valid as before
    for read in (load_unchanged_mask, load_unchanged_objects, lambda comp, row: check_truth_unchanged(comp, [row])):
        with pytest.raises(ChangedDataError, match=r"The mask of case a \(.*\) has changed since"):
            read(comp, rows[0])
    load_unchanged_image(comp, rows[0])
    load_unchanged_mask(comp, rows[1])


@pytest.mark.parametrize("make", KINDS)
def test_a_changed_image_is_refused_and_names_its_case(tmp_path: Path, make: Callable[..., Any]) -> None:
    comp, image, _ = make(tmp_path)
    rows = case_rows(case_table(comp))
    for row in rows:
        np.testing.assert_array_equal(load_unchanged_image(comp, row).array, load_image(comp, row).array)
    change(image)
    with pytest.raises(ChangedDataError, match=r"The image of case a \(.*\) has changed since"):
        load_unchanged_image(comp, rows[0])
    load_unchanged_mask(comp, rows[0])
    load_unchanged_image(comp, rows[1])


def test_a_table_of_run_lengths_that_lost_its_last_lines(tmp_path: Path) -> None:
    comp, _, table = run_lengths(tmp_path)
    rows = case_rows(case_table(comp))
    write_text(table, "id,rle\na,3 4\n")
    with pytest.raises(ChangedDataError, match=r"The mask of case a \(train.csv\)"):
        load_unchanged_mask(comp, rows[0])


def test_lines_of_another_case_are_refused_even_with_a_digest_of_them(tmp_path: Path) -> None:
    comp, _, table = run_lengths(tmp_path)
    row = case_rows(case_table(comp))[0]
    write_text(table, table.read_text().replace("a,20 2", "b,20 2"))  # the same text in the same line
    with pytest.raises(ChangedDataError, match="The mask of case a"):
        load_unchanged_mask(comp, row)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("c,x,", "c,x,5 2"),  # a case without objects has one now
        ("a,x,20 2", "a,y,20 2"),  # an object is of another class
        ("b,x,30 3\n", "b,x,30 3\nb,x,50 4\n"),  # a case has another object
        ("b,x,30 3\n", ""),  # the only object of a case is missing
    ],
)
def test_rows_that_are_filled_added_removed_or_of_another_class_are_refused(
    tmp_path: Path, before: str, after: str
) -> None:
    for seed, case_id in enumerate("abc"):
        write_png(
            tmp_path / "images" / f"{case_id}.png", np.random.default_rng(seed).integers(0, 255, (9, 9), np.uint8)
        )
    table = write_text(tmp_path / "train.csv", "id,cls,mask\na,x,20 2\na,y,\nb,x,30 3\nc,x,\n")
    train = {"images": "images/{id}.png", "rle": "train.csv", "columns": {"id": "id", "class": "cls", "mask": "mask"}}
    comp = competition(tmp_path, classes=["x", "y"], labels="overlapping", train=train)
    rows = case_rows(case_table(comp))
    assert check_truth_unchanged(comp, rows) == 0
    assert before in table.read_text()
    write_text(table, table.read_text().replace(before, after))
    with pytest.raises(ChangedDataError, match="The mask of case"):
        check_truth_unchanged(comp, rows)


def test_a_truth_that_is_missing_cannot_be_checked(tmp_path: Path) -> None:
    comp, _, truth = labels(tmp_path)
    rows = case_rows(case_table(comp))
    truth.unlink()
    assert check_truth_unchanged(comp, rows) == 1
    with pytest.raises(MaskfoldError, match="does not exist"):
        load_unchanged_mask(comp, rows[0])


def test_a_changed_file_explains_the_errors_of_its_reader(tmp_path: Path) -> None:
    comp, _, truth = labels(tmp_path)
    rows = case_rows(case_table(comp))
    write_png(truth, np.zeros((9, 9), np.uint8))
    with pytest.raises(ChangedDataError, match="The mask of case a"):
        load_unchanged_mask(comp, rows[0])


def test_a_file_is_hashed_once_per_process_while_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comp, _, truth = labels(tmp_path)
    rows = case_rows(case_table(comp))
    hashed: list[str] = []
    real = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: hashed.append(path.name) or real(path))
    load_unchanged_mask(comp, rows[0])
    load_unchanged_mask(comp, rows[0])
    assert hashed == ["a.png", "a.png"]  # it was written a moment ago, and might be again without another time
    with monkeypatch.context() as patch:
        patch.setattr(digests, "SETTLED_SECONDS", -1.0)
        for _ in range(3):
            load_unchanged_mask(comp, rows[0])
        assert len(hashed) == 3
        times = truth.stat()
        content = bytearray(truth.read_bytes())
        content[-5] ^= 1
        truth.write_bytes(content)  # of the same size, and its time is set back
        os.utime(truth, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(MaskfoldError):
            load_unchanged_mask(comp, rows[0])


# Preprocessing


def experiment(comp: Competition, **keys: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "competition": {**comp.model_dump(), **keys},
            "patch": {"size": [8] * comp.dimensions},
            "model": {"target": "x.Y"},
            "loss": {"target": "x.Z"},
        }
    )


@pytest.mark.parametrize("which", ["image", "mask"])
@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("make", KINDS)
def test_a_case_that_changed_after_it_was_hashed_does_not_enter_the_cache(
    tmp_path: Path, make: Callable[..., Any], policy: str, which: str
) -> None:
    comp, image, truth = make(tmp_path / "data")
    exp, table = experiment(comp, on_bad_case=policy), case_table(comp)
    assert list(preprocess_cases(table, exp, tmp_path / "first")) == ["a", "b"]
    change(image if which == "image" else truth)
    with pytest.raises(ChangedDataError, match=f"The {which} of case a "):  # also where bad cases are skipped
        preprocess_cases(table, exp, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert list(preprocess_cases(table, exp, tmp_path / "first")) == ["a", "b"]  # what is in the cache is as it was


@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_file_that_changes_while_it_is_read_does_not_enter_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """It is exchanged before it is decoded, and has its first content again when it is hashed."""
    comp, image, truth = labels(tmp_path / "data")
    path = image if which == "image" else truth
    before, row = path.read_bytes(), case_rows(case_table(comp))[0]
    name, real = ("load_image", load_image) if which == "image" else ("load_mask", load_mask)

    def read(comp: Competition, row: SimpleNamespace) -> Any:
        change(path)
        result = real(comp, row)
        path.write_bytes(before)
        return result

    monkeypatch.setattr(preprocessing, name, read)
    with pytest.raises(ChangedDataError, match=rf"{path.name} of case a changed while"):
        preprocess_case(row, experiment(comp), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# Tables that name the files of other cases


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (labels, "masks/a.png", "masks/b.png"),
        (labels, "images/a.png", "images/b.png"),
        (labels, "masks/a.png", "masks/../masks/a.png"),
        (labels, '"image"', '"t2"'),
        (volumes, "m/a.nii.gz", "m/b.nii.gz"),
        (classes, '"liver": "liver/a.png", "spleen": "spleen/a.png"', '"liver": "spleen/a.png"'),
        (instances, "objects/a/1.png", "objects/b/1.png"),
        (stacks, "a/mask_1.png", "b/mask_1.png"),
        (stacks, '"a/mask_0.png", "a/mask_1.png"', '"a/mask_1.png", "a/mask_0.png"'),
    ],
)
def test_a_table_that_names_the_file_of_another_case(
    tmp_path: Path, make: Callable[..., Any], old: str, new: str
) -> None:
    comp = make(tmp_path)[0]
    table = case_table(comp)
    check_files_belong(comp, table)
    edited = table.assign(**{key: [text.replace(old, new) for text in table[key]] for key in ("images", "masks")})
    assert not edited.equals(table)
    with pytest.raises(MaskfoldError, match="The case a has the file .*(does not match|no pattern) train"):
        check_files_belong(comp, edited)


def test_a_table_of_run_lengths_belongs(tmp_path: Path) -> None:
    comp = run_lengths(tmp_path)[0]
    check_files_belong(comp, case_table(comp))


def test_the_channels_of_one_pattern_belong(tmp_path: Path) -> None:
    for number, channel in enumerate(("0", "1")):
        for case_id in "ab":
            write_png(tmp_path / "images" / f"{case_id}_{channel}.png", OTHER + np.uint8(number))
            write_png(tmp_path / "masks" / f"{case_id}.png", MASK)
    comp = competition(tmp_path, train={"images": "images/{id}_{c}.png", "masks": "masks/{id}.png"})
    table = case_table(comp)
    check_files_belong(comp, table)
    exchanged = table["images"].str.replace("_0", "_x").str.replace("_1", "_0").str.replace("_x", "_1")
    with pytest.raises(MaskfoldError, match=r"The case a has the file images/a_1\.png"):
        check_files_belong(comp, table.assign(images=exchanged))
    without = table.assign(images=["{}", *table["images"][1:]])
    check_files_belong(comp, without)
