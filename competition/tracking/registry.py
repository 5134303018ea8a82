"""Versions of a registered model: one name for each competition, one version for each run that somebody registers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config import Experiment, MaskfoldError
from competition.config.secrets import scrub
from competition.tracking.delivery import RUN, Delivery
from competition.tracking.identity import Identity
from competition.tracking.names import LONGEST_TAG, shorten
from competition.tracking.store import Store, connect, root_of, store_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FINGERPRINT = "fingerprint"
BEST = "best"  # the alias of the best run's version: models:/NAME@best
ARTIFACT = "model"


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: of the registered model: the competition's.
        number: the version.
        uri: what `mlflow.pyfunc.load_model` takes.
        store: the URI of the store; `MLFLOW_TRACKING_URI` elsewhere.
        is_new: whether it was made now; the same model again is the version that is there.
    """

    name: str
    number: int
    uri: str
    store: str
    is_new: bool


def register(
    run_folder: Path,
    exp: Experiment,
    write: Callable[[Path, Path], None],
    fingerprint: str,
    tags: Mapping[str, str],
    description: str,
    best: bool = False,
) -> Version:
    """Logs a model beside its run and makes it a version of the competition's registered model.

    Args:
        run_folder: of the run; a run that MLflow does not have is delivered first.
        exp: its experiment.
        write: writes the MLflow model into the folder that it is given, with another one for the time being.
        fingerprint: of the model: one that is a version already becomes no second one.
        tags: of the version.
        description: of the version, in a sentence.
        best: give it the alias `best`.

    Raises:
        MaskfoldError: the store cannot be reached, or does not take the model.
    """
    store, name = store_of(root_of(run_folder)), exp.competition.name
    with _asking(store):
        client = connect(store)
        found = number = _find(client, name, fingerprint)
    if number is None:
        with tempfile.TemporaryDirectory(prefix="maskfold-model-") as place:
            write(Path(place) / ARTIFACT, Path(place))
            with _asking(store):
                number = _make(
                    client,
                    _mlflow_run(store, run_folder, exp),
                    Path(place) / ARTIFACT,
                    name,
                    {**tags, FINGERPRINT: fingerprint},
                    description,
                )
    if best:
        with _asking(store):
            client.set_registered_model_alias(name, BEST, str(number))
    return Version(name, number, f"models:/{name}/{number}", store.shown, found is None)


@contextmanager
def _asking(store: Store) -> Iterator[None]:
    """Whatever MLflow, its database or the network raise becomes two sentences."""
    try:
        yield
    except Exception as error:
        first = (scrub(str(error)).strip().splitlines() or [type(error).__name__])[0]
        raise MaskfoldError(
            f"MLflow ({store.shown}) does not take the model: {first[:200]}.",
            "Start the server or correct MLFLOW_TRACKING_URI, then type the same command again.",
        ) from error


def _find(client: MlflowClient, name: str, fingerprint: str) -> int | None:
    """The version with a fingerprint."""
    quoted = name.replace("'", "''")
    found = client.search_model_versions(f"name = '{quoted}' and tags.{FINGERPRINT} = '{fingerprint}'")
    return min((int(version.version) for version in found if version.status == "READY"), default=None)


def _make(client: MlflowClient, run_id: str, folder: Path, name: str, tags: dict[str, str], description: str) -> int:
    """Log the model of a folder under a run, and make it a version; returns its number."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    short = {key: shorten(value, LONGEST_TAG) for key, value in tags.items()}
    model = client.create_logged_model(
        run.info.experiment_id, ARTIFACT, run_id, tags=short, params=run.data.params, model_type="segmentation"
    )
    try:
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        _make_name(client, name)
        # by its place: a database would look `models:/<id>` up in whatever store this process named last
        made = client.create_model_version(
            name, model.artifact_location, run_id=run_id, tags=short, description=description, model_id=model.model_id
        )
    except BaseException:
        client.delete_logged_model(model.model_id)  # half a model is none
        raise
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    _copy_metrics(client, run_id, model.model_id)
    versions = json.dumps([{"name": name, "version": int(made.version)}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions})  # a link on the run's page
    return int(made.version)


def _make_name(client: MlflowClient, name: str) -> None:
    """The registered model, made when it is not there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=f"Networks of the competition {name}: images to masks.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _mlflow_run(store: Store, run_folder: Path, exp: Experiment) -> str:
    """The run's own MLflow run."""
    delivery = Delivery(run_folder, store, Identity.of(run_folder, exp, "cv"))
    delivery.client  # noqa: B018 - opening the store shows whether it still has the run
    if delivery.state.of(RUN).run_id is None:
        delivery.begin()
        delivery.deliver(last=True)
        delivery.close("FINISHED")
    found = delivery.state.of(RUN).run_id
    assert found is not None
    return found


def _copy_metrics(client: MlflowClient, run_id: str, model_id: str) -> None:
    """The run's scores, for the table of models; the very same points, so that the run's own history stays as it is."""
    from mlflow.entities import Metric

    points: list[Any] = []
    for name in client.get_run(run_id).data.metrics:
        if name.startswith("system/"):
            continue
        last = max(client.get_metric_history(run_id, name), key=lambda point: (point.step, point.timestamp))
        points.append(Metric(name, last.value, last.timestamp, last.step, model_id=model_id, run_id=run_id))
    client.log_batch(run_id, metrics=points[:1000])
