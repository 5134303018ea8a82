"""Upload runs, submissions and models to MLflow."""
