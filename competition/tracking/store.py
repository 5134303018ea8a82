"""Open MLflow's tracking store, and define the metadata and names that are stored there.

The store is the SQLite database `mlruns/mlflow.db`, or the store that the environment variable `MLFLOW_TRACKING_URI`
names. The module also defines the names of metrics and parameters, and the saved view of MLflow's table of runs.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.errors import MaskfoldError
from competition.sqlite import PATIENCE_SECONDS, check_sqlite
from competition.tracking.provenance import source_tags

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from competition.config.experiment import Experiment
    from competition.config.postprocess import PostprocessConfig


MAX_NAME_LENGTH = 250
MAX_PARAMETER_LENGTH = 6000
MAX_TAG_LENGTH = 8000
# metrics that get the prefix `system/`, so that MLflow shows them on its page of system metrics
SYSTEM_METRICS = frozenset({"epochs", "steps", "minutes", "peak_gib", "threads", "devices"})

logger = logging.getLogger(__name__)


# Names, parameters and metrics


def mlflow_name(name: str) -> str:
    """Return a name that MLflow accepts for a metric or parameter.

    MLflow accepts letters, digits, space and `_ - . /`. If the name has other characters, they become `_`, and a
    checksum of the original name is added, so that `T1+` and `T1*` get different names.

    Example:
        >>> mlflow_name("val/dice/left ventricle")
        'val/dice/left ventricle'
        >>> mlflow_name("val/dice/T1+")
        'val/dice/T1_-e747'
    """
    parts = [part if part.strip(".") else "_" for part in re.sub(r"[^\w\-. /]", "_", name).split("/")]
    valid = "/".join(parts)
    if valid == name and len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{valid[: MAX_NAME_LENGTH - 5]}-{zlib.crc32(name.encode()) & 0xFFFF:04x}"


def mlflow_metric_name(name: str) -> str:
    """Return the name of a metric in MLflow.

    Metrics of time, memory and the like get the prefix `system/`, because MLflow shows metrics with this prefix on a
    separate page.

    Example:
        >>> [mlflow_metric_name(name) for name in ("val/dice", "time/epoch_seconds", "minutes")]
        ['val/dice', 'system/time/epoch_seconds', 'system/minutes']
    """
    is_system = name.startswith(("time/", "memory/")) or name in SYSTEM_METRICS
    return mlflow_name(f"system/{name}" if is_system else name)


def flatten_parameters(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a YAML tree as MLflow parameters, with dotted names as on the command line.

    A list of plain values becomes one parameter. In a list of sections, each section is numbered. Values that are too
    long for MLflow are shortened; the artifact `experiment.yaml` contains the complete values.

    Example:
        >>> flatten_parameters({"optimizer": {"args": {"lr": 0.001}}, "loss": [{"weight": 1}], "seeds": [0, 1]})
        {'optimizer.args.lr': '0.001', 'loss.0.weight': '1', 'seeds': '[0, 1]'}
    """
    leaves: dict[str, str] = {}
    _collect(tree, "", leaves)
    return leaves


def _collect(value: Any, key: str, leaves: dict[str, str]) -> None:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            _collect(item, f"{key}.{name}" if key else str(name), leaves)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            _collect(item, f"{key}.{number}", leaves)
    else:
        leaves[mlflow_name(key)] = truncate_text(_text(value), MAX_PARAMETER_LENGTH)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool | list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def truncate_text(text: str, longest: int) -> str:
    """Return a text; if it has more than `longest` characters, shorten it to this length with ` …` at its end."""
    return text if len(text) <= longest else text[: longest - 2] + " …"


