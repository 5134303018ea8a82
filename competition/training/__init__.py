"""Train and score all folds of a cross-validation: the training loop, and the process of a fold."""
