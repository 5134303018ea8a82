"""Registered models and submissions in MLflow protect runs; artifacts of deleted runs may go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from competition.cleaning import candidates
from competition.cleaning.candidates import Candidate, CleaningPlan, find_candidates
from competition.cleaning.deletion import delete
from competition.cleaning.mlflow_records import read_mlflow
from competition.tracking.store import connect_mlflow, find_mlflow_store, get_or_create_experiment
from tests.cleaning.conftest import MONTH, Make, age
from tests.conftest import add_mlflow_database

OLD, OTHER = "0123456789ab", "ba9876543210"


class Tracked:
    """A project with an MLflow store, and runs in it without uploads."""

    def __init__(self, project: Path) -> None:
        self.project = project
        store = find_mlflow_store(project)
        self.client = connect_mlflow(store)
        self.experiment = get_or_create_experiment(self.client, store, "demo2d")

    def add(self, name: str, kind: str = "cv", **tags: str) -> str:
        """Create a run with one artifact, two months ago; return its id."""
        folder = str((self.project / "mlruns" / "runs" / "demo2d-tiny" / name).resolve())
        tags = {"kind": kind, "run_hash": name, "folder": folder} | tags
        if kind == "fold":
            del tags["folder"]
        run_id = str(self.client.create_run(self.experiment, tags=tags).info.run_id)
        folder = self.project / "mlruns" / "artifacts" / run_id
        (folder / "artifacts").mkdir(parents=True)
        (folder / "artifacts" / "weights.safetensors").write_bytes(bytes(1000))
        age(folder, 60)
        return run_id

    def register(self, run_id: str) -> None:
        self.client.create_registered_model("demo2d")
        source = (self.project / "mlruns" / "artifacts" / "models" / "m-1" / "artifacts").as_uri()
        self.client.create_model_version("demo2d", source, run_id=run_id)


@pytest.fixture
def tracked(project: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Tracked:
    monkeypatch.setattr(candidates, "read_mlflow", read_mlflow)
    add_mlflow_database(project, empty_database)
    return Tracked(project)


def find() -> CleaningPlan:
    return find_candidates(Path(), MONTH)


def artifacts(plan: CleaningPlan) -> set[str]:
    return {candidate.paths[0].name for candidate in plan.candidates if candidate.kind == "MLflow artifacts"}


def upload(run: Path, ids: dict[str, str]) -> None:
    """Write which runs in MLflow a run has."""
    folders = {name: {"run_id": run_id} for name, run_id in ids.items()}
    (run / "shipped.json").write_text(json.dumps({"version": 1, "store": "", "folders": folders}))
    age(run, 60)


def test_a_run_goes_with_its_artifacts_and_mlflow_keeps_its_numbers(make_run: Make, tracked: Tracked) -> None:
    run = make_run(OLD)
    parent = tracked.add(OLD)
    child = tracked.add(OLD, "fold", **{"mlflow.parentRunId": parent})
    other = tracked.add(OTHER, folder="/another/project/mlruns/runs/demo2d-tiny/" + OTHER)
    tracked.client.log_metric(child, "score", 0.5)
    upload(run, {".": parent, "fold_0": child})
    tracked.client.delete_run(child)  # its artifacts are not listed a second time
    [candidate] = find().candidates
    place = find_mlflow_store(tracked.project).artifacts
    assert place is not None and candidate.paths == (run, place / parent, place / child)
    assert delete(candidate)
    assert {path.name for path in place.iterdir()} == {other}
    assert tracked.client.get_run(child).data.metrics == {"score": 0.5}


@pytest.mark.parametrize("known_by", ["hash", "id"])
def test_a_run_with_a_registered_model_stays(make_run: Make, tracked: Tracked, known_by: str) -> None:
    run = make_run(OLD if known_by == "hash" else "renamed")
    run_id = tracked.add(OLD)
    if known_by == "id":
        upload(run, {".": run_id})
    assert [candidate.paths[0] for candidate in find().candidates][:1] == [run]
    tracked.register(run_id)
    plan = find()
    assert plan.candidates == []
    assert [(path, "registered model demo2d, version 1" in why) for path, why in plan.kept] == [(run, True)]


@pytest.mark.parametrize("where", ["params", "tags"])
def test_a_run_with_a_submission_in_mlflow_stays(make_run: Make, tracked: Tracked, where: str) -> None:
    run = make_run(OLD)
    submission = tracked.add("submitted", "submission")
    assert [candidate.paths for candidate in find().candidates] == [(run,)]
    if where == "params":
        tracked.client.log_param(submission, "runs", f"{OTHER}, {OLD}")
    else:
        tracked.client.set_tag(submission, "upload_runs", f"{OTHER}, {OLD}")
    plan = find()
    assert plan.candidates == [] and [path for path, _ in plan.kept] == [run]


def test_artifacts_of_deleted_runs_may_go_and_no_others(make_run: Make, tracked: Tracked) -> None:
    make_run(OTHER, finished=2)
    kept = tracked.add(OTHER)
    in_mlflow = tracked.add(OTHER)
    tracked.client.delete_run(in_mlflow)
    on_disk = tracked.add(OLD)
    fold = tracked.add(OLD, "fold", **{"mlflow.parentRunId": on_disk})
    moved = tracked.add("1" * 12, folder="/moved/mlruns/runs/demo2d-tiny/111111111111")
    submission = tracked.add(OLD, "submission")
    tracked.client.delete_run(submission)
    young = tracked.add("2" * 12)
    (tracked.project / "mlruns" / "artifacts" / young / "artifacts" / "log.txt").touch()
    place = tracked.project / "mlruns" / "artifacts"
    for name in ("0" * 32, "models"):  # of another store; of registered models
        (place / name).mkdir()
        age(place / name, 60)
    plan = find()
    assert artifacts(plan) == {in_mlflow, on_disk, fold} and len(plan.candidates) == 3
    assert all(delete(candidate) for candidate in plan.candidates)
    assert {path.name for path in place.iterdir()} == {kept, moved, submission, young, "0" * 32, "models"}


def test_artifacts_stay_while_the_disk_of_the_runs_is_not_mounted(make_run: Make, tracked: Tracked) -> None:
    make_run(OTHER, finished=2)
    gone = tracked.add(OLD)
    assert artifacts(find()) == {gone}
    Path("mlruns/runs").rename("elsewhere")
    assert artifacts(find()) == set()
    Path("mlruns/runs").mkdir()
    assert artifacts(find()) == set()


@pytest.mark.parametrize("named_by", ["a registered model", "a submission", "another run"])
def test_artifacts_of_a_deleted_run_stay_if_something_names_it(make_run: Make, tracked: Tracked, named_by: str) -> None:
    make_run("3" * 12, finished=2)
    gone = tracked.add(OLD)
    assert artifacts(find()) == {gone}
    if named_by == "a registered model":
        tracked.register(gone)
    elif named_by == "a submission":
        path = Path("submissions/demo2d/tiny.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"runs": [{"hash": OLD}]}))
    else:
        make_run(OTHER, finished=2, init_from=f"mlruns/runs/demo2d-tiny/{OLD}")
    assert artifacts(find()) == set()


def test_without_a_database_none_is_created(make_run: Make, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "read_mlflow", read_mlflow)
    run = make_run(OLD)
    plan = find()
    assert [candidate.paths for candidate in plan.candidates] == [(run,)]
    assert isinstance(plan.candidates[0], Candidate) and not (project / "mlruns" / "mlflow.db").exists()
