"""Draw figures of cases and learning curves in one common style."""
