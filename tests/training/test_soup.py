"""Model soups: which checkpoints are kept, their average, cross-fitted predictions, and resuming after a kill."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from competition.config.loading import resolve_config
from competition.context import Context
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.metrics.bootstrap import cv_score
from competition.runs.identity import hashing
from competition.runs.identity.hashing import run_hash
from competition.runs.oof import OofStore
from competition.training import soup_selection
from competition.training.averaging import ALL_CASES, HALVES, UniformSoup, split_halves
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.fold import run_fold, setup_fold
from competition.training.soup_selection import format_soup, update_bn_statistics
from competition.training.trainer import Trainer

BATCH = "model.args={features: [4, 4, 8, 8, 8, 4], norm: batch}"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Which checkpoints are kept


CASES = pd.DataFrame({"id": [f"c{number}" for number in range(6)], "group": [f"g{number // 2}" for number in range(6)]})


def table(values: list[float]) -> pd.DataFrame:
    """Score rows of the six cases; a negative value is a class that is in neither truth nor prediction."""
    scores = [np.nan if value < 0 else value for value in values]
    return pd.DataFrame({"id": CASES["id"], "fold": 0, "class": "ring", "score": scores, "dice": scores})


def weights(epoch: int) -> nn.Module:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(float(epoch))
        layer.bias.fill_(0.1 * epoch)
    return layer


@pytest.fixture
def pot(tiny, tmp_path):
    exp = tiny(2, "training.soup=2", "competition.metric.both_empty=null")
    return lambda: UniformSoup(tmp_path / "soup", exp, 0, CASES)


def best_by_hand(history: list[list[float]], cases: list[int], k: int) -> list[int]:
    """Epochs, from 1, of the k highest means; the later of equal ones; a mean of nothing last."""
    means = [
        np.nanmean(np.where(np.array(row)[cases] < 0, np.nan, np.array(row)[cases]))
        if any(row[case] >= 0 for case in cases)
        else -np.inf
        for row in history
    ]
    return sorted(
        epoch for _, epoch in sorted(((round(mean, 9), epoch) for epoch, mean in enumerate(means, 1)), reverse=True)[:k]
    )


def test_the_k_best_of_all_cases_and_of_each_half_are_kept(pot):
    soup = pot()
    generator = np.random.default_rng(0)
    history = [np.round(generator.uniform(size=6), 1).tolist() for _ in range(12)]  # one digit: there are ties
    history[4] = history[2]
    history[7] = [-1.0] * 6
    places = [
        list(range(6)),
        *([at for at, case in enumerate(CASES["id"]) if soup.half_of[case] == half] for half in HALVES),
    ]
    assert sorted(map(len, places)) == [2, 4, 6]
    different = 0
    for epoch, values in enumerate(history, 1):
        soup.add(epoch, table(values), weights(epoch))
        expected = [best_by_hand(history[:epoch], cases, 2) for cases in places]
        assert [soup.epochs(judge) for judge in (ALL_CASES, *HALVES)] == expected
        files = sorted(int(path.name.split("_")[1]) for path in soup.folder.iterdir())
        assert files == sorted(set().union(*expected)) and len(files) <= 6  # nothing else stays on disk
        different += expected[1] != expected[2]
    assert different  # else the halves would say nothing
    for judge in (ALL_CASES, *HALVES):
        mean = soup.average(judge)
        assert mean["weight"].tolist() == [[pytest.approx(np.mean(soup.epochs(judge)))] * 2]
        assert mean["bias"].item() == pytest.approx(0.1 * np.mean(soup.epochs(judge)), rel=1e-6)


def test_a_half_without_the_class_has_no_say_but_the_latest(pot):
    soup = pot()
    mine = [soup.half_of[case] == HALVES[0] for case in CASES["id"]]
    for epoch, value in enumerate((0.9, 0.5, 0.7), 1):
        soup.add(epoch, table([-1.0 if first else value for first in mine]), weights(epoch))
    assert soup.epochs(HALVES[0]) == [2, 3] and soup.epochs(HALVES[1]) == [1, 3] == soup.epochs(ALL_CASES)


def test_a_process_that_was_killed_offers_its_last_epoch_again(pot):
    history = [[0.5] * 6, [0.7] * 6, [0.6] * 6]
    for epoch, values in enumerate(history, 1):
        pot().add(epoch, table(values), weights(epoch))
    before = {path.name: path.read_bytes() for path in pot().folder.iterdir()}
    pot().add(3, table(history[2]), weights(3))
    assert {path.name: path.read_bytes() for path in pot().folder.iterdir()} == before and pot().epochs(ALL_CASES) == [
        2,
        3,
    ]
    pot().add(3, table([0.1] * 6), weights(3))  # it came to other numbers, as after `on_nan: restore`
    assert [path.name.count("0.600000000") for path in pot().folder.iterdir()] == [0, 0]
    assert load_file(next(pot().folder.glob("epoch_000003_*")))["weight"].tolist() == [[3.0, 3.0]]


def test_groups_stay_in_one_half_and_one_group_is_refused(tiny):
    many = pd.DataFrame(
        {"id": [f"c{number}" for number in range(40)], "group": [str(number % 11) for number in range(40)]}
    )
    found = split_halves(many, 0, 5)
    assert found == split_halves(many.sample(frac=1, random_state=1), 0, 5)
    assert all(len({found[case] for case in part["id"]}) == 1 for _, part in many.groupby("group"))
    sizes = [
        len({group for case, group in zip(many["id"], many["group"], strict=True) if found[case] == half})
        for half in HALVES
    ]
    assert sorted(sizes) == [5, 6]
    assert any(split_halves(many, fold, 5) != found for fold in (1, 2))
    with pytest.raises(MaskfoldError, match=r"training\.soup: .* fold 3 \(4 cases\)"):
        split_halves(pd.DataFrame({"id": list("abcd"), "group": ["x"] * 4}), 3, 1)


def test_a_soup_and_the_best_weights_are_refused_together(tiny):
    with pytest.raises(MaskfoldError, match=r"training\.soup.*weights: best"):
        tiny(2, "training.soup=2", "training.weights=best")


def test_off_it_is_no_part_of_a_run_s_name(tiny, monkeypatch):
    exp, souped = tiny(2), tiny(2, "training.soup=3")
    names = run_hash(exp, "data"), run_hash(souped, "data")
    assert names[0] != names[1]

    def former(one):
        plain = resolve_config(one)
        return {
            **plain,
            "training": {key: value for key, value in plain["training"].items() if key != "soup"} | {"soup": 1},
        }

    monkeypatch.setattr(hashing, "resolve_config", former)
    assert run_hash(souped, "data") == names[0]


# A fold


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def start(exp, folder: Path, cache: Path):
    run = open_run(exp, "tiny", root=folder)
    run.write()
    job = dataclasses.replace(make_jobs(run)[0], cache=cache, threads=1)
    job.folder.mkdir(parents=True, exist_ok=True)
    return run, job


def dies(patch, place, name: str, when: int) -> None:
    """The n-th call, from 0, of a function is the process's last."""
    real, count = getattr(place, name), [0]

    def call(*args, **kwargs):
        count[0] += 1
        if count[0] > when:
            raise Killed
        return real(*args, **kwargs)

    patch.setattr(place, name, call)


