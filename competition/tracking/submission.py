"""A submission in MLflow: the CSV and the JSON beside it, in a child of the run whose networks predicted; and each upload
of it to the host, with its scores."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from competition.config import Experiment
from competition.config.secrets import scrub
from competition.tracking.delivery import RUN, TOKEN_TAG
from competition.tracking.identity import Identity
from competition.tracking.names import LONGEST_TAG, shorten
from competition.tracking.state import read_state
from competition.tracking.store import Store, connect, experiment_id, root_of, store_of

logger = logging.getLogger(__name__)


def log_submission(run_folder: Path, exp: Experiment, csv: Path, note: Path) -> str | None:
    """Logs a submission once; the same file again goes to the same MLflow run.

    A store that cannot be reached is told as a warning: the files are the truth.

    Args:
        run_folder: of the run, or of the first of several.
        exp: its experiment.
        csv: the file for the host.
        note: the JSON beside it.

    Returns:
        The id of the MLflow run; None if it could not be logged.
    """
    store = store_of(root_of(run_folder))
    try:
        return _log(store, run_folder, exp, csv, note)
    except Exception as error:  # noqa: BLE001 - whatever MLflow, its database or the network do, the CSV is there
        first = (scrub(str(error)).strip().splitlines() or [type(error).__name__])[0]
        logger.warning(
            "MLflow (%s) does not take the submission: %s. The files are %s and %s.",
            store.shown,
            first[:160],
            csv,
            note,
        )
        return None


def _log(store: Store, run_folder: Path, exp: Experiment, csv: Path, note: Path) -> str:
    from mlflow.entities import Metric, Param, RunTag

    said = json.loads(note.read_text(encoding="utf-8"))
    identity = Identity.of(run_folder, exp, "submission")
    client = connect(store)
    group = experiment_id(client, store, identity.group)
    token = f"submission-{said['sha256']}"
    found = client.search_runs([group], f"tags.`{TOKEN_TAG}` = '{token}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        parent = read_state(run_folder, store.shown).of(RUN).run_id
        tags = {**identity.tags, TOKEN_TAG: token, **({"mlflow.parentRunId": parent} if parent else {})}
        run_id = client.create_run(group, tags=tags, run_name=f"submission {csv.stem}").info.run_id
    run = client.get_run(run_id)
    time = run.info.start_time
    expected = said["expected"] or {}
    numbers = {f"expected_{key}": expected[key] for key in ("score", "low", "high") if expected.get(key) is not None}
    made = {
        "runs": ", ".join(one["hash"] for one in said["runs"]),
        "weights": ", ".join(f"{one['weight']:g}" for one in said["runs"]),
    }
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, time, 0) for name, value in numbers.items()],
        # the same bytes may come of other words: what was told first stays, as MLflow wants it
        params=[Param(name, value) for name, value in made.items() if name not in run.data.params],
        tags=[RunTag("file", str(csv)), RunTag("sha256", said["sha256"])],
    )
    for file in (csv, note):
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)


def log_upload(record: Mapping[str, Any], files: tuple[Path, ...] = ()) -> str | None:
    """Logs an upload, or its new scores. The first upload of a file is told in the MLflow run of its submission, which is
    made where it is not there; each further one of the same file has a run of its own.

    Args:
        record: `competition.submission.ledger.Record` as a dictionary.
        files: the CSV and its JSON, for a run that has to be made.

    Returns:
        The id of the MLflow run; None if it could not be logged, which is told as a warning.
    """
    folder = next((path for run in record["runs"] if (path := Path(str(run["run"]))).is_dir()), None)
    store = store_of(root_of(folder) if folder is not None else Path.cwd())
    try:
        return _log_upload(store, folder, record, files)
    except Exception as error:  # noqa: BLE001 - as above
        first = (scrub(str(error)).strip().splitlines() or [type(error).__name__])[0]
        logger.warning(
            "MLflow (%s) does not take the upload: %s. The ledger's own file has it; `maskfold ledger` tries again.",
            store.shown,
            first[:160],
        )
        return None


def _log_upload(store: Store, folder: Path | None, record: Mapping[str, Any], files: tuple[Path, ...]) -> str:
    from mlflow.entities import Metric, RunTag

    client = connect(store)
    group = experiment_id(client, store, record["competition"])
    token = f"submission-{record['sha256']}" if record["sha256"] and not record["again"] else f"upload-{record['id']}"
    found = client.search_runs([group], f"tags.`{TOKEN_TAG}` = '{token}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        parent = read_state(folder, store.shown).of(RUN).run_id if folder is not None else None
        tags = {
            "competition": record["competition"],
            "kind": "submission",
            TOKEN_TAG: token,
            "file": record["file"],
            "sha256": record["sha256"],
            **({"mlflow.parentRunId": parent} if parent else {}),
        }
        run_id = client.create_run(group, tags=tags, run_name=f"upload {record['id']}").info.run_id
        for file in files:
            if file.exists():
                client.log_artifact(run_id, str(file))
    told = {
        "uploaded": record["time"],
        "host": record["host"],
        "slug": record["slug"],
        "message": record["message"],
        "ref": record["ref"],
        "status": record["status"],
        "error": record["error"],
        "upload_runs": ", ".join(str(run["hash"]) for run in record["runs"]),
    }
    numbers = {
        "public_score": record["public"],
        "private_score": record["private"],
        **{f"cv_{key}": value for key, value in record["cv"].items()},
        **{f"public_expected_{key}": record["expected"].get(key) for key in ("low", "high")},
    }
    time = round(1000 * datetime.fromisoformat(record["checked"] or record["time"]).timestamp())
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, time, 0) for name, value in numbers.items() if value is not None],
        tags=[RunTag(key, shorten(str(value), LONGEST_TAG)) for key, value in told.items() if value not in (None, "")],
    )
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)
