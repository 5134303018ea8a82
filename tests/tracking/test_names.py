"""Names of metrics and parameters in MLflow."""

from competition.tracking.store import (
    MAX_NAME_LENGTH,
    MAX_PARAMETER_LENGTH,
    flatten_parameters,
    mlflow_name,
    numeric_metrics,
)


def test_legal_names_stay() -> None:
    for name in ("train/loss", "val/dice/left ventricle", "lr", "val/dice/Niere_2.b-c"):
        assert mlflow_name(name) == name


def test_any_name_becomes_one_that_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name

    for name in (
        "val/dice/T1+",
        "a//b",
        "a/../b",
        "/a",
        "a/",
        "$x",
        "a\nb",
        ".",
        "",
        "é (links)",
        "x" * 400,
        "val/dice/腎臓",
    ):
        _validate_metric_name(mlflow_name(name))


def test_names_that_differ_stay_apart() -> None:
    assert mlflow_name("val/dice/T1+") != mlflow_name("val/dice/T1*")
    assert mlflow_name("x" * 300) != mlflow_name("x" * 301)
    assert len(mlflow_name("x" * 300)) <= MAX_NAME_LENGTH


def test_parameters_are_named_as_on_the_command_line() -> None:
    tree = {
        "optimizer": {"args": {"lr": 1e-3, "betas": [0.9, 0.99]}},
        "loss": [{"target": "a", "weight": 1.0}],
        "competition": {"group": None, "instances": False},
        "model": {"args": {}},
    }
    assert flatten_parameters(tree) == {
        "optimizer.args.lr": "0.001",
        "optimizer.args.betas": "[0.9, 0.99]",
        "loss.0.target": "a",
        "loss.0.weight": "1.0",
        "competition.group": "null",
        "competition.instances": "false",
        "model.args": "{}",
    }


def test_long_parameters_are_cut() -> None:
    value = flatten_parameters({"classes": ["abc"] * 5000})["classes"]
    assert len(value) == MAX_PARAMETER_LENGTH
    assert value.endswith("…")


def test_numbers_of_a_result() -> None:
    result = {
        "score": 0.5,
        "low": None,
        "dice": {"a": 0.25, "b": None},
        "device": "cpu",
        "ok": True,
        "folds": [{"score": 1.0}],
    }
    assert numeric_metrics(result) == {"score": 0.5, "dice_a": 0.25}
