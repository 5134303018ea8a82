"""Fold numbers equal those of scikit-learn and NumPy, and each error names the value and the key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas
import pytest
import sklearn.model_selection
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from competition.config.experiment import FoldsConfig
from competition.data.splits import merge_rare_strata, split
from competition.errors import MaskfoldError
from tests.data.test_splits import COMP, cases, comp_with, folds_of
from tests.sentences import assert_readable

GROUPED = comp_with(group=".", stratum=".")


def refused(work: Callable[..., Any], *args: Any, **more: Any) -> tuple[str, str, int]:
    """The error's message and hint, and its exit status."""
    with pytest.raises(MaskfoldError) as error:
        work(*args, **more)
    assert_readable(error.value)
    return error.value.message, error.value.hint, error.value.status


def numbers_of(parts: Iterator[tuple[Any, Any]], count: int) -> list[int]:
    """The fold that validates each place."""
    numbers = [-9] * count
    for number, (_, validated) in enumerate(parts):
        for place in validated:
            numbers[place] = number
    return numbers


# The numbers


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_kfold_is_scikit_learns_over_the_units(seed: int) -> None:
    expected = numbers_of(KFold(4, shuffle=True, random_state=seed).split(range(11)), 11)
    assert list(folds_of(cases(11), seed=seed, k=4).values()) == expected
    groups = [f"g{index % 5}" for index in range(11)]
    of_group = numbers_of(KFold(3, shuffle=True, random_state=seed).split(range(5)), 5)
    for scheme in ("kfold", "group"):
        found = folds_of(cases(11, group=groups), GROUPED, seed, scheme=scheme, k=3)
        assert list(found.values()) == [of_group[index % 5] for index in range(11)]


@pytest.mark.parametrize(("seed", "as_if"), [(2**32 + 7, 7), (-1, 2**32 - 1), (3 * 2**32, 0)])
@pytest.mark.parametrize("scheme", ["kfold", "stratified", "holdout"])
def test_a_seed_of_any_size(seed: int, as_if: int, scheme: str) -> None:
    table = cases(30, stratum=["a", "b", "c"] * 10)
    assert folds_of(table, GROUPED, seed, scheme=scheme) == folds_of(table, GROUPED, as_if, scheme=scheme)


@pytest.mark.parametrize("seed", [0, 7])
def test_strata_of_single_cases_are_scikit_learns(seed: int) -> None:
    stratum = list("abbcabbcabbcabbbaa")
    parts = StratifiedKFold(3, shuffle=True, random_state=seed).split(range(18), stratum)
    found = folds_of(cases(18, stratum=stratum), GROUPED, seed, scheme="stratified", k=3)
    assert list(found.values()) == numbers_of(parts, 18)


@pytest.mark.parametrize("seed", range(20))
def test_drawn_cases_and_strata_are_split_as_by_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count, k = int(draw.integers(20, 200)), int(draw.integers(2, 9))
    plain = KFold(k, shuffle=True, random_state=seed).split(range(count))
    assert list(folds_of(cases(count), seed=seed, k=k).values()) == numbers_of(plain, count)
    stratum = merge_rare_strata([str(number) for number in draw.poisson(2, count)], k)
    parts = StratifiedKFold(k, shuffle=True, random_state=seed).split(range(count), stratum)
    found = folds_of(cases(count, stratum=stratum), GROUPED, seed, scheme="stratified", k=k)
    assert list(found.values()) == numbers_of(parts, count)


@pytest.mark.parametrize("seed", [0, 7])
def test_strata_of_groups_are_scikit_learns(seed: int) -> None:
    stratum, groups = list("abbcabbcabbcabbbaa"), [f"g{index // 2}" for index in range(18)]
    parts = StratifiedGroupKFold(3, shuffle=True, random_state=seed).split(range(18), stratum, groups)
    expected = numbers_of(parts, 18)
    for scheme in ("stratified", "stratified_group"):
        found = folds_of(cases(18, stratum=stratum, group=groups), GROUPED, seed, scheme=scheme, k=3)
        assert list(found.values()) == expected


def test_one_case_in_each_fold() -> None:
    found = folds_of(cases(3, stratum=["a"] * 3), GROUPED, scheme="stratified", k=3)
    assert sorted(found.values()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("count", "shares", "validated", "held_out"),
    [
        (20, None, 4, 0),
        (13, [0.8, 0.2], 3, 0),
        (7, [0.5, 0.5], 4, 0),
        (20, [0.5, 0.3, 0.2], 6, 4),
        (12, [0.75, 0.125, 0.125], 2, 2),
        (10, [0.7, 0.02, 0.28], 1, 3),
        (10, [0.9, 0.1, 0.0], 1, 0),
        (3, [0.2, 0.4, 0.4], 1, 1),
    ],
)
def test_holdout_is_cut_from_one_permutation(
    count: int, shares: list[float] | None, validated: int, held_out: int
) -> None:
    """The first of NumPy's permutation are validated, the next held out, the others trained on."""
    expected = np.full(count, -1)
    order = np.random.RandomState(5).permutation(count)
    expected[order[:validated]] = 0
    expected[order[validated : validated + held_out]] = -2
    assert list(folds_of(cases(count), seed=5, scheme="holdout", shares=shares).values()) == expected.tolist()


def test_holdout_takes_whole_groups() -> None:
    groups = [f"g{index % 4}" for index in range(10)]
    first, second = np.random.RandomState(5).permutation(4)[:2].tolist()
    expected = {first: 0, second: -2}
    found = folds_of(cases(10, group=groups), GROUPED, 5, scheme="holdout", shares=[0.5, 0.25, 0.25])
    assert list(found.values()) == [expected.get(index % 4, -1) for index in range(10)]


