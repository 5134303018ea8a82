"""Upload submissions to Kaggle: find the competition, validate the file, write a record, submit, and fetch scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config.competition import Competition, MetricConfig
from competition.config.loading import load_competition, load_experiment, resolve_config
from competition.data.cases import case_table
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.leaderboard.kaggle import UploadRejected, fetch_submissions, submit_file, submit_notebook
from competition.leaderboard.ledger import Ledger, UploadRecord, make_record_id, update_records, utc_now
from competition.metrics.bootstrap import bootstrap_interval, cv_score, prediction_interval
from competition.records import SUBMISSION_DIGEST, check_unedited, finite_or_none
from competition.runs.run import CASES_FILE
from competition.submission.validate import ValidationReport, validate_submission
from competition.tables import separator_of
from competition.tracking.store import flatten_parameters

if TYPE_CHECKING:
    import pandas as pd


COMPETITION_GLOB = "experiments/*/competition.yaml"
# Beginnings of the keys of settings that do not change a score; records do not contain them.
IGNORED_KEYS = ("run.", "study", "competition.root", "postprocess.", "competition.submission.")
RUN_KEYS = ("run", "experiment", "hash", "weight")  # keys that each run in a summary JSON must have
SCORE_TOLERANCE = 1e-6  # maximum difference between the score of a table and the score in its summary


@dataclass(frozen=True)
class UploadRequest:
    """Describe a file or notebook to upload.

    Attributes:
        path: path of the CSV; None for a notebook whose output is not available.
        summary: content of the summary JSON that `maskfold submit` wrote next to the CSV; empty if there is none.
        comp: the competition; None for a notebook of an unknown competition.
        slug: name of the competition at the host, as in its URL.
    """

    path: Path | None
    summary: dict[str, Any]
    comp: Competition | None
    slug: str

    @property
    def competition(self) -> str:
        """Name of the competition in its YAML; if the YAML is unknown, its name in the summary or at the host."""
        return self.comp.name if self.comp is not None else str(self.summary.get("competition") or self.slug)


def prepare_upload(
    path: Path | None, given: str | None, overrides: Sequence[str] = (), at_kaggle: bool = True
) -> UploadRequest:
    """Prepare the upload of a file: read its summary JSON, and find its competition.

    The competition is the first of these that exists:

    1. if `given` is the path of a YAML, the competition of this YAML;
    2. the competition in `experiments/` that the summary JSON names; if the JSON names none and `given` is a name, the
       competition in `experiments/` whose `submission.kaggle` is this name;
    3. the competition in the YAML of a run that the summary JSON names.

    Args:
        path: path of the CSV; None for a notebook.
        given: value of the option `--competition`: path of the competition's YAML, or its name at the host. None if the
            option is not given.
        overrides: `key=value` overrides of the competition's YAML.
        at_kaggle: whether the file will be uploaded to Kaggle. If so, the competition's name at Kaggle must be known.

    Raises:
        MaskfoldError: the file does not exist, its competition is unknown, or the competition's name at Kaggle is
            needed but unknown (status 2).
    """
    if path is not None and not path.is_file():
        raise MaskfoldError(f"The file {path} does not exist.", "Write the file with `maskfold submit`.", status=2)
    summary = _read_summary(path)
    overrides = [override.removeprefix("competition.") for override in overrides]
    slug = given
    if given is not None and Path(given).suffix in (".yaml", ".yml"):
        comp: Competition | None = load_competition(given, overrides)
        slug = None
    else:
        comp = _from_yamls(summary.get("competition"), given, overrides) or _from_runs(summary, overrides)
    if comp is None and path is not None:
        more = " In this YAML, set `submission.kaggle`." if at_kaggle else ""
        raise MaskfoldError(
            f"It is unknown to which competition {path} belongs. The JSON of `maskfold submit` next to this file is "
            "missing or invalid, or the YAML of its competition was not found.",
            f"Add --competition experiments/…/competition.yaml.{more}",
            status=2,
        )
    slug = slug or (comp.submission.kaggle if comp is not None else None)
    if not slug and at_kaggle:
        raise MaskfoldError(
            f"The Kaggle name of the competition{f' {comp.name}' if comp else ''} is unknown.",
            "Add `submission: {kaggle: NAME}` to competition.yaml, or add --competition NAME. NAME is in "
            "the address of the competition at Kaggle.",
            status=2,
        )
    return UploadRequest(path, summary, comp, slug or "")


def validate_upload(path: Path, comp: Competition) -> ValidationReport:
    """Validate a CSV against the host's sample submission and the test images, and return the report.

    Raises:
        MaskfoldError: the CSV is invalid, or the competition has no test images.
    """
    from competition.submission.testset import TestSet

    tests = TestSet.from_table(comp, case_table(comp, "test"))
    shapes: dict[str, tuple[int, ...]] = {}
    for row in tests.rows:
        names, shape = tests.names[row.id], tuple(json.loads(row.shape))
        sliced = len(names) > 1 or (tests.profile.rows == "slice_class" and len(shape) == 3)
        shapes |= dict.fromkeys(names, shape[:2] if sliced else shape)
    report = validate_submission(path, tests.profile, tests.sample, shapes)
    report.raise_if_invalid()
    return report


def make_record(
    request: UploadRequest,
    message: str | None,
    notebook: dict[str, Any] | None,
    earlier: Sequence[UploadRecord],
    host: str = "kaggle",
) -> tuple[UploadRecord, pd.DataFrame | None]:
    """Return a new record for an upload that has not been sent yet, and the table of out-of-fold scores.

    Args:
        request: the file or notebook.
        message: description of the submission for the host. None for a default: the name of the file, its score and the
            first digits of its SHA-256.
        notebook: `kernel`, `version` and `file` of a notebook submission; None for a file.
        earlier: the earlier records of the competition.
        host: `kaggle` or `by hand`.

    Returns:
        The record, and the table of out-of-fold scores with one row per case and class; None if it is not available.
    """
    path, summary, comp = request.path, request.summary, request.comp
    digest = sha256_of_file(path) if path is not None else ""
    if summary and summary.get("sha256") != digest:
        summary = {}  # the JSON belongs to an older file of the same name
    expected = summary.get("expected") or {}
    rows = _rows(path, summary, comp)
    cases = expected.get("test_cases")
    public = None if cases is None or comp is None else max(1, round(cases * comp.submission.public_share))
    time = utc_now()
    record = UploadRecord(
        make_record_id(time, digest),
        request.competition,
        host,
        request.slug,
        time.isoformat(),
        str(path) if path is not None else str((notebook or {}).get("file", "")),
        digest,
        "",
        notebook,
        _metric(comp.metric, expected) if comp is not None else {},
        [{key: run[key] for key in RUN_KEYS} for run in summary.get("runs", [])],
        _keys(summary),
        summary.get("postprocess"),
        _cv(expected, rows, comp),
        _expected(expected, rows, comp, public),
        public,
        again=sum(record.sha256 == digest for record in earlier) if digest else 0,
    )
    used_ids = {other.id for other in earlier}
    while record.id in used_ids:  # the same file was recorded twice within one second
        record = replace(record, id=record.id + "b")
    return replace(record, message=message or _default_message(record)), rows


def _default_message(record: UploadRecord) -> str:
    name = Path(record.file).stem if record.sha256 else f"notebook version {(record.notebook or {}).get('version')}"
    score = f" CV {record.score:.4f}" if record.score is not None else ""
    return f"{name}{score} {record.sha256[:8]}".strip()


def _read_summary(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        summary = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if isinstance(summary, dict):
        check_unedited(
            path.with_suffix(".json"),
            summary,
            SUBMISSION_DIGEST,
            "Delete the file. Or repeat `maskfold submit`, which writes it again.",
        )
    runs = summary.get("runs") if isinstance(summary, dict) else None
    valid = isinstance(runs, list) and all(isinstance(run, dict) and run.keys() >= set(RUN_KEYS) for run in runs)
    return summary if valid else {}


def _from_yamls(name: str | None, slug: str | None, overrides: Sequence[str]) -> Competition | None:
    """Return the competition in `experiments/` with the name `name` or, if that is None, with the Kaggle name `slug`.

    Invalid YAML files are skipped. If there is no such competition, return None.
    """
    for file in sorted(Path().glob(COMPETITION_GLOB)):
        try:
            comp = load_competition(file)
        except MaskfoldError:
            continue
        if comp.name == name or (name is None and slug is not None and comp.submission.kaggle == slug):
            return load_competition(file, overrides)
    return None


def _from_runs(summary: dict[str, Any], overrides: Sequence[str]) -> Competition | None:
    for run in summary.get("runs", []):
        yaml = Path(str(run.get("run"))) / "experiment.yaml"
        if yaml.exists():
            return load_experiment(yaml, [f"competition.{override}" for override in overrides], trust=None).competition
    return None


def _keys(summary: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the values of the resolved YAML of each run in a summary JSON, by the run's hash and then by dotted key.

    Runs whose folders do not exist any more are left out.
    """
    keys_by_hash = {}
    for run in summary.get("runs", []):
        yaml = Path(str(run.get("run"))) / "experiment.yaml"
        if yaml.exists():
            keys = flatten_parameters(resolve_config(load_experiment(yaml, trust=None)))
            keys_by_hash[str(run["hash"])] = {
                key: value for key, value in keys.items() if not key.startswith(IGNORED_KEYS)
            }
    return keys_by_hash


