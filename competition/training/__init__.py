"""Training: the loop, the process of a fold, and the cross-validation that trains and scores all folds."""
