"""Find files below `mlruns` that are no longer needed, and delete them; runs that something else names stay.

`candidates` finds the files that may be deleted, `protection` finds the runs that a submission, a study or another run
names, `mlflow_records` finds both in MLflow, and `deletion` measures and deletes the files.
"""
