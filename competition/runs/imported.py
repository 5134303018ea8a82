"""Handle imported runs: their predictions were made by other software, and they have no networks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.errors import MaskfoldError
from competition.records import read_record
from competition.tables import read_csv

if TYPE_CHECKING:
    from competition.config.experiment import Experiment
    from competition.inference.predict import Prediction
    from competition.runs.oof import OofStore
    from competition.runs.run import Run

IMPORTED_TARGET = "competition.runs.imported.NoNetwork"  # `model.target` in the YAML of an imported run
IMPORT_FILE = "import.json"  # file in the run's folder that records the origin of the predictions
PREDICTIONS_KEY = "predictions"  # key of the digest of the imported files in the record of the run's hash
TEST_FOLDER, TEST_TABLE = ("test_predictions", "test_cases.csv")  # both in the run's folder
IMPORT_HINT = "Name a run that `maskfold cv` trained. `maskfold submit`, `compare` and `report` accept imported runs."


class NoNetwork:
    """Stand for the missing network in `model.target` of an imported run; the constructor raises an error."""

    def __init__(self) -> None:
        raise MaskfoldError(
            "The predictions of this run were made elsewhere and imported, so the run has no network.",
            IMPORT_HINT,
            status=2,
        )


def is_imported(exp: Experiment) -> bool:
    """Return whether an experiment belongs to an imported run."""
    return exp.model.target == IMPORTED_TARGET


def refuse_imported(runs: Iterable[Run], purpose: str) -> None:
    """Raise an error if a run was imported; for commands that need networks, which imported runs do not have.

    Args:
        runs: the runs that the user named for the command.
        purpose: what the command would do with the runs, for the message, e.g. `predict new images`.

    Raises:
        MaskfoldError: a run was imported (status 2).
    """
    for run in runs:
        if is_imported(run.exp):
            raise MaskfoldError(
                f"The run {run.folder} cannot {purpose}, because it was imported: it has predictions, but no networks.",
                IMPORT_HINT,
                status=2,
            )


def stored_tests(run: Run, shapes: dict[str, tuple[int, ...]] | None = None) -> OofStore:
    """Return the store of the test predictions of an imported run.

    Reading a prediction raises an error if it belongs to another import than the run's out-of-fold predictions.

    Args:
        run: the imported run.
        shapes: expected shape (P, *file shape) of each case, by id; None accepts all shapes.
    """
    from competition.runs.oof import open_store

    origin = None if run.record is None else run.record.contents.get(PREDICTIONS_KEY)
    return open_store(run.exp, run.folder / TEST_FOLDER, shapes, origin)


def check_test_predictions(runs: Iterable[Run], rows: Iterable[Any]) -> None:
    """Check that each imported run has a prediction of every test case, made from the present image of the case.

    Args:
        runs: the runs of an ensemble; runs with networks are ignored.
        rows: rows of the table of test cases.

    Raises:
        MaskfoldError: a prediction is missing, or the image of a test case has changed since the import.
    """
    rows = list(rows)
    for run in (run for run in runs if is_imported(run.exp)):
        _check_rows(run, _image_hashes(run.folder / TEST_TABLE), rows)


def _check_rows(run: Run, hashes: Mapping[str, str], rows: Sequence[Any]) -> None:
    """Check the test predictions of one imported run, see `check_test_predictions`.

    Args:
        run: the imported run.
        hashes: a result of `_image_hashes`.
        rows: rows of the table of test cases.
    """
    store = stored_tests(run)
    command = "`maskfold import`, with a folder that has predictions of all test cases (--test FOLDER)"
    if missing := [row.id for row in rows if row.id not in store or row.id not in hashes]:
        raise MaskfoldError(
            f"The imported run {run.folder} has no prediction of {len(missing)} of {len(rows)} test cases. "
            f"The first of them is {missing[0]}.",
            f"Repeat {command}. To leave the run out of the mean, set its weight to 0 (--weights).",
        )
    if changed := [row.id for row in rows if hashes[row.id] != row.image_hash]:
        raise MaskfoldError(
            f"The image of the test case {changed[0]} is not the image from which the prediction in the imported "
            f"run {run.folder} was made.",
            f"Restore the image. Or predict the present image with the other software, and repeat {command}.",
        )


def _image_hashes(table: Path) -> dict[str, str]:
    """Return the hash of each test image at the time of the import, by case id; empty if `table` does not exist."""
    if not table.exists():
        return {}
    cases = read_csv(table, {"id": "id", "image_hash": "image_hash"})
    return dict(zip(cases["id"], cases["image_hash"], strict=True))


class StoredTestPredictions:
    """Read the stored test predictions of an imported run, which has no networks to predict with.

    Args:
        run: the imported run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def _hashes(self) -> dict[str, str]:
        """Hash of each test image at the time of the import; the table is read once and not for each case."""
        return _image_hashes(self.run.folder / TEST_TABLE)

    def read(self, row: Any) -> Prediction:
        """Return the stored prediction of a test case: probabilities (P, *file shape) float16, without class presence.

        Args:
            row: the row of the case in the table of test cases.

        Raises:
            MaskfoldError: the run has no prediction of this case, the image has changed since the import, or the file
                of the prediction is damaged.
        """
        from competition.inference.predict import Prediction

        if not hasattr(row, "image_hash"):
            refuse_imported([self.run], "predict new images")
        _check_rows(self.run, self._hashes, [row])
        shape = (self.run.exp.output_channels, *json.loads(row.shape))
        values: np.ndarray[Any, Any] = stored_tests(self.run, {row.id: shape}).read(row.id)
        return Prediction(values, None)


def describe_import(run: Run) -> str:
    """Return a line for `maskfold report` with the folder and the layout from which a run was imported."""
    record = read_record(run.folder / IMPORT_FILE)
    return f"imported from {record.get('folder', '?')} ({record.get('layout', '?')})"
