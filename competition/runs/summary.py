"""Read the stored scores of a run, and select the counted score: the score of the masks that would be submitted.

The scores are in `summary.json`, `scores.csv` and `postprocess.json`. These files contain digests, which show edits.
Other modules must use `run_scores` to find out which score is the counted one.
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
from competition.io import sha256_of_file
from competition.records import (
    changed_tables,
    check_unedited,
    damaged_error,
    json_digest,
    nan_to_none,
    parse_json_object,
    with_own_digest,
    write_json,
)
from competition.runs.fold import RESULT_FILE, FoldResult, member_folder_name

if TYPE_CHECKING:
    import pandas as pd

    from competition.runs.run import Run

SUMMARY_FILE, SCORES_FILE = "summary.json", "scores.csv"
TUNING_FILE, TUNING_SCORES_FILE = "postprocess.json", "postprocess_scores.csv"
REWRITE_HINT = (
    "Delete summary.json, and repeat the run's `maskfold cv` command, which writes it again from the scores of the "
    "folds."
)
TUNING_VERSION = 1  # increase this version when the search for post-processing changes


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write a run's `summary.json` atomically, with the digest of its content.

    Args:
        folder: the run's folder.
        summary: the content, as plain data for JSON; NaN is written as null.
    """
    write_json(folder / SUMMARY_FILE, with_own_digest(summary, SUMMARY_FILE))


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a run's `summary.json`, and check that it belongs to the scores and results in the same folder.

    This also detects a summary that was copied from another run, although the digest in this summary is valid. Files
    that were deleted to save space are not compared.

    Args:
        folder: the run's folder.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: the file is invalid, see `parse_summary`; it does not belong to the scores and results in the
            folder; or the result of a fold is damaged.
    """
    summary, path = parse_summary(folder), folder / SUMMARY_FILE
    if other := other_results(folder, summary):
        raise MaskfoldError(
            f"{path} does not belong to {', '.join(other)} in this run's folder: the files state different scores, "
            "steps or minutes.",
            REWRITE_HINT,
        )
    if other := changed_tables(folder, summary):
        names = ", ".join(other)
        raise MaskfoldError(
            f"{path} does not belong to {names} in the same folder. {path.name} comes from another run, or "
            f"{names} was changed later.",
            REWRITE_HINT,
        )
    return summary


def parse_summary(folder: Path) -> dict[str, Any]:
    """Read a run's `summary.json` without comparing it with the scores and results in the folder; see `read_summary`.

    Versions before 0.2 wrote no digest, so edits of their summaries are not detected.

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
            f"{path} cannot be read: {error}.",
            "Delete the file, and repeat the run's `maskfold cv` command, which writes a new one.",
        ) from error
    check_unedited(path, summary, SUMMARY_FILE, REWRITE_HINT)
    return summary


