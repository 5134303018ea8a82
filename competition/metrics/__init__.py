"""Metrics of one case, and scores over all cases with confidence intervals. `metric` declares a new metric."""

from competition.config.metric import metric

__all__ = ["metric"]
