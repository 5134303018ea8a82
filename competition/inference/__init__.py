"""Predict the class probabilities of a case on the grid of its image file."""
