"""Log the networks of a run as MLflow's logged models: one per finished fold, with the fold's scores.

If the store is a local folder, a model's artifact is a hard link to the weights in the run's folder, so the weights are
on disk only once. Otherwise, the model has no artifact. In both cases, the fold's MLflow run has the weights as an
artifact, and the model's tag `weights` names this artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from competition.tracking.artifacts import link_file, local_folder
from competition.tracking.datasets import CaseSet
from competition.tracking.store import mlflow_name

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

MODEL_TYPE = "segmentation"
PARAMS_PER_CALL = 100


class FoldModel:
    """Create or update the logged model of a fold.

    Args:
        client: client of the open store.
        experiment_id: MLflow's id of the experiment.
        run_id: MLflow's id of the fold's run.
        token: text that identifies the model. A repeated upload searches for it, so that no second model is created.
        token_tag: name of the tag in which the model stores the token.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, run_id: str, token: str, token_tag: str) -> None:
        self.client, self.experiment_id, self.run_id = client, experiment_id, run_id
        self.token, self.token_tag = token, token_tag

    def upload(
        self,
        name: str,
        weights: Path,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        time: int,
        cases: CaseSet | None,
    ) -> str:
        """Create the logged model, or update it if it exists, and return its id.

        Args:
            name: name of the model.
            weights: file with the fold's weights.
            tags: tags of the model.
            metrics: scores of the network on the validation cases, by name of the metric.
            time: time of the scores in ms since 1970.
            cases: the validation cases; None if they are not known.
        """
        from mlflow.entities import LoggedModelStatus, Metric

        model = self._find() or self._create(name)
        model_id = str(model.model_id)
        self._link(model, weights)
        self.client.set_logged_model_tags(model_id, {**tags, "weights": f"runs:/{self.run_id}/{weights.name}"})
        dataset = {} if cases is None else {"dataset_name": cases.name, "dataset_digest": cases.digest}
        points = [
            Metric(mlflow_name(key), value, time, 0, model_id=model_id, run_id=self.run_id, **dataset)
            for key, value in metrics.items()
        ]
        if points:
            self.client.log_batch(self.run_id, metrics=points)
        if model.status != LoggedModelStatus.READY:
            self.client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        return model_id

    def _find(self) -> LoggedModel | None:
        found = self.client.search_logged_models(
            [self.experiment_id], f"tags.`{self.token_tag}` = '{self.token}'", max_results=1
        )
        return found[0] if found else None

    def _create(self, name: str) -> LoggedModel:
        params = self.client.get_run(self.run_id).data.params
        return self.client.create_logged_model(
            self.experiment_id,
            mlflow_name(name).replace("/", " ").replace(".", " "),
            self.run_id,
            tags={self.token_tag: self.token},
            params=params,
            model_type=MODEL_TYPE,
        )

    @staticmethod
    def _link(model: LoggedModel, weights: Path) -> None:
        """Replace the model's artifact by a hard link to the weights; do nothing if the store is not a local folder."""
        folder = local_folder(model.artifact_location)
        if folder is None or not folder.parents[2].is_dir():
            return
        for old in folder.glob("*") if folder.is_dir() else ():
            if old.name != weights.name:
                old.unlink()
        link_file(weights, folder / weights.name)


def link_outputs(client: MlflowClient, run_id: str, model_ids: Sequence[str]) -> None:
    """Record logged models as outputs of an MLflow run; models that are already recorded are skipped."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    present = {model.model_id for model in outputs.model_outputs} if outputs is not None else set()
    missing = [model_id for model_id in model_ids if model_id not in present]
    if missing:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0) for model_id in missing])
