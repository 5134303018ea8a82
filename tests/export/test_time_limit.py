"""The time limit: the order in which networks are dropped, no change if time suffices, and a file in any case."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from competition.context import Context
from competition.export import runtime_prediction, time_limit
from competition.export.runtime_cases import Bundle, find_test_cases
from competition.export.time_limit import DegradableEnsemble, EffortLevel, TimeBudget, effort_levels
from competition.inference.tta import count_passes
from competition.submission.submit import submit
from tests.export.bundles import run_bundle


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_tta_goes_first_and_then_the_lightest_network_one_by_one():
    # Weight per network: 0.6 / 3 = 0.2 and 0.4 / 2 = 0.2 are equal, so the later run's last network goes. Then 0.2
    # and 0.4, then 0.3 and 0.4, so the first run's second; then 0.6 and 0.4.
    assert effort_levels([0.6, 0.4], [3, 2], [8, 1]) == [
        EffortLevel(True, (3, 2)),
        EffortLevel(False, (3, 2)),
        EffortLevel(False, (3, 1)),
        EffortLevel(False, (2, 1)),
        EffortLevel(False, (1, 1)),
        EffortLevel(False, (1, 0)),
    ]
    assert effort_levels([0.1, 0.9], [2, 2], [1, 1]) == [
        EffortLevel(True, (2, 2)),
        EffortLevel(True, (1, 2)),
        EffortLevel(True, (0, 2)),
        EffortLevel(True, (0, 1)),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_ladder_goes_down_by_one_network_to_one(seed):
    generator = np.random.default_rng(seed)
    runs = int(generator.integers(1, 5))
    networks, weights = generator.integers(1, 6, runs).tolist(), generator.random(runs) + 0.01
    rungs = effort_levels(weights.tolist(), networks, [1] * runs)
    assert rungs[0].networks == tuple(networks) and sum(rungs[-1].networks) == 1
    for one, other in pairwise(rungs):
        lost = [run for run in range(runs) if one.networks[run] != other.networks[run]]
        assert len(lost) == 1 and one.networks[lost[0]] - other.networks[lost[0]] == 1
        each = [weights[run] / one.networks[run] for run in range(runs) if one.networks[run]]
        assert weights[lost[0]] / one.networks[lost[0]] == pytest.approx(min(each))


def simulate(limit, cost, sizes, weights=(0.5, 0.5), networks=(5, 5), views=(4, 4), prepare=1.0):
    """Cases whose time is known: `cost` seconds a pass and voxel."""
    clock = Clock()
    watch = TimeBudget(effort_levels(weights, networks, views), views, sizes, limit, clock.now, clock)
    rungs, lines = [], []
    for size in sizes:
        if watch.is_over():
            break
        rungs.append(watch.level)
        each = [count * size * cost for count in watch.level.passes(views)]
        clock.now += sum(each) + prepare
        lines += watch.record(sum(each) + prepare, each)
    return rungs, lines, clock.now - 1000


def test_nothing_is_left_out_where_time_suffices():
    rungs, lines, used = simulate(limit=1000, cost=0.1, sizes=[1] * 100)  # 40 passes: 5 s a case, 500 s in all
    assert set(rungs) == {EffortLevel(True, (5, 5))} and lines == [] and used == pytest.approx(500)
    assert simulate(limit=None, cost=100.0, sizes=[1] * 5)[1] == []


def test_tta_goes_after_the_first_cases_and_suffices():
    rungs, lines, used = simulate(limit=300, cost=0.1, sizes=[1] * 100)  # without TTA 2 s a case
    assert rungs[:3] == [EffortLevel(True, (5, 5))] * 3 and set(rungs[3:]) == {EffortLevel(False, (5, 5))}
    assert used < 300 and len(rungs) == 100
    assert (
        "3 of 100 cases" in lines[0]
        and lines[1] == "time limit: the remaining cases are predicted without test-time augmentation"
        and len(lines) == 2
    )


def test_networks_follow_as_few_as_it_takes():
    rungs, lines, used = simulate(limit=200, cost=0.1, sizes=[1] * 100)
    assert len(rungs) == 100 and used <= 200 * 0.98
    # By hand: 15 s are used, 181 s are left for 97 cases with a margin of 1.15: 1.62 s each, 1 s of it preprocessing:
    # 6 passes.
    assert sum(rungs[3].networks) == 6 and not rungs[3].tta
    assert "6 of 10 networks (per run: 3, 3)" in lines[-1]


def test_cases_that_grow_are_noticed_later():
    sizes = [1] * 20 + [1] * 20
    clock = Clock()
    watch = TimeBudget(effort_levels((1.0,), (5,), (1,)), (1,), sizes, 100.0, clock.now, clock)
    for number in range(40):
        seconds = (0.3 if number < 20 else 1.5) * watch.level.passes((1,))[0]  # the device slows down
        clock.now += seconds
        watch.record(seconds, [seconds])
        if number == 19:
            assert watch.level_index == 0
    assert watch.level_index > 0 and clock.now - 1000 < 100


def test_large_cases_still_to_come_count_by_their_size():
    rungs, _, _ = simulate(limit=100, cost=0.1, sizes=[1] * 5 + [20] * 5, views=(1, 1), prepare=0.0)
    assert rungs[2].networks == (5, 5) and sum(rungs[3].networks) < 10  # 100 voxels of 1 s each are to come


def test_what_cannot_fit_is_said():
    rungs, lines, _ = simulate(limit=20, cost=0.1, sizes=[1] * 50)
    assert sum(rungs[-1].networks) == 1 and len(rungs) < 50
    assert lines[-1].endswith("cases that are not reached get empty masks")


@pytest.fixture
def timed(finished, tiny, bundled, tmp_path, monkeypatch):
    """Predicts a bundle whose every network call takes a second of an injected clock."""
    runs = [
        finished(tiny(2, "inference.tta=[flip]", "augment.flip=[0]"), "demo-one"),
        finished(tiny(2, "seed=2", "inference.tta=[]"), "demo-two", seed=1),
    ]
    folder, clock = bundled(runs, weights=[0.75, 0.25]), Clock()
    looked = []

    def slow(self, case):
        from competition.inference.tta import tta_views

        count = len(self.networks.networks) * len(tta_views(self.networks.run.exp))
        looked.append((self.networks.run.folder.name, len(self.networks.networks), count))
        self.seconds += count
        clock.now += count
        return self.networks.predict(case)

    monkeypatch.setattr(time_limit.TimedNetworks, "predict", slow)

    def go(limit):
        looked.clear()
        bundle, lines = Bundle.read(folder, runs[0].exp.competition.root, "cpu"), []
        found = find_test_cases(bundle.ensemble.comp, "", Context(say=lines.append))
        rows = [*found.test_set.rows] * 4  # 12 cases of 6 s: 2 networks × 2 views + 2 networks
        order = runtime_prediction.PredictionOptions(limit, clock.now, clock=clock)
        return (
            list(runtime_prediction.predict_cases(bundle, rows, False, tmp_path, order, lines.append)),
            lines,
            list(looked),
        )

    return go


def test_an_ensemble_without_parts_of_it_predicts_as_told(timed):
    whole, lines, _ = timed(None)
    assert lines == [] and len(whole) == 12 and all(one.reached for one in whole)
    ample, lines, _ = timed(1000)
    assert lines == [] and all(
        np.array_equal(one.outcome.masks, other.outcome.masks) for one, other in zip(whole, ample, strict=True)
    )
    # By hand: 60.8 s count. After two cases, 12 s, the others would take 60 s (69 with the margin); without TTA 40
    # (46).
    _, lines, looked = timed(62)
    assert [count for *_, count in looked[:4]] == [4, 2] * 2 and [count for *_, count in looked[4:]] == [2, 2] * 10
    assert lines[1:] == ["time limit: the remaining cases are predicted without test-time augmentation"]
    # 29.4 s count. After one case 23.4 are left for 11: one network, of the run with the higher weight, takes 12.7 with
    # the margin, two take 25.3.
    least, lines, looked = timed(30)
    assert [(kept, count) for _, kept, count in looked[2:]] == [(1, 1)] * 11 and all(one.reached for one in least)
    assert len({name for name, *_ in looked[2:]}) == 1
    assert lines[1:] == [
        "time limit: the remaining cases are predicted without test-time augmentation",
        "time limit: the remaining cases are predicted with 1 of 4 networks (per run: 1, 0)",
    ]


def test_cases_beyond_the_deadline_are_empty_and_counted(timed):
    found, lines, _ = timed(12)  # 11.76 s: a case of 6 s, five of 1 s, and one more that is begun before the end
    assert [one.reached for one in found] == [True] * 7 + [False] * 5
    assert (
        lines[-1] == "time limit: the time is over; cases with empty masks: 5 of 12"
        and "may still be too short" in lines[-2]
    )
    assert not any(one.outcome.masks.any() for one in found if not one.reached)


def test_a_deadline_that_has_passed_still_gives_a_valid_file(finished, tiny, bundled, tmp_path, capsys):
    run = finished(tiny(2))
    assert run_bundle(bundled([run]), run.exp.competition.root, tmp_path / "x.csv", "--hours", "1e-7") == 0
    with open(tmp_path / "x.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert len(rows) == 1 + 3 * 2 and all(row[2] == "" for row in rows[1:])
    said = capsys.readouterr().out
    assert "cases with empty masks: 3 of 3" in said and "1 of 3 cases\n" not in said
    assert said.splitlines()[-1].startswith("warning: 3 of 3 cases have no prediction")


def test_ample_time_changes_no_byte(finished, tiny, bundled, tmp_path):
    run = finished(tiny(3))
    done = submit([run], output=tmp_path / "submit.csv")
    assert run_bundle(bundled([run]), run.exp.competition.root, tmp_path / "x.csv", "--hours", "9") == 0
    assert (tmp_path / "x.csv").read_bytes() == done.path.read_bytes()


def test_the_alarm_ends_a_case_that_hangs():
    import time

    watch = TimeBudget([], [], [], 0.2, time.monotonic())
    rounds = 0
    with pytest.raises(runtime_prediction.TimeUp), runtime_prediction._stop_at_deadline(watch):
        while rounds < 10**9:  # for ever, nearly
            try:
                rounds += 1
            except Exception:  # noqa: BLE001 (what is on the way must not swallow it)
                raise AssertionError from None
    import signal

    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_empty_cases_have_the_images_shape():
    from competition.config.competition import Competition, TrainFiles

    comp = Competition(
        name="x", root=".", dimensions=2, classes=["a", "b"], train=TrainFiles(images="{id}.png", masks="{id}.png")
    )
    found = runtime_prediction.empty_prediction(SimpleNamespace(id="c", shape=json.dumps([5, 7])), comp)
    assert found.outcome.masks.shape == (2, 5, 7) and not found.outcome.masks.any()


def test_views_are_counted_for_each_axis_of_slices(tiny):
    """Without test-time augmentation, a network still predicts along each axis."""
    axes = "patch={size: [32, 32], slices: 3, axes: [0, 1, 2]}"
    exps = [tiny(3, axes, "augment.flip=[2]", "inference.tta=[flip]"), tiny(3, axes), tiny(2, "inference.tta=[flip]")]
    runs = [(SimpleNamespace(run=Named(exp), networks=["one", "two"], members=[(0, 0), (1, 0)]), 1.0) for exp in exps]
    ensemble = DegradableEnsemble(SimpleNamespace(weighted_runs=runs), lambda: 0.0)  # type: ignore[arg-type]
    assert ensemble.views == [(2 + 2 + 1) / 3, 1.0, 4.0]
    assert ensemble.levels[1].passes(ensemble.views) == [2, 2, 2]
    ensemble.set_level(ensemble.levels[1])
    (first, _), *_ = ensemble.predictor.weighted_runs
    assert first.run.exp.inference.tta == [] and count_passes(first.run.exp) == 3


@dataclass(frozen=True)
class Named:
    """A run of which only the experiment matters."""

    exp: Any
