import json
import math
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from competition.viz.curves import plot_fold_curves, read_curves
from competition.viz.overlays import class_colour


def write(path: Path, *metrics: dict[str, float]) -> Path:
    lines = [
        json.dumps({"step": 10 * epoch, "epoch": epoch, "time": 0.0, "metrics": values})
        for epoch, values in enumerate(metrics, start=1)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def has(path: Path, colour: tuple[float, float, float]) -> bool:
    return bool((np.abs(np.asarray(imread(path))[..., :3] - np.asarray(colour)).max(axis=-1) < 0.12).any())


def test_read_curves_by_epoch(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", {"lr": 0.1}, {"lr": 0.2, "val/score": 0.5}, {"lr": math.nan})
    with open(path, "a") as file:
        file.write(json.dumps({"step": 31, "epoch": 2, "metrics": {"lr": 0.4}}) + "\n" + '{"step": 40, "epo')
    curves = read_curves(path)
    assert curves["lr"][0] == [1, 2, 3]
    np.testing.assert_allclose(curves["lr"][1], [0.1, 0.3, math.nan], equal_nan=True)
    assert curves["val/score"] == ([2], [0.5])


def test_every_kind_of_curve_is_drawn(tmp_path: Path) -> None:
    metrics = [
        {"train/loss": 1 / epoch, "train/dice": 0.5 / epoch, "lr": 10.0**-epoch, "time/epoch_seconds": 2.0}
        | ({"val/score": 0.5, "val/dice": 0.4, "val/dice/_a": 0.3, "val/dice/$b": 0.6} if epoch % 2 else {})
        for epoch in range(1, 6)
    ]
    plot_fold_curves(tmp_path / "curves.png", write(tmp_path / "fold_0" / "metrics.jsonl", *metrics))
    assert has(tmp_path / "curves.png", class_colour(0))
    assert has(tmp_path / "curves.png", class_colour(1))
    assert not has(tmp_path / "curves.png", class_colour(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "fold_0"]


def test_a_fold_without_metrics_or_with_one_epoch(tmp_path: Path) -> None:
    plot_fold_curves(tmp_path / "none.png", tmp_path / "fold_0" / "metrics.jsonl")
    plot_fold_curves(tmp_path / "empty.png", write(tmp_path / "fold_0" / "metrics.jsonl", {}))
    plot_fold_curves(
        tmp_path / "nan.png", write(tmp_path / "fold_0" / "metrics.jsonl", {"train/loss": math.nan, "lr": 0.0})
    )
    plot_fold_curves(
        tmp_path / "one.png", write(tmp_path / "fold_0" / "metrics.jsonl", {"train/loss": 0.5, "val/dice/a": 0.5})
    )
    assert has(tmp_path / "one.png", class_colour(0)), "a single point is drawn as a dot"
    assert not has(tmp_path / "none.png", class_colour(0))
