"""Build the additional training data of a fold: images with pseudo-labels, and cases of other competitions."""
