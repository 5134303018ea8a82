"""Steps by class: the probabilities a step uses, its effect on objects, the order of steps, and the cache."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.config.postprocess import LabelOrdering, PostprocessConfig, Step, StepConfig
from competition.errors import MaskfoldError
from competition.postprocessing import mask_operations as steps
from competition.postprocessing.case import CasePrediction, CaseProbabilities, ClassMask
from competition.postprocessing.pipeline import apply_ordering, apply_step, drop_passing_gates, postprocess, run_steps
from competition.postprocessing.steps import Split, Triplet
from tests.host import competition, write_nifti
from tests.sentences import assert_readable

EXCLUSIVE, OVERLAPPING = "exclusive", "overlapping"


def comp_of(*classes: str, labels: str = EXCLUSIVE, instances: bool = False, **more: Any) -> Competition:
    return competition(Path("."), classes=list(classes), labels=labels, instances=instances, **more)


def picture(*rows: str) -> np.ndarray:
    """Digits from characters, 0 for a dot."""
    return np.array([[0 if one == "." else int(one) for one in row] for row in rows], np.int32)


def mask_of(*rows: str) -> np.ndarray:
    return picture(*rows) != 0


def shares(*planes: tuple[str, ...]) -> np.ndarray:
    """Probabilities in tenths, float16, one tuple of rows for each channel."""
    return (np.stack([picture(*rows) for rows in planes]) / 10).astype(np.float16)


def sure(mask: np.ndarray) -> CaseProbabilities:
    """Probabilities of one overlapping class, 1 in a mask and 0 outside."""
    return CaseProbabilities(mask[None].astype(np.float16), comp_of("a", labels=OVERLAPPING))


def same(found: np.ndarray | None, expected: np.ndarray, kind: Any) -> None:
    assert found is not None and found.dtype == kind
    np.testing.assert_array_equal(found, expected)


TWO = mask_of("1...", ".1..", "...1")  # components of 8 neighbours: the diagonal pair, and the last pixel
NUMBERS = picture("1...", ".1..", "...2")


# What was found, and what is looked at


def test_objects_are_components_until_a_step_makes_them() -> None:
    same(ClassMask(TWO).labels(), NUMBERS, np.int32)
    made = picture("7...", ".4..", "...4")
    assert ClassMask(TWO, made).labels() is made


@pytest.mark.parametrize(("labels", "first"), [(EXCLUSIVE, 1), (OVERLAPPING, 0)])
def test_a_classs_channel_comes_after_the_background(labels: str, first: int) -> None:
    comp = comp_of("a", "b", labels=labels)
    values = shares(("12",), ("34",), ("56",))[: first + 2]
    evidence = CaseProbabilities(values, comp)
    assert not evidence.has_boundary and evidence.class_probabilities is values
    for index in (0, 1):
        same(evidence.probability(index), values[first + index], np.float16)
        same(evidence.interior(index), values[first + index], np.float16)


def test_the_boundary_belongs_to_the_objects_but_not_to_their_insides() -> None:
    comp = comp_of("a", "b", instances=True)
    evidence = CaseProbabilities(
        shares(("31",), ("42",), ("23",), ("24",))[:, 0].astype(np.float32)[:, None], comp
    )  # last: boundary
    assert evidence.has_boundary
    # First pixel: 0.1 … of the boundary goes to the classes in the proportion 4 : 2, then 2 : 3.
    np.testing.assert_allclose(evidence.probability(0), [[0.4 + 0.2 * 4 / 6, 0.2 + 0.4 * 2 / 5]], rtol=1e-3)
    np.testing.assert_allclose(evidence.probability(1), [[0.2 + 0.2 * 2 / 6, 0.3 + 0.4 * 3 / 5]], rtol=1e-3)
    np.testing.assert_allclose(evidence.interior(0), [[0.4, 0.2]], rtol=1e-3)
    np.testing.assert_allclose(evidence.interior(1), [[0.2, 0.3]], rtol=1e-3)


def test_above_a_threshold_by_hand() -> None:
    """Of equal classes the first wins; background and overlapping classes do not compete."""
    rows = [("66330",), ("22345",), ("23345",), ("22330",)]  # the background, then a, b and c
    values = shares(*rows)
    evidence = CaseProbabilities(values, comp_of("a", "b", "c"))
    assert evidence.above_threshold(0, 0.1).tolist() == [[True, False, True, True, True]]
    assert evidence.above_threshold(1, 0.1).tolist() == [[False, True, False, False, False]]
    assert not evidence.above_threshold(2, 0.1).any()
    assert evidence.above_threshold(0, 0.35).tolist() == [[False, False, False, True, True]]
    overlapping = CaseProbabilities(values[1:], comp_of("a", "b", "c", labels=OVERLAPPING))
    assert overlapping.above_threshold(2, 0.1).tolist() == [[True, True, True, True, False]]
    assert overlapping.above_threshold(0, 0.35).tolist() == [[False, False, False, True, True]]


def test_a_threshold_itself_is_not_above_it() -> None:
    evidence = CaseProbabilities(np.array([[[0.25, 0.5, 0.75]]], np.float16), comp_of("a", labels=OVERLAPPING))
    assert evidence.above_threshold(0, 0.5).tolist() == [[False, False, True]]


@pytest.mark.parametrize("seed", range(3))
def test_above_is_what_a_plain_loop_finds(seed: int) -> None:
    values = np.random.default_rng(seed).choice([0.0, 0.25, 0.5, 0.75], (5, 6, 7)).astype(np.float16)
    before = values.copy()
    evidence = CaseProbabilities(values, comp_of("a", "b", "c", "d"))
    for index in range(4):
        expected = np.zeros((6, 7), bool)
        for place in np.ndindex(6, 7):
            mine = [float(value) for value in values[(slice(1, None), *place)]]
            expected[place] = mine[index] > 0.25 and max(range(4), key=lambda one: mine[one]) == index
        same(evidence.above_threshold(index, 0.25), expected, np.bool_)
    np.testing.assert_array_equal(values, before)


def test_an_outcomes_objects_one_at_a_time() -> None:
    masks = np.stack([np.zeros_like(TWO), TWO])
    found = list(CasePrediction(masks, None).object_masks(1))
    assert [one.tolist() for one in found] == [(number == NUMBERS).tolist() for number in (1, 2)]
    assert list(CasePrediction(masks, None).object_masks(0)) == []
    objects = np.stack([picture("5...", ".2..", "...5"), NUMBERS])
    made = list(CasePrediction(masks, objects).object_masks(0))
    assert [one.tolist() for one in made] == [(objects[0] == number).tolist() for number in (2, 5)]
    assert all(one.dtype == np.bool_ for one in found + made)


# Classes by their order


def spine() -> tuple[np.ndarray, Competition, PostprocessConfig]:
    """Two blocks along the last axis; the network labels both b, with a slightly higher probability than a."""
    comp = comp_of("a", "b", dimensions=3)
    values = np.zeros((3, 4, 4, 12), np.float16)
    values[0] = 1
    for low in (1, 7):
        values[:, 1:3, 1:3, low : low + 4] = np.array([0, 0.25, 0.75], np.float16)[:, None, None, None]
    return values, comp, PostprocessConfig(number=LabelOrdering(along="S", classes=["a", "b"]))


def lying(affine: np.ndarray | None) -> Any:
    """A row as for an image in memory."""
    return SimpleNamespace(id="case_7", image=SimpleNamespace(affine=affine))


@pytest.mark.parametrize(("up", "first"), [(1.0, 7), (-1.0, 1)])
def test_number_names_the_objects_before_any_step(up: float, first: int) -> None:
    """Class a is the uppermost block in the orientation of the affine."""
    values, comp, settings = spine()
    row = lying(np.diag([1.0, 1.0, up, 1.0]))
    expected = np.zeros((2, 4, 4, 12), bool)
    expected[0, 1:3, 1:3, first : first + 4] = True
    expected[1, 1:3, 1:3, 8 - first : 12 - first] = True
    evidence = apply_ordering(values, comp, settings, row)
    assert evidence.comp is comp
    same(evidence.masks, expected, np.bool_)
    same(postprocess(values, comp, settings, row).masks, expected, np.bool_)
    assert not CaseProbabilities(values, comp).masks[0].any()


def test_a_row_of_the_case_table_lies_as_its_first_image_below_the_root(tmp_path: Path) -> None:
    values, comp, settings = spine()
    write_nifti(tmp_path / "scans/x.nii", np.zeros((4, 4, 12), np.int16), np.diag([1.0, 1.0, -1.0, 1.0]))
    row = SimpleNamespace(id="x", images='{"scan": "scans/x.nii", "other": "nowhere.nii"}')
    rooted = comp.model_copy(update={"root": str(tmp_path)})
    assert apply_ordering(values, rooted, settings, row).masks[0, 1:3, 1:3, 1:5].all()


def test_number_needs_to_know_how_the_patient_lies() -> None:
    values, comp, settings = spine()
    with pytest.raises(MaskfoldError, match=r"case case_7 has no affine"):
        apply_ordering(values, comp, settings, lying(None))


def test_without_number_nothing_is_asked_of_the_row() -> None:
    values, comp, _ = spine()
    evidence = apply_ordering(values, comp, PostprocessConfig(), object())
    assert evidence.probabilities is values and evidence.comp is comp


# Each step


def test_threshold_makes_the_mask_anew() -> None:
    values = shares(("631",), ("243",), ("236",))
    evidence = CaseProbabilities(values, comp_of("a", "b"))
    found = apply_step(
        ClassMask(np.ones((1, 3), bool), np.ones((1, 3), np.int32)), StepConfig(threshold=0.1), evidence, 1
    )
    assert found.mask.tolist() == [[False, False, True]] and found.objects is None
    assert apply_step(found, StepConfig(threshold=0.3), evidence, 0).mask.tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("high", "pixels", "low", "expected"),
    [
        (0.65, 2, 0.25, [[True, True, True, False, False]]),  # the last pixel but one is 0.4, where b is 0.5
        (0.65, 3, 0.25, [[False] * 5]),
        (0.75, 2, 0.25, [[False] * 5]),
        (0.65, 2, 0.35, [[True, False, True, False, False]]),
    ],
)
def test_triplet_looks_at_its_own_class_only(high: float, pixels: int, low: float, expected: list) -> None:
    values = shares(("00000",), ("73842",), ("22259",))
    evidence = CaseProbabilities(values, comp_of("a", "b"))
    step = StepConfig(triplet=Triplet(high=high, pixels=pixels, low=low))
    found = apply_step(ClassMask(np.ones((1, 5), bool), np.ones((1, 5), np.int32)), step, evidence, 0)
    assert found.mask.tolist() == expected and found.objects is None


SPUR = mask_of("1111...", "111111.", "1111...", "1111...")
OPEN = mask_of("1111...", "11111..", "1111...", "1111...")  # the disk's tip fits into the spur's first pixel


def test_open_cuts_objects_too_and_keeps_their_numbers() -> None:
    plain = apply_step(ClassMask(SPUR), StepConfig(open=1), sure(SPUR), 0)
    same(plain.mask, OPEN, np.bool_)
    assert plain.objects is None
    objects = picture("3366...", "336666.", "3366...", "3366...")
    cut = apply_step(ClassMask(SPUR, objects), StepConfig(open=1), sure(SPUR), 0)
    same(cut.mask, OPEN, np.bool_)
    same(cut.objects, picture("3366...", "33666..", "3366...", "3366..."), np.int32)
    assert objects[1, 5] == 6
    five = np.pad(np.ones((5, 5), bool), 3)
    assert apply_step(ClassMask(five), StepConfig(open=2), sure(five), 0).mask.sum() == 13  # the disk itself
    assert not apply_step(ClassMask(five), StepConfig(open=3), sure(five), 0).mask.any()


def test_close_makes_a_mask_whose_objects_are_its_components() -> None:
    gap = mask_of("........", ".111111.", ".11.111.", ".111111.", "........")
    found = apply_step(ClassMask(gap, gap.astype(np.int32)), StepConfig(close=1), sure(gap), 0)
    same(found.mask, mask_of("........", ".111111.", ".111111.", ".111111.", "........"), np.bool_)
    assert found.objects is None


def test_holes_of_a_mask_and_of_objects() -> None:
    rings = picture("111222", "1.112.", "111222")  # a hole in object 1, and a bay in object 2
    found = apply_step(ClassMask(rings != 0), StepConfig(fill_holes=True), sure(rings != 0), 0)
    same(found.mask, mask_of("111111", "11111.", "111111"), np.bool_)
    assert found.objects is None
    between = picture("1122.", "1..2.", "1122.")  # both objects are around it: it stays
    one = picture("111..", "1.1.3", "111..")
    for objects, expected in ((between, between), (one, picture("111..", "111.3", "111.."))):
        filled = apply_step(ClassMask(objects != 0, objects), StepConfig(fill_holes=True), sure(objects != 0), 0)
        same(filled.objects, expected, np.int32)
        same(filled.mask, expected != 0, np.bool_)


def test_small_components_and_small_objects_go() -> None:
    mask = mask_of("11.1.11", "11...1.")  # of 4, 1 and 3 pixels
    found = apply_step(ClassMask(mask), StepConfig(remove_small=3), sure(mask), 0)
    same(found.mask, mask_of("11...11", "11...1."), np.bool_)
    assert found.objects is None
    objects = picture("12.3.44", "12...4.")  # the first component is two objects
    left = apply_step(ClassMask(mask, objects), StepConfig(remove_small=2), sure(mask), 0)
    same(left.objects, picture("12...33", "12...3."), np.int32)
    same(left.mask, mask_of("11...11", "11...1."), np.bool_)
    assert apply_step(ClassMask(mask, objects), StepConfig(remove_small=3), sure(mask), 0).mask.sum() == 3


def test_components_and_objects_with_a_low_mean_probability_go() -> None:
    mask = mask_of("11.22", "11.22")
    values = shares(("99.66", "88.66"))  # means 0.85 and 0.6
    evidence = CaseProbabilities(values, comp_of("a", labels=OVERLAPPING))
    for value, columns in ((0.55, "11.11"), (0.7, "11..."), (0.9, ".....")):
        found = apply_step(ClassMask(mask), StepConfig(remove_uncertain=value), evidence, 0)
        same(found.mask, mask_of(columns, columns), np.bool_)
        assert found.objects is None
    objects = picture("34.55", "34.55")  # the first component is two objects with means of 0.85 each
    left = apply_step(ClassMask(mask, objects), StepConfig(remove_uncertain=0.7), evidence, 0)
    same(left.objects, picture("34...", "34..."), np.int32)


def test_the_largest_stay_with_the_objects_in_them() -> None:
    mask = mask_of("11.1.11", "11...1.")
    same(
        apply_step(ClassMask(mask), StepConfig(keep_largest=2), sure(mask), 0).mask,
        mask_of("11...11", "11...1."),
        np.bool_,
    )
    objects = picture("12.3.44", "12...4.")
    found = apply_step(ClassMask(mask, objects), StepConfig(keep_largest=1), sure(mask), 0)
    same(found.mask, mask_of("11.....", "11....."), np.bool_)
    same(found.objects, picture("12.....", "12....."), np.int32)


def test_split_by_the_boundary_class() -> None:
    """Two halves that only their boundary separates; a third seed is too small, or below the level."""
    whole = np.ones((3, 7), bool)
    values = shares(("0000000",) * 3, ("9981899",) * 3, ("1127211",) * 3)
    values[1:, 1, 3] = [0.6, 0.4]  # one surer pixel on the border
    evidence = CaseProbabilities(values, comp_of("a", instances=True))
    parted = apply_step(ClassMask(whole), StepConfig(split=Split(boundary=0.65, smallest=4)), evidence, 0)
    assert parted.objects is not None and parted.objects.max() == 2
    same(parted.mask, whole, np.bool_)
    assert set(parted.objects[:, :3].ravel()) == {1} and set(parted.objects[:, 4:].ravel()) == {2}
    for boundary, smallest, count in ((0.5, 4, 1), (0.65, 10, 1), (0.85, 4, 2), (0.85, 7, 1), (0.95, 1, 1)):
        step = StepConfig(split=Split(boundary=boundary, smallest=smallest))
        found = apply_step(ClassMask(whole), step, evidence, 0)
        assert found.objects is not None and found.objects.max() == count
    one = mask_of("111....", "111....", "111....")
    same(apply_step(ClassMask(one), StepConfig(split=Split(boundary=0.65)), evidence, 0).objects, one, np.int32)


def test_split_by_the_boundary_class_and_the_distance() -> None:
    whole = np.ones((3, 7), bool)
    values = shares(("0000000",) * 3, ("9983899",) * 3, ("1127211",) * 3)
    evidence = CaseProbabilities(values, comp_of("a", instances=True))
    for depth, count in ((0.6, 2), (2.5, 1)):
        step = StepConfig(split=Split(boundary=0.5, depth=depth, smooth=0))
        found = apply_step(ClassMask(whole), step, evidence, 0)
        assert found.objects is not None and found.objects.max() == count
        same(found.mask, whole, np.bool_)


def test_split_by_the_distance() -> None:
    rows, columns = np.ogrid[:24, :40]
    discs = ((rows - 12) ** 2 + (columns - 11) ** 2 <= 64) | ((rows - 12) ** 2 + (columns - 26) ** 2 <= 64)
    found = apply_step(ClassMask(discs), StepConfig(split=Split(distance=1.0)), sure(discs), 0)
    assert found.objects is not None and found.objects.max() == 2 and found.objects[12, 11] != found.objects[12, 26]
    same(found.mask, discs, np.bool_)
    same(apply_step(ClassMask(discs), StepConfig(split=Split(distance=20.0)), sure(discs), 0).objects, discs, np.int32)


def test_how_split_by_the_distance_is_smoothed() -> None:
    noise = steps.binary_opening(np.random.default_rng(4).random((40, 50)) > 0.25, 1)
    counts = set()
    for smooth, depth in ((0.0, 0.5), (0.0, 1.0), (1.0, 0.5)):
        found = apply_step(ClassMask(noise), StepConfig(split=Split(distance=depth, smooth=smooth)), sure(noise), 0)
        same(found.objects, steps.split_distance(noise, smooth, depth), np.int32)
        assert found.objects is not None
        counts.add(int(found.objects.max()))
    assert len(counts) == 3


def gated(values: np.ndarray, *gates: Any) -> CaseProbabilities:
    """Probabilities of two overlapping classes, with the presence of each: a number, or one per column."""
    gate = np.array([np.atleast_2d(one) for one in gates], np.float32)
    return CaseProbabilities(values, comp_of("a", "b", labels=OVERLAPPING), gate)


def test_a_gate_is_open_from_its_threshold_on_for_its_own_class() -> None:
    evidence = gated(shares(("99",), ("99",)), 0.25, 0.75)
    assert [evidence.present(0, value).tolist() for value in (0.2, 0.25, 0.3)] == [[[True]], [[True]], [[False]]]
    assert evidence.present(1, 0.3).tolist() == [[True]]
    none = sure(TWO)
    with pytest.raises(MaskfoldError) as caught:
        apply_step(ClassMask(TWO), StepConfig(gate=0.5), none, 0)
    assert caught.value.message == "The step `gate` requires a presence head, but the network of this run has none."
    assert (
        caught.value.hint
        == "Remove `gate` from postprocess.steps, or use a run that was trained with the section `gate`."
    )


def test_the_step_gate_empties_a_class_or_some_of_its_slices() -> None:
    values = shares(("9999", "9..9"), ("9999", "9..9"))
    objects = picture("1111", "2..2")
    found = ClassMask(objects != 0, objects)
    whole = gated(values, 0.25, 0.75)
    assert apply_step(found, StepConfig(gate=0.5), whole, 1) is found  # open everywhere: as it was
    shut = apply_step(found, StepConfig(gate=0.5), whole, 0)
    same(shut.mask, np.zeros((2, 4), bool), np.bool_)
    same(shut.objects, np.zeros((2, 4), np.int32), np.int32)
    sliced = apply_step(found, StepConfig(gate=0.5), gated(values, [0.9, 0.1, 0.9, 0.5], [0.0] * 4), 0)
    same(sliced.mask, mask_of("1.11", "1..1"), np.bool_)
    same(sliced.objects, picture("1.11", "2..2"), np.int32)


def test_steps_beside_gates() -> None:
    steps_of = [StepConfig(threshold=0.5), StepConfig(gate=0.2), StepConfig(gate=0.6), StepConfig(remove_small=2)]
    evidence = gated(shares(("9999",), ("9999",)), [0.9, 0.9, 0.5, 0.9], [0.1, 0.3, 0.1, 0.1])
    assert drop_passing_gates(evidence, 0, steps_of) == (
        steps_of[0],
        steps_of[2],
        steps_of[3],
    )  # 0.2 lets everything pass
    assert drop_passing_gates(evidence, 1, steps_of) is None  # 0.6 nothing, though 0.2 lets some of it
    assert drop_passing_gates(evidence, 1, steps_of[:2]) == tuple(steps_of[:2])
    assert drop_passing_gates(sure(TWO), 0, steps_of[:1]) == (steps_of[0],)  # no gate is asked for


def test_what_a_gate_leaves_is_not_kept() -> None:
    done: dict[tuple[StepConfig, ...], ClassMask] = {}
    evidence = gated(shares(("99.9",), ("9999",)), [0.9, 0.1, 0.9, 0.9], 4 * [0.9])
    found = run_steps(evidence, 0, [StepConfig(threshold=0.5), StepConfig(gate=0.5), SMALL], done)
    assert not found.mask.any()  # cut in single pixels, and those are small
    assert [len(known) for known in done] == [1, 3]


def test_a_case_is_held_against_its_gate() -> None:
    values, gate = shares(("99",), ("99",)), np.array([[[0.25]], [[0.75]]], np.float32)
    comp, settings = comp_of("a", "b", labels=OVERLAPPING), PostprocessConfig(steps=[StepConfig(gate=0.5)])
    assert postprocess(values, comp, settings, presence=gate).masks.tolist() == [[[False, False]], [[True, True]]]
    assert apply_ordering(values, comp, settings, presence=gate).presence is gate


def test_a_step_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="melt"):
        StepConfig(melt=1)


class Returning(Step):
    """A user's own step that returns one object, whatever it is given."""

    result: Any

    def apply(self, current: ClassMask, case: CaseProbabilities, index: int) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (TWO, "ndarray"),
        (None, "NoneType"),
        (ClassMask(TWO.astype(np.uint8)), "uint8 (3, 4)"),
        (ClassMask(TWO[:2]), "bool (2, 4)"),
        (ClassMask(TWO[:2].astype(np.float32)), "float32 (2, 4)"),
    ],
)
def test_a_step_that_returns_no_mask_of_the_shape(result: Any, found: str) -> None:
    step = StepConfig.of("my.steps.Returning", Returning(result=result))
    with pytest.raises(MaskfoldError) as error:
        apply_step(ClassMask(TWO), step, sure(TWO), 0)
    assert_readable(error.value)
    for part in ("my.steps.Returning", f"returned {found},", "bool", "(3, 4)"):
        assert part in error.value.message
    assert "`apply` of Returning" in error.value.hint and error.value.status == 1
    right = ClassMask(~TWO)
    assert apply_step(ClassMask(TWO), StepConfig.of("my", Returning(result=right)), sure(TWO), 0).mask is right.mask


