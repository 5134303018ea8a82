"""Predict probabilities on the grid of the image's file."""
