"""A fold under a time budget, on a clock that only its steps and predictions advance."""

from __future__ import annotations

import itertools
import random
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from competition.models.ema import ExponentialMovingAverage
from competition.training.cross_validate import make_jobs, open_run
from competition.training.fold import run_fold
from competition.training.timing.trial import ReplayableBatches, time_steps, undone
from competition.training.trainer import Trainer
from tests.training.clock import FakeClock


def start(exp, folder, cache):
    run = open_run(exp, "tiny", root=folder)
    run.write()
    job = replace(make_jobs(run)[0], cache=cache, threads=1)
    job.folder.mkdir(parents=True)
    return job


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of each step that counts."""
    rates: list[float] = []
    real = Trainer._update_weights

    def update(trainer):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        real(trainer)

    monkeypatch.setattr(Trainer, "_update_weights", update)
    return rates


def test_a_budget_gives_the_rates_and_the_score_of_the_same_steps_without_one(tiny, tmp_path, monkeypatch, rates):
    words = ["schedule={name: cosine, warmup: 0.3}", "training.ema=0.8", "training.validate_every=4"]
    lines: list[tuple[float, str]] = []
    with monkeypatch.context() as patch:
        clock = FakeClock(patch, step=6.0, case=9.0)
        job = start(tiny(2, "training.budget_minutes=5", *words), tmp_path / "budget", tmp_path / "cache")
        fold = run_fold(job, say=lambda line: lines.append((clock.now, line)), start_time=0.0)
        assert abs(60 * fold.minutes - 300) <= 20 and 20 < fold.steps < 40
        trials = len(rates) - fold.steps
        assert trials == 2  # the second one is timed

    plan = next(line for _, line in lines if "steps in all" in line)
    assert f"about {fold.steps} steps in all, 4 an epoch, 6.00 s a step · 5 cases validated in about 4" in plan
    assert "ends about" in plan and "GiB" in plan
    times = [0.0, *(time for time, _ in lines), clock.now]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 30.0 + 9.0
    assert any(line.startswith("validating: ") and " of 5 cases" in line for _, line in lines)
    assert any(line.startswith("predicting out of fold: ") for _, line in lines)

    budget = rates[trials:]
    rates.clear()
    words += [f"training.steps_per_epoch={fold.steps}", "training.epochs=1"]
    plain = run_fold(start(tiny(2, *words), tmp_path / "plain", tmp_path / "cache"), say=lambda line: None)
    assert plain.steps == fold.steps == len(budget) == len(rates)
    peak = max(rates)
    assert max(abs(one - other) for one, other in zip(budget, rates, strict=True)) < 0.1 * peak
    assert sum(budget) == pytest.approx(sum(rates), rel=0.03)
    assert fold.score == pytest.approx(plain.score, abs=0.05)


def test_a_line_comes_every_30_seconds_of_a_long_first_epoch(tiny, tmp_path, monkeypatch):
    clock = FakeClock(monkeypatch, step=4.0, case=1.0)
    lines: list[tuple[float, str]] = []
    exp = tiny(2, "training.steps_per_epoch=40", "training.epochs=1")
    run_fold(start(exp, tmp_path, tmp_path / "cache"), lambda line: lines.append((clock.now, line)), 0.0)
    times = [time for time, _ in lines]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 34.0
    said = [line for _, line in lines]
    assert "40 steps in all, 40 an epoch" in said
    assert any(line.startswith("4.00 s a step · ends about ") for line in said)
    assert any(re.match(r"step 1\d of 40 · epoch 1 · loss \d.* · 4.00 s a step · ends about ", line) for line in said)


def test_all_that_timed_steps_change_is_restored():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))
    network.register_buffer("counter", torch.zeros(1), persistent=False)
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=0.1))
    ema = ExponentialMovingAverage(network, 0.9)

    def step():
        model(torch.randn(2, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        network.counter += random.random() + np.random.rand()
        ema.update(network)

    def state():
        tensors = [*network.parameters(), *network.buffers(), *ema.weights().values()]
        moments = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
        randoms = [torch.rand(1), random.random(), float(np.random.rand()), ema.updates, network.training]
        return [tensor.detach().clone() for tensor in (*tensors, *moments)], randoms

    for before_steps in (0, 2):
        for _ in range(before_steps):
            step()
        outcomes = []
        for trial_steps in (0, 3):
            seeds = torch.get_rng_state(), random.getstate(), np.random.get_state()
            with undone([network], optimizer, ema, fabric):
                network.eval() if trial_steps else None
                for _ in range(trial_steps):
                    step()
            outcomes.append(state())
            torch.set_rng_state(seeds[0]), random.setstate(seeds[1]), np.random.set_state(seeds[2])
        (tensors, randoms), (restored, same_randoms) = outcomes
        assert randoms == same_randoms and len(tensors) == len(restored)
        assert all(torch.equal(one, two) for one, two in zip(tensors, restored, strict=True))


@pytest.mark.parametrize(("first", "later", "expected"), [(3.0, 0.5, 0.5), (40.0, 20.0, 40.0), (0.2, 0.1, 0.1)])
def test_the_first_step_is_timed_only_if_it_is_long(first, later, expected):
    clock, steps = [0.0], []

    def step():
        clock[0] += later if steps else first
        steps.append(1)

    assert time_steps(step, 600.0, bool, lambda: clock[0]) == pytest.approx(expected)
    assert 1 <= len(steps) <= 5


def test_batches_that_were_read_ahead_come_again():
    batches = ReplayableBatches(iter(range(5)))
    assert (next(batches), next(batches)) == (0, 1)
    assert list(batches.rewind()) == [0, 1, 2, 3, 4]


def test_batches_that_were_read_ahead_are_not_kept():
    class Batch:
        pass

    batches = ReplayableBatches(Batch() for _ in range(4))
    first = weakref.ref(next(batches))
    again = batches.rewind()
    assert first() is not None
    next(again), next(again)
    assert first() is None
