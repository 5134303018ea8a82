"""A small distance metric: lower scores are better."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from competition.config.metric import METRICS, Direction, Metric
from competition.metrics.surface import hd95

DISTANCE = "competition.metric.name=border_distance"  # the override that selects it


@pytest.fixture
def distance() -> Iterator[Metric]:
    """The metric `border_distance` (HD95, mm), in the registry during the test; processes of the test lack it."""
    with METRICS.temporary("border_distance", Metric("border_distance", hd95, Direction.LOWER)) as entry:
        yield entry
