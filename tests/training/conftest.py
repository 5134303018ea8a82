"""Folds without figures: drawing them takes longer than training a toy network."""

from __future__ import annotations

import pytest


@pytest.fixture
def figures() -> None:
    """A test that names this fixture gets the fold's pictures and curves."""


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "figures" not in request.fixturenames:
        monkeypatch.setattr("competition.training.evaluator.draw_case", lambda *args, **more: None)
        monkeypatch.setattr("competition.training.fold.plot_fold_curves", lambda *args: None)
