"""Region masks of test cases: outside of them, nothing is predicted."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from competition.config.competition import Competition, TestFiles
from competition.data.cases import case_rows, case_table
from competition.ensembling.ensemble import EnsemblePredictor
from competition.errors import MaskfoldError
from competition.inference.predict import Prediction, within_region
from competition.runs.blend import Ensemble
from competition.runs.run import Run
from tests.host import write_png


def within(comp: Competition, run: Run) -> tuple[list[SimpleNamespace], EnsemblePredictor]:
    run = dataclasses.replace(run, exp=run.exp.model_copy(update={"competition": comp}))
    rows = case_rows(case_table(comp, "test"))
    return rows, EnsemblePredictor(Ensemble((run,), (1.0,)), rows[0])


@pytest.mark.parametrize("labels", ["exclusive", "overlapping"])
def test_pixels_outside_the_region_of_a_test_case_are_background(finished, tiny, demo2d, tmp_path, labels):
    run = finished(tiny(2, f"competition.labels={labels}"))
    root = tmp_path / "data"
    shutil.copytree(demo2d, root)
    comp = run.exp.competition.model_copy(update={"root": root})
    rows, plain = within(comp, run)
    regions = {}
    for number, row in enumerate(rows):
        region = np.zeros(json.loads(row.shape), np.uint8)
        region[: 5 + number, 3:] = 255
        regions[row.id] = region
        write_png(root / "regions" / f"{row.id}.png", region)
    test = TestFiles(images=comp.test.images, region="regions/{id}.png")
    comp = comp.model_copy(update={"test": test})
    _, limited = within(comp, run)
    for row in rows:
        before, after, inside = plain.probabilities(row), limited.probabilities(row), regions[row.id] > 0
        np.testing.assert_array_equal(after[:, inside], before[:, inside])
        background = int(labels == "exclusive")
        assert (before[background:, ~inside] > 0).any() and not after[background:, ~inside].any()
        assert not background or (after[0, ~inside] == 1).all()
    (Path(root) / "regions" / f"{rows[0].id}.png").unlink()
    with pytest.raises(MaskfoldError, match=f"Test case {rows[0].id} has no region mask.*regions/") as caught:
        limited.probabilities(rows[0])
    assert "competition.test.region=null" in caught.value.hint


def test_a_test_set_without_regions_keeps_its_yaml():
    assert TestFiles(images="a/{id}.png").model_dump() == {"images": "a/{id}.png"}


def test_out_of_fold_predictions_have_the_same_region(tiny, demo2d, tmp_path):
    comp, root = tiny(2).competition, tmp_path / "data"
    shutil.copytree(demo2d, root)
    for row in case_rows(case_table(comp.model_copy(update={"root": root}), "train")):
        region = np.uint8(np.indices(json.loads(row.shape)).sum(axis=0) < 9)
        write_png(root / "regions" / f"{row.id}.png", region)
    train = comp.train.model_copy(update={"region": "regions/{id}.png"})
    for pattern, outside in (("regions/{id}.png", 0.0), (None, 0.5)):
        test = TestFiles(images=comp.test.images, region=pattern)
        within = comp.model_copy(update={"root": root, "train": train, "test": test})
        row = case_rows(case_table(within, "train"))[0]
        prediction = Prediction(np.full((3, *json.loads(row.shape)), 0.5, np.float16), None)
        found = within_region(prediction, within, row).probabilities
        assert found[1, 0, 0] == 0.5 and (found[1:, 9:, 9:] == outside).all()
        assert (found[0, 9:, 9:] == 1 - outside).all()
