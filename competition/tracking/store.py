"""Where MLflow keeps runs: SQLite below `mlruns/`, or whatever `MLFLOW_TRACKING_URI` names."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FOLDER = "mlruns"
DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's pages open on chats and judges

logger = logging.getLogger(__name__)
_making = threading.Lock()


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store.

    Attributes:
        uri: as MLflow wants it, e.g. `sqlite:////home/me/project/mlruns/mlflow.db` or `http://host:5000`.
        database: the SQLite file; None for anything else.
        artifacts: the folder of artifacts; None: the server decides.
    """

    uri: str
    database: Path | None
    artifacts: Path | None

    @property
    def shown(self) -> str:
        """The address without its password: for messages, and for what is kept in a run's folder."""
        from competition.config.secrets import scrub  # the doctor looks at stores where pydantic may be missing

        return scrub(self.uri)

    @property
    def is_server(self) -> bool:
        """Whether the store is reached over the network through an MLflow server."""
        return self.uri.startswith(("http://", "https://"))


def store_of(root: Path) -> Store:
    """The store of a project.

    Args:
        root: the folder that holds `mlruns/`.

    Returns:
        What `MLFLOW_TRACKING_URI` names when it is set and not empty, else SQLite at `mlruns/mlflow.db` with artifacts
        under `mlruns/artifacts`. A SQLite file that the variable names keeps its artifacts beside itself.
    """
    folder = root.resolve() / FOLDER
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        database = folder / DATABASE
        return Store(f"sqlite:///{database.as_posix()}", database, folder / ARTIFACTS)
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
        return Store(uri, database, database.parent / ARTIFACTS)
    if uri.startswith(("postgresql", "mysql", "mssql")):
        return Store(uri, None, folder / ARTIFACTS)  # a database holds no files: they stay with the project
    return Store(uri, None, None)


def root_of(run_folder: Path) -> Path:
    """The project of a run: the folder that holds the nearest `mlruns` above it, else the working folder."""
    for parent in run_folder.resolve().parents:
        if parent.name == FOLDER:
            return parent.parent
    return Path.cwd()


def quieten() -> None:
    """Set what MLflow reads from the environment when it is imported: no telemetry, no bars, no links to runs among
    the lines of a training, short waits.

    A server that does not answer must not hold the shipper for MLflow's default of several minutes. Values that the
    user has set stay, except telemetry, which is off.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"  # MLflow takes this very word only, not 1
    for name, value in (
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)


def connect(store: Store) -> MlflowClient:
    """Import MLflow (seconds) and open the store; a new SQLite database is made (seconds more).

    Raises:
        mlflow.exceptions.MlflowException: the store cannot be opened.
    """
    quieten()
    from mlflow.tracking import MlflowClient

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # some fifty lines about tables
    if store.database is not None:
        store.database.parent.mkdir(parents=True, exist_ok=True)
        with _making:  # a study and its trial are delivered by two threads, and MLflow's migrations know only one
            if not store.database.exists():
                logger.info("making the MLflow database %s", store.database)
                _make(store.database)
    return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def _make(database: Path) -> None:
    """Make a SQLite database of MLflow's, whole or not at all: one whose making was cut short MLflow never opens again."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from competition.data.files import sweep, temporary  # the doctor looks at stores where numpy may be missing

    sweep(database.parent, database.name)
    beside = temporary(database)
    uri = f"sqlite:///{beside.as_posix()}"
    try:
        made = SqlAlchemyStore(uri, ARTIFACTS)
        made.engine.dispose()
        SqlAlchemyStore._engine_map.pop(uri, None)
        try:
            os.link(beside, database)
        except FileExistsError:
            pass  # another process was quicker
        except OSError:  # a file system without links
            if not database.exists():
                os.replace(beside, database)
    finally:
        for path in database.parent.glob(f"{beside.name}*"):
            path.unlink(missing_ok=True)


def experiment_id(client: MlflowClient, store: Store, name: str) -> str:
    """The id of MLflow's experiment `name`, made when it is not there, restored when it was deleted."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = store.artifacts.as_uri() if store.artifacts is not None else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was quicker
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        logger.warning("MLflow's experiment %s was deleted; it is restored, because there are new runs of it", name)
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)