def test_rare_strata_by_hand() -> None:
    assert merge_rare_strata(list("aaabbb"), 3) == ["=a"] * 3 + ["=b"] * 3
    assert merge_rare_strata(list("aaabb"), 3) == ["rare"] * 5  # two are too few for three folds, so the other joins
    assert merge_rare_strata(list("aaabbbccd"), 3) == ["=a"] * 3 + ["=b"] * 3 + ["rare"] * 3
    assert merge_rare_strata(list("bbbaaacccccc"), 4) == ["rare"] * 6 + ["=c"] * 6
    # Of the smallest strata, the first by name is added.
    assert merge_rare_strata(list("ccccbbbaaad"), 3) == ["=c"] * 4 + ["=b"] * 3 + ["rare"] * 4
    assert merge_rare_strata(list("aaabbbbd"), 3) == ["rare"] * 3 + ["=b"] * 4 + ["rare"]  # the smallest joins


def test_the_table_of_folds() -> None:
    """Ids become texts and are sorted as such; the table itself is unchanged."""
    table = cases(4, id=[10, 9, 100, 1], group=["x", "y", "z", "w"])  # type: ignore[list-item]
    before = table.copy()
    found = split(table, GROUPED, FoldsConfig(k=2), 3)
    pandas.testing.assert_frame_equal(table, before)
    assert found.columns.tolist() == ["id", "fold", "group"] and found.index.tolist() == [0, 1, 2, 3]
    assert found["id"].tolist() == ["1", "10", "100", "9"] and found["group"].tolist() == ["w", "x", "z", "y"]
    assert found.attrs == {"duplicates": [], "conflicting": []}


def test_a_leak_is_refused_whatever_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition.data.splits.split_groups", lambda table, _: table["id"].tolist())
    wrong, _, status = refused(folds_of, cases(6, group=["x"] * 3 + ["y"] * 3), GROUPED, k=3)
    assert wrong.startswith("The group x is in two folds") and status == 2


# Errors


@pytest.mark.parametrize("scheme", ["group", "stratified_group"])
def test_error_for_groups_that_are_not_there(scheme: str) -> None:
    wrong, cure, status = refused(folds_of, cases(9), scheme=scheme)
    assert wrong.startswith(f"folds.scheme {scheme} ") and "competition.group" in wrong
    assert "Set competition.group" in cure and status == 2


@pytest.mark.parametrize(
    ("count", "groups", "k", "there", "advice"),
    [
        (4, 4, 5, "4 cases", "Set folds.k=4, or add cases."),
        (1, 1, 2, "1 case", "Add cases."),
        (8, 2, 3, "8 cases in 2 groups", "Set folds.k=2, or add cases."),
        (
            8,
            1,
            2,
            "8 cases are in 1 group",
            "Correct competition.group so that it makes at least 2 groups, or add cases of another group.",
        ),
        (9, 3, 4, "9 cases in 3 groups", "Set folds.k=3, or add cases."),
    ],
)
def test_error_for_too_few_cases(count: int, groups: int, k: int, there: str, advice: str) -> None:
    table = cases(count, group=[f"g{index % groups}" for index in range(count)])
    for scheme in ("kfold", "group", "stratified", "stratified_group"):
        wrong, cure, status = refused(folds_of, table, GROUPED, scheme=scheme, k=k)
        assert f"folds.k: found {k}," in wrong and f" {there}" in wrong
        assert cure == advice and status == 2


@pytest.mark.parametrize("shares", [[1.0, 0.0], [0.0, 1.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
def test_error_for_shares_without_cases(shares: list[float]) -> None:
    wrong, cure, status = refused(folds_of, cases(20), scheme="holdout", shares=shares)
    assert f"folds.shares: found {shares}," in wrong and "[0.8, 0.2]" in cure and status == 2


@pytest.mark.parametrize(
    ("count", "groups", "shares", "there"),
    [
        (2, 2, [0.6, 0.2, 0.2], "2 cases"),
        (1, 1, [0.8, 0.2], "1 case"),
        (1, 1, None, "1 case"),
        (6, 2, [0.6, 0.2, 0.2], "6 cases in 2 groups"),
        (6, 1, [0.8, 0.2], "6 cases in 1 group"),
    ],
)
def test_error_for_shares_of_too_few(count: int, groups: int, shares: list[float] | None, there: str) -> None:
    table = cases(count, group=[f"g{index % groups}" for index in range(count)])
    wrong, cure, status = refused(folds_of, table, GROUPED, scheme="holdout", shares=shares)
    assert wrong.startswith(f"folds.shares {shares or [0.8, 0.2]} ") and f" {there}" in wrong
    assert cure and status == 2


def test_error_for_a_fold_that_is_left_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uneven(StratifiedGroupKFold):
        def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Any, Any]]:
            everything, nothing = np.arange(len(X)), np.array([], int)
            return iter([(nothing, everything), (everything, nothing)])

    monkeypatch.setattr(sklearn.model_selection, "StratifiedGroupKFold", Uneven)
    table = cases(8, group=["x"] * 7 + ["y"], stratum=["s"] * 8)
    wrong, cure, status = refused(folds_of, table, GROUPED, scheme="stratified_group", k=2)
    assert wrong.startswith("Fold 1 of 2 has 0 cases") and "folds.k" in cure and "folds.scheme" in cure and status == 2


def test_only_schemes_of_groups_need_them() -> None:
    for scheme in ("kfold", "stratified", "holdout"):
        assert len(folds_of(cases(10), COMP.model_copy(update={"stratum": "."}), scheme=scheme, k=2)) == 10
