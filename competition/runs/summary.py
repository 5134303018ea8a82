"""Read the stored scores of a run, and select the score that counts: the score of the masks to submit.

The scores are in `summary.json`, `scores.csv` and `postprocess.json`, whose digests show edits. Only the function
`run_scores` selects the score that counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from competition.config.postprocess import own_step_digest
from competition.errors import MaskfoldError
from competition.io import damaged_error, json_digest, nan_to_none, parse_json_object, sha256_of_file, write_json
from competition.records import changed_tables, check_unedited, with_own_digest
from competition.runs.fold import RESULT_FILE, FoldResult, member_folder_name

if TYPE_CHECKING:
    import pandas as pd

    from competition.runs.run import Run

SUMMARY_FILE, SCORES_FILE = "summary.json", "scores.csv"
TUNING_FILE, TUNING_SCORES_FILE = "postprocess.json", "postprocess_scores.csv"
REWRITE_HINT = "Delete the file and repeat the run's `maskfold cv`, which writes it again from the scores of the folds."
TUNING_VERSION = 1  # increase this version when the search for post-processing changes


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a run's `summary.json` atomically, with the digest of its content.

    Args:
        folder: the run's folder.
        summary: JSON data; NaN is written as null.
    """
    write_json(folder / SUMMARY_FILE, with_own_digest(summary, SUMMARY_FILE))


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a run's `summary.json`, and check that it belongs to the scores and results in the same folder.

    The summary of another run, copied into this folder, has a valid digest of its own. Files that were deleted to save
    space are not compared.

    Args:
        folder: the run's folder.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: the file is invalid, see `parse_summary`; it is of other scores or results; or the result of a
            member is damaged.
    """
    summary, path = parse_summary(folder), folder / SUMMARY_FILE
    if other := other_results(folder, summary):
        raise MaskfoldError(f"{path} does not belong to {', '.join(other)} in the same folder.", REWRITE_HINT)
    if other := changed_tables(folder, summary):
        names = ", ".join(other)
        raise MaskfoldError(
            f"{path} does not belong to {names} in the same folder: it is of another run, or {names} was changed after "
            "it was written.",
            REWRITE_HINT,
        )
    return summary


def parse_summary(folder: Path) -> dict[str, Any]:
    """Read a run's `summary.json` without comparing it with the scores and results in the folder; see `read_summary`.

    The content of a summary without a digest (written before 0.2) is not checked.

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
    check_unedited(path, summary, SUMMARY_FILE, REWRITE_HINT)
    return summary


