"""Read and write a run's `summary.json` and `scores.csv`, with digests that reveal edits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.errors import MaskfoldError
from competition.io import json_digest, nan_to_none, parse_json_object, sha256_of_file, write_json

if TYPE_CHECKING:
    import pandas as pd

SUMMARY_FILE, SCORES_FILE = "summary.json", "scores.csv"
DIGESTS_KEY, OWN_KEY = "digests", SUMMARY_FILE  # {"digests": {"summary.json": …, "scores.csv": …}}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a run's `summary.json` atomically, with the digest of its content.

    Args:
        folder: the run's folder.
        summary: JSON data; NaN is written as null.
    """
    content = json.loads(json.dumps(nan_to_none(dict(summary))))  # as `read_summary` reads it, e.g. with text keys
    digests = {**(content.get(DIGESTS_KEY) or {}), OWN_KEY: _digest(content)}
    write_json(folder / SUMMARY_FILE, {**content, DIGESTS_KEY: digests})


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a run's `summary.json`.

    A summary without a digest (written before 0.2) is not checked.

    Args:
        folder: the run's folder.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: the file is not a JSON object, or was changed after it was written.
    """
    path = folder / SUMMARY_FILE
    try:
        summary = parse_json_object(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise MaskfoldError(
            f"{path} cannot be read: {error}.", "Delete it and repeat the run's `maskfold cv`, which writes a new file."
        ) from error
    digests = summary.get(DIGESTS_KEY)
    expected = digests.get(OWN_KEY) if isinstance(digests, dict) else None
    if expected is not None and expected != _digest(summary):
        raise MaskfoldError(
            f"{path} was changed after it was written: its content does not match its digest.",
            "Delete the file and repeat the run's `maskfold cv`, which writes it again from the scores of the folds.",
        )
    return summary


def read_run_scores(folder: Path) -> pd.DataFrame:
    """Read the scores of all out-of-fold cases of a run; see `competition.metrics.scoring.read_scores`.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: the file is damaged, or was changed after `summary.json` was written.
    """
    from competition.metrics.scoring import read_scores

    table = read_scores(folder / SCORES_FILE)
    try:
        expected = (read_summary(folder).get("digests") or {}).get(SCORES_FILE)
    except (OSError, ValueError, AttributeError, MaskfoldError):
        expected = None  # if the summary cannot be read, the code that uses its numbers reports it
    if expected is not None and sha256_of_file(folder / SCORES_FILE) != expected:
        raise MaskfoldError(
            f"{folder / SCORES_FILE} was changed after it was written: its checksum differs from the one in "
            f"{SUMMARY_FILE}.",
            "Delete it and repeat `maskfold cv`, which writes it again from the scores of the folds.",
        )
    return table


def _digest(summary: dict[str, Any]) -> str:
    """Return the digest of a summary without its digest entry."""
    digests = {key: value for key, value in (summary.get(DIGESTS_KEY) or {}).items() if key != OWN_KEY}
    return json_digest({**summary, DIGESTS_KEY: digests})