def quiet(_: str) -> None:
    pass


def test_a_killed_fold_has_the_same_soup_and_the_plain_weights_are_as_without_one(tiny, tmp_path, monkeypatch):
    settings = (
        "training.epochs=3",
        "training.steps_per_epoch=2",
        "training.checkpoint_minutes=0",
        "training.ema=0.5",
        "inference.tta=[]",
        BATCH,
    )
    exp = tiny(2, "training.soup=2", *settings)
    cache = tmp_path / "cache"
    _, without = start(tiny(2, *settings), tmp_path / "without", cache)
    plain = run_fold(without, say=quiet)
    _, whole = start(exp, tmp_path / "whole", cache)
    one = run_fold(whole, say=quiet)
    assert plain.soup is None and (one.score, one.dice, one.weights) == (plain.score, plain.dice, "weights.safetensors")
    for name in ("weights.safetensors", "scores.csv"):
        assert (whole.folder / name).read_bytes() == (without.folder / name).read_bytes()
    _, killed = start(exp, tmp_path / "killed", cache)
    for place, name, when in (
        (Trainer, "training_step", 3),
        (Trainer, "save_checkpoint", 1),
        (soup_selection, "update_bn_statistics", 1),
        (OofStore, "write", 1),
        (soup_selection, "cv_score", 0),
    ):
        with monkeypatch.context() as patch:
            dies(patch, place, name, when)
            with pytest.raises(Killed):
                run_fold(killed, say=quiet)
    two = run_fold(killed, say=quiet)
    assert one.soup == two.soup and len(one.soup["epochs"]) == 2
    for name in ("weights.safetensors", "soup.safetensors", "soup_scores.csv"):
        assert (whole.folder / name).read_bytes() == (killed.folder / name).read_bytes(), name
    assert not (whole.folder / "soup").exists() and not (killed.folder / "soup").exists()


