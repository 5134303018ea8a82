"""Learning curves: the ticks of the epoch axis."""

from __future__ import annotations

from pathlib import Path

import pytest

from competition.report import learning


@pytest.mark.parametrize(("epochs", "ticks"), [([1], [1]), ([1, 2], [1, 2]), ([1, 2, 3], [1, 2, 3]), ([5], [5])])
def test_epoch_ticks_are_integers(epochs, ticks, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(learning, "save_figure", lambda figure, path: drawn.append(figure))
    curves = {(0, 0): {"train/loss": (epochs, [0.5] * len(epochs)), "lr": (epochs[:1], [0.1])}}
    learning.draw_learning_curves(curves, {(0, 0): "fold 0"}, Path(tmp_path / "learning.png"))
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == ticks
        drawn[0].canvas.draw()
        assert [
            label.get_text()
            for label in axes.get_xticklabels()
            if label.get_text() and low <= label.get_position()[0] <= high
        ] == [str(tick) for tick in ticks]
