"""Data sets: downloads of public ones, and synthetic demos and phantoms."""
