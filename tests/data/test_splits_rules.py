"""What a split reads: groups by expressions and tables, strata from masks, and files of folds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from competition.config.competition import Competition
from competition.config.experiment import FoldsConfig
from competition.data.cases import case_table
from competition.data.splits import (
    compute_strata,
    folds_from_file,
    group_values,
    known_groups,
    read_folds,
    split,
    write_folds,
)
from tests.data.test_splits import COMP, cases, comp_with
from tests.data.test_splits_exact import refused
from tests.host import competition, pictures, write_png, write_text

IDS = ["p1_a", "p1_b", "p22_a"]


def by_table(folder: Path, text: str, rule: str = "meta.csv:patient", **columns: Any) -> Competition:
    """A competition whose groups and strata are read from `meta.csv`."""
    write_text(folder / "meta.csv", text)
    comp = competition(folder).model_copy(update={"group": rule, "stratum": "meta.csv:site"})
    train = comp.train.model_copy(update={"columns": comp.train.columns.model_copy(update=columns)})
    return comp.model_copy(update={"train": train})


# Groups by an expression


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (r"^(p\d+)_", ["p1", "p1", "p22"]),  # the first group of the expression
        (r"^p\d+", ["p1", "p1", "p22"]),  # the whole match
        (r"[ab]", ["a", "b", "a"]),  # anywhere in the id
        (r"p(\d)(\d?)", ["1", "1", "2"]),
    ],
)
def test_groups_by_an_expression(rule: str, expected: list[str]) -> None:
    assert group_values(comp_with(group=rule), IDS, "group") == expected
    assert group_values(comp_with(stratum=rule, group="."), IDS, "stratum") == expected


def test_without_a_rule_there_are_no_groups() -> None:
    assert group_values(COMP, IDS, "group") is None
    assert group_values(comp_with(group="."), IDS, "stratum") is None
    assert known_groups(COMP, IDS) == {}


@pytest.mark.parametrize("key", ["group", "stratum"])
def test_errors_of_expressions(key: str) -> None:
    wrong, cure, status = refused(group_values, comp_with(**{key: "(p"}), IDS, key)
    assert f"competition.{key}" in wrong and "`(p`" in wrong and "`file.csv:column`" in cure and status == 2
    # No match, a match of nothing, a match whose group is empty
    for rule, case_id in (("^p1", "p22_a"), ("x*", "p1_a"), ("(x?)p", "p1_a")):
        wrong, cure, status = refused(group_values, comp_with(**{key: rule}), IDS, key)
        assert f"competition.{key} `{rule}`" in wrong and case_id in wrong and key in cure and status == 2


def test_known_groups_leaves_out_ids_without_a_group(tmp_path: Path) -> None:
    assert known_groups(comp_with(group=r"^p\d+"), IDS) == {"p1_a": "p1", "p1_b": "p1", "p22_a": "p22"}
    assert known_groups(comp_with(group=r"^p1"), IDS) == {"p1_a": "p1", "p1_b": "p1"}
    assert known_groups(comp_with(group=r"^q"), ["p1_a"]) == known_groups(comp_with(group="."), []) == {}
    comp = by_table(tmp_path, "id,patient\np1_a,one\np22_a,two\n")
    assert known_groups(comp, IDS) == {"p1_a": "one", "p22_a": "two"}


# Groups by a table


@pytest.mark.parametrize(
    "text",
    [
        "id,patient,site\np22_a,two,s\np1_a,one,t\nother,three,u\np1_b,one,s\n",
        "id,patient,site\np22_a.png,two,s\np1_a.nii.gz,one,t\n\np1_b,one,s\n",
        "id,patient,site\np1_a,one,t\np1_a,one,t\np1_b,one,s\np1_b.png,one,s\np22_a,two,s\n",  # equal rows
        "site,image,patient\nt,p1_a.png,one\ns,p1_b.png,one\ns,p22_a.png,two\n",  # the only column with all ids
        "image,id,patient,site\np1_a,p1_b,one,s\np1_b,p1_a,one,t\np22_a,p22_a,two,s\n",  # `id` comes first
    ],
)
def test_groups_by_a_table(tmp_path: Path, text: str) -> None:
    comp = by_table(tmp_path, text)
    assert group_values(comp, IDS, "group") == ["one", "one", "two"]
    assert group_values(comp, IDS, "stratum") == ["t", "s", "s"]
    assert group_values(comp, [], "group") == []


def test_the_id_column_that_the_yaml_names(tmp_path: Path) -> None:
    text = "a,b,patient\np1,p2,one\np2,p1,two\n"
    assert group_values(by_table(tmp_path, text, id="a"), ["p1", "p2"], "group") == ["one", "two"]
    assert group_values(by_table(tmp_path, text, id="b"), ["p1", "p2"], "group") == ["two", "one"]
    named = by_table(tmp_path, "a,id,patient\np1,p2,one\np2,p1,two\n", id="a")
    assert group_values(named, ["p1", "p2"], "group") == ["two", "one"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a,b,patient\np1_a,p1_a.png,x\np1_b,p1_b,y\np22_a,p22_a,z\n", "a and b"),
        ("a,b,patient\np1_a,p1_b,x\n", "found the columns a, b, patient"),
    ],
)
def test_error_for_no_or_several_id_columns(tmp_path: Path, text: str, named: str) -> None:
    wrong, cure, status = refused(group_values, by_table(tmp_path, text, id="name"), IDS, "group")
    assert str(tmp_path / "meta.csv") in wrong and named in wrong and "p1_a" in wrong
    assert "`id`" in cure and "train.columns.id" in cure and status == 2


def test_error_for_a_missing_table_or_column(tmp_path: Path) -> None:
    text = "id,patient\np1_a,x\n"
    wrong, cure, status = refused(group_values, by_table(tmp_path, text, "meta.csv:patients"), IDS, "group")
    assert "`patients`" in wrong and "competition.group" in cure and "`patient`" in cure and status == 2
    wrong, cure, status = refused(group_values, by_table(tmp_path, text), IDS, "stratum")
    assert "`site`" in wrong and "competition.stratum" in cure and status == 2
    wrong, _, status = refused(group_values, by_table(tmp_path, text, "Other.CSV:patient"), IDS, "group")
    assert str(tmp_path / "Other.CSV") in wrong and status == 2


@pytest.mark.parametrize("second", ["p1_a", "p1_a.png"])
def test_error_for_two_groups_of_one_case(tmp_path: Path, second: str) -> None:
    comp = by_table(tmp_path, f"id,patient\np1_a,one\n\np1_b,one\n{second},two\np22_a,two\n")
    wrong, cure, status = refused(group_values, comp, IDS, "group")
    assert str(tmp_path / "meta.csv") in wrong and f"two values of group for the id {second}" in wrong
    assert wrong.index("one in line 2") < wrong.index("two in line 5") and "rows" in cure and status == 1


@pytest.mark.parametrize("text", ["id,patient\np1_a,one\np22_a,two\n", "id,patient\np1_a,one\np1_b,\np22_a,two\n"])
def test_error_for_a_case_without_a_group(tmp_path: Path, text: str) -> None:
    wrong, cure, status = refused(group_values, by_table(tmp_path, text), IDS, "group")
    assert str(tmp_path / "meta.csv") in wrong and "no value of group for the id p1_b" in wrong and "`patient`" in wrong
    assert "row" in cure and status == 1


# Strata


def masks(folder: Path, *arrays: np.ndarray, **keys: Any) -> tuple[pandas.DataFrame, Competition]:
    """The case table of images 0, 1, … with these masks, and its competition."""
    for number, mask in enumerate(arrays):
        write_png(folder / f"masks/{number}.png", mask)
        write_png(folder / f"images/{number}.png", np.full(mask.shape, number, np.uint8))
    comp = competition(folder, **keys)
    return case_table(comp), comp


def test_thirds_are_of_the_area(tmp_path: Path) -> None:
    """Areas of 1 to 7 pixels have their borders at 3 and 5; small masks lie in a row, large ones in a column."""
    arrays = [np.zeros((8, 8), np.uint8) for _ in range(7)]
    for area, mask in enumerate(arrays, start=1):
        (mask[0] if area < 5 else mask[:, 0])[:area] = 1
    table, comp = masks(tmp_path, *arrays)
    table.index = pandas.RangeIndex(10, 17)
    expected = pandas.Series(["1:0", "1:0", "1:0", "1:1", "1:1", "1:2", "1:2"], index=table.index)
    pandas.testing.assert_series_equal(compute_strata(table, comp), expected, check_index_type=False)


def test_masks_without_foreground_are_one_stratum(tmp_path: Path) -> None:
    table, comp = masks(tmp_path, *(np.zeros((4, 4), np.uint8) for _ in range(3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_strata(table, comp).tolist() == ["empty"] * 3


# Leaks


def test_an_image_in_two_folds_is_named(tmp_path: Path) -> None:
    path = write_text(tmp_path / "folds.csv", "id,fold\ncase_000,0\ncase_001,1\ncase_002,0\n")
    folds = FoldsConfig(scheme="file", file=str(path))
    wrong, cure, status = refused(split, cases(3, image_hash=["1", "1", "2"]), COMP, folds, 1)
    assert wrong.startswith(
        "One image with two ids is in two folds: case case_000 is in fold 0, and case case_001 is in fold 1"
    )
    assert "fold" in cure and status == 2


# Files of folds


def test_folds_are_written_as_the_same_bytes_into_new_folders(tmp_path: Path) -> None:
    folds = pandas.DataFrame({"fold": [0, -2], "id": ["ä", "b,c"], "other": [1, 2]})
    path = tmp_path / "new" / "folder" / "folds.csv"
    for _ in range(2):
        write_folds(folds, str(path))
        assert path.read_bytes() == 'id,fold,group\nä,0,ä\n"b,c",-2,"b,c"\n'.encode()
    assert [one.name for one in path.parent.iterdir()] == ["folds.csv"]


def test_folds_are_read_with_their_types(tmp_path: Path) -> None:
    path = write_text(tmp_path / "folds.csv", "group,id,fold\ng,007,-2\n\n,8,0\n")
    expected = pandas.DataFrame({"id": ["007", "8"], "fold": [-2, 0], "group": ["g", ""]})
    pandas.testing.assert_frame_equal(read_folds(str(path)), expected)


def test_rows_of_excluded_cases_are_ignored(tmp_path: Path) -> None:
    path = write_text(tmp_path / "folds.csv", "id,fold\nc,1\nbad,7\na,0\nb,-1\n")
    assert folds_from_file(path, ["a", "b", "c"], ["bad", "1"]) == [0, -1, 1]
    table = cases(3, id=["a", "b", "c"])
    table.attrs["excluded"] = ["bad"]
    found = split(table, COMP, FoldsConfig(scheme="file", file=str(path)), 1)
    assert found["fold"].tolist() == [0, -1, 1]
    wrong, _, status = refused(folds_from_file, path, ["a", "b", "c"])
    assert "line 3" in wrong and "bad" in wrong and status == 2


def test_rows_of_skipped_and_unselected_cases_are_ignored(tmp_path: Path) -> None:
    pictures(tmp_path, ["a", "b", "c", "d"])
    path = write_text(tmp_path / "folds.csv", "id,fold\na,0\nb,1\nc,0\nd,1\n")
    folds = FoldsConfig(scheme="file", file=str(path))
    (tmp_path / "images" / "d.png").write_bytes(b"broken")
    comp = competition(tmp_path, on_bad_case="skip")
    assert dict(split(case_table(comp), comp, folds, 1)[["id", "fold"]].values) == {"a": 0, "b": 1, "c": 0}
    train = {"images": "images/{id}.png", "masks": "masks/{id}.png", "cases": ["b", "c"]}
    comp = competition(tmp_path, train=train)
    assert dict(split(case_table(comp), comp, folds, 1)[["id", "fold"]].values) == {"b": 1, "c": 0}


def test_one_validated_fold_needs_cases_to_train_on(tmp_path: Path) -> None:
    path = write_text(tmp_path / "folds.csv", "id,fold\na,0\nb,-1\n")
    assert folds_from_file(path, ["a", "b"]) == [0, -1]
    write_text(path, "id,fold\na,0\nb,-2\nc,0\n")
    wrong, cure, status = refused(folds_from_file, path, ["a", "b", "c"])
    assert str(path) in wrong and "fold 0" in wrong and "-1" in cure and status == 2


@pytest.mark.parametrize(
    ("text", "named", "cure"),
    [
        ("id,fold\na,0\nb,1\n", ["{path}", "the case c."], "row"),
        ("id,fold\na,0\n", ["{path}", "the case b and 1 more case."], "row"),
        ("id,fold\na,0\nb,1\nc,1\ndd,1\n", ["{path}", "line 5", "dd"], "id"),
        ("id,fold\na,0\nb,1\n,1\nc,1\n", ["{path}", "line 4 has no id."], "row"),
        ("id,fold\na,0\nb,1\nc,1\nb,0\n", ["{path}", "line 5", "the id b of line 3"], "row"),
        ("id,fold\na,0\nb,X1\nc,1\n", ["{path}", "line 3", "the id b", "`X1`", "-2"], "-1"),
        ("id,fold\na,0\nb,--1\nc,1\n", ["{path}", "line 3", "the id b", "`--1`", "-2"], "-1"),
        ("id,fold\na,0\nb,\nc,1\n", ["{path}", "line 3", "the id b", "``", "-2"], "-1"),
        ("id,fold\na,1\nb,3\nc,-1\n", ["{path}", "-1, 1, 3", "0, 1, 2, …"], "folds"),
        ("id,number\na,1\n", ["{path}", "`fold`"], "`fold`"),
        ("case,fold\na,1\n", ["{path}", "`id`"], "`id`"),
    ],
)
def test_errors_of_fold_files(tmp_path: Path, text: str, named: list[str], cure: str) -> None:
    path = write_text(tmp_path / "folds.csv", text)
    wrong, hint, status = refused(folds_from_file, path, ["a", "b", "c"])
    for part in named:
        assert part.format(path=path) in wrong
    assert cure in hint and status == 2
