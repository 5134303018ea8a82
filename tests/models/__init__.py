"""Tests of competition.models, and a function that makes experiments for them."""

from __future__ import annotations

from typing import Any

from competition.config.experiment import Experiment


def experiment(
    target: str = "monai.networks.nets.BasicUNet",
    args: dict[str, Any] | None = None,
    *,
    dims: int = 2,
    size: list[int] | None = None,
    classes: int = 2,
    labels: str = "exclusive",
    ignore: int | None = None,
    **sections: Any,
) -> Experiment:
    """Return a small experiment; `sections` are top-level keys to add or replace."""
    return Experiment.model_validate(
        {
            "competition": {
                "name": "tiny",
                "root": "nowhere",
                "dimensions": dims,
                "labels": labels,
                "ignore": ignore,
                "classes": [f"class{number}" for number in range(1, classes + 1)],
                "train": {"images": "{id}.png", "masks": "{id}.png"},
            },
            "patch": {"size": size or [32] * dims},
            "model": {"target": target, "args": args or {}},
            "loss": {"target": "monai.losses.DiceCELoss"},
            **sections,
        }
    )
