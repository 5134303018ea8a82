"""What takes space below `mlruns` and is no longer needed: find it, protect what is named elsewhere, delete it.

`candidates` finds what may be deleted, `protection` finds the runs that something names, `mlflow_records` reads both
from MLflow, and `deletion` measures and deletes.
"""
