"""Upload of a run's folder, step by step."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition.config.experiment import Experiment
from competition.tracking.store import VIEW_TAG, RunMetadata, connect_mlflow, find_mlflow_store
from competition.tracking.uploader import RunUploader
from tests.tracking.conftest import finish_fold, line

New = Callable[[], RunUploader]


def fetch(run_folder: Path) -> tuple[Any, dict[str, Any]]:
    """A client, and the MLflow runs by the name of their folder (`.` is the run itself)."""
    client = connect_mlflow(find_mlflow_store(run_folder.parents[3]))
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    return client, {
        "." if run.data.tags["kind"] == "cv" else f"fold_{run.data.tags['fold']}": run
        for run in runs
        if run.data.tags["kind"] != "study"
    }


def test_a_whole_run(run_folder: Path, delivery: New) -> None:
    for number in (0, 1):
        fold = run_folder / f"fold_{number}"
        (fold / "metrics.jsonl").write_text(
            line(1, train__loss=0.5, lr=0.1) + line(2, train__loss=0.25, val__score=0.5)
        )
        finish_fold(fold, 0.5 + number / 4)
    (run_folder / "summary.json").write_text(
        json.dumps(
            {
                "metric": "dice",
                "score": 0.625,
                "low": 0.5,
                "high": 0.75,
                "dice": {"left part": 0.5},
                "cases": 9,
                "folds": [{"score": 0.5}],
            }
        )
    )
    new = delivery()
    new.begin()
    new.upload(last=True)
    new.close("FINISHED")

    client, runs = fetch(run_folder)
    assert set(runs) == {".", "fold_0", "fold_1"}
    run = runs["."]
    assert run.info.run_name == "unet 0123456789ab"
    assert {
        "competition": "toy",
        "experiment": "unet",
        "kind": "cv",
        "run_hash": "0123456789ab",
        "metric": "dice",
    }.items() <= run.data.tags.items()
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(
        "**0.6250** dice (95 % interval 0.5000 to 0.7500) on 9 out-of-fold cases\n\n| dice | score |"
    )
    assert run.data.tags["counting_score"] == "cv_score"
    assert run.data.params["patch.size"] == "[32, 48]"
    assert run.data.params["loss.0.weight"] == "0.5"
    scores = {"score": 0.625, "lower": 0.5, "upper": 0.75}
    named = {f"{name}_{key}": value for name in ("cv", "counted") for key, value in scores.items()}
    assert run.data.metrics == {**named, "dice_left part": 0.5, "cases": 9.0}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "experiment.yaml",
        "cases.csv",
        "folds.csv",
        "summary.json",
        "curves",
    }
    for number in (0, 1):
        child = runs[f"fold_{number}"]
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == run.info.run_id
        assert child.data.tags["device"] == "cpu"
        assert child.data.metrics == {
            "train/loss": 0.25,
            "lr": 0.1,
            "val/score": 0.5,
            "score": 0.5 + number / 4,
            "dice_left part": 0.5,
            "system/minutes": 1.5,
        }
        history = client.get_metric_history(child.info.run_id, "train/loss")
        assert [(point.step, point.value, point.timestamp) for point in history] == [
            (1, 0.5, 1_700_000_001_000),
            (2, 0.25, 1_700_000_002_000),
        ]
        assert {file.path for file in client.list_artifacts(child.info.run_id)} == {
            "pictures",
            "curves.png",
            "scores.csv",
            "job.json",
            "log.txt",
            "metrics.jsonl",
            "result.json",
            "weights.safetensors",
            "last.pt",
        }
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).tags[VIEW_TAG] == delivery().metadata.view


def test_a_delivery_that_is_repeated_changes_nothing(run_folder: Path, delivery: New) -> None:
    journal = run_folder / "fold_0" / "metrics.jsonl"
    journal.write_text(line(1, lr=0.1) + line(2, lr=math.nan))
    delivery().upload()
    state = run_folder / "shipped.json"
    plain = json.loads(state.read_text())
    # killed before this was written
    plain["folders"]["fold_0"].update(journal={"offset": 0, "seal": "", "head": ""}, steps={})
    state.write_text(json.dumps(plain))
    delivery().upload()
    client, runs = fetch(run_folder)
    history = client.get_metric_history(runs["fold_0"].info.run_id, "lr")
    assert [point.step for point in history] == [1, 2]


def test_a_kill_right_after_a_run_was_made_makes_no_second_one(run_folder: Path, delivery: New) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    delivery().upload()
    state = run_folder / "shipped.json"
    plain = json.loads(state.read_text())
    before = {name: folder["run_id"] for name, folder in plain["folders"].items() if folder["run_id"]}
    assert len(before) == 2
    for name in before:
        plain["folders"][name]["run_id"] = None
    state.write_text(json.dumps(plain))
    delivery().upload()
    client, runs = fetch(run_folder)
    assert {name: run.info.run_id for name, run in runs.items()} == before
    assert len(client.search_runs([runs["."].info.experiment_id])) == 2


def test_a_resumed_fold_goes_on_in_its_run_with_one_point_per_step(run_folder: Path, delivery: New) -> None:
    fold = run_folder / "fold_0"
    kept = line(1, lr=0.1) + line(2, lr=0.2)
    (fold / "metrics.jsonl").write_text(kept + line(3, lr=0.3) + line(4, lr=0.4))
    first = delivery()
    first.begin()
    first.upload(last=True)
    first.close("KILLED")
    _, before = fetch(run_folder)
    assert {name: run.info.status for name, run in before.items()} == {".": "KILLED", "fold_0": "KILLED"}

    second = delivery()
    second.begin()
    assert fetch(run_folder)[1]["."].info.status == "RUNNING"
    # the checkpoint was made at step 2: later lines are dropped and written again, at another time
    (fold / "metrics.jsonl").write_text(kept)
    second.upload()
    (fold / "metrics.jsonl").write_text(kept + "".join(line(step, 50.0, lr=step / 10) for step in (3, 4, 5)))
    second.upload()
    finish_fold(fold)
    second.upload(last=True)
    second.close("FINISHED")
    client, after = fetch(run_folder)
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    history = client.get_metric_history(after["fold_0"].info.run_id, "lr")
    assert sorted((point.step, point.value) for point in history) == [(step, step / 10) for step in range(1, 6)]


def test_a_fold_that_is_trained_afresh_gets_another_run(run_folder: Path, delivery: New) -> None:
    fold = run_folder / "fold_0"
    (fold / "metrics.jsonl").write_text(line(1, lr=0.1))
    delivery().upload()
    old = fetch(run_folder)[1]["fold_0"].info.run_id
    shutil.rmtree(fold)
    fold.mkdir()
    (fold / "metrics.jsonl").write_text(line(1, 5.0, lr=0.5))
    delivery().upload()
    client, runs = fetch(run_folder)
    children = [run for run in client.search_runs([runs["."].info.experiment_id]) if run.data.tags["kind"] == "fold"]
    assert {run.data.metrics["lr"] for run in children} == {0.1, 0.5}
    superseded = client.get_run(old)
    assert superseded.info.status == "KILLED"
    assert superseded.data.tags["superseded"] == "true"


def test_weights_wait_for_the_end_and_the_checkpoint_for_the_result(run_folder: Path, delivery: New) -> None:
    fold = run_folder / "fold_0"
    (fold / "last.pt").write_bytes(b"state")
    (fold / "log.txt").write_text("epoch 1\n")
    (fold / "best.safetensors").write_bytes(b"weights")
    new = delivery()
    new.begin()
    (fold / "curves.png").write_bytes(b"png")
    new.upload()

    def artifacts() -> set[str]:
        client, runs = fetch(run_folder)
        return {file.path for file in client.list_artifacts(runs["fold_0"].info.run_id)}

    assert artifacts() == {"curves.png"}
    new.upload(last=True)
    assert artifacts() == {"curves.png", "job.json", "log.txt", "best.safetensors"}
    finish_fold(fold)
    new.upload()
    assert "last.pt" in artifacts()


def test_a_changed_file_is_delivered_again_and_a_rewritten_one_is_not(run_folder: Path, delivery: New) -> None:
    first = delivery()
    first.begin()
    first.upload()
    calls = first.calls
    (run_folder / "cases.csv").write_text("id\na\n")  # the same content, another time
    first.upload()
    assert first.calls == calls
    (run_folder / "cases.csv").write_text("id\na\nb\n")
    first.upload()
    assert first.calls == calls + 1
    client, runs = fetch(run_folder)
    assert Path(client.download_artifacts(runs["."].info.run_id, "cases.csv")).read_text() == "id\na\nb\n"


def test_a_finished_run_needs_no_mlflow(run_folder: Path, delivery: New, monkeypatch: pytest.MonkeyPatch) -> None:
    finish_fold(run_folder / "fold_0")
    finish_fold(run_folder / "fold_1")
    first = delivery()
    first.begin()
    first.upload(last=True)
    first.close("FINISHED")
    monkeypatch.setattr("competition.tracking.uploader.connect_mlflow", lambda store: pytest.fail("MLflow was opened"))
    again = delivery()
    again.begin()
    again.upload(last=True)
    again.close("FINISHED")


def test_a_lost_database_gets_everything_again(run_folder: Path, delivery: New, empty_database: Path) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1) + line(2, lr=0.2))
    delivery().upload()
    database = run_folder.parents[2] / "mlflow.db"
    with open(empty_database, "rb") as source:
        database.write_bytes(source.read())
    with open(run_folder / "fold_0" / "metrics.jsonl", "a") as file:
        file.write(line(3, lr=0.3))
    new = delivery()
    new.upload()
    new.upload()
    client, runs = fetch(run_folder)
    history = client.get_metric_history(runs["fold_0"].info.run_id, "lr")
    assert [point.step for point in history] == [1, 2, 3]
    assert {file.path for file in client.list_artifacts(runs["."].info.run_id)} == {
        "experiment.yaml",
        "cases.csv",
        "folds.csv",
    }


def test_odd_class_names_are_metrics(run_folder: Path, delivery: New) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, **{"val__dice__T1+": 0.5, "val__dice__T1*": 0.25}))
    delivery().upload()
    _, runs = fetch(run_folder)
    values = {name: value for name, value in runs["fold_0"].data.metrics.items() if name.startswith("val/dice/T1_")}
    assert sorted(values.values()) == [0.25, 0.5]


def test_a_trial_hangs_under_its_study(run_folder: Path, exp: Experiment) -> None:
    study_folder = run_folder.parents[1] / "toy-study" / "fedcba987654"
    study_folder.mkdir(parents=True)
    (study_folder / "summary.json").write_text('{"score": 0.5}')
    store = find_mlflow_store(run_folder.parents[3])
    trial = RunUploader(run_folder, store, RunMetadata.of(run_folder, exp, "cv"), study=study_folder)
    trial.begin()
    trial.upload()  # before the study itself is known
    study = RunUploader(study_folder, store, RunMetadata.of(study_folder, exp, "study", "a study"))
    study.begin()
    study.upload()
    trial.upload()
    client, runs = fetch(run_folder)
    parent = client.get_run(runs["."].data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "a study"
    assert parent.data.metrics == {"score": 0.5}


def test_a_fold_has_the_runs_parameters_to_be_compared_by(run_folder: Path, delivery: New) -> None:
    (run_folder / "fold_0" / "metrics.jsonl").write_text(line(1, lr=0.1))
    delivery().upload()
    _, runs = fetch(run_folder)
    assert runs["fold_0"].data.params == runs["."].data.params != {}


def test_the_pages_own_search_finds_runs(run_folder: Path, delivery: New) -> None:
    for number in (0, 1):
        (run_folder / f"fold_{number}" / "metrics.jsonl").write_text(line(1, lr=0.1))
    (run_folder / "summary.json").write_text('{"score": 0.625}')
    delivery().upload()
    client, runs = fetch(run_folder)
    names = {run.info.run_id: name for name, run in runs.items()}
    for words, expected in (
        ("tags.competition = 'toy'", {".", "fold_0", "fold_1"}),
        ("tags.fold = '1'", {"fold_1"}),
        ("metrics.cv_score > 0.6", {"."}),
        ("metrics.cv_score > 0.7", set()),
        ("params.`patch.size` = '[32, 48]' and tags.kind = 'fold'", {"fold_0", "fold_1"}),
    ):
        found = client.search_runs([runs["."].info.experiment_id], words)
        assert {names[run.info.run_id] for run in found} == expected, words


def test_answers_that_are_lost_lose_and_double_nothing(
    run_folder: Path, delivery: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    generator = random.Random(3)
    fate = {"before": 0, "after": 0}

    def unsure(call: Callable[..., Any]) -> Callable[..., Any]:
        def perhaps(*args: Any, **keywords: Any) -> Any:
            luck = generator.random()
            if luck < 0.2:
                fate["before"] += 1
                raise ConnectionError("nobody listens")
            answer = call(*args, **keywords)
            if luck > 0.8:
                fate["after"] += 1
                raise ConnectionError("it was done, and the answer was lost")
            return answer

        return perhaps

    for name in ("create_run", "log_batch", "log_artifact", "set_terminated", "update_run", "set_tag"):
        monkeypatch.setattr(MlflowClient, name, unsure(getattr(MlflowClient, name)))
    new = delivery()

    def insist(last: bool) -> None:
        nonlocal new
        for _ in range(200):
            try:
                new.begin()
                new.upload(last)
                return new.close("FINISHED") if last else None
            except ConnectionError:
                if generator.random() < 0.3:
                    new = delivery()  # the process was killed, and another one goes on

    journals = [run_folder / f"fold_{number}" / "metrics.jsonl" for number in (0, 1)]
    for step in range(1, 6):
        for journal in journals:
            with open(journal, "a") as file:
                file.write(line(step, lr=step / 8, val__score=step / 16))
        insist(last=False)
    for number in (0, 1):
        finish_fold(run_folder / f"fold_{number}", 0.75)
    insist(last=True)
    monkeypatch.undo()
    assert min(fate.values()) >= 5
    client, runs = fetch(run_folder)
    assert len(client.search_runs([runs["."].info.experiment_id])) == 3
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in (0, 1):
        run_id = runs[f"fold_{number}"].info.run_id
        for name, share in (("lr", 8), ("val/score", 16)):
            history = client.get_metric_history(run_id, name)
            assert sorted((point.step, point.value) for point in history) == [
                (step, step / share) for step in range(1, 6)
            ]
        assert [point.value for point in client.get_metric_history(run_id, "score")] == [0.75]
        assert "weights.safetensors" in {file.path for file in client.list_artifacts(run_id)}
