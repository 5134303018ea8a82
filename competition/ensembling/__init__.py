"""Ensembles of runs (weights, predictions, expected score), and the comparison of two runs."""