def test_each_half_is_predicted_by_what_the_other_half_chose(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(UniformSoup, "remove_files", lambda self: None)
    exp = tiny(2, "training.epochs=5", "training.soup=2", "training.steps_per_epoch=2", "inference.tta=[]")
    run, job = start(exp, tmp_path, tmp_path / "cache")
    result = run_fold(job, say=quiet)
    files = {
        int(path.name.split("_")[1]): (
            load_file(path),
            list(map(float, path.name.removesuffix(".safetensors").split("_")[2:])),
        )
        for path in (job.folder / "soup").iterdir()
    }
    training = setup_fold(job, run, Context(), 0.0)
    judge, network = training.evaluator, training.unwrapped_model.eval()
    half_of = split_halves(judge.cases, 0, exp.seeds[0])
    assert set(half_of.values()) == {1, 2}

    def mean(judged_by: int) -> dict[str, torch.Tensor]:
        best = sorted(files, key=lambda epoch: (files[epoch][1][judged_by], epoch))[-2:]
        return {name: torch.stack([files[epoch][0][name] for epoch in best]).mean(0) for name in files[best[0]][0]}

    with pytest.raises(MaskfoldError, match="other weights"):
        OofStore(job.folder / "soup_oof", weights="0" * 64).read(next(judge.iter_cases()).id)
    store, tables = OofStore(job.folder / "soup_oof", weights=sha256_of_file(job.folder / "soup.safetensors")), []
    for row in judge.iter_cases():
        network.load_state_dict(mean(3 - half_of[row.id]))
        expected = judge.probabilities(network, row)
        np.testing.assert_allclose(store.read(row.id), expected, atol=2e-3)
        tables += judge.score(store.read(row.id), row, 0)[0]
    kept = pd.read_csv(job.folder / "soup_scores.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(kept, pd.DataFrame(tables), check_dtype=False)
    assert result.soup["score"] == pytest.approx(cv_score(pd.DataFrame(tables), exp.competition.metric))
    written = load_file(job.folder / "soup.safetensors")
    assert all(torch.allclose(written[name], tensor, atol=1e-6) for name, tensor in mean(0).items())
    network.load_state_dict(mean(0))
    assert result.soup["flattered"] == pytest.approx(
        cv_score(judge.validate(network, 0), exp.competition.metric), abs=2e-3
    )


def test_batch_statistics_are_those_of_the_next_training_batches(tiny, tmp_path):
    exp = tiny(2, "training.soup=2", "training.steps_per_epoch=3", "training.accumulate=2", BATCH)
    run, job = start(exp, tmp_path, tmp_path / "cache")
    training = setup_fold(job, run, Context(), 0.0)
    network = training.unwrapped_model
    layers = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    }
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].detach().clone()))
        for name, layer in layers.items()
    ]
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    assert update_bn_statistics(network, training) and not network.training and len(layers) > 5
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        flat = [image.transpose(0, 1).flatten(1).double() for image in seen[name]]  # (C, B * H * W)
        assert len(flat) == 6  # an epoch of three steps, two batches each
        torch.testing.assert_close(
            layer.running_mean.double(), torch.stack([one.mean(1) for one in flat]).mean(0), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            layer.running_var.double(),
            torch.stack([one.var(1, unbiased=True) for one in flat]).mean(0),
            rtol=1e-4,
            atol=1e-5,
        )
        assert layer.momentum is not None
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    first = seen[next(iter(seen))]
    assert all(not torch.equal(one, other) for one, other in pairwise(first))  # other batches, not one again and again
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    update_bn_statistics(network, training)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())


def test_group_norm_needs_nothing(tiny, tmp_path, monkeypatch):
    run, job = start(tiny(2, "training.soup=2"), tmp_path, tmp_path / "cache")
    training = setup_fold(job, run, Context(), 0.0)
    monkeypatch.setattr(Trainer, "train_loader", lambda self: pytest.fail("no batch is needed"))
    assert (
        not update_bn_statistics(training.unwrapped_model.train(), training) and not training.unwrapped_model.training
    )


def test_a_fold_that_cannot_be_halved_is_refused_before_anything_is_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run(tiny(2, "training.soup=2", "folds.k=10"), "demo2d-tiny")
    with pytest.raises(MaskfoldError, match=r"training\.soup: .* fold 0 \(1 case\)"):
        prepare_run(run)
    assert not run.folder.exists()


def test_a_soup_of_more_than_is_validated_is_refused_before_anything_is_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["training.soup=3", "training.epochs=5", "training.validate_every=2"]  # epochs 2 and 4, and the last
    prepare_run(open_run(tiny(2, *words), "demo2d-enough"))
    run = open_run(tiny(2, *words, "training.epochs=4"), "demo2d-tiny")
    with pytest.raises(MaskfoldError, match=r"training\.soup=3 .*training\.epochs=4 .* 2\b"):
        prepare_run(run)
    assert not run.folder.exists()


def test_a_soup_of_fewer_says_so():
    told = {
        "k": 3,
        "fewest": 1,
        "soup": 0.5,
        "plain": 0.4,
        "gain": 0.1,
        "low": None,
        "nested": 0.5,
        "members": 0.5,
        "flattered": 0.6,
        "kept": True,
    }
    assert format_soup(told)[0].startswith(
        "soup of the 3 best checkpoints (some folds have fewer, at least 1): score 0.5000"
    )
    assert format_soup({**told, "fewest": 3})[0].startswith("soup of the 3 best checkpoints: score 0.5000")
