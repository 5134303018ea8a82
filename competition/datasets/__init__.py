"""Data sets: downloads of public data, and synthetic demos and phantoms."""
