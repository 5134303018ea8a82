"""From config to network, loss, optimiser, schedule and averaged weights."""
