"""The presence-head demo: a third of the cases is empty, and only the vessel distinguishes them."""

from __future__ import annotations

import numpy as np
import pytest

from competition.config.loading import load_experiment
from competition.data.cases import case_table
from competition.data.masks import load_mask
from competition.datasets.demo import ensure_demo, is_demo, make_demo
from competition.datasets.demo_images import GATE_KINDS, SIDE, draw_gate_image
from tests.conftest import ROOT


def drawn(kind: str, count: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_gate_image(np.random.default_rng([kind == "plain", place]), kind) for place in range(count)]


def test_plain_scans_are_empty_and_the_others_are_not():
    assert not any(labels.any() for _, labels in drawn("plain"))
    assert all(set(np.unique(labels)) == {0, 1} for _, labels in drawn("contrast"))
    assert GATE_KINDS.count("plain") * 3 == len(GATE_KINDS)


def test_only_the_vessel_differs():
    """A seed gives the same spots in both kinds; the kinds differ only near the lower edge."""
    for seed in range(10):
        bright, _ = draw_gate_image(np.random.default_rng(seed), "contrast")
        dark, _ = draw_gate_image(np.random.default_rng(seed), "plain")
        differs = np.argwhere(bright != dark)
        assert len(differs) > 60 and np.ptp(differs[:, 1]) < 22 and differs[:, 0].min() > SIDE - 28
        assert (bright[tuple(differs.T)].astype(int) - dark[tuple(differs.T)]).mean() > 5


def test_the_demo_is_made_on_demand_and_a_third_of_its_cases_are_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exp = load_experiment(ROOT / "experiments" / "demo_gate" / "unet2d.yaml", [f"competition.root={tmp_path / 'data'}"])
    assert is_demo(exp.competition) and ensure_demo(exp.competition)
    table = case_table(exp.competition, "train")
    empty = [not load_mask(exp.competition, row).any() for row in table.itertuples()]
    assert len(empty) == 120 and sum(empty) == 40
    assert not make_demo("gate", tmp_path / "data") and make_demo("gate", tmp_path / "data", seed=1)


@pytest.mark.parametrize("name", ["gate"])
def test_a_seed_gives_the_same_bytes(name, tmp_path):
    for folder in ("one", "two"):
        make_demo(name, tmp_path / folder, seed=2, cases=4, test_cases=2)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 4 + 4 + 2 + 3
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
