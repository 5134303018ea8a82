"""Load a registered model; MLflow stores a copy of this script, and runs the copy to load the model."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from competition.export.predictor import Predictor


class Segmenter(PythonModel):
    """Predict masks of images as an MLflow model; see `Predictor` in competition/export/predictor.py."""

    def load_context(self, context: Any) -> None:
        """Open the model's folder; the networks are loaded when the first image arrives."""
        self.predictor = Predictor(Path(context.artifacts["run"]))

    # With the type hint pd.DataFrame, MLflow accepts any input. Without a type hint MLflow warns, and no other type
    # hint can describe such lists.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[Any]:
        """Return the masks of a table or a list of images."""
        return self.predictor.predict(model_input)


mlflow.models.set_model(Segmenter())
