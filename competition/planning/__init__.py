"""Write competition.yaml and a first experiment.yaml for a folder without these files."""
