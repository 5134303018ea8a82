"""Measure how long training steps and validations take, and report the progress of a fold."""
