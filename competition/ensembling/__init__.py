"""Combine runs to ensembles (weights, predictions, expected score), and compare two runs."""
