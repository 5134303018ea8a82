"""Find the runs that MLflow needs for a registered model or a submission, and the artifacts of deleted runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.runs.run import RUNS_FOLDER
from competition.tracking.store import MlflowStore, connect_mlflow, find_mlflow_store

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PAGE = 1000  # number of entries per query
MODELS_PAGE = 100  # number of logged models per query; MLflow does not allow more
MODELS_FOLDER = "models"  # MLflow's folder for the artifacts of logged models
# Kinds of MLflow runs whose artifacts may be deleted. Those of submissions and studies are never deleted.
CLEANED_KINDS = ("cv", "fold")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnneededArtifacts:
    """Describe the unneeded artifacts of one MLflow run.

    Attributes:
        run_id: id of the MLflow run.
        folder: folder of the artifacts.
        run_name: name of the run's folder in `mlruns/runs`, which is its hash.
        reason: why the artifacts are no longer needed.
    """

    run_id: str
    folder: Path
    run_name: str
    reason: str


@dataclass(frozen=True)
class MlflowRecords:
    """Hold what MLflow records about the runs of a project.

    Attributes:
        artifacts: local folder of all artifacts; None if the artifacts are not in a local folder.
        named_runs: for each run that must stay, the reason. The keys are the names of the runs' folders.
        named_ids: for each MLflow run that must stay, the reason. The keys are the ids of the MLflow runs.
        unneeded: artifacts of runs that were deleted.
    """

    artifacts: Path | None = None
    named_runs: dict[str, str] = field(default_factory=dict)
    named_ids: dict[str, str] = field(default_factory=dict)
    unneeded: list[UnneededArtifacts] = field(default_factory=list)


def read_mlflow(root: Path) -> MlflowRecords:
    """Read what the MLflow store of a project records about its runs.

    The store is not changed. If its database does not exist, it is not created, and the records are empty.

    Args:
        root: the folder that contains `mlruns`.

    Raises:
        Exception: any exception of MLflow if the store cannot be read.
    """
    store = find_mlflow_store(root)
    if store.database is not None and not store.database.exists():
        return MlflowRecords(store.artifacts)
    client = connect_mlflow(store)
    runs = {run.info.run_id: run for run in _all_runs(client)}
    records = MlflowRecords(store.artifacts)
    for version in _pages(client.search_model_versions):
        run, reason = (
            runs.get(version.run_id),
            f"the registered model {version.name}, version {version.version}, contains its networks",
        )
        records.named_ids[version.run_id] = reason
        if run is not None and (name := run.data.tags.get("run_hash")):
            records.named_runs.setdefault(name, reason)
    for run in runs.values():
        if run.data.tags.get("kind") == "submission":
            text = f"{run.data.params.get('runs', '')},{run.data.tags.get('upload_runs', '')}"
            for name in filter(None, (part.strip() for part in text.split(","))):
                records.named_runs.setdefault(name, f"the MLflow run {run.info.run_name} names it")
    records.unneeded.extend(_unneeded_artifacts(root, store, runs, _model_runs(client, store)))
    return records


def _unneeded_artifacts(
    root: Path, store: MlflowStore, runs: dict[str, Run], model_runs: dict[str, str]
) -> Iterator[UnneededArtifacts]:
    """Yield the artifacts of runs that were deleted in MLflow, and of runs whose folder was deleted.

    The artifacts of the runs' logged models, whose files are usually hard links to the weights of the runs, are yielded
    too. If this store knows no run for a folder of artifacts, the folder is left out, because it may belong to another
    store.

    Args:
        root: the folder that contains `mlruns`.
        store: the MLflow store.
        runs: all MLflow runs by id, also deleted ones.
        model_runs: id of the MLflow run of each logged model, by the model's id.
    """
    if store.artifacts is None or not store.artifacts.is_dir():
        return
    folders = {folder: folder.name for folder in sorted(store.artifacts.iterdir())}
    models = store.artifacts / MODELS_FOLDER
    folders |= {models / model: run_id for model, run_id in sorted(model_runs.items())}
    for folder, run_id in folders.items():
        run = runs.get(run_id)
        if run is None or not folder.is_dir() or run.data.tags.get("kind") not in CLEANED_KINDS:
            continue
        name = run.data.tags.get("run_hash", "")
        parent = runs.get(run.data.tags.get("mlflow.parentRunId", "")) if run.data.tags["kind"] == "fold" else run
        if run.info.lifecycle_stage == "deleted":
            yield UnneededArtifacts(run_id, folder, name, "MLflow artifacts of a run that was deleted in MLflow")
        elif parent is not None and _folder_is_gone(root, parent.data.tags.get("folder", "")):
            yield UnneededArtifacts(run_id, folder, name, "MLflow artifacts of a run whose folder was deleted")


def _folder_is_gone(root: Path, folder: str) -> bool:
    """Return whether a run's folder was in this project and has been deleted.

    A missing folder alone is no proof, because the project may have been moved, or its disk may not be mounted. So the
    path must also be inside this project's folder of runs, and that folder must not be empty.

    Args:
        root: the folder that contains `mlruns`.
        folder: path of the run's folder at the time of its upload; empty if unknown.
    """
    path, runs = Path(folder), (root / RUNS_FOLDER).resolve()
    is_mounted = runs.is_dir() and next(runs.iterdir(), None) is not None
    return is_mounted and path.is_absolute() and runs in path.parents and not path.exists()


def _model_runs(client: MlflowClient, store: MlflowStore) -> dict[str, str]:
    """Return the id of the MLflow run of each logged model, by the model's id.

    If the local folder of artifacts contains no models, MLflow is not asked, and the result is empty.
    """
    if store.artifacts is None or not (store.artifacts / MODELS_FOLDER).is_dir():
        return {}
    experiments = [one.experiment_id for one in _pages(client.search_experiments)]
    if not experiments:
        return {}
    models = _pages(client.search_logged_models, experiments, page_size=MODELS_PAGE)
    return {str(model.model_id): str(model.source_run_id) for model in models if model.source_run_id}


def _all_runs(client: MlflowClient) -> Iterator[Run]:
    from mlflow.entities import ViewType

    experiments = [one.experiment_id for one in _pages(client.search_experiments, view_type=ViewType.ALL)]
    if experiments:
        yield from _pages(client.search_runs, experiments, run_view_type=ViewType.ALL)


def _pages(search: Any, *arguments: Any, page_size: int = PAGE, **keywords: Any) -> Iterator[Any]:
    """Yield the entries of all pages of a search in MLflow.

    Args:
        search: method of MLflow's client that returns one page of entries.
        arguments: positional arguments of the method.
        page_size: number of entries per page.
        keywords: keyword arguments of the method.
    """
    token = None
    while True:
        page = search(*arguments, **keywords, max_results=page_size, page_token=token)
        yield from page
        if not (token := page.token):
            return
