"""Combine runs into ensembles (weights, predictions, expected score), and compare two runs."""