def _rows(path: Path | None, summary: dict[str, Any], comp: Competition | None) -> pd.DataFrame | None:
    """Return the table of out-of-fold scores that belongs to a submission, with one row per case and class.

    The table next to the CSV is tried first. If only one run has a weight above 0, the tables in its folder are tried
    next. A table is used only if its score equals the expected score in the summary JSON. If there is no such table,
    return None.

    Args:
        path: path of the CSV; None for a notebook.
        summary: content of the summary JSON.
        comp: the competition; None if it is unknown.
    """
    if path is None or comp is None or not summary.get("expected"):
        return None
    import pandas as pd

    from competition.runs.summary import TUNING_SCORES_FILE
    from competition.submission.submit import old_scores_path, scores_path

    active = [Path(str(run["run"])) for run in summary["runs"] if run["weight"] > 0]
    files = [
        scores_path(path),
        old_scores_path(path),
        *([active[0] / TUNING_SCORES_FILE, active[0] / "scores.csv"] if len(active) == 1 else []),
    ]
    for file in files:
        if not file.exists():
            continue
        rows = pd.read_csv(
            file,
            sep=separator_of(file),
            dtype={"id": str, "class": str},
            keep_default_na=False,
            float_precision="round_trip",
            na_values={name: [""] for name in ("score", "dice", "iou")},
        )
        if abs(cv_score(rows, comp.metric) - summary["expected"]["score"]) < SCORE_TOLERANCE:
            groups = _groups(active)
            return rows if groups is None or not comp.group else rows.assign(group=rows["id"].map(groups))
    return None


