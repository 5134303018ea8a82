"""Patterns match each case once, or raise an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from competition.data.patterns import (
    SliceFile,
    check_ids_differ_by_more_than_case,
    match_cases,
    match_files,
    match_path,
    slice_aliases,
)
from competition.errors import MaskfoldError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def paths(root: Path, pattern: str) -> dict[str, list[str]]:
    return {case_id: case.paths for case_id, case in match_cases(root, pattern, "train.images").items()}


def test_id_in_the_name_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path, "i/b.nii.gz", "i/a.1.nii.gz", "i/._b.nii.gz", "i/.DS_Store", "i/c.nii", "i/deeper/d.nii.gz")
    assert paths(tmp_path, "i/{id}.nii.gz") == {"a.1": ["i/a.1.nii.gz"], "b": ["i/b.nii.gz"]}
    assert paths(tmp_path, "./i//{id}.nii") == {"c": ["i/c.nii"]}


def test_id_that_occurs_twice_stands_for_one_text(tmp_path: Path) -> None:
    touch(tmp_path, "t/a/images/a.png", "t/b/images/b.png", "t/b/images/other.png", "t/c/images/b.png")
    assert paths(tmp_path, "t/{id}/images/{id}.png") == {"a": ["t/a/images/a.png"], "b": ["t/b/images/b.png"]}
    touch(tmp_path, "u/x_x.png", "u/x_y.png")
    assert paths(tmp_path, "u/{id}_{id}.png") == {"x": ["u/x_x.png"]}


def test_star_in_folder_and_name(tmp_path: Path) -> None:
    touch(tmp_path, "site1/a/images/scan.png", "site2/b/images/scan2.jpg", "site2/b/images/notes.txt")
    assert paths(tmp_path, "*/{id}/images/*") == {"a": ["site1/a/images/scan.png"], "b": ["site2/b/images/scan2.jpg"]}


def test_signs_of_regular_expressions_are_plain_text(tmp_path: Path) -> None:
    touch(tmp_path, "i (1)/a[0]+.png", "i (1)/a[0]+xpng")
    assert paths(tmp_path, "i (1)/{id}+.png") == {"a[0]": ["i (1)/a[0]+.png"]}
    touch(tmp_path, "j/a*b/a*b.png")
    assert paths(tmp_path, "j/{id}/{id}.png") == {"a*b": ["j/a*b/a*b.png"]}


def test_slices_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{case}/s_{z}_{z}x.png" for case in "ab" for z in (10, 9, 100, 1)), "a/s_x_xx.png")
    found = match_cases(tmp_path, "{id}/s_{z}_*.png", "train.images")
    assert [one.z for one in found["a"].slices] == ["1", "9", "10", "100"]
    assert found["b"].files[2] == "b/s_10_10x.png"
    touch(tmp_path, "flat/k_1_2.png", "flat/k_1_10.png")
    assert [one.z for one in match_cases(tmp_path, "flat/{id}_{z}.png", "train.images")["k_1"].slices] == ["2", "10"]


def test_two_files_for_one_id(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.png", "i/a.jpg", "i/b.png")
    with pytest.raises(MaskfoldError, match=r"two files for the id a: i/a\.jpg and i/a\.png"):
        match_cases(tmp_path, "i/{id}.*", "train.images")
    touch(tmp_path, "x/c.png", "y/c.png")
    with pytest.raises(MaskfoldError, match=r"two files for the id c: x/c\.png and y/c\.png"):
        match_cases(tmp_path, "*/{id}.png", "train.images")


def test_two_files_for_one_slice(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/01.png", "a/2.png")
    with pytest.raises(MaskfoldError, match=r"two files for the id a: a/01\.png and a/1\.png"):
        match_cases(tmp_path, "{id}/{z}.png", "train.images")


def test_ids_that_differ_in_capitals(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match="Case1 and case1"):
        check_ids_differ_by_more_than_case(["Case1", "b", "case1"], "train.images")
    with pytest.raises(MaskfoldError, match="Unicode form"):
        check_ids_differ_by_more_than_case(["e\u0301", "\u00e9"], "train.images")
    check_ids_differ_by_more_than_case(["a", "b"], "train.images")


def test_nothing_found_shows_the_nearest_files(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "zzz/readme.md", "q/unlike.csv")
    with pytest.raises(MaskfoldError) as error:
        match_cases(tmp_path, "imageTr/{id}.nii.gz", "train.images")
    assert error.value.status == 2
    for word in ("train.images: ", "`imageTr/{id}.nii.gz`", str(tmp_path), "imagesTr/a_0000.nii.gz"):
        assert word in error.value.message
    assert "readme" not in error.value.message


def test_empty_and_missing_roots(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match=r"matches no file.*competition.root=") as error:
        match_cases(tmp_path, "i/{id}.png", "train.images")
    assert error.value.status == 2
    with pytest.raises(MaskfoldError, match=r"nowhere does not exist.*competition.root=/path") as error:
        match_cases(tmp_path / "nowhere", "i/{id}.png", "train.images")
    assert error.value.status == 2
    touch(tmp_path, "file")
    with pytest.raises(MaskfoldError, match="is a file"):
        match_cases(tmp_path / "file", "i/{id}.png", "train.images")


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        ("images/*.png", "has no {id}"),
        ("images/{case}.png", "only {id}, {z} and {c}"),
        ("images/{}/{id}.png", "only {id}, {z} and {c}"),
        ("**/{id}.png", r"has `**`"),
        ("/data/{id}.png", "out of competition.root"),
        ("C:/data/{id}.png", "out of competition.root"),
        ("", "has no {id}"),
    ],
)
def test_patterns_that_cannot_work(tmp_path: Path, pattern: str, wrong: str) -> None:
    with pytest.raises(MaskfoldError) as error:
        match_cases(tmp_path, pattern, "test.images")
    assert wrong in error.value.message and "test.images" in error.value.message and error.value.status == 2


def test_folders_of_instances_may_be_empty(tmp_path: Path) -> None:
    touch(tmp_path, "a/masks/2.png", "a/masks/1.png", "a/images/a.png", "b/masks/Thumbs.db", "c/images/c.png")
    assert match_files(tmp_path, "{id}/masks/*.png", "train.masks") == {
        "a": ["a/masks/1.png", "a/masks/2.png"],
        "b": [],
    }


def test_names_of_slices() -> None:
    names = slice_aliases("case1_day2", SliceFile("0003", "case1_day2/scans/slice_0003_266_266.png"))
    assert names == ["case1_day2_slice_0003", "case1_day2_slice_0003_266_266", "case1_day2_0003", "slice_0003_266_266"]


@pytest.mark.parametrize("pattern", ["{id}.png", "{id}.nii.gz", "x_{z}/{id}.tif"])
def test_extensions_match_in_upper_and_lower_case(tmp_path: Path, pattern: str) -> None:
    extension = pattern[pattern.index(".") :]
    names = [pattern.replace("{z}", "1").replace("{id}", case_id) for case_id in ("a", "b", "c")]
    names = [
        name.removesuffix(extension) + spelling
        for name, spelling in zip(names, (extension, extension.upper(), extension.title()), strict=True)
    ]
    touch(tmp_path, *names)
    found = match_cases(tmp_path, pattern, "train.images")
    assert list(found) == ["a", "b", "c"]
    assert [case.files if isinstance(case.files, str) else case.files[0] for case in found.values()] == names
    assert match_path(pattern, names[1], "b") is not None