def numeric_metrics(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a result file as metrics.

    The names of nested values are joined by `_`. Values that are not numbers are skipped.

    Example:
        >>> numeric_metrics({"score": 0.9, "dice": {"anterior": 0.88, "posterior": None}, "device": "cpu"})
        {'score': 0.9, 'dice_anterior': 0.88}
    """
    numbers: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            numbers.update(numeric_metrics(value, f"{prefix}{name}_"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{name}"] = float(value)
    return numbers


RESULT_TAGS = ("metric", "stopped", "precision", "device", "torch")  # keys of a result file that become tags


def result_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a result file as metrics, except `fold` and `seed`, which are uploaded as tags."""
    return numeric_metrics({key: value for key, value in result.items() if key not in ("fold", "seed")})


def result_tags(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of a result file that become tags in MLflow, e.g. `metric` and `device`."""
    return {key: str(result[key]) for key in RESULT_TAGS if result.get(key)}


# The saved view of the table of runs

VIEW_KEY = "maskfold"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
VIEW_NAME = "Scores"
MAX_CLASS_COLUMNS = 12  # maximum number of classes with a column of their own


def build_saved_view(classes: Sequence[str], created: int) -> str:
    """Return a saved view of MLflow's table of runs; it shows the columns that contain the most important scores.

    The result is the value of the tag `VIEW_TAG` of an MLflow experiment, in MLflow's own JSON format.

    Args:
        classes: names of the competition's classes; the first `MAX_CLASS_COLUMNS` get a column.
        created: time of creation in ms since 1970.
    """
    # MLflow sorts the columns by name, whatever their order here. The view has few columns, and `counted_*` comes
    # first, so that the final score is visible without scrolling.
    metrics = [
        "counted_lower",
        "counted_score",
        "counted_upper",
        "cv_score",
        "score",
        *(f"dice_{name}" for name in classes[:MAX_CLASS_COLUMNS]),
    ]
    # sort the newest run first, because MLflow does not nest folds under their run if the table is sorted by a metric
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [
            *(f"metrics.`{mlflow_metric_name(name)}`" for name in metrics),
            "tags.`counting_score`",
            "tags.`device`",
        ],
    }
    return json.dumps({"name": VIEW_NAME, "createdAt": created, "updatedAt": created, "state": json.dumps(state)})


def is_outdated_view(stored: str | None, view: str) -> bool:
    """Return whether a stored view lacks a column of `view`, e.g. because an older version of Maskfold stored it.

    Args:
        stored: value of the tag `VIEW_TAG` in MLflow; None if the tag is missing, which counts as outdated.
        view: value of the tag as this version would write it.
    """
    try:
        columns = [json.loads(json.loads(text)["state"])["selectedColumns"] for text in (stored or "", view)]
    except (ValueError, LookupError, TypeError):
        return True
    return not set(columns[1]) <= set(columns[0])


DEFAULT_ADDRESS = "http://127.0.0.1:5000"  # address of `maskfold ui`


def view_link(address: str, experiment_id: str) -> str:
    """Return the URL that opens MLflow's table of runs with the saved view.

    Messages to the user contain this URL and not the plain address of the server, because the plain address opens
    MLflow's page for language models.

    Args:
        address: address of the server, e.g. `http://127.0.0.1:5000`.
        experiment_id: MLflow's id of the experiment.
    """
    return f"{address}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW_KEY}&workflowType=machine_learning"


# Metadata and files of a run


@dataclass(frozen=True)
class RunMetadata:
    """Hold the metadata of a run in MLflow.

    Attributes:
        experiment_name: name of the MLflow experiment, which is the name of the competition.
        run_name: name of the run in MLflow.
        tags: tags of the run.
        fold_tags: tags that the MLflow runs of all folds have.
        parameters: values of the resolved YAML, by dotted key.
        view: value of the tag `VIEW_TAG`, the saved view of MLflow's table of runs.
        postprocess: the post-processing settings of the current command. If None, those stored with the run are used.
    """

    experiment_name: str
    run_name: str
    tags: dict[str, str]
    fold_tags: dict[str, str]
    parameters: dict[str, str]
    view: str
    postprocess: PostprocessConfig | None = None

    @classmethod
    def of(cls, run_folder: Path, exp: Experiment, kind: str, name: str | None = None) -> RunMetadata:
        """Return the metadata of a run.

        Args:
            run_folder: the run's folder, `…/<competition>-<experiment>/<hash>`.
            exp: the experiment of the run.
            kind: value of the tag `kind`: `cv`, `study` or `submission`.
            name: name of the run in MLflow. If None, it consists of the names of the experiment and the run's folder.
        """
        # Imported here, because the doctor also runs without pydantic.
        from competition.config.loading import resolve_config

        folder = run_folder.resolve()
        experiment = folder.parent.name.removeprefix(f"{exp.competition.name}-")
        common = {"competition": exp.competition.name, "experiment": experiment, "run_hash": folder.name}
        source = source_tags()
        tags = {**common, "kind": kind, "folder": str(folder), **source}
        fold_tags = {**common, "kind": "fold", **source}
        return cls(
            exp.competition.name,
            name or f"{experiment} {folder.name}",
            {key: truncate_text(value, MAX_TAG_LENGTH) for key, value in tags.items()},
            {key: truncate_text(value, MAX_TAG_LENGTH) for key, value in fold_tags.items()},
            flatten_parameters(resolve_config(exp)),
            build_saved_view(exp.competition.classes, started_at(folder)),
            exp.postprocess,
        )


def list_member_folders(run_folder: Path) -> list[Path]:
    """Return the folders of a run's folds that have started, in the order of their numbers.

    The names of these folders are e.g. `fold_0`, `fold_0_seed_1`, and `full` for the training on all cases.
    """
    folders = [
        folder
        for folder in run_folder.iterdir()
        if re.fullmatch(r"(fold_\d+|full)(_.+)?", folder.name)
        and any((folder / name).exists() for name in ("log.txt", "metrics.jsonl", "result.json"))
    ]
    return sorted(folders, key=lambda folder: [int(part) if part.isdigit() else 0 for part in folder.name.split("_")])


def get_member_tags(folder: Path) -> dict[str, str]:
    """Return the MLflow tags of a fold's folder: `fold` (a number, or `full`) and, if its name has a seed, `seed`."""
    fold = re.search(r"fold_(\d+)", folder.name)
    seed = re.search(r"seed_(\d+)", folder.name)
    return {"fold": fold.group(1) if fold else "full", **({"seed": seed.group(1)} if seed else {})}


def started_at(folder: Path) -> int:
    """Return the time at which a run or fold was started, in ms since 1970.

    This is the modification time of `job.json` or `experiment.yaml` in the folder, whichever is older. If the folder
    has neither file, it is the modification time of the folder.
    """
    times = [path.stat().st_mtime for name in ("job.json", "experiment.yaml") if (path := folder / name).exists()]
    return round(1000 * min(times, default=folder.stat().st_mtime))


def read_result_json(path: Path) -> dict[str, Any]:
    """Return the content of a result file.

    If the file is missing, return an empty dictionary. If the file is damaged or was edited after it was written, log a
    warning and return an empty dictionary.
    """
    from competition.records import read_unedited_record  # imported here, because the doctor also runs without numpy

    try:
        return read_unedited_record(path, path.name)
    except FileNotFoundError:
        return {}
    except MaskfoldError as error:
        logger.warning("%s", error)
        return {}


def matching_files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """For each pattern, yield the matching files of a folder in alphabetical order.

    Hidden files are left out, because these are temporary files that are still being written.
    """
    for pattern in patterns:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))


