"""A view of MLflow's runs table with the columns of a competition.

Left to itself the table shows no metric at all until the user has picked some.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from competition.tracking.names import metric_name

KEY = "maskfold"
TAG = f"mlflow.sharedViewState.{KEY}"
NAME = "Scores"
MOST_CLASSES = 12  # with a column of their own


def saved_view(classes: Sequence[str], created: int) -> str:
    """The value of the tag `TAG` on an MLflow experiment, in the form in which MLflow's pages save a view.

    Args:
        classes: the competition's classes.
        created: ms since 1970.
    """
    metrics = [
        "cv_score",
        "cv_low",
        "cv_high",
        "score",
        *(f"dice_{name}" for name in classes[:MOST_CLASSES]),
        "minutes",
    ]
    # newest first: sorted by a metric, MLflow no longer hangs folds under their run
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [*(f"metrics.`{metric_name(name)}`" for name in metrics), "tags.`device`"],
    }
    return json.dumps({"name": NAME, "createdAt": created, "updatedAt": created, "state": json.dumps(state)})


def view_link(address: str, experiment_id: str) -> str:
    """Where a browser finds the view."""
    return f"{address}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"
