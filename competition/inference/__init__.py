"""Prediction: compute probabilities on the grid of the image's file, from weights and images."""
