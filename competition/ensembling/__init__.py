"""Combine runs into ensembles (fit weights, predict, estimate the score), and compare two runs."""
