"""Stored predictions belong to the weights that made them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.records import write_json
from competition.runs.fold import RESULT_FILE
from competition.runs.oof import OofStore
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.lineage import check_initial_weights


def record_weights(run, fold):
    """Write the digest of a fold's weights into its result and its predictions, as training does."""
    folder = run.member_folder(fold, 0)
    digest = sha256_of_file(folder / "weights.safetensors")
    plain = json.loads((folder / RESULT_FILE).read_text())
    plain["digests"]["weights.safetensors"] = digest
    write_json(folder / RESULT_FILE, plain)
    store = OofStore(folder / "oof", weights=digest)
    for case in OofStore(folder / "oof").ids():
        store.write(case, OofStore(folder / "oof").read(case))


def test_predictions_of_other_weights_are_refused(tmp_path):
    values = np.zeros((2, 4, 4), np.float16)
    OofStore(tmp_path, weights="a" * 64).write("x", values)
    assert OofStore(tmp_path, weights="a" * 64).read("x").shape == values.shape
    assert OofStore(tmp_path).read("x").shape == values.shape, "without a known digest nothing is compared"
    with pytest.raises(MaskfoldError, match="other weights") as caught:
        OofStore(tmp_path, weights="b" * 64).read("x")
    assert RESULT_FILE in caught.value.hint and "oof and test" in caught.value.hint


def test_predictions_without_a_digest_stay_readable(tmp_path):
    OofStore(tmp_path).write("x", np.zeros((2, 4, 4), np.float16))
    assert OofStore(tmp_path, weights="b" * 64).read("x").shape == (2, 4, 4)


def test_a_fold_whose_predictions_came_from_elsewhere_is_refused(finished, tiny):
    run = finished(tiny(2))
    for fold in run.fold_numbers():
        record_weights(run, fold)
    case = run.oof().stores[0][0].ids()[0]
    assert run.oof().read(case) is not None
    path = run.oof().stores[0][0].path(case)
    OofStore(path.parent, weights="c" * 64).write(case, run.oof().read(case))
    with pytest.raises(MaskfoldError, match="other weights"):
        run.oof().read(case)


def test_exchanged_weights_are_noticed_when_predictions_are_read(finished, tiny):
    run = finished(tiny(2))
    for fold in run.fold_numbers():
        record_weights(run, fold)
    first, second = (run.member_folder(fold, 0) / "weights.safetensors" for fold in (0, 1))
    shutil.copy(second, first)
    with pytest.raises(MaskfoldError, match="changed after the fold had finished") as caught:
        run.oof()
    assert "oof" in caught.value.hint
    run.oof((1,))
    Path(first).unlink()
    assert run.oof().fold_of, "a run whose weights were deleted to save space stays readable"


def test_a_run_does_not_start_from_exchanged_weights(finished, tiny):
    """Fold 1's network was trained on the cases that fold 0 validates; the cases in the lineage are those of fold 0."""
    source = finished(tiny(2), "source")
    for fold in source.fold_numbers():
        record_weights(source, fold)
    run = open_run(tiny(2, f"init_from={source.folder}"), "tiny")
    job = make_jobs(run)[0]
    assert job.fold == 0
    weights = source.member_folder(0, 0) / "weights.safetensors"
    assert check_initial_weights(source.folder, job, run) == weights
    shutil.copy(source.member_folder(1, 0) / "weights.safetensors", weights)
    with pytest.raises(MaskfoldError, match=r"fold_0/weights\.safetensors was changed after the fold had finished"):
        check_initial_weights(source.folder, job, run)
    with pytest.raises(MaskfoldError, match="was changed after the fold had finished"):
        prepare_run(run)
    plain = json.loads((weights.parent / RESULT_FILE).read_text())
    write_json(weights.parent / RESULT_FILE, {**plain, "digests": {}})
    assert check_initial_weights(source.folder, job, run) == weights, "a result of an older version has no digest"