# Several steps

SPECK = mask_of("........", ".11.111.", ".11.111.", ".11.111.", "........", "1......1")
SMALL, CLOSE, LARGEST = StepConfig(remove_small=2), StepConfig(close=1), StepConfig(keep_largest=1)


def test_steps_are_taken_in_their_order() -> None:
    evidence = sure(mask_of("11.11", ".....", "1....", "....."))
    assert run_steps(evidence, 0, ()).mask is not None
    same(run_steps(evidence, 0, []).mask, evidence.masks[0], np.bool_)
    one = run_steps(evidence, 0, [StepConfig(keep_largest=2), StepConfig(remove_small=2)])
    same(one.mask, mask_of("11.11", ".....", ".....", "....."), np.bool_)
    three = picture("111.1", ".....", "11...", ".....")
    by_threshold = [StepConfig(threshold=0.5), StepConfig(keep_largest=2), StepConfig(remove_small=3)]
    same(run_steps(sure(three != 0), 0, by_threshold).mask, mask_of("111..", ".....", ".....", "....."), np.bool_)
    gapped = mask_of(".......", ".11.11.", ".11.11.", ".11.11.", ".......", "1......")  # 6 + 6 pixels, or 14
    first = run_steps(sure(gapped), 0, [StepConfig(close=2), StepConfig(remove_small=13)])
    second = run_steps(sure(gapped), 0, [StepConfig(remove_small=13), StepConfig(close=2)])
    assert first.mask[2, 3] and first.mask.any() and not second.mask.any()


