"""The competition's metric, scores with intervals, and pictures of what was scored."""
