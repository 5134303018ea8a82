"""From a folder that nobody has described to the two YAML files: what the host provides, and a first experiment."""
