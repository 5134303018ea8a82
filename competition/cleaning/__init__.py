"""Find and delete files in `mlruns` that are no longer needed.

A run is not deleted if something else refers to it: a submission, a study, another run, a YAML file, or a model or
submission in MLflow.

- `candidates` finds the files that may be deleted.
- `protection` finds the runs to which a submission, a study, another run or a YAML file refers.
- `mlflow_records` finds the runs to which MLflow refers, and artifacts in MLflow that are no longer needed.
- `deletion` computes the size of the files, and deletes them.
"""
