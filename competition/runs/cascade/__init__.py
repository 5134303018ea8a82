"""Train a run whose networks get the class probabilities of an earlier run, its first stage, as input channels."""
