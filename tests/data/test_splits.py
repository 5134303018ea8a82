"""Folds are reproducible, keep groups together, and fail with a clear error if they cannot be built."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from competition.config.competition import Competition
from competition.config.experiment import FoldsConfig
from competition.data.cases import case_table
from competition.data.splits import check_leaks, compute_strata, merge_rare_strata, read_folds, split, write_folds
from competition.errors import MaskfoldError
from tests.host import competition, pictures, write_png, write_text

COMP = competition(Path("."))


def cases(number: int, **columns: list[str]) -> pandas.DataFrame:
    """A case table without files: only what a split looks at."""
    ids = [f"case_{index:03d}" for index in range(number)]
    plain: dict[str, Any] = {"id": ids, "group": ids, "stratum": [""] * number, "hash": ids, "image_hash": ids}
    return pandas.DataFrame(plain | columns)


def comp_with(**changes: Any) -> Competition:
    return COMP.model_copy(update=changes)


def folds_of(table: pandas.DataFrame, comp: Competition = COMP, seed: int = 7, **folds: Any) -> dict[str, int]:
    found = split(table, comp, FoldsConfig(**folds), seed)
    return dict(zip(found["id"], found["fold"].tolist(), strict=True))


GOLDEN = """id,fold,group
case_000,0,case_000
case_001,2,case_001
case_002,0,case_002
case_003,1,case_003
case_004,2,case_004
case_005,0,case_005
case_006,1,case_006
"""


def test_golden_file(tmp_path: Path) -> None:
    """Byte for byte; a change here moves every run's folds."""
    write_folds(split(cases(7), COMP, FoldsConfig(k=3), 7), tmp_path / "new" / "folds.csv")
    assert (tmp_path / "new" / "folds.csv").read_bytes() == GOLDEN.encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folds.csv"]


def test_written_folds_are_read_back(tmp_path: Path) -> None:
    table = cases(6, id=["001", "002", "1e5", "NA", "ä", "a b"], group=["x", "x", "y", "y", "z", "z"])
    folds = split(table, comp_with(group="."), FoldsConfig(k=3), 1)
    write_folds(folds, tmp_path / "folds.csv")
    pandas.testing.assert_frame_equal(read_folds(tmp_path / "folds.csv"), folds, check_dtype=False)
    write_folds(folds[["id", "fold"]], tmp_path / "folds.csv")
    assert read_folds(tmp_path / "folds.csv")["group"].tolist() == folds["id"].tolist()


@pytest.mark.parametrize("scheme", ["kfold", "stratified", "group", "stratified_group", "holdout"])
def test_order_on_disk_does_not_matter_and_the_seed_does(scheme: str) -> None:
    table = cases(40, group=[f"g{index // 2}" for index in range(40)], stratum=["a", "b"] * 20)
    comp = comp_with(group=".", stratum=".")
    first = folds_of(table, comp, scheme=scheme)
    assert folds_of(table.sample(frac=1, random_state=1), comp, scheme=scheme) == first
    assert folds_of(table, comp, seed=8, scheme=scheme) != first
    assert list(first) == sorted(first)


def test_kfold_is_even_and_covers_every_case() -> None:
    found = folds_of(cases(23), k=5)
    assert sorted(Counter(found.values()).values()) == [4, 4, 5, 5, 5] and len(found) == 23


@pytest.mark.parametrize("scheme", ["kfold", "stratified", "group", "stratified_group", "holdout"])
def test_groups_stay_together_in_every_scheme(scheme: str) -> None:
    groups = [f"g{index % 9}" for index in range(60)]
    table = cases(60, group=groups, stratum=["a", "b", "b"] * 20)
    found = folds_of(table, comp_with(group=".", stratum="."), scheme=scheme, k=3)
    for group in set(groups):
        assert len({found[case_id] for case_id, name in zip(table["id"], groups, strict=True) if name == group}) == 1
    assert len(set(found.values())) == (2 if scheme == "holdout" else 3)


