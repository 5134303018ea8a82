"""Convert probabilities to masks with a list of post-processing steps for each class, and tune these lists."""