def _groups(runs: Sequence[Path]) -> dict[str, str] | None:
    import pandas as pd

    file = runs[0] / CASES_FILE if runs else Path(CASES_FILE)
    if not runs or not file.exists():
        return None
    cases = pd.read_csv(file, dtype=str, keep_default_na=False)
    return dict(zip(cases["id"], cases["group"], strict=True))


def table_groups(rows: pd.DataFrame) -> dict[str, str] | None:
    """Return the group of each case in a table of scores, by case id; None if the table has no groups."""
    return dict(zip(rows["id"], rows["group"], strict=True)) if "group" in rows else None


def _metric(metric: MetricConfig, expected: dict[str, Any]) -> dict[str, Any]:
    """Return the metric as plain data for `UploadRecord.metric`.

    If it is the user's own metric and the expected score is known, the data have the key `higher_is_better`.
    """
    plain = metric.model_dump()
    if not metric.has_own_code or not expected:
        return plain
    return {**plain, "higher_is_better": bool(expected.get("higher_is_better", True))}


def _cv(expected: dict[str, Any], rows: pd.DataFrame | None, comp: Competition | None) -> dict[str, float | None]:
    if not expected:
        return {}
    low, high = (
        bootstrap_interval(rows, comp.metric, groups=table_groups(rows))
        if rows is not None and comp is not None
        else (float("nan"), float("nan"))
    )
    return {"score": expected["score"], "low": finite_or_none(low), "high": finite_or_none(high)}


def _expected(
    expected: dict[str, Any], rows: pd.DataFrame | None, comp: Competition | None, public: int | None
) -> dict[str, float | None]:
    """Return the expected score, and its 95 % prediction interval for the cases of the public leaderboard.

    The interval is computed from the scores of the cases. If these are missing, the interval in the summary JSON is
    used, but widened, because it is for the whole test set: the distance from the score to each end is divided by the
    square root of the share of public cases.

    Args:
        expected: the expected score in the summary JSON.
        rows: table of out-of-fold scores; None if it is not available.
        comp: the competition; None if it is unknown.
        public: number of cases of the public leaderboard; None if it is unknown.
    """
    if not expected or public is None:
        return {}
    if rows is not None and comp is not None:
        low, high = prediction_interval(rows, comp.metric, public, groups=table_groups(rows))
        return {"score": expected["score"], "low": finite_or_none(low), "high": finite_or_none(high)}
    if expected.get("low") is None or expected.get("high") is None:
        return {}
    factor = (expected["test_cases"] / public) ** 0.5
    return {
        "score": expected["score"],
        "low": expected["score"] - factor * (expected["score"] - expected["low"]),
        "high": expected["score"] + factor * (expected["high"] - expected["score"]),
    }


# Submission and scores