# The store

MLRUNS = "mlruns"
DATABASE_FILE = "mlflow.db"
ARTIFACTS_FOLDER = "artifacts"

# without this tag, MLflow's pages first show the views for language models
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_creation_lock = threading.Lock()


@dataclass(frozen=True)
class MlflowStore:
    """Describe an MLflow tracking store.

    Attributes:
        uri: URI for MLflow, e.g. `sqlite:////home/me/project/mlruns/mlflow.db` or `http://host:5000`.
        database: path of the SQLite file; None for other stores.
        artifacts: folder of the artifacts; None if the store is a server, which selects the folder itself.
    """

    uri: str
    database: Path | None
    artifacts: Path | None

    @property
    def display_uri(self) -> str:
        """The URI without its password, for messages and for files in a run's folder."""
        from competition.redact import redact  # imported here, because the doctor also runs without pydantic

        return redact(self.uri)

    @property
    def is_server(self) -> bool:
        """Whether the store is an MLflow server."""
        return self.uri.startswith(("http://", "https://"))


def find_mlflow_store(root: Path) -> MlflowStore:
    """Return the store of a project.

    Args:
        root: the folder that contains `mlruns/`.

    Returns:
        If the environment variable `MLFLOW_TRACKING_URI` is set and not empty, the store that it names. Otherwise, the
        SQLite database `mlruns/mlflow.db`, with artifacts in `mlruns/artifacts`. If the variable names a SQLite file,
        the artifacts are in `artifacts` beside this file.
    """
    folder = root.resolve() / MLRUNS
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        database = folder / DATABASE_FILE
        return MlflowStore(f"sqlite:///{database.as_posix()}", database, folder / ARTIFACTS_FOLDER)
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
        return MlflowStore(uri, database, database.parent / ARTIFACTS_FOLDER)
    if uri.startswith(("postgresql", "mysql", "mssql")):
        return MlflowStore(uri, None, folder / ARTIFACTS_FOLDER)  # a database stores no files
    return MlflowStore(uri, None, None)