@pytest.mark.parametrize("scheme", ["group", "stratified_group"])
def test_schemes_that_need_groups(scheme: str) -> None:
    with pytest.raises(MaskfoldError, match="competition.group is not set") as error:
        folds_of(cases(10), scheme=scheme)
    assert error.value.status == 2


@pytest.mark.parametrize("grouped", [False, True])
def test_strata_are_spread_evenly(grouped: bool) -> None:
    stratum = ["a"] * 40 + ["b"] * 20
    groups = [f"{name}{index // 2}" for index, name in enumerate(stratum)]
    table = cases(60, stratum=stratum, group=groups) if grouped else cases(60, stratum=stratum)
    comp = comp_with(stratum=".", group="." if grouped else None)
    found = folds_of(table, comp, scheme="stratified_group" if grouped else "stratified", k=5)
    counts = Counter((found[case_id], name) for case_id, name in zip(table["id"], stratum, strict=True))
    assert all(counts[fold, "a"] == 8 and counts[fold, "b"] == 4 for fold in range(5))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "stratum",
    [
        ["a"] * 9 + ["b"],
        ["a"] * 6 + ["b", "c", "d", "e"],
        [str(index) for index in range(10)],
        ["a"] * 5 + ["b"] * 4 + ["c"],
    ],
)
def test_rare_strata_neither_warn_nor_crash(stratum: list[str], grouped: bool) -> None:
    groups = [f"g{index // 2}" for index in range(10)] if grouped else [f"case_{index:03d}" for index in range(10)]
    table = cases(10, stratum=stratum, group=groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = folds_of(table, comp_with(stratum=".", group="." if grouped else None), scheme="stratified", k=5)
    assert Counter(found.values()) == dict.fromkeys(range(5), 2)


def test_merged_strata_are_large_enough() -> None:
    assert merge_rare_strata(["a", "a", "a", "b", "c"], 2) == ["=a", "=a", "=a", "rare", "rare"]
    assert merge_rare_strata(["a", "a", "a", "b", "b", "c"], 2) == ["=a", "=a", "=a", "rare", "rare", "rare"]
    assert set(merge_rare_strata(["rare"] * 3 + ["b"] * 4, 3)) == {"=rare", "=b"}


@pytest.mark.parametrize("scheme", ["kfold", "stratified"])
def test_more_folds_than_cases(scheme: str) -> None:
    with pytest.raises(MaskfoldError, match=r"folds\.k: found 5, .* 4 cases") as error:
        folds_of(cases(4), comp_with(stratum="."), scheme=scheme)
    assert error.value.status == 2
    with pytest.raises(MaskfoldError, match=r"folds\.k: found 3, .* 8 cases in 2 groups"):
        folds_of(cases(8, group=["x", "y"] * 4), comp_with(group="."), scheme="group", k=3)


def test_holdout_shares() -> None:
    assert Counter(folds_of(cases(20), scheme="holdout").values()) == {-1: 16, 0: 4}
    found = folds_of(cases(20), scheme="holdout", shares=[0.5, 0.3, 0.2])
    assert Counter(found.values()) == {-1: 10, 0: 6, -2: 4}
    assert Counter(folds_of(cases(3), scheme="holdout", shares=[0.9, 0.05, 0.05]).values()) == {-1: 1, 0: 1, -2: 1}
    assert Counter(folds_of(cases(10), scheme="holdout", shares=[0.8, 0.2, 0.0]).values()) == {-1: 8, 0: 2}
    for shares in ([1.0, 0.0], [0.0, 1.0]):
        with pytest.raises(MaskfoldError, match=r"folds\.shares") as error:
            folds_of(cases(20), scheme="holdout", shares=shares)
        assert error.value.status == 2
    with pytest.raises(MaskfoldError, match=r"folds\.shares .*2 cases"):
        folds_of(cases(2), scheme="holdout", shares=[0.6, 0.2, 0.2])


@pytest.mark.parametrize("scheme", ["kfold", "stratified", "holdout"])
def test_duplicates_stay_together_and_are_reported(scheme: str) -> None:
    images = [f"image_{index % 12}" for index in range(20)]  # 0 and 12, 1 and 13, …
    table = cases(20, image_hash=images, hash=["same" if index in (0, 12) else str(index) for index in range(20)])
    for seed in range(5):
        found = split(table, comp_with(stratum="."), FoldsConfig(scheme=scheme, k=4), seed)
        fold = dict(zip(found["id"], found["fold"], strict=True))
        assert all(fold[f"case_{index:03d}"] == fold[f"case_{index + 12:03d}"] for index in range(8))
        assert found.attrs["duplicates"] == [[f"case_{index:03d}", f"case_{index + 12:03d}"] for index in range(8)]
        assert ["case_000", "case_012"] not in found.attrs["conflicting"] and len(found.attrs["conflicting"]) == 7
    assert found["group"].tolist()[12] == "case_000"


def test_duplicates_join_groups() -> None:
    """One image in two patients' folders: both patients go into one fold."""
    table = cases(
        8, group=["p", "p", "q", "q", "r", "r", "s", "s"], image_hash=["1", "2", "2", "3", "4", "5", "5", "6"]
    )
    found = split(table, comp_with(group="."), FoldsConfig(scheme="group", k=2), 0)
    assert found["group"].tolist() == ["p"] * 4 + ["r"] * 4
    assert found.groupby("group")["fold"].nunique().max() == 1


@pytest.mark.parametrize("scheme", ["kfold", "stratified", "group", "stratified_group"])
@pytest.mark.parametrize(
    ("group", "duplicates", "hint"),
    [
        (["p"] * 6, "exact", "Correct competition.group so that it makes at least 2 groups"),
        (["p"] * 6, "near", "Correct competition.group so that it makes at least 2 groups"),
        (list("pqrstu"), "near", "Set folds.duplicates=exact, so that only images with equal pixels stay together"),
        (list("pqrstu"), "exact", "Add cases with other images"),
    ],
)
def test_one_group_cannot_be_divided(scheme: str, group: list[str], duplicates: str, hint: str) -> None:
    table = cases(6, group=group)
    folds = FoldsConfig.model_validate({"scheme": scheme, "k": 5, "duplicates": duplicates})
    with pytest.raises(MaskfoldError) as caught:
        split(table, comp_with(group=".", stratum="."), folds, 0, [table["id"].tolist()])
    assert caught.value.message == "folds.k: found 5, but all 6 cases are in 1 group, which must stay in one fold."
    assert caught.value.hint.startswith(hint) and "folds.k=" not in caught.value.hint and caught.value.status == 2


def test_leaks_are_named() -> None:
    table = cases(4, group=["p", "p", "q", "q"])
    folds = pandas.DataFrame({"id": table["id"], "fold": [0, 0, 0, 1]})
    with pytest.raises(
        MaskfoldError, match=r"roup q is .*case_002 is in fold 0, and case case_003 is in fold 1"
    ) as error:
        check_leaks(table, folds)
    assert error.value.status == 2
    check_leaks(table, folds.assign(fold=[0, 0, 1, 1]))
    twins = cases(4, image_hash=["1", "2", "3", "1"])
    with pytest.raises(MaskfoldError, match=r"case_000 is in fold 0, and case case_003 is in fold 1"):
        check_leaks(twins, folds)


def by_file(folder: Path, text: str, table: pandas.DataFrame, comp: Competition = COMP) -> dict[str, int]:
    return folds_of(table, comp, scheme="file", file=str(write_text(folder / "folds.csv", text)))


def test_folds_from_a_file(tmp_path: Path) -> None:
    text = "fold,note,id\n1,x,case_001\n0,x,case_000\n\n-1,x,case_002\n-2,x,case_003\n"
    assert by_file(tmp_path, text, cases(4)) == {"case_000": 0, "case_001": 1, "case_002": -1, "case_003": -2}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("id,fold\ncase_000,0\n", "has no row for the case case_001 and 1 more case"),
        ("id,fold\ncase_000,0\ncase_001,1\n\ncase_02,1\ncase_002,0\n", "line 5: no case has the id case_02; nearest"),
        ("id,fold\ncase_000,0\ncase_001,1\ncase_002,0\ncase_000,1\n", "line 5 repeats the id case_000 of line 2"),
        ("id,fold\ncase_000,0\ncase_001,one\ncase_002,0\n", "line 3: invalid fold of the id case_001: found `one`"),
        ("id,fold\ncase_000,0\ncase_001,1.0\ncase_002,0\n", "found `1.0`"),
        ("id,fold\ncase_000,0\ncase_001,-3\ncase_002,0\n", "found `-3`"),
        ("id,fold\ncase_000,0\ncase_001,2\ncase_002,0\n", "found 0, 2"),
        ("id,fold\ncase_000,-1\ncase_001,-1\ncase_002,-1\n", "found -1"),
        ("id,fold\ncase_000,0\ncase_001,0\ncase_002,0\n", "every case in fold 0"),
        ("id,folds\ncase_000,0\n", "has no column `fold`"),
    ],
)
def test_fold_files_that_are_wrong(tmp_path: Path, text: str, wrong: str) -> None:
    with pytest.raises(MaskfoldError) as error:
        by_file(tmp_path, text, cases(3))
    assert wrong in error.value.message and "folds.csv" in error.value.message and error.value.status == 2


