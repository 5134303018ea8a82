"""Log the training, validation and test cases of a run as three MLflow datasets, each with a digest."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from competition.runs.run import CASES_FILE, FOLDS_FILE
from competition.tables import separator_of
from competition.tracking.store import retry_after_conflict

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput
    from mlflow.tracking import MlflowClient

HELD_OUT = -2  # as in `competition.data.splits`, which is not imported here because it imports numpy
COLUMNS = ("id", "group", "hash")  # columns of the case table that the datasets' schema names

logger = logging.getLogger(__name__)


class CaseSet(NamedTuple):
    """Describe a set of cases of a run.

    Attributes:
        context: train, validation or test.
        name: name of the dataset in MLflow.
        digest: digest of the ids and the content hashes of the cases.
        cases: number of cases.
        source: absolute path of the run's folder, which contains the case table.
    """

    context: str
    name: str
    digest: str
    cases: int
    source: str


def case_sets(run_folder: Path, competition: str, fold: int | None = None) -> list[CaseSet]:
    """Return the training, validation and test cases of a run, or of one of its folds.

    The test cases here are labelled cases that belong to no fold because they were held out.

    Args:
        run_folder: the run's folder.
        competition: name of the competition.
        fold: number of the fold; -1 for the training on all cases; None for all folds together.

    Returns:
        The sets that are not empty. If the tables of cases and folds cannot be read, an empty list; a warning is
        logged.
    """
    try:
        hashes = {row["id"]: row.get("hash") or "" for row in _rows(run_folder / CASES_FILE)}
        fold_of = {row["id"]: int(row["fold"]) for row in _rows(run_folder / FOLDS_FILE)}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        logger.warning("The case table of %s is not stored in MLflow as a dataset: %s", run_folder, error)
        return []
    if fold is None:
        chosen = {
            "train": [case for case, number in fold_of.items() if number != HELD_OUT],
            "validation": [case for case, number in fold_of.items() if number >= 0],
        }
    else:
        chosen = {
            "train": [case for case, number in fold_of.items() if fold < 0 or number not in (fold, HELD_OUT)],
            "validation": [case for case, number in fold_of.items() if number == fold and fold >= 0],
        }
    chosen["test"] = [] if fold == -1 else [case for case, number in fold_of.items() if number == HELD_OUT]
    label = "" if fold is None else " of all cases" if fold < 0 else f" of fold {fold}"
    return [
        CaseSet(context, f"{competition}, {context}{label}", _digest(ids, hashes), len(ids), str(run_folder.resolve()))
        for context, ids in chosen.items()
        if ids
    ]


def validated_folds(run_folder: Path) -> set[int]:
    """Return the numbers of the folds that have validation cases; empty if the table of folds cannot be read."""
    try:
        return {number for row in _rows(run_folder / FOLDS_FILE) if (number := int(row["fold"])) >= 0}
    except (OSError, ValueError, KeyError, csv.Error):
        return set()


def log_case_sets(client: MlflowClient, run_id: str, sets: list[CaseSet]) -> None:
    """Log datasets as the inputs of an MLflow run; MLflow ignores datasets that the run already has."""
    if sets:
        inputs = [_dataset_input(one) for one in sets]
        retry_after_conflict(lambda: client.log_inputs(run_id, inputs))


def _dataset_input(one: CaseSet) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    schema = json.dumps({"mlflow_colspec": [{"type": "string", "name": name, "required": True} for name in COLUMNS]})
    dataset = Dataset(
        one.name,
        one.digest,
        "local",
        json.dumps({"uri": f"{one.source}/{CASES_FILE}"}),
        schema,
        json.dumps({"num_rows": one.cases}),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, one.context)])


def _digest(ids: list[str], hashes: Mapping[str, str]) -> str:
    text = "\n".join(f"{case}\t{hashes.get(case, '')}" for case in sorted(ids))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=separator_of(path)))