def test_the_class_is_the_one_that_was_asked_for() -> None:
    values = shares(("91",), ("19",))
    evidence = CaseProbabilities(values, comp_of("a", "b", labels=OVERLAPPING))
    assert run_steps(evidence, 0, ()).mask.tolist() == [[True, False]]
    assert run_steps(evidence, 1, ()).mask.tolist() == [[False, True]]
    assert run_steps(evidence, 1, (StepConfig(threshold=0.5),)).mask.tolist() == [[False, True]]


def test_results_are_kept_by_the_steps_that_led_to_them() -> None:
    evidence = sure(SPECK)
    done: dict[tuple[StepConfig, ...], ClassMask] = {}
    found = run_steps(evidence, 0, [SMALL, CLOSE, LARGEST], done)
    assert list(done) == [(SMALL,), (SMALL, CLOSE), (SMALL, CLOSE, LARGEST)]
    assert done[SMALL, CLOSE, LARGEST] is found
    same(done[SMALL,].mask, SPECK & (np.arange(6) < 5)[:, None], np.bool_)
    again = run_steps(evidence, 0, (SMALL, CLOSE, LARGEST), done)
    assert again is found and len(done) == 3


def test_the_longest_known_beginning_is_gone_on_from() -> None:
    """The cache is wrong on purpose, so that its use shows in the result."""
    short, long = ClassMask(np.zeros((6, 8), bool)), ClassMask(mask_of(*["........"] * 4, "11......", "...1...."))
    done = {(SMALL,): short, (SMALL, CLOSE): long, (CLOSE,): short}
    found = run_steps(sure(SPECK), 0, (SMALL, CLOSE, LARGEST), done)
    same(found.mask, mask_of(*["........"] * 4, "11......", "........"), np.bool_)
    assert set(done) == {(SMALL,), (SMALL, CLOSE), (CLOSE,), (SMALL, CLOSE, LARGEST)}
    assert run_steps(sure(SPECK), 0, (SMALL,), done) is short
    assert not run_steps(sure(SPECK), 0, (SMALL, LARGEST), done).mask.any()


