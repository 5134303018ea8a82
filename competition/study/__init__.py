"""Optuna's trials, each one cross-validation run."""
