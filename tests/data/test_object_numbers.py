"""Label files whose values number the objects: `train.object_numbers`, and a class of several values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.data.cache import PreprocessedCase
from competition.data.cases import case_rows, case_table, data_hash
from competition.data.masks import load_objects
from competition.data.objects import boundary_mask
from competition.data.preprocessing import preprocess_case
from competition.errors import MaskfoldError
from competition.explore import explore
from competition.explore.cases import count_undeclared_labels
from competition.explore.summary import class_rows
from competition.importing.reading import labels_to_probabilities
from competition.metrics.scoring import score_case
from competition.runs.identity.hashing import drop_keys_without_effect
from tests.data.test_masks import first_mask, one_case
from tests.data.test_preprocessing import experiment
from tests.host import competition, write_png

FILES: dict[str, Any] = {"images": "images/{id}.png", "masks": "masks/{id}.png"}
NUMBERED: dict[str, Any] = {"instances": True, "train": FILES | {"object_numbers": True}}
LISTED: dict[str, Any] = {"instances": True, "label_values": [[1, 2, 300]]}
# Two objects that touch in the first rows, and an object of two parts, one of which touches another object.
TOUCHING = np.array(
    [[1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 300], [300, 300, 0, 0, 0, 0]],
    np.uint16,
)


def objects_of(comp: Competition) -> np.ndarray:
    return load_objects(comp, case_table(comp).iloc[0]).labels


def test_each_number_is_an_object_with_all_its_pixels(tmp_path: Path) -> None:
    one_case(tmp_path, TOUCHING)
    comp = competition(tmp_path, **NUMBERED)
    np.testing.assert_array_equal(first_mask(comp), [TOUCHING > 0])
    objects = load_objects(comp, case_table(comp).iloc[0])
    np.testing.assert_array_equal(objects.labels, np.where(TOUCHING == 300, 3, TOUCHING))
    assert objects.labels.dtype == np.int32 and objects.sizes().tolist() == [9, 9, 3]


def test_without_the_key_objects_are_parts_of_one_value(tmp_path: Path) -> None:
    one_case(tmp_path, TOUCHING)
    objects = load_objects(competition(tmp_path, **LISTED), case_table(competition(tmp_path, **LISTED)).iloc[0])
    assert sorted(objects.sizes().tolist()) == [1, 2, 9, 9]
    two_classes = competition(tmp_path, instances=True, classes=["a", "b"], label_values=[[1, 2], 300])
    assert sorted(load_objects(two_classes, case_table(two_classes).iloc[0]).sizes().tolist()) == [1, 2, 18]


@pytest.mark.parametrize("keys", [NUMBERED, LISTED])
def test_objects_that_touch_have_a_boundary(tmp_path: Path, keys: dict[str, Any]) -> None:
    one_case(tmp_path, TOUCHING[:3])
    edge = boundary_mask(objects_of(competition(tmp_path, **keys)), 1)
    np.testing.assert_array_equal(edge, [[False, False, True, True, False, False]] * 3)


def test_preprocessed_masks_have_the_boundary_and_the_rings_of_each_number(tmp_path: Path) -> None:
    one_case(tmp_path, TOUCHING[:3])
    comp = {"root": str(tmp_path), "classes": ["cell"], **NUMBERED}
    expected = {"boundary": [1, 1, 2, 2, 1, 1], "rings": [3, 2, 1, 1, 2, 3]}
    for key, value in (("boundary", 1), ("rings", 3)):
        exp = experiment(2, comp, **{key: value})
        (row,) = case_rows(case_table(exp.competition))
        case = PreprocessedCase.open(preprocess_case(row, exp, tmp_path / "cache"))
        np.testing.assert_array_equal(case.mask[0, :3, :6], [expected[key]] * 3)


def test_ignored_pixels_and_pixels_outside_the_region_belong_to_no_object(tmp_path: Path) -> None:
    one_case(tmp_path, TOUCHING)
    comp = competition(tmp_path, **NUMBERED, ignore=2)
    np.testing.assert_array_equal(first_mask(comp)[0], np.where(TOUCHING == 2, 255, TOUCHING > 0))
    assert load_objects(comp, case_table(comp).iloc[0]).sizes().tolist() == [9, 3]
    write_png(tmp_path / "region" / "a.png", np.uint8([[1] * 6] * 3 + [[0] * 6] * 2))
    train = NUMBERED["train"] | {"region": "region/{id}.png"}
    assert objects_of(competition(tmp_path, instances=True, train=train)).max() == 2


def test_a_negative_value_has_no_class(tmp_path: Path) -> None:
    from tests.host import write_nifti

    write_nifti(tmp_path / "images" / "a.nii.gz", np.zeros((3, 3, 3), np.int16))
    write_nifti(tmp_path / "masks" / "a.nii.gz", np.full((3, 3, 3), -4, np.int16))
    train = {"images": "images/{id}.nii.gz", "masks": "masks/{id}.nii.gz", "object_numbers": True}
    with pytest.raises(MaskfoldError, match="found -4"):
        first_mask(competition(tmp_path, dimensions=3, instances=True, train=train))


@pytest.mark.parametrize("keys", [NUMBERED, LISTED])
def test_a_prediction_that_merges_objects_scores_less(tmp_path: Path, keys: dict[str, Any]) -> None:
    one_case(tmp_path, TOUCHING[:3])
    comp = competition(tmp_path, **keys, metric={"name": "mean_ap"})
    row = case_table(comp).iloc[0]
    truth, objects = first_mask(comp), load_objects(comp, row)
    merged, separate = (
        score_case(truth == 1, truth, comp, true_instances=objects, predicted_instances=predicted)[0]["score"]
        for predicted in (None, TOUCHING[:3].astype(np.int32))
    )
    assert (merged, separate) == (0.0, 1.0)


def grid_of_objects(numbers: list[int]) -> np.ndarray:
    """Return a mask (uint16) of squares of 3×3 pixels without gaps between them, which have these values."""
    squares = np.zeros((12, 12), np.uint16)
    squares.flat[: len(numbers)] = numbers
    return np.kron(squares, np.ones((3, 3), np.uint16))


def test_explore_counts_the_numbers(tmp_path: Path) -> None:
    for case_id, count in (("a", 140), ("b", 7), ("c", 0)):
        mask = grid_of_objects(list(range(1, count + 1)))
        write_png(tmp_path / "images" / f"{case_id}.png", (mask > 0).astype(np.uint8) * 90)
        write_png(tmp_path / "masks" / f"{case_id}.png", mask)
    comp = competition(tmp_path, **NUMBERED)
    found = explore(comp)
    assert [case.truth.objects[0].tolist() for case in found.cases_of("train") if case.truth is not None] == [
        [9] * 140,
        [9] * 7,
        [],
    ]
    assert class_rows(found)[0][:2] == ["cell", "object numbers"] and class_rows(found)[0][5:7] == ["147", "9"]
    assert not [finding for finding in found.findings if finding.kind in ("objects", "mask")]
    assert count_undeclared_labels(comp, "masks/a.png") == {}


def test_numbered_predictions_of_another_program(tmp_path: Path) -> None:
    probabilities = labels_to_probabilities(TOUCHING, competition(tmp_path, **NUMBERED), Path("a.png"))
    np.testing.assert_array_equal(probabilities, np.stack([TOUCHING == 0, TOUCHING > 0]).astype(np.float32))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["a", "b"]},
        {"instances": False},
        {"label_values": [[1, 2]]},
        {"background": 7},
        {"train": NUMBERED["train"] | {"threshold": 128}},
        {"train": NUMBERED["train"] | {"masks": {"cell": "masks/{id}.png"}}},
        {"train": NUMBERED["train"] | {"masks": "masks/{id}_*.png"}},
        {"train": {"images": "images/{id}.png", "rle": "train.csv", "object_numbers": True}},
    ],
)
def test_object_numbers_that_contradict_other_keys_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"object_numbers|background"):
        competition(tmp_path, **NUMBERED | changes)


def test_only_data_that_are_read_in_another_way_get_another_hash(tmp_path: Path) -> None:
    plain = competition(tmp_path).model_dump(mode="json")
    drop_keys_without_effect(plain)
    assert "object_numbers" not in plain["train"]
    plain = competition(tmp_path, **NUMBERED).model_dump(mode="json")
    drop_keys_without_effect(plain)
    assert plain["train"]["object_numbers"] is True
    one_case(tmp_path, TOUCHING)
    merged = LISTED | {"instances": False}
    plainly, masks, listed, numbered = (
        data_hash(case_table(competition(tmp_path, **keys))) for keys in ({"instances": True}, merged, LISTED, NUMBERED)
    )
    assert plainly == masks and len({masks, listed, numbered}) == 3


def test_a_changed_number_is_a_changed_truth(tmp_path: Path) -> None:
    from competition.data.content.unchanged import load_unchanged_objects
    from competition.errors import ChangedDataError

    one_case(tmp_path, TOUCHING)
    comp = competition(tmp_path, **NUMBERED)
    (row,) = case_rows(case_table(comp))
    assert load_unchanged_objects(comp, row).sizes().tolist() == [9, 9, 3]
    write_png(tmp_path / "masks" / "a.png", np.where(TOUCHING == 2, 1, TOUCHING).astype(np.uint16))
    with pytest.raises(ChangedDataError):
        load_unchanged_objects(comp, row)
