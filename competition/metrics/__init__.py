"""Metrics of one case, and scores over all cases with confidence intervals."""
