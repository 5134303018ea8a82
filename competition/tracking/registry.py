"""Register models in MLflow: one registered model per competition, and a new version of it for each registration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config.experiment import Experiment
from competition.errors import MaskfoldError
from competition.io import temporary_folder
from competition.redact import redact
from competition.tracking.store import (
    MAX_TAG_LENGTH,
    MlflowStore,
    RunMetadata,
    connect_mlflow,
    find_mlflow_store,
    project_root,
    truncate_text,
)
from competition.tracking.uploader import RUN_KEY, RunUploader

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FINGERPRINT_TAG = "fingerprint"
BEST_ALIAS = "best"  # alias of the best run's version: models:/NAME@best
MODEL_ARTIFACT = "model"


@dataclass(frozen=True)
class RegisteredVersion:
    """Describe a version of a registered model in MLflow.

    Attributes:
        name: name of the registered model, which is the name of the competition.
        number: number of the version.
        uri: URI of the version, to be passed to `mlflow.pyfunc.load_model`.
        store: URI of the store, without its password. To load the model on another machine, set `MLFLOW_TRACKING_URI`
            to this URI.
        is_new: whether `register_model` created the version; False if the same model was registered before.
    """

    name: str
    number: int
    uri: str
    store: str
    is_new: bool


def register_model(
    run_folder: Path,
    exp: Experiment,
    write: Callable[[Path, Path], None],
    fingerprint: str,
    tags: Mapping[str, str],
    description: str,
    best: bool = False,
) -> RegisteredVersion:
    """Log a model in its run and register it as a version of the competition's model.

    Args:
        run_folder: folder of the run. If MLflow does not have the run, the run is uploaded first.
        exp: experiment of the run.
        write: function that writes the model. Its first argument is the folder for the MLflow model, its second
            argument a folder for temporary files.
        fingerprint: text that identifies the model. If a version with this fingerprint exists, `write` is not called
            and no new version is created.
        tags: tags of the version.
        description: description of the version, one sentence.
        best: whether the version gets the alias `best`.

    Returns:
        The new version, or the existing one with the same fingerprint.

    Raises:
        MaskfoldError: the store cannot be reached, or rejects the model.
    """
    store, name = find_mlflow_store(project_root(run_folder)), exp.competition.name
    with _mlflow_errors(store):
        client = connect_mlflow(store)
        existing = number = _find_version(client, name, fingerprint)
    if number is None:
        with temporary_folder(Path(tempfile.gettempdir()) / "maskfold-model") as temporary:
            write(temporary / MODEL_ARTIFACT, temporary)
            with _mlflow_errors(store):
                number = _create_version(
                    client,
                    _uploaded_run_id(store, run_folder, exp),
                    temporary / MODEL_ARTIFACT,
                    name,
                    {**tags, FINGERPRINT_TAG: fingerprint},
                    description,
                )
    if best:
        with _mlflow_errors(store):
            client.set_registered_model_alias(name, BEST_ALIAS, str(number))
    return RegisteredVersion(name, number, f"models:/{name}/{number}", store.display_uri, existing is None)


@contextmanager
def _mlflow_errors(store: MlflowStore) -> Iterator[None]:
    """Convert each exception of MLflow, its database or the connection in the `with` block to a MaskfoldError."""
    try:
        yield
    except MaskfoldError:
        raise
    except Exception as error:
        first_line = (redact(str(error)).strip().splitlines() or [type(error).__name__])[0]
        raise MaskfoldError(
            f"MLflow ({store.display_uri}) cannot register the model: {first_line[:200]}.",
            "If the variable MLFLOW_TRACKING_URI names a server, start the server, or correct the variable. Then run "
            "the same command again.",
        ) from error


def _find_version(client: MlflowClient, name: str, fingerprint: str) -> int | None:
    """Return the lowest number of a READY model version with this fingerprint; None if there is no such version."""
    quoted = name.replace("'", "''")
    versions = client.search_model_versions(f"name = '{quoted}' and tags.{FINGERPRINT_TAG} = '{fingerprint}'")
    return min((int(version.version) for version in versions if version.status == "READY"), default=None)


def _create_version(
    client: MlflowClient, run_id: str, folder: Path, name: str, tags: dict[str, str], description: str
) -> int:
    """Log the model in `folder` as a model of an MLflow run, register it, and return the number of the new version."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    tags = {key: truncate_text(value, MAX_TAG_LENGTH) for key, value in tags.items()}
    model = client.create_logged_model(
        run.info.experiment_id, MODEL_ARTIFACT, run_id, tags=tags, params=run.data.params, model_type="segmentation"
    )
    try:
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        _ensure_registered_model(client, name)
        # Pass the location, because MLflow would look up `models:/<id>` in the store that this process used last.
        version = client.create_model_version(
            name, model.artifact_location, run_id=run_id, tags=tags, description=description, model_id=model.model_id
        )
    except BaseException:
        client.delete_logged_model(model.model_id)  # delete the model, so that no incomplete model remains
        raise
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    _copy_metrics(client, run_id, model.model_id)
    versions = json.dumps([{"name": name, "version": int(version.version)}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions})  # a link on the run's page
    return int(version.version)


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=f"Networks of the competition {name}: images to masks.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _uploaded_run_id(store: MlflowStore, run_folder: Path, exp: Experiment) -> str:
    """Return the id of the MLflow run that belongs to a run's folder; if MLflow has none, upload the run first."""
    uploader = RunUploader(run_folder, store, RunMetadata.of(run_folder, exp, "cv"))
    uploader.client  # noqa: B018 - opening the store shows whether it still has the run
    if uploader.state.uploaded(RUN_KEY).run_id is None:
        uploader.begin()
        uploader.upload(last=True)
        uploader.close("FINISHED")
    run_id = uploader.state.uploaded(RUN_KEY).run_id
    assert run_id is not None
    return run_id


def _copy_metrics(client: MlflowClient, run_id: str, model_id: str) -> None:
    """Copy the last value of each metric of an MLflow run, except system metrics, to a logged model.

    MLflow then also receives each value a second time for the run. The value has the same time and step as the first
    one, so MLflow drops it.
    """
    from mlflow.entities import Metric

    points: list[Any] = []
    for name in client.get_run(run_id).data.metrics:
        if name.startswith("system/"):
            continue
        last = max(client.get_metric_history(run_id, name), key=lambda point: (point.step, point.timestamp))
        points.append(Metric(name, last.value, last.timestamp, last.step, model_id=model_id, run_id=run_id))
    client.log_batch(run_id, metrics=points[:1000])
