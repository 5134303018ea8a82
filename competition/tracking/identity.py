"""What a run is called in MLflow, and what is said of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition.config import Experiment, MaskfoldError, resolved
from competition.data.records import read_record
from competition.tracking.names import LONGEST_TAG, flatten, shorten
from competition.tracking.provenance import source_tags
from competition.tracking.view import saved_view

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """A run as MLflow sees it.

    Attributes:
        group: MLflow's experiment: the competition.
        name: MLflow's run name.
        tags: of the run.
        fold_tags: of each of its folds.
        parameters: the resolved YAML by its own keys.
        view: the columns of MLflow's table of runs.
    """

    group: str
    name: str
    tags: dict[str, str]
    fold_tags: dict[str, str]
    parameters: dict[str, str]
    view: str

    @classmethod
    def of(cls, run_folder: Path, exp: Experiment, kind: str, name: str | None = None) -> Identity:
        """The identity of the run in `…/<competition>-<experiment>/<hash>`."""
        folder = run_folder.resolve()
        experiment = folder.parent.name.removeprefix(f"{exp.competition.name}-")
        common = {"competition": exp.competition.name, "experiment": experiment, "run_hash": folder.name}
        tags = {**common, "kind": kind, "folder": str(folder), **source_tags()}
        return cls(
            exp.competition.name,
            name or f"{experiment} {folder.name}",
            {key: shorten(value, LONGEST_TAG) for key, value in tags.items()},
            {**common, "kind": "fold"},
            flatten(resolved(exp)),
            saved_view(exp.competition.classes, began(folder)),
        )


def member_folders(run_folder: Path) -> list[Path]:
    """The folders of a run's folds that have begun: `fold_0`, `fold_0_seed_1`, `full`."""
    found = [
        folder
        for folder in run_folder.iterdir()
        if re.fullmatch(r"(fold_\d+|full)(_.+)?", folder.name)
        and any((folder / name).exists() for name in ("log.txt", "metrics.jsonl", "result.json"))
    ]
    return sorted(found, key=lambda folder: [int(part) if part.isdigit() else 0 for part in folder.name.split("_")])


def member_tags(folder: Path) -> dict[str, str]:
    """`fold` and `seed` of a fold's folder."""
    fold = re.search(r"fold_(\d+)", folder.name)
    seed = re.search(r"seed_(\d+)", folder.name)
    return {"fold": fold.group(1) if fold else "full", **({"seed": seed.group(1)} if seed else {})}


def began(folder: Path) -> int:
    """When a folder's work began, in ms: its oldest file that says so."""
    times = [path.stat().st_mtime for name in ("job.json", "experiment.yaml") if (path := folder / name).exists()]
    return round(1000 * min(times, default=folder.stat().st_mtime))


def read_result(path: Path) -> dict[str, Any]:
    """A result file; empty while it is not there, and where it is damaged, which is said."""
    try:
        return read_record(path)
    except FileNotFoundError:
        return {}
    except MaskfoldError as error:
        logger.warning("%s", error)
        return {}


def files_below(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """Files of a folder that match the patterns, in a steady order; hidden ones are still being written."""
    for pattern in patterns:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
