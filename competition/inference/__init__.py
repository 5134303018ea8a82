"""Prediction: from weights and images to probabilities on the grid of the image's file."""
