"""A submission in MLflow: the CSV and the JSON beside it, in a child of the run whose networks predicted."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from competition.config import Experiment
from competition.config.secrets import scrub
from competition.tracking.delivery import RUN, TOKEN_TAG
from competition.tracking.identity import Identity
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
        logger.warning("MLflow (%s) does not take the submission: %s. The files are %s and %s.", store.shown, first[:160],
                       csv, note)
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
    time = client.get_run(run_id).info.start_time
    expected = said["expected"] or {}
    numbers = {f"expected_{key}": expected[key] for key in ("score", "low", "high") if expected.get(key) is not None}
    client.log_batch(run_id, metrics=[Metric(name, value, time, 0) for name, value in numbers.items()],
                     params=[Param("runs", ", ".join(run["hash"] for run in said["runs"])),
                             Param("weights", ", ".join(f"{run['weight']:g}" for run in said["runs"]))],
                     tags=[RunTag("file", str(csv)), RunTag("sha256", said["sha256"])])
    for file in (csv, note):
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)
