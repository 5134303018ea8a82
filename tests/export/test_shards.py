"""Prediction of a bundle in several processes."""

from __future__ import annotations

import os
from concurrent.futures import Future
from functools import partial
from multiprocessing import active_children
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from competition.errors import MaskfoldError
from competition.export import runtime, runtime_prediction
from competition.export.runtime_prediction import (
    BundlePrediction,
    PredictionOptions,
    assign_shards,
    collect,
    parse_devices,
    save_result,
)
from competition.postprocessing.case import CasePrediction
from competition.rle_text import RleError
from competition.submission.submit import submit
from tests.export.bundles import run_bundle
from tests.export.shards import die_as_second_shard, do_nothing, fail_as_second_shard, hang, tell_environment


@pytest.mark.parametrize("seed", range(20))
def test_every_case_is_dealt_once_and_evenly(seed):
    generator = np.random.default_rng(seed)
    sizes, shards = generator.integers(1, 100, int(generator.integers(4, 40))).tolist(), int(generator.integers(1, 5))
    hands = assign_shards(sizes, shards)
    assert sorted(place for hand in hands for place in hand) == list(range(len(sizes)))
    loads = [sum(sizes[place] for place in hand) for hand in hands]
    assert min(map(len, hands)) >= 1 and max(loads) - min(loads) <= max(sizes)


def test_devices_are_named_numbered_or_found(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_devices("auto") == parse_devices("2") == parse_devices("cuda:0,cuda:1") == ["cuda:0", "cuda:1"]
    assert parse_devices("1") == ["cuda:0"] and parse_devices("cpu,cpu") == ["cpu", "cpu"]
    for wrong in ("3", "0", "cuda:2", "gpu", "cuda", ""):
        with pytest.raises(MaskfoldError) as refused:
            parse_devices(wrong)
        assert refused.value.status == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert parse_devices("auto") == ["auto"]


def test_masks_objects_and_probabilities_come_back_in_order(tmp_path):
    generator = np.random.default_rng(0)
    rows = [SimpleNamespace(id=str(place), shape="[3, 5]") for place in range(4)]
    sent = [
        BundlePrediction(
            row,
            CasePrediction(
                generator.random((2, 3, 5)) > 0.5, None if place % 2 else generator.integers(0, 4, (2, 3, 5), np.int32)
            ),
            generator.random((2, 3, 5)).astype(np.float16) if place > 1 else None,
            place != 3,
        )
        for place, row in enumerate(rows)
    ]
    for place in (3, 1, 0, 2):
        save_result(tmp_path, place, sent[place])
    found = list(collect(do_nothing, ["cpu", "cpu"], rows, [1] * 4, tmp_path, False, None))
    for one, other in zip(sent, found, strict=True):
        assert one.row is other.row and one.reached == other.reached
        np.testing.assert_array_equal(one.outcome.masks, other.outcome.masks)
        for mine, back in ((one.outcome.objects, other.outcome.objects), (one.probabilities, other.probabilities)):
            assert (mine is None) == (back is None) and (
                mine is None or (np.array_equal(mine, back) and mine.dtype == back.dtype)
            )
    assert not list(tmp_path.glob("*.npz"))


def test_each_process_gets_its_own_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    rows = [SimpleNamespace(id=str(place)) for place in range(2)]
    tell = partial(tell_environment, tmp_path)
    with pytest.raises(MaskfoldError, match="case 0 ended before"):
        list(collect(tell, ["cuda:0", "cuda:1"], rows, [1, 1], tmp_path, False, None))
    seen = {path.read_text() for path in tmp_path.glob("seen*")}
    assert seen <= {"4  cuda:0", "7  cuda:0"} and seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_processes_of_the_cpu_share_its_threads(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    tell = partial(tell_environment, tmp_path)
    with pytest.raises(MaskfoldError, match="ended before"):
        list(collect(tell, ["cpu", "cpu"], [SimpleNamespace(id="0")], [1], tmp_path, False, None))
    assert {path.read_text() for path in tmp_path.glob("seen*")} <= {" 3 cpu"} and "OMP_NUM_THREADS" not in os.environ


def test_an_error_of_a_process_arrives_complete_and_the_others_end(tmp_path):
    rows = [SimpleNamespace(id=f"case{place}") for place in range(2)]
    with pytest.raises(RleError) as caught:
        list(collect(fail_as_second_shard, ["cpu", "cpu"], rows, [1, 2], tmp_path, False, None))
    assert (caught.value.message, caught.value.hint) == ("case.png is damaged.", "Replace the file.")
    assert caught.value.status == 2 and not active_children()


def test_a_process_that_the_kernel_kills_is_an_error(tmp_path):
    rows = [SimpleNamespace(id=f"case{place}") for place in range(2)]
    with pytest.raises(
        MaskfoldError, match="predicted test cases was killed, probably because memory ran out"
    ) as caught:
        list(collect(die_as_second_shard, ["cpu", "cpu"], rows, [1, 2], tmp_path, False, None))
    assert "--devices" in caught.value.hint and not active_children()


def test_a_process_that_hangs_is_killed_at_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr("competition.export.runtime_prediction.GRACE_SECONDS", 0.0)
    rows = [SimpleNamespace(id=f"case{place}") for place in range(2)]
    assert list(collect(hang, ["cpu", "cpu"], rows, [1, 2], tmp_path, False, 0.0)) == [None, None]
    assert not active_children()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["volumes", "objects"])
def test_two_processes_write_the_very_same_file(finished, tiny, nuclei, bundled, tmp_path, kind):
    run = finished(
        tiny(3) if kind == "volumes" else nuclei("postprocess.steps=[{split: {distance: 1.0}}]"), "demo-tiny"
    )
    done = submit([run], output=tmp_path / "submit.csv")
    assert run_bundle(bundled([run]), run.exp.competition.root, tmp_path / "x.csv", "--devices", "cpu,cpu") == 0
    assert (tmp_path / "x.csv").read_bytes() == done.path.read_bytes()


class PoolHere:
    """A process pool that runs its only task at once, in this process."""

    def __init__(self, *_: object) -> None:
        self.future: Future[None] = Future()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, task, *arguments):
        try:
            self.future.set_result(task(None, *arguments))
        except MaskfoldError as error:
            self.future.set_exception(error)
        return self.future

    def result(self, future):
        return future.result()


