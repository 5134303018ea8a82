"""A submission becomes one child of its run; a store that cannot be reached causes only a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from competition.tracking.store import RunMetadata, connect_mlflow, find_mlflow_store, project_root
from competition.tracking.submissions import log_submission
from competition.tracking.sync_state import read_sync_state
from competition.tracking.uploader import RUN_KEY, RunUploader


@pytest.fixture
def written(tmp_path: Path, tiny) -> tuple[Path, Path, Path]:
    folder = tmp_path / "mlruns" / "runs" / "demo2d-tiny" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text("seed: 1\n")
    csv, note = tmp_path / "s.csv", tmp_path / "s.json"
    csv.write_text("id,class,predicted\n")
    note.write_text(
        json.dumps(
            {
                "sha256": "ab" * 32,
                "runs": [{"hash": "0123456789ab", "weight": 1.0}],
                "expected": {"score": 0.8, "low": 0.7, "high": 0.9, "metric": "dice"},
            }
        )
    )
    return folder, csv, note


def test_it_is_a_child_of_its_run_and_there_once(written, tiny):
    folder, csv, note = written
    store = find_mlflow_store(project_root(folder))
    delivery = RunUploader(folder, store, RunMetadata.of(folder, tiny(2), "cv"))
    delivery.begin()
    delivery.close("FINISHED")
    first = log_submission(folder, tiny(2), csv, note)
    assert log_submission(folder, tiny(2), csv, note) == first is not None
    client = connect_mlflow(store)
    run = client.get_run(first)
    assert run.data.tags["mlflow.parentRunId"] == read_sync_state(folder, store.uri).uploaded(RUN_KEY).run_id
    assert run.data.tags["kind"] == "submission" and run.info.status == "FINISHED"
    assert run.data.metrics == {"expected_score": 0.8, "expected_lower": 0.7, "expected_upper": 0.9}
    assert sorted(item.path for item in client.list_artifacts(first)) == ["s.csv", "s.json"]
    assert len(client.search_runs([run.info.experiment_id], "tags.kind = 'submission'")) == 1
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.metrics["counted_score"] == 0.8, "so that runs can be sorted by it"
    assert parent.info.status == "FINISHED"


@pytest.mark.parametrize("zipped", [False, True])
def test_label_files_are_logged_as_a_csv_is(written, tiny, zipped):
    folder, _, note = written
    files = note.with_suffix(".zip" if zipped else "")
    if zipped:
        files.write_bytes(b"PK")
    else:
        files.mkdir()
        for name in ("a.png", "b.png"):
            (files / name).write_bytes(b"png")
    run_id = log_submission(folder, tiny(2), files, note)
    client = connect_mlflow(find_mlflow_store(project_root(folder)))
    run = client.get_run(run_id)
    assert (run.info.run_name, run.data.tags["file"]) == ("submission s", str(files))
    assert sorted(item.path for item in client.list_artifacts(run_id)) == sorted([files.name, "s.json"])
    if not zipped:
        assert [item.path for item in client.list_artifacts(run_id, "s")] == ["s/a.png", "s/b.png"]


def test_the_same_bytes_of_other_words_are_the_same_submission(written, tiny, caplog):
    folder, csv, note = written
    first = log_submission(folder, tiny(2), csv, note)
    said = json.loads(note.read_text())
    note.write_text(
        json.dumps({**said, "runs": [{"hash": "0123456789ab", "weight": 0.5}, {"hash": "f" * 12, "weight": 0.5}]})
    )
    assert log_submission(folder, tiny(2), csv, note) == first is not None and not caplog.text
    assert connect_mlflow(find_mlflow_store(project_root(folder))).get_run(first).data.params == {
        "runs": "0123456789ab",
        "weights": "1",
    }


def test_a_store_that_cannot_be_reached_is_a_warning(written, tiny, monkeypatch, caplog):
    folder, csv, note = written
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert log_submission(folder, tiny(2), csv, note) is None
    assert "http://127.0.0.1:9" in caplog.text and "s.csv" in caplog.text
