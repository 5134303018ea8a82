"""MLflow tracking: uploads of runs, submissions and models."""
