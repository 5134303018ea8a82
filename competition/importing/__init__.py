"""Predictions made elsewhere become runs; the folds of a run are written for other programs."""
