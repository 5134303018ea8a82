"""Build the network, loss, optimiser, learning-rate schedule and weight average of an experiment."""
