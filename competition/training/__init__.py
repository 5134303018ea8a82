"""Train and score the folds of a cross-validation: the training loop, and the processes that run folds."""
