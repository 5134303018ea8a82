"""Find and delete files below `mlruns` that are no longer needed.

A run stays if a submission, a study or another run names it.

`candidates` finds the files that may be deleted. `protection` finds the runs that a submission, a study or another run
names. `mlflow_records` finds named runs and unneeded artifacts in MLflow. `deletion` measures and deletes the files.
"""
