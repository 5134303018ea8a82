"""Run Optuna studies, in which each trial is a cross-validation run."""
