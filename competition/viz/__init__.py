"""Figures of cases and learning curves, and the style of the figures of a report."""
