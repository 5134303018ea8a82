"""Weights and images to probabilities on the image's own grid."""
