"""Findings about single objects, volumes, whole masks and overlapping classes; the CSV keeps the user's answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from competition.errors import MaskfoldError
from competition.review.findings import EXCHANGED, EXTRA, MISSING, SHIFTED, WRONG_CLASS, Finding
from competition.review.objects import SliceFinding, find_in_slice
from competition.review.search import _search_case, review_run
from competition.review.table import write_review_table
from competition.review.voxels import Rule, count_labels, label_problems
from competition.review.whole import WholeMask, find_exchanged, find_move
from tests.report.conftest import made

__all__ = ["made"]


def disc(shape: tuple[int, ...], centre: tuple[int, ...], radius: float) -> np.ndarray:
    """Return a disc or ball, bool."""
    places = np.indices(shape)
    squares = [(place - middle) ** 2 for place, middle in zip(places, centre, strict=True)]
    return sum(squares) <= radius**2


def compare(truth: np.ndarray, seen: np.ndarray) -> list[SliceFinding]:
    """Compare labels (H, W) with those that a certain network sees."""
    suggested = np.where(seen != truth, seen + 1, 0).astype(np.uint8)
    return find_in_slice(truth, seen, suggested, (suggested > 0).astype(np.float32), 3)


def test_kinds_of_single_objects() -> None:
    shape = (80, 80)
    common = disc(shape, (20, 20), 8) * np.uint8(1)
    one, other = disc(shape, (55, 50), 9), disc(shape, (55, 60), 9)
    missing = compare(common, np.where(one, 2, common).astype(np.uint8))
    assert [(found.kind, found.suggested, found.centre) for found in missing] == [(MISSING, 2, (55, 50))]
    extra = compare(np.where(one, 1, common).astype(np.uint8), common)
    assert [(found.kind, found.label, found.object) for found in extra] == [(EXTRA, 1, 2)]
    wrong = compare(np.where(one, 1, common).astype(np.uint8), np.where(one, 2, common).astype(np.uint8))
    assert [(found.kind, found.label, found.suggested) for found in wrong] == [(WRONG_CLASS, 1, 2)]
    labels = np.where(disc(shape, (8, 70), 3), 2, np.where(disc(shape, (50, 40), 22), 1, 0)).astype(np.uint8)
    part = compare(labels, np.where(disc(shape, (50, 40), 4), 2, labels).astype(np.uint8))
    assert [(found.kind, found.label, found.suggested, found.object) for found in part] == [(WRONG_CLASS, 1, 2, 1)]
    moved = compare(np.where(one, 2, common).astype(np.uint8), np.where(other, 2, common).astype(np.uint8))
    assert [(found.kind, found.label, found.move) for found in moved] == [(SHIFTED, 2, (0, 10))]
    thin = compare(common, (disc(shape, (20, 20), 9) * 1).astype(np.uint8))
    assert thin == [], "an outline that differs by a pixel is no finding"


def test_whole_masks() -> None:
    rng = np.random.default_rng(0)
    places = [tuple(rng.integers(14, 66, 2)) for _ in range(10)]
    first, second = (
        sum(disc((80, 80), place, 6) * 1 for place in part).clip(0, 1).astype(np.uint8)
        for part in (places[:5], places[5:])
    )
    moved = np.roll(first, (9, -7), (0, 1))
    assert find_move(WholeMask.reduce("a", moved, first))[0] == (-9, 7)  # type: ignore[index]
    assert find_move(WholeMask.reduce("a", first, first)) is None
    assert find_move(WholeMask.reduce("a", np.zeros_like(first), first)) is None
    pair = [WholeMask.reduce("a", second, first), WholeMask.reduce("b", first, second)]
    assert find_exchanged(pair) == {"a": "b", "b": "a"}
    assert find_exchanged([WholeMask.reduce("a", first, first), WholeMask.reduce("b", second, second)]) == {}


def test_a_large_volume_is_reduced_before_it_is_moved() -> None:
    ball = disc((150, 40, 30), (70, 20, 15), 9).astype(np.uint8)
    mask = WholeMask.reduce("a", np.roll(ball, 24, 0), ball)
    assert max(mask.truth.shape) <= 64
    (move, dice) = find_move(mask)  # type: ignore[misc]
    assert move == (-24, 0, 0) and dice > 0.95


def test_thresholds_and_ignored_pixels() -> None:
    labels = np.array([[0, 0, 1, 1, 255]], np.uint8)
    probability = np.array([[0.1, 0.9, 0.9, 0.7, 0.9]], np.float32)
    both = np.stack([1 - probability, probability])
    rule = Rule.fit(count_labels(lambda part: both[:, part], labels, 2))
    assert rule.thresholds == pytest.approx((0.5, 0.8))
    _, suggested, evidence = rule.suspects(lambda part: both[:, part], labels)
    assert suggested.tolist() == [[0, 2, 0, 0, 0]] and (evidence[suggested == 0] == 0).all()


def test_overlapping_classes_are_judged_one_by_one() -> None:
    comp: Any = SimpleNamespace(labels="overlapping", classes=["a", "b"])
    truth = np.array([[[1, 0]], [[1, 255]]], np.uint8)
    found = list(label_problems(np.full((2, 1, 2), 0.25, np.float16), truth, comp))
    assert [names for names, _, _ in found] == [("background", "a"), ("background", "b")]
    assert [labels.tolist() for _, _, labels in found] == [[[1, 0]], [[1, 255]]]
    assert found[0][1](slice(0, 1)).tolist() == [[[0.75, 0.75]], [[0.25, 0.25]]]


def test_a_volume_gives_one_finding_for_an_object_in_many_slices(
    made: Callable[..., Any], tiny: Callable[..., Any]
) -> None:
    from competition.data.cases import case_table

    exp = tiny(3)
    case = case_table(exp.competition)["id"].iloc[0]
    place: list[tuple[int, ...]] = []

    def predict(truth: np.ndarray, row: Any, generator: np.random.Generator) -> np.ndarray:
        from scipy.ndimage import distance_transform_edt

        labels = truth[0].copy()
        if row.id == case:  # the network is certain of one more object
            centre = np.unravel_index(
                distance_transform_edt(np.pad(labels == 0, 1))[1:-1, 1:-1, 1:-1].argmax(), labels.shape
            )
            place.append(tuple(int(one) for one in centre))
            labels[disc(labels.shape, place[0], 4)] = 1
        planes = np.stack([labels == number for number in range(exp.output_channels)]).astype(np.float32)
        return (0.02 + 0.94 * planes).astype(np.float16)

    review = review_run(made(exp, predict=predict))
    (found,) = review.findings
    assert (found.id, found.kind, found.suggested) == (case, MISSING, exp.competition.classes[0])
    assert found.slice is not None and abs(found.slice - place[0][2]) <= 1 and found.pixels > 150
    assert np.abs(np.subtract(found.centre, place[0][:2])).max() <= 1


def test_the_place_of_a_whole_mask_is_in_its_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slice has most evidence in two objects; the single object with most evidence is in another slice."""
    truth = np.zeros((1, 40, 40, 4), np.uint8)
    truth[0, 2:12, 2:12, 1], truth[0, 28:38, 28:38, 1], truth[0, 18:30, 5:17, 3] = 1, 1, 1
    monkeypatch.setattr("competition.review.search.load_unchanged_mask", lambda comp, row: truth)
    comp: Any = SimpleNamespace(labels="overlapping", classes=["a"])
    oof: Any = SimpleNamespace(read=lambda case: np.zeros(truth.shape, np.float16))
    rule = Rule((0.5, 0.5), np.tile(np.linspace(0, 1, 61, dtype=np.float32), (2, 1)))
    case, _ = _search_case(oof, SimpleNamespace(id="x"), [rule], [np.array([1.0, 100.0])], comp)
    assert case.whole.slice == 1 and case.whole.centre in ((6, 6), (32, 32))


def test_the_table_keeps_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    findings = [
        Finding("a", MISSING, 0.9, "x"),
        Finding("b", EXTRA, 0.8, "x"),
        Finding("b", SHIFTED, 0.7, move=(1, -2)),
    ]
    assert write_review_table(findings, path) == 0
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert table["kind"].tolist() == [MISSING, EXTRA, SHIFTED] and table["move"].tolist() == ["", "", "1 -2"]
    table.loc[2, "exclude"], table.loc[0, "weight"] = "x", "0.5"
    table.to_csv(path, index=False)
    assert write_review_table([findings[1], Finding("c", EXCHANGED, 0.5, partner="d")], path) == 2
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert table[["id", "exclude", "weight"]].values.tolist() == [["b", "x", ""], ["c", "", ""], ["a", "", "0.5"]]
    (tmp_path / "other.csv").write_text("id\n1\n")
    with pytest.raises(MaskfoldError, match="it is not the CSV of a review"):
        write_review_table(findings, tmp_path / "other.csv")
