"""Figures of cases and learning curves, and the common style of figures in reports."""