def other_results(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """Return the names of the members' results in a run's folder that differ from those in a summary.

    Raises:
        MaskfoldError: a result is damaged.
    """
    names = []
    for plain in summary.get("folds") or []:
        if not isinstance(plain, Mapping) or not all(type(plain.get(key)) is int for key in ("fold", "seed")):
            continue
        name = member_folder_name(plain["fold"], plain["seed"])
        result = FoldResult.read(folder / name)
        if result is not None and any(plain.get(key) != getattr(result, key) for key in ("score", "steps", "minutes")):
            names.append(f"{name}/{RESULT_FILE}")
    return names


def read_run_scores(folder: Path) -> pd.DataFrame:
    """Read the scores of all out-of-fold cases of a run; see `competition.metrics.scoring.read_scores`.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: the file is damaged, or was changed after `summary.json` was written; or the summary is invalid,
            see `read_summary`.
    """
    from competition.metrics.scoring import read_scores

    table = read_scores(folder / SCORES_FILE)
    with suppress(FileNotFoundError):
        read_summary(folder)
    return table


# The score that counts

ScoreKind = Literal["raw", "nested", "soup", "seeds"]


class ScoreEstimate(NamedTuple):
    """Hold a score with its 95 % interval; nan if no case has the class or there are too few cases."""

    value: float
    low: float = nan
    high: float = nan

    @classmethod
    def of(cls, plain: Mapping[str, Any], value: str, low: str, high: str) -> ScoreEstimate | None:
        """Return an estimate from the values of three keys; None if the first key has no number."""
        numbers: list[Any] = [plain.get(key) for key in (value, low, high)]
        if not _is_finite(numbers[0]):
            return None
        return cls(*(float(number) if _is_finite(number) else nan for number in numbers))


@dataclass(frozen=True)
class RunScores:
    """Hold a run's out-of-fold scores, and the score that counts: the score of the masks to submit.

    Attributes:
        metric: name of the competition's metric.
        counting: kind of the score that counts, the score of the masks that `maskfold submit` would submit. `nested`:
            with steps tuned on the other folds; `soup`: with averaged checkpoints; `seeds`: with the mean of several
            seeds; `raw`: none of these.
        counted: the estimate that counts.
        raw: the score in `summary.json`, of the selected weights and all seeds, without tuned post-processing.
        nested: the score with steps that were tuned on the other folds; None without tuning. If the tuned steps are not
            used, the score has no interval.
        soup: the score of the averaged checkpoints on cases that were not used to select the checkpoints; None without
            a soup.
        last: the score of the last weights; None without a soup.
        seeds: the score of all seeds together; None for one seed.
        one_seed: the mean score of one seed alone; None for one seed.
        cases: number of cases with an out-of-fold prediction.
    """

    metric: str
    counting: ScoreKind
    counted: ScoreEstimate
    raw: ScoreEstimate | None
    nested: ScoreEstimate | None = None
    soup: ScoreEstimate | None = None
    last: ScoreEstimate | None = None
    seeds: ScoreEstimate | None = None
    one_seed: ScoreEstimate | None = None
    cases: int = 0

    @property
    def value(self) -> float:
        """The run's score: the score of the masks that `maskfold submit` would submit."""
        return self.counted.value

    @property
    def is_nested(self) -> bool:
        """Whether the run's score is nested: for each fold, post-processing was tuned on the other folds."""
        return self.counting == "nested"

    @property
    def note(self) -> str:
        """A description of the run's score: post-processing tuned on the other folds, or no tuned post-processing."""
        return "post-processing tuned on the other folds" if self.is_nested else "no tuned post-processing"


def run_scores(run: Run, summary: Mapping[str, Any] | None = None) -> RunScores | None:
    """Return a run's stored out-of-fold scores, and select the score that counts: the score of the masks to submit.

    If `postprocess.tune` is set and there is a valid tuning result, the nested score counts if the tuned steps are
    used, else the score of the YAML's steps. Otherwise the score in `summary.json` counts, which includes all seeds,
    and the soups if they were selected.

    Args:
        run: the run.
        summary: content of the run's `summary.json`, see `read_summary`; None: read the file.

    Returns:
        The scores; None if no case was validated.

    Raises:
        MaskfoldError: `summary.json` or `postprocess.json` cannot be read, was edited, or belongs to other results.
    """
    if run.exp.postprocess.tune:
        check_search_unedited(run)
    record = read_tuning_record(run) if run.exp.postprocess.tune else None
    try:
        summary = read_summary(run.folder) if summary is None else summary
        stored = stored_scores(summary)
    except FileNotFoundError as error:
        if record is None:
            raise MaskfoldError(
                f"{run.folder / SUMMARY_FILE} cannot be read: {error}.", "Run the run's `maskfold cv` again."
            ) from error
        stored = None
    if record is None:
        return stored
    is_used, rows = record["kept"], _tuned_rows(run)
    counted = _with_interval(float(record["nested" if is_used else "before"]), rows, run)
    nested = counted if is_used else ScoreEstimate(float(record["nested"]))
    if stored is None:
        metric, cases = run.exp.competition.metric.name, int(rows["id"].nunique())
        return RunScores(metric, "nested" if is_used else "raw", counted, None, nested, cases=cases)
    return replace(stored, counting="nested" if is_used else stored.counting, counted=counted, nested=nested)


def stored_scores(summary: Mapping[str, Any]) -> RunScores | None:
    """Return the scores in the content of a `summary.json`, without tuned post-processing; None without a score.

    Use `run_scores` to rank runs.
    """
    raw = ScoreEstimate.of(summary, "score", "low", "high")
    if raw is None:
        return None
    soup, seeds = (summary.get(key) if isinstance(summary.get(key), Mapping) else None for key in ("soup", "seeds"))
    counting: ScoreKind = "soup" if soup and soup.get("kept") else "seeds" if seeds else "raw"
    return RunScores(
        str(summary.get("metric") or "score"),
        counting,
        raw,
        raw,
        soup=ScoreEstimate.of(soup, "soup", "soup_low", "soup_high") if soup else None,
        last=ScoreEstimate.of(soup, "plain", "plain_low", "plain_high") if soup else None,
        seeds=ScoreEstimate.of(seeds, "blended", "blended_low", "blended_high") if seeds else None,
        one_seed=ScoreEstimate.of(seeds, "one", "one_low", "one_high") if seeds else None,
        cases=int(summary.get("cases") or 0),
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _with_interval(value: float, rows: pd.DataFrame, run: Run) -> ScoreEstimate:
    from competition.metrics.bootstrap import bootstrap_interval

    if rows["score"].notna().sum() < 2:
        return ScoreEstimate(value)
    metric, seed = run.exp.competition.metric, run.exp.seeds[0]
    return ScoreEstimate(value, *bootstrap_interval(rows, metric, seed=seed, groups=run.groups()))


# The stored result of the search for post-processing


def read_tuning_record(run: Run, *, with_data: bool = False) -> dict[str, Any] | None:
    """Return the content of `postprocess.json`; None if it is missing, damaged, edited or outdated.

    Args:
        run: the run.
        with_data: whether the result must record the data of the search; results of version 0.1 do not, and give None.
    """
    try:
        plain = _read_search(run)
        key = tuning_key(run)
        if not with_data and "data" not in plain["key"]:  # a result of version 0.1
            key = {name: value for name, value in key.items() if name not in ("data", "table")}
        return plain if plain["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MaskfoldError):
        return None  # a damaged file is not an error, because the search can be repeated


def check_search_unedited(run: Run) -> None:
    """Check that the stored tuning result of a run, if there is one, was not edited.

    Commands that do not tune again call this function. Otherwise they would ignore an edited result and use the steps
    of the YAML.

    Raises:
        MaskfoldError: `postprocess.json` or its table of scores is damaged or missing, or was edited.
    """
    if (run.folder / TUNING_FILE).exists():
        _read_search(run)


def _read_search(run: Run) -> dict[str, Any]:
    """Return the content of `postprocess.json`, even if it is outdated.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: as for `check_search_unedited`.
    """
    path, table = run.folder / TUNING_FILE, run.folder / TUNING_SCORES_FILE
    hint = f"Repeat `maskfold submit {run.folder}`, which searches again, or restore the file."
    content = path.read_bytes()
    try:
        plain = parse_json_object(content)
        if plain.get("digest", digest := tuning_digest(plain)) != digest:
            raise ValueError("its content does not match its digest")
        if "scores" in plain and plain["scores"] != sha256_of_file(table):
            raise ValueError(f"{table.name} does not match its digest")
        _tuned_rows(run)
        for name in ("before", "after", "nested"):
            float(plain[name])
        if not isinstance(plain["kept"], bool):
            raise TypeError(f"kept: found {plain['kept']!r}, expected true or false")
        if not isinstance(plain["key"], dict):
            raise TypeError(f"key: found {plain['key']!r}, expected a mapping")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MaskfoldError) as error:
        raise damaged_error(path, error, hint) from error
    return plain


def _tuned_rows(run: Run) -> pd.DataFrame:
    """Return the score rows of the tuning in the order of `scores.csv`, on which an interval's last digits depend."""
    from competition.metrics.scoring import read_scores

    return read_scores(run.folder / TUNING_SCORES_FILE).sort_values("fold", kind="stable")


def tuning_digest(plain: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a tuning result, without the result's own digest."""
    text = json.dumps(nan_to_none({key: value for key, value in plain.items() if key != "digest"}), sort_keys=True)
    return json_digest(json.loads(text))


def tuning_key(run: Run) -> dict[str, Any]:
    """Return digests of everything that a tuning result depends on: predictions, truth, settings and metric."""
    from competition.data.cases import data_hash
    from competition.data.rle_tables import rle_format

    settings = {
        key: value for key, value in run.exp.postprocess.model_dump().items() if key != "number" or value is not None
    }
    own_steps = {name: own_step_digest(name) for name in run.exp.postprocess.own_targets}
    return {
        "version": TUNING_VERSION,
        "postprocess": settings,
        **({"own_steps": own_steps} if own_steps else {}),
        "metric": run.exp.competition.metric.model_dump(),
        "data": data_hash(run.oof().cases),
        **({} if run.exp.competition.train.rle is None else {"table": asdict(rle_format(run.exp.competition))}),
        "members": {
            f"{result.fold} {result.seed}": [result.score, result.steps, result.minutes] for result in run.results()
        },
    }