# A case


def test_without_steps_it_is_argmax_or_a_half() -> None:
    values = shares(("631",), ("243",), ("236",))
    found = postprocess(values, comp_of("a", "b"), PostprocessConfig())
    same(found.masks, np.array([[[False, True, False]], [[False, False, True]]]), np.bool_)
    assert found.objects is None
    found = postprocess(values, comp_of("a", "b", "c", labels=OVERLAPPING), PostprocessConfig())
    assert found.masks[:, 0].tolist() == [[True, False, False], [False] * 3, [False, False, True]]


def test_each_class_has_its_own_steps() -> None:
    values = np.stack([SPECK, SPECK, SPECK]).astype(np.float16)
    settings = PostprocessConfig(steps={"b": [StepConfig(keep_largest=1)], "c": [StepConfig(remove_small=2)]})
    found = postprocess(values, comp_of("a", "b", "c", labels=OVERLAPPING), settings)
    assert found.masks.sum(axis=(1, 2)).tolist() == [17, 9, 15] and found.objects is None
    every = postprocess(
        values, comp_of("a", "b", "c", labels=OVERLAPPING), PostprocessConfig(steps=[StepConfig(keep_largest=1)])
    )
    assert every.masks.sum(axis=(1, 2)).tolist() == [9, 9, 9]