def submit_to_kaggle(
    api: Any, request: UploadRequest, ledger: Ledger, record: UploadRecord, scores: pd.DataFrame | None
) -> UploadRecord:
    """Submit a file or the output of a notebook to Kaggle, and record it in the ledger.

    The record is written before the file is sent. So `refresh_scores` can find the submission later, even if the
    connection is lost or this process is killed. If Kaggle rejects the submission, the record is removed again.

    Args:
        api: Kaggle's client, from `competition.leaderboard.kaggle.connect_kaggle`.
        request: the file or notebook.
        ledger: the ledger of the competition.
        record: the record, from `make_record`.
        scores: table of out-of-fold scores, with one row per case and class; None if it is not available.

    Returns:
        The record with Kaggle's number of the submission.

    Raises:
        MaskfoldError: Kaggle has rejected the submission, or the connection was lost; see
            `competition.leaderboard.kaggle.submit_file`.
    """
    ledger.write(record, scores)
    try:
        if record.notebook is not None:
            ref = submit_notebook(
                api,
                request.slug,
                record.notebook["kernel"],
                record.notebook["version"],
                record.notebook["file"],
                record.message,
            )
        else:
            assert request.path is not None
            ref = submit_file(api, request.slug, request.path, record.message)
    except UploadRejected:
        ledger.remove(record)
        raise
    record = replace(record, ref=ref, status="pending" if ref is not None else "sending")
    ledger.write(record)
    return record


def refresh_scores(api: Any, ledger: Ledger) -> tuple[list[UploadRecord], int]:
    """Fetch the scores of submissions from Kaggle, for all records whose scores may still change.

    Returns:
        The records that have changed, and the number of submissions at Kaggle that are not in the ledger.

    Raises:
        MaskfoldError: Kaggle cannot be reached, or a record is damaged.
    """
    records = ledger.read()
    changed: list[UploadRecord] = []
    unknown = 0
    for slug in dict.fromkeys(record.slug for record in records if record.awaiting_score):
        submissions = fetch_submissions(api, slug)
        own_records = [record for record in records if record.slug == slug]
        updated = update_records(own_records, submissions, utc_now().isoformat())
        for record in updated:
            ledger.write(record)
        changed += updated
        known_refs = {record.ref for record in [*own_records, *updated]}
        unknown += sum(submission.ref not in known_refs for submission in submissions)
    return changed, unknown


def add_manual_entry(
    request: UploadRequest, ledger: Ledger, public: float | None, private: float | None, message: str | None
) -> UploadRecord:
    """Record the scores of a file that the user has submitted without Maskfold.

    If the ledger already has records of this file, the latest one is updated.

    Args:
        request: the file.
        ledger: the ledger of the competition.
        public: score on the public leaderboard; None leaves it unchanged.
        private: score on the private leaderboard; None leaves it unchanged.
        message: description of the submission. None gives a new record a default, and leaves the description of an
            existing record unchanged.

    Returns:
        The new or updated record.

    Raises:
        MaskfoldError: no score is given, or a score is invalid (status 2).
    """
    if public is None and private is None:
        raise MaskfoldError(
            "--add requires a score of the file, but --public and --private are missing.",
            "Add --public 0.71, --private 0.69, or both.",
            status=2,
        )
    for name, value in (("--public", public), ("--private", private)):
        if value is not None:
            _check_score(name, value, request.comp)
    assert request.path is not None
    earlier = ledger.read()
    digest = sha256_of_file(request.path)
    existing = next((record for record in reversed(earlier) if record.sha256 == digest), None)
    scores = None
    if existing is None:
        existing, scores = make_record(request, message, None, earlier, host="by hand")
    record = replace(
        existing,
        status="complete",
        public=existing.public if public is None else public,
        private=existing.private if private is None else private,
        checked=utc_now().isoformat(),
        message=message or existing.message,
    )
    ledger.write(record, scores)
    return record


def _check_score(name: str, value: float, comp: Competition | None) -> None:
    """Check that a score is finite, and that it is from 0 to 1 if the metric has only such scores.

    Raises:
        MaskfoldError: the score is not allowed (status 2).
    """
    if not isfinite(value):
        raise MaskfoldError(
            f"{name}: found {value:g}, expected a finite number.",
            "Write the score that the leaderboard shows.",
            status=2,
        )
    is_share = comp is not None and comp.metric.is_share
    if comp is not None and is_share and not 0 <= value <= 1:
        raise MaskfoldError(
            f"{name}: found {value:g}, expected a number from 0 to 1, because the metric is {comp.metric.name}.",
            "Write a share, for example 0.71 if the leaderboard shows 71 %.",
            status=2,
        )
