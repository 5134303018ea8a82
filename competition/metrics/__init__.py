"""Compute the metrics of a case, and the scores over all cases with confidence intervals.

The decorator `metric` declares a function as a further metric.
"""

from competition.config.metric import metric

__all__ = ["metric"]