def test_of_overlapping_classes_the_most_probable_keeps_a_pixel() -> None:
    values = shares(("96880",), ("79890",), ("77960",))
    comp = comp_of("a", "b", "c", labels=OVERLAPPING)
    plain = postprocess(values, comp, PostprocessConfig())
    assert plain.masks.sum() == 12
    found = postprocess(values, comp, PostprocessConfig(forbid_overlap=True))
    assert found.masks[:, 0].astype(int).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]
    assert found.objects is None


def test_objects_of_all_classes_where_one_has_made_some() -> None:
    """A class without a step that makes objects is labelled by its components; removed pixels leave their object."""
    left, right = mask_of("1.111", "1.1..", "....."), mask_of("1..1.", ".....", "1..1.")
    values = np.stack([left * 0.75, right * 1.0]).astype(np.float16)
    comp = comp_of("a", "b", labels=OVERLAPPING, instances=True)
    steps_ = {"a": [StepConfig(split=Split(distance=1.0))]}
    found = postprocess(values, comp, PostprocessConfig(steps=steps_))
    same(found.masks, np.stack([left, right]), np.bool_)
    same(found.objects, np.stack([picture("1.222", "1.2..", "....."), picture("1..2.", ".....", "3..4.")]), np.int32)
    apart = postprocess(values, comp, PostprocessConfig(steps=steps_, forbid_overlap=True))
    same(apart.masks, np.stack([mask_of("..1.1", "1.1..", "....."), right]), np.bool_)
    same(apart.objects, np.stack([picture("..2.2", "1.2..", "....."), picture("1..2.", ".....", "3..4.")]), np.int32)
    assert [int(one.sum()) for one in apart.object_masks(0)] == [1, 3]
