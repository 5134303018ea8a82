"""Feed the predictions of a first run to the networks of another run."""
