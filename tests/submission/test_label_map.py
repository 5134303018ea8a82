"""`maskfold predict --label-map`: regions within regions in one label file, as BraTS stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.errors import MaskfoldError
from competition.postprocessing.case import CasePrediction
from competition.submission.label_files import label_arrays, region_values, submission_labels
from tests.host import competition, write_nifti

BRATS: dict[str, Any] = {
    "dimensions": 3,
    "classes": ["whole", "core", "enhancing"],
    "labels": "overlapping",
    "label_values": [[1, 2, 4], [1, 4], 4],
    "train": {"images": "i/{id}.nii.gz", "masks": "m/{id}.nii.gz"},
}


def predicted(masks: np.ndarray) -> CasePrediction:
    return CasePrediction(masks.astype(bool), None)


def test_a_label_map_of_regions_is_read_as_it_was_written(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 2, 4], (5, 6, 7)).astype(np.uint8)
    write_nifti(tmp_path / "i/a.nii.gz", labels.astype(np.int16))
    write_nifti(tmp_path / "m/a.nii.gz", labels)
    comp = competition(tmp_path, **BRATS)

    row = next(case_table(comp).itertuples(index=False))
    arrays = label_arrays(predicted(load_mask(comp, row)), comp, label_map=True)
    assert list(arrays) == [""] and arrays[""].dtype == np.uint8 and np.array_equal(arrays[""], labels)
    assert list(label_arrays(predicted(load_mask(comp, row)), comp)) == comp.classes


def test_an_inner_region_outside_of_the_outer_one_is_drawn(tmp_path: Path) -> None:
    comp = competition(tmp_path, **BRATS)
    masks = np.zeros((3, 1, 1, 2))
    masks[2, 0, 0, 1] = 1
    assert label_arrays(predicted(masks), comp, label_map=True)[""].tolist() == [[[0, 4]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1, 2, 4], [1, 4], 4], {0: 2, 1: 1, 2: 4}),
        ([4, [1, 4], [1, 2, 4]], {2: 2, 1: 1, 0: 4}),
        ([[1, 2, 3], 2, 3], {0: 1, 1: 2, 2: 3}),
        ([5, 6, 7], {0: 5, 1: 6, 2: 7}),
        ([[1, 2], [2, 3], 4], "whole and core share label values"),
        ([[1, 2], [1, 2], 4], "whole and core have the same label values"),
        ([[1, 2], 1, 2], "class whole must have exactly one label value .* found no such value"),
        ([[1, 2, 3], 3, 4], "class whole must have exactly one label value .* found 1, 2"),
    ],
)
def test_the_values_of_regions(tmp_path: Path, values: list[Any], expected: Any) -> None:
    comp: Competition = competition(tmp_path, **{**BRATS, "label_values": values})
    if isinstance(expected, dict):
        assert list(region_values(comp).items()) == list(expected.items())
        return
    with pytest.raises(MaskfoldError, match=expected) as caught:
        region_values(comp)
    assert caught.value.status == 2 and "--label-map" in caught.value.hint


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=["largest first", "smallest first"])
def test_the_values_that_the_host_wants_keep_the_order_of_the_regions(tmp_path: Path, order: list[int]) -> None:
    """`submission.labels` has one value per class, which does not show which class contains which."""
    keys = {key: [BRATS[key][index] for index in order] for key in ("classes", "label_values")}
    wanted = [[30, 20, 10][index] for index in order]
    comp = competition(tmp_path, **{**BRATS, **keys, "submission": {"files": "{id}.nii.gz", "labels": wanted}})
    masks = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]])[order].reshape(3, 1, 1, 4)
    assert submission_labels(predicted(masks), comp).tolist() == [[[30, 20, 10, 0]]]


@pytest.mark.parametrize("labels", ["exclusive", "overlapping"])
def test_the_objects_of_a_single_class_fit_into_one_file(tmp_path: Path, labels: str) -> None:
    keys: dict[str, Any] = {"dimensions": 2, "classes": ["cell"], "labels": labels, "instances": True}
    train = {"images": "i/{id}.png", "masks": "m/{id}.png"}
    comp = competition(tmp_path, **keys, train=train, submission={"files": "{id}.png"})
    prediction = CasePrediction(np.array([[[True, False, True]]]), None)
    assert submission_labels(prediction, comp).tolist() == [[1, 0, 2]]
