"""Post-processing: convert probabilities to masks with lists of steps, and tune these steps."""