@pytest.mark.parametrize(
    ("bad", "go_on"), [("1", True), ("1", False), ("012", True)], ids=["go on", "stop", "every case"]
)
def test_a_process_whose_cases_all_fail_does_not_end_the_others(tmp_path, monkeypatch, bad, go_on):
    """With `--go-on`, only an error of every case of every process ends the command."""
    rows = [SimpleNamespace(id=name, shape="[2, 3]") for name in "012"]
    comp = SimpleNamespace(classes=["a"])
    found = SimpleNamespace(test_set=SimpleNamespace(rows=rows, comp=comp, profile=SimpleNamespace(confidence=False)))

    def predict(_bundle, rows, _confidence, _folder, options, _say):
        failed = [row for row in rows if row.id in bad]
        for row in rows:
            if row in failed and ((row == rows[-1] and failed == rows) or not options.continue_on_error):
                raise MaskfoldError(f"{row.id} is damaged.", "Replace the file.")
            masks = np.full((1, 2, 3), row not in failed)
            yield BundlePrediction(row, CasePrediction(masks, None), None, row not in failed)

    monkeypatch.setattr(runtime_prediction, "ProcessPool", PoolHere)
    monkeypatch.setattr(runtime, "predict_cases", predict)
    monkeypatch.setattr(runtime, "_read_bundle", lambda *_: SimpleNamespace(ensemble=SimpleNamespace(comp=comp)))
    options = PredictionOptions(continue_on_error=go_on)
    predictions = runtime._predict_in_processes(tmp_path, found, options, ["cpu", "cpu"], None, tmp_path)
    if bad == "1" and go_on:
        assert [(one.row.id, one.reached) for one in predictions] == [("0", True), ("1", False), ("2", True)]
        return
    with pytest.raises(MaskfoldError, match="[12] is damaged"):
        list(predictions)
