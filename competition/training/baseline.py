"""What a threshold alone scores on a demo competition, so that a network's score means something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from competition.training.runs import CvRun

if TYPE_CHECKING:
    import numpy as np


def baseline_lines(run: CvRun) -> list[str]:
    """One line per threshold baseline, for demo competitions; none for others."""
    from competition.data.demo import is_demo
    from competition.data.table import load_image, load_mask
    from competition.scoring.baseline import threshold_baseline

    comp = run.exp.competition
    if not is_demo(comp):
        return []

    def cases() -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        for row in run.cases.itertuples(index=False):
            yield load_image(comp, row).array, load_mask(comp, row)

    return [
        f"beside it, without learning: {name} {score:.4f}" for name, score in threshold_baseline(cases(), comp).items()
    ]
