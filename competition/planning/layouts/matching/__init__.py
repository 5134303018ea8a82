"""Decide which masks belong to which images, which images are channels, and which cases are for training or test."""
