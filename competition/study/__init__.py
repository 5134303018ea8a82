"""Run studies: searches for good settings with Optuna, in which each trial is a cross-validation run."""