def test_fold_file_that_leaks_or_is_missing(tmp_path: Path) -> None:
    table = cases(4, group=["p", "p", "q", "q"])
    with pytest.raises(MaskfoldError, match="roup p is .*case_000 is in fold 0.*case_001 is in fold 1"):
        by_file(tmp_path, "id,fold\ncase_000,0\ncase_001,1\ncase_002,1\ncase_003,1\n", table, comp_with(group="."))
    with pytest.raises(MaskfoldError, match=r"nowhere\.csv does not exist"):
        folds_of(table, scheme="file", file=str(tmp_path / "nowhere.csv"))


def test_computed_strata(tmp_path: Path) -> None:
    """Which classes are there, and in which third the size is; ignored pixels are not foreground."""
    for case_id, one, two in (("a", 0, 0), ("b", 1, 0), ("c", 2, 0), ("d", 9, 0), ("e", 2, 2), ("f", 20, 3)):
        mask = np.zeros((6, 8), np.uint8)
        mask.flat[:one], mask.flat[one : one + two] = 1, 2
        mask[5] = 255
        write_png(tmp_path / f"masks/{case_id}.png", mask)
        write_png(tmp_path / f"images/{case_id}.png", mask + ord(case_id))
    comp = competition(tmp_path, classes=["one", "two"], ignore=255)
    table = case_table(comp)
    found = compute_strata(table, comp)
    assert found.tolist() == ["empty", "10:0", "10:0", "10:2", "11:1", "11:2"]
    overlapping = comp.model_copy(update={"labels": "overlapping"})
    assert compute_strata(table, overlapping).tolist() == found.tolist()
    assert compute_strata(table.assign(stratum="s"), comp.model_copy(update={"stratum": "."})).tolist() == ["s"] * 6
    assert len(split(table, comp, FoldsConfig(scheme="stratified", k=2), 1)) == 6


def test_from_files_to_folds(tmp_path: Path) -> None:
    """Two ids with one picture and two masks."""
    pictures(tmp_path, ["a", "b", "c", "d", "e"])
    (tmp_path / "images/e.png").write_bytes((tmp_path / "images/b.png").read_bytes())
    comp = competition(tmp_path)
    found = split(case_table(comp), comp, FoldsConfig(k=4), 3)
    assert found.attrs == {"duplicates": [["b", "e"]], "conflicting": [["b", "e"]]}
    fold = found.set_index("id")["fold"]
    assert fold["b"] == fold["e"] and fold.nunique() == 4
