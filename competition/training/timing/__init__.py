"""Time in training: how fast a fold trains and predicts, and what it says about its progress."""
