"""Label files in which the background is not 0: `competition.background`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.errors import MaskfoldError
from competition.explore.cases import count_undeclared_labels
from competition.importing.reading import labels_to_probabilities
from competition.postprocessing.case import CasePrediction
from competition.runs.identity.hashing import drop_keys_without_effect
from competition.submission.label_files import label_arrays
from tests.data.test_masks import first_mask, one_case
from tests.host import competition

LABELS = np.array([[1, 2, 2, 2], [3, 2, 2, 1]], np.uint8)
TRIMAP: dict[str, Any] = {"classes": ["animal", "rim"], "label_values": [1, 3], "background": 2}
CLASSES = [[1, 0, 0, 0], [2, 0, 0, 1]]


def test_the_background_has_no_class(tmp_path: Path) -> None:
    one_case(tmp_path, LABELS)
    comp = competition(tmp_path, **TRIMAP)
    np.testing.assert_array_equal(first_mask(comp), [CLASSES])
    assert count_undeclared_labels(comp, "masks/a.png") == {}


def test_0_is_a_class_or_ignored_if_the_background_is_another_value(tmp_path: Path) -> None:
    one_case(tmp_path, np.array([[255, 128], [0, 255]], np.uint8))
    comp = competition(tmp_path, classes=["disc", "cup"], label_values=[128, 0], background=255)
    np.testing.assert_array_equal(first_mask(comp), [[[0, 1], [2, 0]]])
    comp = competition(tmp_path, classes=["disc"], label_values=[128], background=255, ignore=0)
    np.testing.assert_array_equal(first_mask(comp), [[[0, 1], [255, 0]]])
    with pytest.raises(MaskfoldError, match="no class: found 0"):
        first_mask(competition(tmp_path, classes=["disc"], label_values=[128], background=255))


def test_written_label_files_have_the_same_background(tmp_path: Path) -> None:
    comp = competition(tmp_path, **TRIMAP)
    masks = np.stack([np.array(CLASSES) == value for value in (1, 2)])
    prediction = CasePrediction(masks, None)
    np.testing.assert_array_equal(label_arrays(prediction, comp)[""], LABELS)


def test_predictions_of_another_program_have_the_same_background(tmp_path: Path) -> None:
    probabilities = labels_to_probabilities(LABELS, competition(tmp_path, **TRIMAP), Path("a.png"))
    np.testing.assert_array_equal(probabilities.argmax(axis=0), CLASSES)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_values": [1, 2]},
        {"ignore": 2},
        {"labels": "overlapping"},
        {"instances": True},
        {"train": {"images": "{id}.png", "masks": {"animal": "a/{id}.png", "rim": "b/{id}.png"}}},
    ],
)
def test_a_background_that_contradicts_other_keys_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"label_values|ignore|background"):
        competition(tmp_path, **TRIMAP | changes)


def test_the_default_leaves_old_hashes_valid(tmp_path: Path) -> None:
    plain = competition(tmp_path).model_dump(mode="json")
    drop_keys_without_effect(plain)
    assert "background" not in plain
    plain = competition(tmp_path, **TRIMAP).model_dump(mode="json")
    drop_keys_without_effect(plain)
    assert plain["background"] == 2
