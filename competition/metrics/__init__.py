"""Compute the metrics of a case, and scores over all cases with intervals; the decorator `metric` adds a metric."""

from competition.config.metric import metric

__all__ = ["metric"]
