"""Write the two YAML files for an undescribed folder: what the host provides, and a first experiment."""