def project_root(run_folder: Path) -> Path:
    """Return the project folder of a run, which is the parent of the nearest `mlruns` folder above the run.

    If no folder above the run is named `mlruns`, return the working folder.
    """
    for parent in run_folder.resolve().parents:
        if parent.name == MLRUNS:
            return parent.parent
    return Path.cwd()


def configure_mlflow() -> None:
    """Set MLflow's environment variables: no telemetry, no progress bars, no printed links, short timeouts.

    Call this function before MLflow is imported. The timeouts are short, because with MLflow's defaults, a server that
    does not answer would block the upload for several minutes. Telemetry is always switched off; other variables that
    the user has set are not changed.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"  # MLflow accepts only this value, not 1
    for name, value in (
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(name, value)


def connect_mlflow(store: MlflowStore, patience: float = PATIENCE_SECONDS) -> MlflowClient:
    """Import MLflow, open a store, and return its client; if the SQLite database does not exist, create it.

    Call this function only when it is needed, because the import of MLflow takes several seconds.

    Args:
        store: the store.
        patience: maximum time in seconds to wait for a SQLite database that another program has locked.

    Raises:
        MaskfoldError: the SQLite database is damaged, or another program keeps it locked.
        mlflow.exceptions.MlflowException: the store cannot be opened.
    """
    configure_mlflow()
    from mlflow.tracking import MlflowClient

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # MLflow would log about fifty lines about tables
    if store.database is not None:
        store.database.parent.mkdir(parents=True, exist_ok=True)
        # A lock, because a study and its trial use two threads, and MLflow's migrations are not thread-safe.
        with _creation_lock:
            if not store.database.exists():
                logger.info("creating the MLflow database %s", store.database)
                _create_database(store.database)
        consequence = "the next command creates a new database and uploads its run again"
        check_sqlite(store.database, consequence, patience)
    return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def _create_database(database: Path) -> None:
    """Create a SQLite database for MLflow beside its final path, then move it there when it is complete.

    Otherwise, a killed process might leave an incomplete database, which MLflow cannot open.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # Imported here, because the doctor also runs without numpy.
    from competition.io import make_temporary_path, remove_stale_temp

    remove_stale_temp(database.parent, database.name)
    part = make_temporary_path(database)
    uri = f"sqlite:///{part.as_posix()}"
    try:
        created = SqlAlchemyStore(uri, ARTIFACTS_FOLDER)
        created.engine.dispose()
        SqlAlchemyStore._engine_map.pop(uri, None)
        try:
            os.link(part, database)
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # the file system has no hard links
            if not database.exists():
                os.replace(part, database)
    finally:
        for path in database.parent.glob(f"{part.name}*"):
            path.unlink(missing_ok=True)


def get_or_create_experiment(client: MlflowClient, store: MlflowStore, name: str) -> str:
    """Return the id of the MLflow experiment `name`.

    If the experiment does not exist, create it. If it was deleted, restore it and log a warning.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = store.artifacts.as_uri() if store.artifacts is not None else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        logger.warning("MLflow's experiment %s was deleted in MLflow, so it is restored for new runs", name)
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def retry_after_conflict(call: Callable[[], None]) -> None:
    """Call a function that writes to MLflow's database; if it conflicts with another command, call it once more.

    Before MLflow inserts a data set or a tag, it searches the database for the same row. If two commands do this at the
    same time, both find nothing, and the second insertion violates a unique constraint. A second call then finds the
    row that the other command has inserted.

    Raises:
        mlflow.exceptions.MlflowException: the first call fails for another reason, or the second call fails.
    """
    from mlflow.exceptions import MlflowException

    try:
        call()
    except MlflowException as error:
        if "IntegrityError" not in str(error):
            raise
        call()
