"""Find the classes of masks: label values, their names, and the background."""
