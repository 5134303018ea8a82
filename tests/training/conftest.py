"""Fixtures that switch off pictures and curves of folds, because drawing takes longer than training a toy network."""

from __future__ import annotations

import pytest


@pytest.fixture
def figures() -> None:
    """Draw the pictures and curves of folds in the tests that use this fixture."""


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures and curves of folds, unless the test uses the fixture `figures`."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr("competition.training.evaluator.draw_case", lambda *args, **more: None)
        monkeypatch.setattr("competition.training.fold.plot_fold_curves", lambda *args: None)
