"""Trials of a study in MLflow: their names follow their numbers, and a tag says why one ended early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from competition.config.experiment import Experiment
from competition.tracking.store import RunMetadata, connect_mlflow, find_mlflow_store
from competition.tracking.uploader import RunUploader
from tests.tracking.conftest import line
from tests.tracking.test_uploader import fetch


def trial(run_folder: Path, exp: Experiment, number: int) -> RunUploader:
    identity = RunMetadata.of(run_folder, exp, "cv", f"trial {number} · {run_folder.name}")
    return RunUploader(run_folder, find_mlflow_store(run_folder.parents[3]), identity)


def test_a_trial_that_is_tried_again_takes_its_new_number(run_folder: Path, exp: Experiment) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    first = trial(run_folder, exp, 1)
    first.begin()
    first.upload()
    assert {run.info.run_name for run in fetch(run_folder)[1].values()} == {
        "trial 1 · 0123456789ab",
        "fold 0 · trial 1 · 0123456789ab",
    }
    (run_folder / "fold_1" / "metrics.jsonl").write_text(line(1, lr=0.1))
    again = trial(run_folder, exp, 2)  # the process was killed
    again.begin()
    again.upload()
    client, runs = fetch(run_folder)
    assert {name: run.info.run_name for name, run in runs.items()} == {
        ".": "trial 2 · 0123456789ab",
        "fold_0": "fold 0 · trial 2 · 0123456789ab",
        "fold_1": "fold 1 · trial 2 · 0123456789ab",
    }

    client.update_run(runs["."].info.run_id, name="my favourite")
    third = trial(run_folder, exp, 3)
    third.begin()
    assert {name: run.info.run_name for name, run in fetch(run_folder)[1].items()} == {
        ".": "my favourite",
        "fold_0": "fold 0 · trial 3 · 0123456789ab",
        "fold_1": "fold 1 · trial 3 · 0123456789ab",
    }


def test_what_was_delivered_before_names_were_kept_is_left_alone(run_folder: Path, exp: Experiment) -> None:
    trial(run_folder, exp, 1).begin()
    state = run_folder / "shipped.json"
    plain = json.loads(state.read_text())
    del plain["folders"]["."]["name"]
    state.write_text(json.dumps(plain))
    trial(run_folder, exp, 2).begin()
    assert [run.info.run_name for run in fetch(run_folder)[1].values()] == ["trial 1 · 0123456789ab"]


def test_the_reason_of_a_trial_that_ended_early_is_a_tag_until_it_goes_on(run_folder: Path, exp: Experiment) -> None:
    summary = run_folder / "summary.json"
    summary.write_text(json.dumps({"metric": "dice", "stopped": "failed: " + "the loss is nan " * 1000}))
    first = trial(run_folder, exp, 1)
    first.begin()
    first.upload(last=True)
    first.close("FAILED")
    run = fetch(run_folder)[1]["."]
    assert run.info.status == "FAILED" and run.data.tags["stopped"].startswith(
        "failed: the loss is nan the loss is nan"
    )
    summary.write_text(json.dumps({"metric": "dice", "score": 0.5}))
    trial(run_folder, exp, 1).upload()
    tags = fetch(run_folder)[1]["."].data.tags
    assert "stopped" not in tags and tags["metric"] == "dice"


@pytest.mark.parametrize(("given", "found"), [(None, True), ("false", False)])
def test_mlflow_prints_no_links_unless_asked_to(
    given: str | None, found: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
    monkeypatch.setenv(name, "")  # so that what is set below is undone
    monkeypatch.delenv(name) if given is None else monkeypatch.setenv(name, given)
    connect_mlflow(find_mlflow_store(project))
    from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get() is found
