"""A small distance metric: lower scores are better."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from competition.config.metric import METRICS, Direction, Metric
from competition.metrics.surface import hd95

DISTANCE = "competition.metric.name=border_distance"  # the override that selects the metric


@pytest.fixture
def distance() -> Iterator[Metric]:
    """The metric `border_distance` (HD95 in mm), which is registered during the test.

    It is registered only in this process, not in processes that the test starts.
    """
    with METRICS.temporary("border_distance", Metric("border_distance", hd95, Direction.LOWER)) as entry:
        yield entry
