"""One delivery after another: what is on disk and not yet in MLflow goes there.

Every step may be repeated: points carry the journal's own time, so that MLflow drops repeated ones; artifacts replace
themselves; runs are found again by a token. A delivery that was cut anywhere is therefore simply done again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from competition.tracking import view
from competition.tracking.identity import Identity, began, files_below, member_folders, member_tags, read_result
from competition.tracking.journal import Point, read_news
from competition.tracking.names import description, metric_name, numbers_in
from competition.tracking.state import FilePrint, Shipped, State, read_state
from competition.tracking.store import Store, connect, experiment_id

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RUN = "."  # the run itself among its folders
RUN_FILES = (
    "experiment.yaml",
    "version.json",
    "cases.csv",
    "skipped.csv",
    "besides_*.csv",
    "folds.csv",
    "scores.csv",
    "summary.json",
    "postprocess.json",
    "environment/**/*",
    "*.png",
    "*.html",
)
FOLD_FILES = ("experiment.yaml", "curves.png", "*scores.csv", "pictures/*.png")
FOLD_FILES_AT_END = ("job.json", "lineage.json", "log.txt", "metrics.jsonl", "result.json", "*.safetensors")
WORDS = ("metric", "stopped", "precision", "device", "torch")  # of a result file, as tags
CHECKPOINT = "last.pt"  # only of a fold that is finished
TOKEN_TAG = "mlflow.maskfold.delivery"  # MLflow's pages show no tags that begin with its own name
POINTS_PER_CALL = 1000  # MLflow's limits
PARAMETERS_PER_CALL = 100

logger = logging.getLogger(__name__)


class Delivery:
    """Delivers a run's folder to a store; MLflow is imported and opened when there is something to say.

    Args:
        folder: the run's folder.
        store: where to.
        identity: what the run is called.
        study: the folder of the study that the run is a trial of; its run becomes this run's parent.
    """

    def __init__(self, folder: Path, store: Store, identity: Identity, study: Path | None = None) -> None:
        self.folder, self.store, self.identity, self.study = folder, store, identity, study
        self.calls = 0  # how often MLflow was told something: a sign of life
        lost = store.database is not None and not store.database.exists()
        self.state = State(store.shown) if lost else read_state(folder, store.shown)
        self._client: MlflowClient | None = None
        self._group = ""
        self._nested = False

    @property
    def is_finished(self) -> bool:
        """Whether MLflow was told that the run is finished."""
        return self.state.of(RUN).status == "FINISHED"

    def begin(self) -> None:
        """Make the run, or go on with it when it had failed or was stopped."""
        self._rename()
        if not self.is_finished:
            self._reopen(RUN)

    def deliver(self, last: bool = False) -> None:
        """One look at everything: metrics first, then small files, then weights.

        Args:
            last: also deliver the logs and weights of folds that are not finished.

        Raises:
            Exception: whatever MLflow raises when the store cannot be reached; the next delivery goes on from there.
        """
        names = [folder.name for folder in member_folders(self.folder)]
        for name in (*names, RUN):
            self._ship_journal(name)
        self._ship_files(RUN, RUN_FILES)
        for name in names:
            self._ship_files(name, FOLD_FILES)
            if (self.folder / name / "result.json").exists():
                self._ship_numbers(name, "result.json")
                self._terminate(name, "FINISHED")
        self._ship_numbers(RUN, "summary.json", prefix="cv_" if self.identity.tags["kind"] == "cv" else "")
        self._nest_in_study()
        for name in names:
            finished = self.state.of(name).status == "FINISHED"
            if finished or last:
                self._ship_files(name, (*FOLD_FILES_AT_END, CHECKPOINT) if finished else FOLD_FILES_AT_END)

    def close(self, status: str) -> None:
        """Tell how the run ended: FINISHED, FAILED or KILLED; folds without a result did not finish."""
        for folder in member_folders(self.folder):
            if self.state.of(folder.name).status == "RUNNING":
                self._terminate(folder.name, "KILLED" if status == "FINISHED" else status)
        self._terminate(RUN, status)

    # ── what is delivered ────────────────────────────────────────────────────────────────────────────────────────

    def _ship_journal(self, name: str) -> None:
        """New lines of a folder's `metrics.jsonl`."""
        path = self.folder / name / "metrics.jsonl"
        if not path.exists():
            return
        more = True
        while more:
            place = self.state.of(name).journal
            if read_news(path, place).place == place:
                return
            self._reopen(name)  # before what is known is read again: opening the store may show that it lost the run
            shipped = self.state.of(name)
            news = read_news(path, shipped.journal)
            if news.afresh and name != RUN:
                self._supersede(name)
                continue
            # a resumed fold repeats steps, at another time: MLflow keeps the first value
            new = [point for point in news.points if point.step > shipped.steps.get(point.name, -1)]
            self._log_points(shipped, new)
            shipped.steps.update({point.name: point.step for point in new})
            shipped.journal, more = news.place, news.more
            self.state.write(self.folder)

    def _ship_files(self, name: str, patterns: tuple[str, ...]) -> None:
        """Files that are new or have changed."""
        for path in files_below(self.folder / name, patterns):
            shipped = self.state.of(name)
            below = path.relative_to(self.folder / name)
            key = below.as_posix()
            try:
                mark = FilePrint.of(path, shipped.files.get(key))
                if mark == shipped.files.get(key):
                    continue
                run_id = self._run_id(name)
                parent = below.parent.as_posix()
                self.client.log_artifact(run_id, str(path), None if parent == "." else parent)
            except FileNotFoundError:
                continue  # replaced or removed between two looks; the next one sees what is there then
            self.calls += 1
            self.state.of(name).files[key] = mark
            self.state.write(self.folder)

    def _ship_numbers(self, name: str, file: str, prefix: str = "") -> None:
        """The numbers of a result file as metrics, some of its words as tags."""
        path = self.folder / name / file
        if not path.exists():
            return
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if digest == self.state.of(name).final:
            return
        from mlflow.entities import RunTag

        result = read_result(path)
        numbers = numbers_in(
            {
                f"{prefix}{key}" if key in ("score", "low", "high") else key: value
                for key, value in result.items()
                if key not in ("fold", "seed")
            }
        )
        when = round(1000 * path.stat().st_mtime)
        run_id = self._run_id(name)
        self._log_points(self.state.of(name), [Point(key, value, when, 0) for key, value in numbers.items()])
        tags = {key: str(result[key]) for key in WORDS if result.get(key)}
        if name == RUN and result.get("score") is not None:
            tags["mlflow.note.content"] = description(result)
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if name == RUN and "stopped" not in tags and "stopped" in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, "stopped")  # it was, and went on
        self.state.of(name).final = digest
        self.state.write(self.folder)

    def _terminate(self, name: str, status: str) -> None:
        shipped = self.state.of(name)
        if shipped.status == status:
            return
        result = self.folder / name / "result.json"
        ended = result.stat().st_mtime if status == "FINISHED" and result.exists() else time.time()
        self.client.set_terminated(self._run_id(name), status, end_time=round(1000 * ended))
        self.calls += 1
        self.state.of(name).status = status
        self.state.write(self.folder)

    def _supersede(self, name: str) -> None:
        """A fold that was deleted and trained again becomes another MLflow run, so that two trainings do not mix."""
        if self.state.of(name).status == "RUNNING":
            self._terminate(name, "KILLED")
        self.client.set_tag(self._run_id(name), "superseded", "true")
        self.state.folders[name] = Shipped()
        self.state.write(self.folder)

    def _nest_in_study(self) -> None:
        """Hang the run under its study's, once that exists."""
        if self.study is None or self._nested:
            return
        study = read_state(self.study, self.store.shown).of(RUN).run_id
        if study is not None:
            self.client.set_tag(self._run_id(RUN), "mlflow.parentRunId", study)
            self._nested = True

    # ── MLflow's runs ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def client(self) -> MlflowClient:
        """The open store. What it no longer has is forgotten here too, and so delivered again."""
        if self._client is None:
            client = connect(self.store)
            self._group = experiment_id(client, self.store, self.identity.group)
            if view.TAG not in client.get_experiment(self._group).tags:
                client.set_experiment_tag(self._group, view.TAG, self.identity.view)
            for name, shipped in list(self.state.folders.items()):
                if shipped.run_id is not None and not _has_run(client, shipped.run_id):
                    logger.warning("MLflow no longer has the run of %s; it is delivered again", self.folder / name)
                    del self.state.folders[name]
            self._client = client
        return self._client

    def _run_id(self, name: str) -> str:
        """The MLflow run of a folder; made, or found by its token, when it is not known."""
        client = self.client
        shipped = self.state.of(name)
        if shipped.run_id is None:
            self.state.write(self.folder)  # the token is on disk before the run is in MLflow
            found = client.search_runs([self._group], f"tags.`{TOKEN_TAG}` = '{shipped.token}'", max_results=1)
            run = found[0] if found else self._make_run(name, shipped.token)
            shipped.run_id, shipped.status, shipped.name = run.info.run_id, run.info.status, run.info.run_name
            self.state.write(self.folder)
        if not shipped.parameters:  # of folds too: folds of different runs are compared
            self._log_parameters(shipped.run_id)
            shipped.parameters = True
            self.state.write(self.folder)
        return shipped.run_id

    def _make_run(self, name: str, token: str) -> Run:
        folder = self.folder / name
        if name == RUN:
            tags = self.identity.tags
        else:
            self._reopen(RUN)
            tags = {**self.identity.fold_tags, **member_tags(folder), "mlflow.parentRunId": self._run_id(RUN)}
        self.calls += 1
        return self.client.create_run(
            self._group, start_time=began(folder), tags={**tags, TOKEN_TAG: token}, run_name=self._title(name)
        )

    def _title(self, name: str) -> str:
        """A folder's run in MLflow's table."""
        return self.identity.name if name == RUN else f"{name.replace('_', ' ')} · {self.identity.name}"

    def _rename(self) -> None:
        """A trial that is tried again has another number: its runs follow, but for a name that a user gave in MLflow."""
        for name, title in [
            (name, self._title(name))
            for name, shipped in self.state.folders.items()
            if shipped.run_id is not None and shipped.name not in ("", self._title(name))
        ]:
            client, shipped = self.client, self.state.of(name)
            if shipped.run_id is not None:
                if client.get_run(shipped.run_id).info.run_name == shipped.name:
                    client.update_run(shipped.run_id, name=title)
                shipped.name = title
                self.state.write(self.folder)

    def _reopen(self, name: str) -> None:
        """The folder's run is running, and so is the run it belongs to."""
        run_id = self._run_id(name)
        if self.state.of(name).status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
            self.state.of(name).status = "RUNNING"
            self.state.write(self.folder)
        if name != RUN:
            self._reopen(RUN)

    def _log_parameters(self, run_id: str) -> None:
        """The YAML's leaves; MLflow refuses to change a parameter, so those of an earlier start stay."""
        from mlflow.entities import Param

        there = self.client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in self.identity.parameters.items() if key not in there]
        for start in range(0, len(new), PARAMETERS_PER_CALL):
            self.client.log_batch(run_id, params=new[start : start + PARAMETERS_PER_CALL])
            self.calls += 1

    def _log_points(self, shipped: Shipped, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        assert shipped.run_id is not None
        metrics = [Metric(metric_name(point.name), point.value, point.time, point.step) for point in points]
        for start in range(0, len(metrics), POINTS_PER_CALL):
            self.client.log_batch(shipped.run_id, metrics=metrics[start : start + POINTS_PER_CALL])
            self.calls += 1


def _has_run(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
