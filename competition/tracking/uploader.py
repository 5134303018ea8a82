"""Upload everything in a run's folder that MLflow does not have yet.

Every step can be repeated, so an interrupted upload is simply started again:

- Each metric has the time at which the fold logged it, so MLflow drops values that are uploaded twice.
- An artifact that is uploaded again replaces the earlier one.
- Each MLflow run has a random token as a tag, so a repeated upload finds the run and does not create another one.
"""

# This module does not use MLflow's asynchronous logging, because that loses data in two situations. A killed process
# loses the queue, which is in memory. If a call fails, its batch of metrics is dropped (mlflow 3.17:
# `AsyncLoggingQueue._log_run_data` logs the exception and continues).

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.errors import MaskfoldError
from competition.records import changed_tables
from competition.runs.fold import PLAIN_WEIGHTS, RESULT_FILE
from competition.runs.identity.contents import CONTENTS_FILE
from competition.runs.run import CASES_FILE, FOLDS_FILE
from competition.runs.summary import SUMMARY_FILE, TUNING_FILE, read_summary
from competition.tracking.artifacts import ArtifactFolders
from competition.tracking.datasets import CaseSet, case_sets, log_case_sets
from competition.tracking.models import FoldModel, link_outputs
from competition.tracking.store import (
    VIEW_TAG,
    MlflowStore,
    RunMetadata,
    connect_mlflow,
    get_member_tags,
    get_or_create_experiment,
    is_outdated_view,
    list_member_folders,
    matching_files,
    mlflow_metric_name,
    read_result_json,
    result_metrics,
    result_tags,
    retry_after_conflict,
    started_at,
)
from competition.tracking.sync_state import (
    FileFingerprint,
    MetricPoint,
    SyncState,
    Uploaded,
    read_chunk,
    read_sync_state,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


RUN_KEY = "."  # name of the run's own folder in this module; each fold has the name of its folder, e.g. `fold_0`
RUN_FILES = (
    "experiment.yaml",
    "version.json",
    CONTENTS_FILE,
    CASES_FILE,
    "skipped.csv",
    "besides_*.csv",
    FOLDS_FILE,
    "scores.csv",
    "summary.json",
    "postprocess.json",
    "environment/**/*",
    "*.png",
    "*.html",
)
FOLD_FILES = ("experiment.yaml", "curves.png", "*scores.csv", "pictures/*.png")
FOLD_FILES_AT_END = ("job.json", "lineage.json", "log.txt", "metrics.jsonl", RESULT_FILE, "*.safetensors")
SCORES_VERSION = 4  # increase this number when the same files give other metrics
CHECKPOINT_FILE = "last.pt"  # uploaded only when the fold is finished and the file has no tensors
TOKEN_TAG = "mlflow.maskfold.delivery"  # MLflow's pages hide tags that begin with `mlflow.`
POINTS_PER_CALL = 1000  # MLflow's limit
PARAMETERS_PER_CALL = 100  # MLflow's limit

logger = logging.getLogger(__name__)


class RunUploader:
    """Upload a run's folder to an MLflow store.

    MLflow is imported, and the store opened, only when there is something to upload.

    Args:
        folder: the run's folder.
        store: the MLflow store.
        metadata: names, tags and parameters of the run in MLflow.
        study: folder of the study to which the run belongs as a trial; None if the run belongs to no study. In MLflow,
            the study's run becomes the parent of this run.
    """

    def __init__(self, folder: Path, store: MlflowStore, metadata: RunMetadata, study: Path | None = None) -> None:
        self.folder, self.store, self.metadata, self.study = folder, store, metadata, study
        self.calls = 0  # number of MLflow calls so far, to detect an upload that hangs
        is_lost = store.database is not None and not store.database.exists()
        self.state = SyncState(store.display_uri) if is_lost else read_sync_state(folder, store.display_uri)
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._has_parent = False
        self._case_stamp: tuple[object, ...] = ()  # size and time of the tables whose datasets were logged

    @property
    def is_finished(self) -> bool:
        """Whether the run had the status FINISHED in MLflow after the last upload."""
        return self.state.uploaded(RUN_KEY).status == "FINISHED"

    def begin(self) -> None:
        """Create the MLflow run, or set it to RUNNING again if it had failed or had been stopped."""
        self._update_run_names()
        if not self.is_finished:
            self._set_running(RUN_KEY)

    def upload(self, last: bool = False) -> None:
        """Upload everything that is new: metrics first, then small files, then weights.

        Args:
            last: whether to also upload the logs and weights of unfinished folds.

        Raises:
            Exception: any exception of MLflow if the store cannot be reached; the next call resumes the upload.
        """
        names = [folder.name for folder in list_member_folders(self.folder)]
        for name in (*names, RUN_KEY):
            self._upload_metrics(name)
        self._upload_files(RUN_KEY, RUN_FILES)
        for name in names:
            self._upload_files(name, FOLD_FILES)
            if (self.folder / name / RESULT_FILE).exists():
                self._upload_result(name, RESULT_FILE)
                self._set_ended(name, "FINISHED")
        if self.metadata.tags["kind"] == "cv":
            self._upload_case_sets((RUN_KEY, *names))
            self._upload_summary(last)
            self._upload_pictures_of_folds(names)
        else:
            self._upload_result(RUN_KEY, SUMMARY_FILE)
        self._set_parent_study()
        for name in names:
            is_finished = self.state.uploaded(name).status == "FINISHED"
            if is_finished or last:
                self._upload_files(name, (*FOLD_FILES_AT_END, CHECKPOINT_FILE) if is_finished else FOLD_FILES_AT_END)
        self._upload_models(names)

    def close(self, status: str) -> None:
        """Set the final status of the run in MLflow, and of folds that are still RUNNING there.

        If the run is FINISHED, these folds become KILLED. Otherwise they get the run's status.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        for folder in list_member_folders(self.folder):
            if self.state.uploaded(folder.name).status == "RUNNING":
                self._set_ended(folder.name, "KILLED" if status == "FINISHED" else status)
        self._set_ended(RUN_KEY, status)

    # Uploads

    def _upload_metrics(self, name: str) -> None:
        """Upload those metrics in a folder's `metrics.jsonl` that were not uploaded before."""
        path = self.folder / name / "metrics.jsonl"
        if not path.exists():
            return
        more = True
        while more:
            position = self.state.uploaded(name).journal
            if read_chunk(path, position).end == position:
                return
            # Open the store first: if it no longer has the run, opening it resets the upload state.
            self._set_running(name)
            uploaded = self.state.uploaded(name)
            chunk = read_chunk(path, uploaded.journal)
            if chunk.is_restarted and name != RUN_KEY:
                self._supersede(name)
                continue
            # A resumed fold logs the steps since its checkpoint again, at later times. Upload only the first values.
            points = [point for point in chunk.points if point.step > uploaded.steps.get(point.name, -1)]
            self._log_points(uploaded, points)
            uploaded.steps.update({point.name: point.step for point in points})
            uploaded.journal, more = chunk.end, chunk.has_more
            self.state.write(self.folder)

    def _upload_files(self, name: str, patterns: tuple[str, ...]) -> None:
        """Upload a folder's files that match the patterns, if they are new or have changed."""
        for path in matching_files(self.folder / name, patterns):
            self._upload_file(name, path, path.relative_to(self.folder / name).parent.as_posix())

    def _upload_file(self, name: str, path: Path, parent: str) -> None:
        """Upload a file as an artifact, if the file is new or has changed.

        Args:
            name: name of the folder in the upload state: `RUN_KEY` or the name of a fold's folder.
            path: path of the file.
            parent: folder among the artifacts; `.` is the root of the artifacts.
        """
        key = path.name if parent == "." else f"{parent}/{path.name}"
        before = self.state.uploaded(name).files.get(key)
        try:
            fingerprint = FileFingerprint.of(path, before)
            if fingerprint == before:
                return
            self._artifacts.log(self._run_id(name), path, None if parent == "." else parent)
        except FileNotFoundError:
            return  # the file was replaced or removed meanwhile; the next upload finds the new file
        self.calls += 1
        self.state.uploaded(name).files[key] = fingerprint
        self.state.write(self.folder)

    def _upload_pictures_of_folds(self, names: Sequence[str]) -> None:
        """Upload the curves and the final pictures of the folds as artifacts of the parent run.

        The folds' own MLflow runs have the same pictures.
        """
        for name in names:
            for path in matching_files(self.folder / name, ("pictures/final_*.png",)):
                self._upload_file(RUN_KEY, path, f"pictures/{name}")
            for path in matching_files(self.folder / name, ("curves.png",)):
                self._upload_file(RUN_KEY, path, f"curves/{name}")

    @cached_property
    def _artifacts(self) -> ArtifactFolders:
        return ArtifactFolders(self.client)

    def _upload_result(self, name: str, file: str) -> None:
        """Upload the numbers in a result file as metrics, and some of its texts as tags."""
        path = self.folder / name / file
        if not path.exists():
            return
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if digest == self.state.uploaded(name).final:
            return
        result = _read_own_result(path)
        numbers = result_metrics(result)
        timestamp = round(1000 * path.stat().st_mtime)
        points = [MetricPoint(key, value, timestamp, 0) for key, value in numbers.items()]
        self._log_final(name, points, result_tags(result), digest)

    def _upload_summary(self, last: bool) -> None:
        """Upload the scores of the run, the mean curves over folds, the description, and a tag for the final score.

        The tag names the score estimate of the masks that would be submitted, e.g. `nested_score`.

        While folds are trained again, `summary.json` may still describe the earlier results. In this case, nothing is
        uploaded until the summary has been written again. If the summary still does not match at the last upload,
        somebody has edited or copied the file, and a warning is logged.

        A digest shows whether the summary, the result of post-processing, the section `postprocess` or `SCORES_VERSION`
        has changed since the previous upload. If none has changed, nothing is uploaded. So a version of Maskfold with
        another `SCORES_VERSION` uploads the metrics of older runs again, and adds missing metrics.

        Args:
            last: whether this is the last upload.
        """
        files = [path for name in (SUMMARY_FILE, TUNING_FILE) if (path := self.folder / name).exists()]
        if not files or files[0].name != SUMMARY_FILE:
            return
        settings = self.metadata.postprocess
        content = b"".join(path.read_bytes() for path in files)
        seal = f"{SCORES_VERSION} {settings.model_dump_json() if settings is not None else ''}".encode()
        digest = hashlib.sha256(content + seal).hexdigest()[:16]
        if digest == self.state.uploaded(RUN_KEY).final:
            return
        from competition.tracking.run_scores import read_run_page

        try:
            summary = read_summary(self.folder)
        except (OSError, MaskfoldError) as error:
            if last:
                logger.warning("The scores of the run are not stored in MLflow: %s", error)
            return
        page = read_run_page(self.folder, summary, settings)
        timestamp = round(1000 * max(path.stat().st_mtime for path in files))
        points = [MetricPoint(key, value, timestamp, 0) for key, value in page.metrics.items()]
        points += [
            MetricPoint(name, value, timestamp, epoch) for name, curve in page.curves.items() for epoch, value in curve
        ]
        self._log_final(RUN_KEY, points, page.tags, digest)

    def _log_final(self, name: str, points: Sequence[MetricPoint], tags: dict[str, str], digest: str) -> None:
        """Log final metrics and tags in a folder's MLflow run, and record the digest of the files that contain them."""
        from mlflow.entities import RunTag

        run_id = self._run_id(name)
        self._log_points(self.state.uploaded(name), points)
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if name == RUN_KEY and "stopped" not in tags and "stopped" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "stopped")  # the run was stopped, and a later command will resume it
        self.state.uploaded(name).final = digest
        self.state.write(self.folder)

    def _upload_case_sets(self, names: Sequence[str]) -> None:
        """Log, as datasets, the training, validation and test cases of the run and of each fold."""
        tables = [path.stat() for file in (CASES_FILE, FOLDS_FILE) if (path := self.folder / file).exists()]
        stamp = (*((table.st_mtime_ns, table.st_size) for table in tables), *names)
        if len(tables) < 2 or stamp == self._case_stamp:
            return
        for name in names:
            sets = self._case_sets(name)
            content = "\n".join(f"{one.context} {one.name} {one.digest}" for one in sets)
            digest = hashlib.sha256(content.encode()).hexdigest()[:16]
            if not sets or digest == self.state.uploaded(name).cases:
                continue
            log_case_sets(self.client, self._run_id(name), sets)
            self.calls += 1
            self.state.uploaded(name).cases = digest
            self.state.write(self.folder)
        self._case_stamp = stamp

    def _case_sets(self, name: str) -> list[CaseSet]:
        fold = None if name == RUN_KEY else get_member_tags(self.folder / name)["fold"]
        number = None if fold is None else -1 if fold == "full" else int(fold)
        return case_sets(self.folder, self.metadata.experiment_name, number)

    def _upload_models(self, names: Sequence[str]) -> None:
        """Create a logged model for the network of each finished fold; it becomes an output of the fold's MLflow run.

        The models are not outputs of the parent run, because MLflow would then show the scores of the whole run as the
        scores of a single fold's model.
        """
        for name in names:
            uploaded = self.state.uploaded(name)
            if uploaded.status != "FINISHED" or not uploaded.final or uploaded.model_result == uploaded.final:
                continue
            result = _read_own_result(self.folder / name / RESULT_FILE)
            weights = self.folder / name / str(result.get("weights") or PLAIN_WEIGHTS)
            if not weights.exists():
                continue
            run_id = self._run_id(name)
            logged = FoldModel(self.client, self._experiment_id, run_id, f"{uploaded.token}-model", TOKEN_TAG)
            timestamp = round(1000 * (self.folder / name / RESULT_FILE).stat().st_mtime)
            tags = {**self.metadata.fold_tags, **get_member_tags(self.folder / name)}
            tags = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
            numbers = {
                mlflow_metric_name(key): value
                for key, value in result_metrics(result).items()
                if key == "score" or key.startswith("dice_")
            }
            cases = next((one for one in self._case_sets(name) if one.context == "validation"), None)
            uploaded.model = logged.upload(
                self._run_name(name).replace(" · ", " "), weights, tags, numbers, timestamp, cases
            )
            link_outputs(self.client, run_id, [uploaded.model])
            uploaded.model_result = uploaded.final
            self.calls += 1
            self.state.write(self.folder)

    def _set_ended(self, name: str, status: str) -> None:
        uploaded = self.state.uploaded(name)
        if uploaded.status == status:
            return
        result = self.folder / name / RESULT_FILE
        ended = result.stat().st_mtime if status == "FINISHED" and result.exists() else time.time()
        self.client.set_terminated(self._run_id(name), status, end_time=round(1000 * ended))
        self.calls += 1
        self.state.uploaded(name).status = status
        self.state.write(self.folder)

    def _supersede(self, name: str) -> None:
        """Use a new MLflow run for a fold that was deleted and trained again, and tag the old run as superseded."""
        if self.state.uploaded(name).status == "RUNNING":
            self._set_ended(name, "KILLED")
        self.client.set_tag(self._run_id(name), "superseded", "true")
        self.state.folders[name] = Uploaded()
        self.state.write(self.folder)

    def _set_parent_study(self) -> None:
        """Make the study's run the parent of this run, as soon as the study's run exists."""
        if self.study is None or self._has_parent:
            return
        parent = read_sync_state(self.study, self.store.display_uri).uploaded(RUN_KEY).run_id
        if parent is not None:
            self.client.set_tag(self._run_id(RUN_KEY), "mlflow.parentRunId", parent)
            self._has_parent = True

    # MLflow's runs

    @property
    def client(self) -> MlflowClient:
        """The client of the MLflow store; the first access opens the store.

        If the store no longer has some of the recorded MLflow runs, their upload state is reset. These runs are then
        uploaded again.
        """
        if self._client is None:
            client = connect_mlflow(self.store)
            self._experiment_id = get_or_create_experiment(client, self.store, self.metadata.experiment_name)
            self.state.experiment = self._experiment_id
            stored_view = client.get_experiment(self._experiment_id).tags.get(VIEW_TAG)
            if is_outdated_view(stored_view, self.metadata.view):
                experiment, view = self._experiment_id, self.metadata.view
                retry_after_conflict(lambda: client.set_experiment_tag(experiment, VIEW_TAG, view))
            for name, uploaded in list(self.state.folders.items()):
                if uploaded.run_id is not None and not _has_run(client, uploaded.run_id):
                    logger.warning(
                        "MLflow no longer has the run of %s, so this folder is uploaded again", self.folder / name
                    )
                    del self.state.folders[name]
            self._client = client
        return self._client

    def _run_id(self, name: str) -> str:
        """Return the id of a folder's MLflow run.

        If the upload state has no id, find the run by its token tag. If there is no such run, create one.
        """
        client = self.client
        uploaded = self.state.uploaded(name)
        if uploaded.run_id is None:
            self.state.write(self.folder)  # the token must be on disk before the run exists in MLflow
            runs = client.search_runs([self._experiment_id], f"tags.`{TOKEN_TAG}` = '{uploaded.token}'", max_results=1)
            run = runs[0] if runs else self._make_run(name, uploaded.token)
            uploaded.run_id, uploaded.status, uploaded.name = run.info.run_id, run.info.status, run.info.run_name
            self.state.write(self.folder)
        if not uploaded.parameters:  # folds also get the parameters, because folds of different runs are compared
            self._log_parameters(uploaded.run_id)
            uploaded.parameters = True
            self.state.write(self.folder)
        return uploaded.run_id

    def _make_run(self, name: str, token: str) -> Run:
        folder = self.folder / name
        if name == RUN_KEY:
            tags = self.metadata.tags
        else:
            self._set_running(RUN_KEY)
            tags = {**self.metadata.fold_tags, **get_member_tags(folder), "mlflow.parentRunId": self._run_id(RUN_KEY)}
        self.calls += 1
        return self.client.create_run(
            self._experiment_id,
            start_time=started_at(folder),
            tags={**tags, TOKEN_TAG: token},
            run_name=self._run_name(name),
        )

    def _run_name(self, name: str) -> str:
        """Return the MLflow run name of a folder."""
        return self.metadata.run_name if name == RUN_KEY else f"{name.replace('_', ' ')} · {self.metadata.run_name}"

    def _update_run_names(self) -> None:
        """Rename the MLflow runs of a study's trial if the trial was repeated under another number.

        A run that a user has renamed in MLflow keeps the user's name.
        """
        outdated = [
            (name, self._run_name(name))
            for name, uploaded in self.state.folders.items()
            if uploaded.run_id is not None and uploaded.name not in ("", self._run_name(name))
        ]
        for name, run_name in outdated:
            client, uploaded = self.client, self.state.uploaded(name)
            if uploaded.run_id is not None:
                if client.get_run(uploaded.run_id).info.run_name == uploaded.name:
                    client.update_run(uploaded.run_id, name=run_name)
                uploaded.name = run_name
                self.state.write(self.folder)

    def _set_running(self, name: str) -> None:
        """Set a folder's MLflow run to RUNNING; if the folder belongs to a fold, also set the parent run."""
        run_id = self._run_id(name)
        if self.state.uploaded(name).status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
            self.state.uploaded(name).status = "RUNNING"
            self.state.write(self.folder)
        if name != RUN_KEY:
            self._set_running(RUN_KEY)

    def _log_parameters(self, run_id: str) -> None:
        """Log the values of the resolved YAML as parameters of an MLflow run.

        Parameters that the run already has are skipped, because MLflow does not allow changing them.
        """
        from mlflow.entities import Param

        existing = self.client.get_run(run_id).data.params
        params = [Param(key, value) for key, value in self.metadata.parameters.items() if key not in existing]
        for start in range(0, len(params), PARAMETERS_PER_CALL):
            self.client.log_batch(run_id, params=params[start : start + PARAMETERS_PER_CALL])
            self.calls += 1

    def _log_points(self, uploaded: Uploaded, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import Metric

        assert uploaded.run_id is not None
        metrics = [Metric(mlflow_metric_name(point.name), point.value, point.time, point.step) for point in points]
        for start in range(0, len(metrics), POINTS_PER_CALL):
            self.client.log_batch(uploaded.run_id, metrics=metrics[start : start + POINTS_PER_CALL])
            self.calls += 1


def _has_run(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _read_own_result(path: Path) -> dict[str, Any]:
    """Return the content of a result file, after comparing it with the score tables in the same folder.

    If the file does not exist, return an empty dictionary. If it is invalid or does not match these tables, log a
    warning and return an empty dictionary.
    """
    result = read_result_json(path)
    if other := changed_tables(path.parent, result):
        logger.warning(
            "%s does not belong to %s in the same folder, so its scores are not uploaded to MLflow.",
            path,
            ", ".join(other),
        )
        return {}
    return result
