"""Define the model that MLflow loads.

MLflow stores a copy of this script in the model, and runs the copy to load the model.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from competition.export.predictor import Predictor


class Segmenter(PythonModel):
    """Predict masks of images as an MLflow model; see `competition.export.predictor.Predictor`."""

    def load_context(self, context: Any) -> None:
        """Open the model's folder; the networks are loaded when the first image arrives."""
        self.predictor = Predictor(Path(context.artifacts["run"]))

    # The type hint pd.DataFrame lets MLflow accept any input. Without a type hint, MLflow warns; and no other type hint
    # can describe the lists that are allowed here.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[Any]:
        """Return the masks of images, which are given as a table or a list; see `Predictor.predict`."""
        return self.predictor.predict(model_input)


mlflow.models.set_model(Segmenter())
