"""The saved view of MLflow's table of runs."""

import json

from competition.tracking.store import MAX_CLASS_COLUMNS, build_saved_view


def test_the_view_has_the_form_of_mlflows_own() -> None:
    view = json.loads(build_saved_view(["left part", "T1+"], 5))
    assert (view["name"], view["createdAt"], view["updatedAt"]) == ("Scores", 5, 5)
    columns = json.loads(view["state"])["selectedColumns"]
    assert "metrics.`cv_score`" in columns
    assert "metrics.`dice_left part`" in columns
    assert any(column.startswith("metrics.`dice_T1_") for column in columns)


def test_a_tag_holds_the_view_of_many_classes() -> None:
    from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

    view = build_saved_view([f"{number} " + "x" * 300 for number in range(250)], 5)
    assert view.count("dice_") == MAX_CLASS_COLUMNS
    assert len(view) < MAX_EXPERIMENT_TAG_VAL_LENGTH
