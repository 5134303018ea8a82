"""Measure the speed of steps and validations, and report the progress of a fold."""
