"""The script of a registered model: MLflow keeps a copy of this file, and runs it when the model is loaded."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from competition.submission.predictor import Predictor


class Segmenter(PythonModel):
    """Images to masks; see `competition.submission.given.given` and `Predictor.predict`."""

    def load_context(self, context: Any) -> None:
        """Find the networks; they are loaded with the first image."""
        self.predictor = Predictor(Path(context.artifacts["run"]))

    # MLflow takes a table's hint for: anything goes. Without a hint it warns, and for lists it knows none that fits.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[Any]:
        """Masks of a table or a list of images."""
        return self.predictor.predict(model_input)


mlflow.models.set_model(Segmenter())
