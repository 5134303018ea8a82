"""Metrics of one case, and scores over all cases with confidence intervals. The decorator `metric` adds a metric."""

from competition.config.metric import metric

__all__ = ["metric"]
