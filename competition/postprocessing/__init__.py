"""Convert probabilities to masks with lists of post-processing steps, and tune these lists."""
