"""What folds wrote on disk, delivered to MLflow: files are the truth, MLflow is the memory."""
