"""Post-processing: convert probabilities to masks by lists of steps, and tune these steps."""
