"""The fold as a unit of work: the loop, the process around it, and the cross-validation run that decides which folds run where."""
