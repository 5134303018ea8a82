"""Write competition.yaml and a first experiment.yaml for a folder that has neither of them."""
