"""Log submissions, and their uploads to the competition's host, in MLflow.

A submission is logged as a child run of the run whose networks predicted it. Its artifacts are the CSV (or the label
files) and the summary JSON. When the submission is uploaded to the competition's host, the scores of the host are added
as metrics.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config.experiment import Experiment
from competition.redact import redact
from competition.tracking.run_scores import COUNTING_TAG, SCORE_METRICS
from competition.tracking.store import (
    MAX_TAG_LENGTH,
    MlflowStore,
    RunMetadata,
    connect_mlflow,
    find_mlflow_store,
    get_or_create_experiment,
    project_root,
    truncate_text,
)
from competition.tracking.sync_state import read_sync_state
from competition.tracking.uploader import RUN_KEY, TOKEN_TAG

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)


def log_submission(run_folder: Path, exp: Experiment, submission: Path, summary_path: Path) -> str | None:
    """Log a submission as an MLflow run; if the same file was logged before, update its existing MLflow run.

    If the store cannot be reached, only a warning is logged, because the submission itself is complete.

    Args:
        run_folder: folder of the run that predicted the submission; for an ensemble, folder of its first run.
        exp: experiment of the run.
        submission: path of the submission itself: the CSV, the folder of label files, or the archive of label files.
        summary_path: path of the summary JSON of the submission.

    Returns:
        The id of the MLflow run; None if logging failed.
    """
    store = find_mlflow_store(project_root(run_folder))
    try:
        return _log_submission(store, run_folder, exp, submission, summary_path)
    except Exception as error:  # noqa: BLE001 - no error of MLflow, its database or the network may stop a submission
        logger.warning(
            "The submission cannot be stored in MLflow (%s): %s. The submission itself is complete: its files are %s "
            "and %s.",
            store.display_uri,
            _first_line(error),
            submission,
            summary_path,
        )
        return None


def _log_submission(store: MlflowStore, run_folder: Path, exp: Experiment, submission: Path, summary_path: Path) -> str:
    from mlflow.entities import Metric, Param, RunTag

    summary = json.loads(summary_path.read_text(encoding="utf-8"))
    metadata = RunMetadata.of(run_folder, exp, "submission")
    client = connect_mlflow(store)
    experiment = get_or_create_experiment(client, store, metadata.experiment_name)
    token = f"submission-{summary['sha256']}"
    runs = client.search_runs([experiment], f"tags.`{TOKEN_TAG}` = '{token}'", max_results=1)
    if runs:
        run_id = runs[0].info.run_id
    else:
        parent = read_sync_state(run_folder, store.display_uri).uploaded(RUN_KEY).run_id
        tags = {**metadata.tags, TOKEN_TAG: token, **({"mlflow.parentRunId": parent} if parent else {})}
        run_id = client.create_run(experiment, tags=tags, run_name=f"submission {summary_path.stem}").info.run_id
    run = client.get_run(run_id)
    expected = summary["expected"] or {}
    names = {"score": "expected_score", "low": "expected_lower", "high": "expected_upper"}
    metrics = {name: expected[key] for key, name in names.items() if expected.get(key) is not None}
    parameters = {
        "runs": ", ".join(entry["hash"] for entry in summary["runs"]),
        "weights": ", ".join(f"{entry['weight']:g}" for entry in summary["runs"]),
    }
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, run.info.start_time, 0) for name, value in metrics.items()],
        # The same file may result from other runs or weights. MLflow does not allow changing parameters, so those of
        # the first logging stay.
        params=[Param(name, value) for name, value in parameters.items() if name not in run.data.params],
        tags=[RunTag("file", str(submission)), RunTag("sha256", summary["sha256"])],
    )
    if submission.is_dir():
        client.log_artifacts(run_id, str(submission), submission.name)
    else:
        client.log_artifact(run_id, str(submission))
    client.log_artifact(run_id, str(summary_path))
    client.set_terminated(run_id, "FINISHED")
    _log_counted_score(client, store, run_folder, summary, summary_path)
    return str(run_id)


def _log_counted_score(
    client: MlflowClient, store: MlflowStore, run_folder: Path, summary: Mapping[str, Any], summary_path: Path
) -> None:
    """Log the expected score of a submission in the run that predicted it, as the metric `counted_score`.

    With this metric, MLflow can sort the runs of an experiment by the expected scores of their submissions. The next
    upload of the run adds the ends of the interval. Nothing is logged for an ensemble of several runs.

    If tuned steps are used, the expected score is the nested score: each case is scored with settings that were tuned
    on the other folds. The tag `counting_score` of the run is then set to `nested_score`. If no tuned steps are used,
    but the YAML sets post-processing, the tag is set to `processed_score`.
    """
    score = (summary["expected"] or {}).get("score")
    parent = read_sync_state(run_folder, store.display_uri).uploaded(RUN_KEY).run_id
    if parent is None or score is None or len(summary["runs"]) != 1:
        return
    client.log_metric(parent, "counted_score", score, round(1000 * summary_path.stat().st_mtime), 0)
    if (summary["expected"].get("tuning") or {}).get("kept"):
        client.set_tag(parent, COUNTING_TAG, SCORE_METRICS["nested"])
    elif any((summary.get("postprocess") or {}).get(key) for key in ("steps", "number", "forbid_overlap")):
        client.set_tag(parent, COUNTING_TAG, SCORE_METRICS["processed"])


def log_upload(record: Mapping[str, Any], files: tuple[Path, ...] = ()) -> str | None:
    """Log the upload of a submission to the competition's host, or add new scores of the host to a logged upload.

    The first upload of a file is logged in the MLflow run of its submission. If this MLflow run does not exist, it is
    created. Each further upload of the same file gets an MLflow run of its own.

    Args:
        record: `competition.leaderboard.ledger.UploadRecord` as a dictionary.
        files: the CSV and its summary JSON, which become artifacts if an MLflow run is created.

    Returns:
        The id of the MLflow run; None if logging failed (a warning is logged).
    """
    folder = next((path for run in record["runs"] if (path := Path(str(run["run"]))).is_dir()), None)
    store = find_mlflow_store(project_root(folder) if folder is not None else Path.cwd())
    try:
        return _log_upload(store, folder, record, files)
    except Exception as error:  # noqa: BLE001 - no error of MLflow, its database or the network may stop an upload
        logger.warning(
            "The upload cannot be stored in MLflow (%s): %s. The ledger has the upload, and `maskfold "
            "ledger` sends it to MLflow again.",
            store.display_uri,
            _first_line(error),
        )
        return None


def _first_line(error: Exception) -> str:
    return (redact(str(error)).strip().splitlines() or [type(error).__name__])[0][:160]


def _log_upload(store: MlflowStore, folder: Path | None, record: Mapping[str, Any], files: tuple[Path, ...]) -> str:
    from mlflow.entities import Metric, RunTag

    client = connect_mlflow(store)
    experiment = get_or_create_experiment(client, store, record["competition"])
    token = f"submission-{record['sha256']}" if record["sha256"] and not record["again"] else f"upload-{record['id']}"
    runs = client.search_runs([experiment], f"tags.`{TOKEN_TAG}` = '{token}'", max_results=1)
    if runs:
        run_id = runs[0].info.run_id
    else:
        parent = read_sync_state(folder, store.display_uri).uploaded(RUN_KEY).run_id if folder is not None else None
        initial_tags = {
            "competition": record["competition"],
            "kind": "submission",
            TOKEN_TAG: token,
            "file": record["file"],
            "sha256": record["sha256"],
            **({"mlflow.parentRunId": parent} if parent else {}),
        }
        run_id = client.create_run(experiment, tags=initial_tags, run_name=f"upload {record['id']}").info.run_id
        for file in files:
            if file.exists():
                client.log_artifact(run_id, str(file))
    tags = {
        "uploaded": record["time"],
        "host": record["host"],
        "slug": record["slug"],
        "message": record["message"],
        "ref": record["ref"],
        "status": record["status"],
        "error": record["error"],
        "upload_runs": ", ".join(str(run["hash"]) for run in record["runs"]),
    }
    metrics = {
        "public_score": record["public"],
        "private_score": record["private"],
        **{f"cv_{key}": value for key, value in record["cv"].items()},
        **{f"public_expected_{key}": record["expected"].get(key) for key in ("low", "high")},
    }
    time = round(1000 * datetime.fromisoformat(record["checked"] or record["time"]).timestamp())
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, time, 0) for name, value in metrics.items() if value is not None],
        tags=[
            RunTag(key, truncate_text(str(value), MAX_TAG_LENGTH))
            for key, value in tags.items()
            if value not in (None, "")
        ],
    )
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)
