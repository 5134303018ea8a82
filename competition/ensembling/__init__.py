"""Ensembles of runs: their weights, predictions and expected score, and the comparison of two runs."""