def other_results(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """Return the paths of those `result.json` whose score, steps or minutes differ from the summary of their run.

    Args:
        folder: the run's folder.
        summary: content of the `summary.json`.

    Returns:
        Paths relative to the run's folder, such as `fold_0/result.json`.

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
    """Read the scores of all out-of-fold predictions of a run from its `scores.csv`, one row per case and class.

    See `competition.metrics.scoring.read_scores` for the columns.

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

ScoreKind = Literal["raw", "processed", "nested", "soup", "seeds"]


class ScoreEstimate(NamedTuple):
    """Hold a score and its 95 % interval.

    Attributes:
        value: the score; nan if it is not defined, e.g. because no case has the class.
        low: lower end of the interval; nan if there are too few cases for an interval.
        high: upper end of the interval; nan if there are too few cases for an interval.
    """

    value: float
    low: float = nan
    high: float = nan

    @classmethod
    def of(cls, plain: Mapping[str, Any], value: str, low: str, high: str) -> ScoreEstimate | None:
        """Return the estimate that is stored under three keys; None if the key of the score has no finite number.

        Args:
            plain: the stored data.
            value: key of the score.
            low: key of the lower end of the interval. If it has no finite number, the lower end is nan.
            high: key of the upper end of the interval. If it has no finite number, the upper end is nan.
        """
        numbers: list[Any] = [plain.get(key) for key in (value, low, high)]
        if not _is_finite(numbers[0]):
            return None
        return cls(*(float(number) if _is_finite(number) else nan for number in numbers))


@dataclass(frozen=True)
class RunScores:
    """Hold the out-of-fold scores of a run.

    One of them is the counted score: the score of the masks that `maskfold submit` would write.

    Attributes:
        metric: name of the competition's metric.
        counting: kind of the counted score. `nested`: with post-processing steps that were tuned on the other folds;
            `soup`: with the averaged weights of several checkpoints; `seeds`: with the mean prediction of several
            seeds; `processed`: with the post-processing of the YAML; `raw`: none of these.
        counted: the counted score.
        raw: the score in `summary.json`: with the selected weights and all seeds, without post-processing.
        processed: the score with the post-processing of the YAML; None if the YAML sets none, if it was not scored, or
            if the tuned steps are used instead.
        nested: the score with post-processing, where the steps for each fold were tuned on the other folds; None if
            nothing was tuned. If the tuned steps are not used for submissions, this score has no interval.
        soup: the score of the averaged checkpoints, on cases that were not used to select the checkpoints; None if the
            run has no averaged checkpoints.
        last: the score of the weights after the last epoch; None if the run has no averaged checkpoints.
        seeds: the score of the mean prediction of all seeds; None if the run has only one seed.
        one_seed: the score of a single seed, averaged over the seeds; None if the run has only one seed.
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
    processed: ScoreEstimate | None = None

    @property
    def value(self) -> float:
        """The counted score of the run: the score of the masks that `maskfold submit` would write."""
        return self.counted.value

    @property
    def is_nested(self) -> bool:
        """Whether the counted score is nested: each fold was scored with post-processing tuned on the other folds."""
        return self.counting == "nested"

    @property
    def note(self) -> str:
        """A note for tables that says which post-processing the counted score includes."""
        if self.is_nested:
            return "post-processing tuned on the other folds"
        return "post-processing of the YAML" if self.counting == "processed" else "no tuned post-processing"


def run_scores(run: Run, summary: Mapping[str, Any] | None = None) -> RunScores | None:
    """Return the stored out-of-fold scores of a run, and select its counted score.

    The counted score is the score of the masks that `maskfold submit` would write. It is selected as follows:

    - If there is no valid stored result of post-processing, it is the score in `summary.json`. That score includes all
      seeds, and averaged checkpoints if they were selected.
    - If there is a tuning result and the tuned steps are used, it is the nested score: each fold is scored with steps
      that were tuned on the other folds.
    - If there is a stored result, but no tuned steps are used, it is the score with the post-processing of the YAML.

    Args:
        run: the run.
        summary: content of the run's `summary.json`, see `read_summary`; None to read the file.

    Returns:
        The scores; None if no case was validated.

    Raises:
        MaskfoldError: `summary.json` or `postprocess.json` cannot be read, was edited, or belongs to other results.
    """
    settings = run.exp.postprocess
    if settings.is_scored:
        check_search_unedited(run)
    record = read_tuning_record(run) if settings.is_scored else None
    try:
        summary = read_summary(run.folder) if summary is None else summary
        stored = stored_scores(summary)
    except FileNotFoundError as error:
        if record is None:
            raise MaskfoldError(
                f"{run.folder / SUMMARY_FILE} cannot be read: {error}.", "Repeat the run's `maskfold cv` command."
            ) from error
        stored = None
    if record is None:
        return stored
    is_used, rows = record["kept"], _tuned_rows(run)
    counted = _with_interval(float(record["nested" if is_used else "before"]), rows, run)
    nested = counted if is_used else ScoreEstimate(float(record["nested"])) if settings.tune else None
    processed = counted if not is_used and settings.has_own_steps else None
    kind: ScoreKind = "nested" if is_used else "processed" if processed is not None else "raw"
    if stored is None:
        metric, cases = run.exp.competition.metric.name, int(rows["id"].nunique())
        return RunScores(metric, kind, counted, None, nested, cases=cases, processed=processed)
    kind = stored.counting if kind == "raw" else kind
    return replace(stored, counting=kind, counted=counted, nested=nested, processed=processed)


def stored_scores(summary: Mapping[str, Any]) -> RunScores | None:
    """Return the scores in the content of a `summary.json`; None if it contains no score.

    These scores do not include tuned post-processing. To compare or rank runs, use `run_scores`.
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
    """Return the tuning result of a run (`postprocess.json`); None if it is missing, damaged, edited or outdated.

    The result is outdated if predictions, labels, settings or the metric have changed since the tuning, see
    `tuning_key`.

    Args:
        run: the run.
        with_data: whether to reject a result that does not record the hash of the labelled data. Version 0.1 wrote such
            results.
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

    Commands that do not tune call this function. Without this check, they would ignore an edited result without a
    message, and use the steps of the YAML.

    Raises:
        MaskfoldError: `postprocess.json` or its table of scores is damaged or missing, or was edited.
    """
    if (run.folder / TUNING_FILE).exists():
        _read_search(run)


def _read_search(run: Run) -> dict[str, Any]:
    """Return the tuning result of a run (`postprocess.json`) after checking its digests, even if it is outdated.

    Raises:
        FileNotFoundError: the file does not exist.
        MaskfoldError: the file or its table of scores is damaged or missing, or was edited.
    """
    path, table = run.folder / TUNING_FILE, run.folder / TUNING_SCORES_FILE
    hint = f"Repeat `maskfold submit {run.folder}`, which computes the result again, or restore the file."
    content = path.read_bytes()
    try:
        plain = parse_json_object(content)
        if plain.get("digest", digest := tuning_digest(plain)) != digest:
            raise ValueError("its content does not match the checksum in it")
        if "scores" in plain and plain["scores"] != sha256_of_file(table):
            raise ValueError(f"{table.name} does not match its checksum in {path.name}")
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
    """Return the table of scores of the tuning, sorted by fold as in `scores.csv`.

    The rows are sorted, because the last digits of a bootstrap interval depend on their order.
    """
    from competition.metrics.scoring import read_scores

    return read_scores(run.folder / TUNING_SCORES_FILE).sort_values("fold", kind="stable")


def tuning_digest(plain: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content of a tuning result, leaving out its entry `digest`."""
    text = json.dumps(nan_to_none({key: value for key, value in plain.items() if key != "digest"}), sort_keys=True)
    return json_digest(json.loads(text))


def tuning_key(run: Run) -> dict[str, Any]:
    """Return plain data that describe everything on which a tuning result depends.

    These are the predictions, the labels, the settings of post-processing and the metric. The data are stored with the
    result as its `key`.
    """
    from competition.data.cases import data_hash
    from competition.data.rle.tables import rle_format

    settings = {
        key: value for key, value in run.exp.postprocess.model_dump().items() if key != "number" or value is not None
    }
    own_steps = {name: own_step_digest(name) for name in run.exp.postprocess.own_targets}
    return {
        "version": TUNING_VERSION,
        "postprocess": settings,
        # Earlier versions scored each class by itself, although `submit` removes the overlap.
        **({"overlap": "removed"} if run.exp.postprocess.forbid_overlap else {}),
        **({"own_steps": own_steps} if own_steps else {}),
        "metric": run.exp.competition.metric.model_dump(),
        "data": data_hash(run.oof().cases),
        **({} if run.exp.competition.train.rle is None else {"table": asdict(rle_format(run.exp.competition))}),
        "members": {
            f"{result.fold} {result.seed}": [result.score, result.steps, result.minutes] for result in run.results()
        },
    }
