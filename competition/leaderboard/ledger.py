"""Store the ledger, a record of all uploads of submissions to the host of a competition.

The ledger is the folder `submissions/<competition>/ledger`. Each upload has a JSON, and a table with the out-of-fold
scores of the uploaded ensemble. The module also describes what has changed between two uploads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from competition.config.competition import MetricConfig
from competition.config.metric import Direction
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.records import (
    DIGESTS_KEY,
    changed_tables,
    check_unedited,
    damaged_error,
    parse_json_object,
    read_record,
    with_own_digest,
    write_json,
)
from competition.tables import separator_of, write_table

if TYPE_CHECKING:
    import pandas as pd

    from competition.leaderboard.kaggle import KaggleSubmission


VERSION = 1
RECORD_DIGEST = "record"  # key of the digest of the record itself
DAMAGED_HINT = "Restore the file from a backup, or move it to another folder. The host still has the scores."
SUBMISSIONS_FOLDER, LEDGER_FOLDER = Path("submissions"), "ledger"
CLOCK_TOLERANCE = 900.0  # s; maximum difference between the clocks of Kaggle and of this machine


@dataclass(frozen=True)
class UploadRecord:
    """Record one upload of a submission.

    Attributes:
        id: id of the record: the time, and the first digits of the file's SHA-256.
        competition: name of the competition in the YAML.
        host: `kaggle`; or `by hand` if the user uploaded the file without Maskfold.
        slug: name of the competition at the host, as in its URL.
        time: time of the upload, in ISO format, UTC.
        file: path of the uploaded file, or name of the notebook's output file.
        sha256: SHA-256 of the file; empty for a notebook whose output is not available.
        message: description of the submission, which the host shows.
        notebook: `kernel` (owner/name), `version` and `file` of a notebook submission; None for a file.
        metric: section `metric` of the competition's YAML. For the user's own metric, it also has the key
            `higher_is_better`.
        runs: folder (`run`), `experiment`, `hash` and `weight` of each run of the ensemble.
        keys: values of the resolved YAML of each run, by the run's hash and then by dotted key.
        postprocess: section `postprocess` that was used; None if unknown.
        cv: out-of-fold `score`, and `low` and `high` of its 95 % bootstrap interval; empty if unknown.
        expected: expected `score`, and `low` and `high` of its 95 % prediction interval for the cases of the public
            leaderboard; empty if unknown.
        public_cases: number of cases that the public leaderboard is assumed to use; None if unknown.
        ref: the host's number of the submission; None if unknown.
        status: sending, pending, complete, error, or lost (the host does not know the submission).
        public: score on the public leaderboard; None if unknown.
        private: score on the private leaderboard; None if unknown.
        error: reason why the host did not score the file.
        checked: time at which the status or the scores of the record were last updated, in ISO format, UTC; empty if
            they were never updated.
        again: number of earlier uploads of the same file.
        mlflow: id of the MLflow run of the upload; empty if there is none.
    """

    id: str
    competition: str
    host: str
    slug: str
    time: str
    file: str
    sha256: str
    message: str
    notebook: dict[str, Any] | None = None
    metric: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    postprocess: dict[str, Any] | None = None
    cv: dict[str, float | None] = field(default_factory=dict)
    expected: dict[str, float | None] = field(default_factory=dict)
    public_cases: int | None = None
    ref: int | None = None
    status: str = "sending"
    public: float | None = None
    private: float | None = None
    error: str = ""
    checked: str = ""
    again: int = 0
    mlflow: str = ""

    @property
    def awaiting_score(self) -> bool:
        """Whether Kaggle may still add a score; the private score appears only after the end of the competition."""
        return (
            self.host == "kaggle"
            and (self.status in ("sending", "pending") or self.private is None)
            and self.status not in ("error", "lost")
        )

    @property
    def score(self) -> float | None:
        """The out-of-fold score; None if unknown."""
        return self.cv.get("score")

    @property
    def direction(self) -> Direction | None:
        """Whether higher or lower scores are better; None if unknown, which is possible for the user's own metric."""
        if isinstance(higher := self.metric.get("higher_is_better"), bool):
            return Direction.HIGHER if higher else Direction.LOWER
        if not self.metric:
            return Direction.HIGHER
        metric = metric_of_record(self.metric)
        return None if metric.has_own_code else metric.direction


def metric_of_record(plain: dict[str, Any]) -> MetricConfig:
    """Return the configuration of a metric from `UploadRecord.metric`; its key `higher_is_better` is ignored."""
    return MetricConfig.model_validate({key: value for key, value in plain.items() if key != "higher_is_better"})


class Ledger:
    """Read and write the records of all uploads of one competition.

    Args:
        competition: name of the competition in the YAML.
        root: the folder that contains `submissions`.
    """

    def __init__(self, competition: str, root: Path = Path()) -> None:
        self.competition, self.folder = competition, root / SUBMISSIONS_FOLDER / competition / LEDGER_FOLDER

    def read(self) -> list[UploadRecord]:
        """Return all records, the oldest first.

        Raises:
            MaskfoldError: a record is damaged, was edited, or has another format version.
        """
        return sorted(
            (_read(path) for path in self.folder.glob("*.json") if not path.name.startswith(".")),
            key=lambda record: (record.time, record.id),
        )

    def write(self, record: UploadRecord, scores: pd.DataFrame | None = None) -> None:
        """Write a record atomically; an earlier version of the record is replaced.

        Args:
            record: the record.
            scores: table of the out-of-fold scores, with one row per case and class. None leaves a stored table
                unchanged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        table = self._scores(record)
        if scores is not None:
            write_table(scores, table)
        kept = {name: digest for name, digest in self._digests(record).items() if name == table.name}
        digests = kept if scores is None else {table.name: sha256_of_file(table)}
        write_json(
            self._file(record),
            with_own_digest({"version": VERSION, **asdict(record), DIGESTS_KEY: digests}, RECORD_DIGEST),
        )

    def remove(self, record: UploadRecord) -> None:
        """Delete a record and its table of scores."""
        for path in (self._file(record), self._scores(record), self._old_scores(record)):
            path.unlink(missing_ok=True)

    def scores(self, record: UploadRecord) -> pd.DataFrame | None:
        """Return the table of out-of-fold scores of a record, with one row per case and class; None if there is none.

        Raises:
            MaskfoldError: the table is damaged, or was changed after it was written.
        """
        import pandas as pd

        path = self._scores(record)
        if not path.exists() and not (path := self._old_scores(record)).exists():
            return None
        if changed_tables(self.folder, {DIGESTS_KEY: self._digests(record)}):
            raise damaged_error(path, f"its content does not match its digest in {record.id}.json", DAMAGED_HINT)
        try:
            rows = pd.read_csv(
                path,
                sep=separator_of(path),
                dtype={"id": str, "class": str, "group": str},
                keep_default_na=False,
                na_values={name: [""] for name in ("score", "dice", "iou")},
                float_precision="round_trip",
            )
            return rows.astype({"id": str, "class": str, "score": float})
        except (OSError, ValueError, KeyError) as error:
            raise damaged_error(path, error, DAMAGED_HINT) from error

    def _digests(self, record: UploadRecord) -> dict[str, str]:
        """Return the digests that a record's file contains: of the record itself, and of its table of scores.

        If the file is missing, or an early version of Maskfold wrote it without digests, return an empty dictionary.
        """
        try:
            digests = read_record(self._file(record), DAMAGED_HINT).get(DIGESTS_KEY)
        except FileNotFoundError:
            return {}
        return digests if isinstance(digests, dict) else {}

    def _file(self, record: UploadRecord) -> Path:
        return self.folder / f"{record.id}.json"

    def _scores(self, record: UploadRecord) -> Path:
        return self.folder / f"{record.id}.scores.tsv"

    def _old_scores(self, record: UploadRecord) -> Path:
        return self.folder / f"{record.id}.scores.csv"  # name of the file in versions before 0.2


def list_ledgers(root: Path = Path()) -> list[Ledger]:
    """Return the ledgers of all competitions that have one, sorted by the competition's name."""
    return [
        Ledger(folder.parent.name, root)
        for folder in sorted((root / SUBMISSIONS_FOLDER).glob(f"*/{LEDGER_FOLDER}"))
        if folder.is_dir()
    ]


# Records and the host's data


def utc_now() -> datetime:
    """Return the current time in UTC, without fractions of a second."""
    return datetime.now(UTC).replace(microsecond=0)


def make_record_id(time: datetime, sha256: str) -> str:
    """Return the id of a record, e.g. `20260105-101112-883a6f6e`, from its time and the SHA-256 of its file."""
    return f"{time:%Y%m%d-%H%M%S}-{sha256[:8] or 'notebook'}"


def update_records(
    records: Iterable[UploadRecord], submissions: Iterable[KaggleSubmission], time: str
) -> list[UploadRecord]:
    """Return updated copies of those records that differ from the host's present data.

    A record is compared with the submission that has the same number. If an upload was interrupted, its record has no
    number; its submission is then found by file name, description and time. If no submission matches, the status
    `sending` of the record becomes `lost`. Records whose numbers are not among the latest submissions do not change.

    Args:
        records: the records of one competition.
        submissions: the host's latest submissions.
        time: time of the host's answer, in ISO format, UTC.
    """
    by_ref = {submission.ref: submission for submission in submissions}
    unmatched = dict(by_ref)
    records = list(records)
    for record in records:
        unmatched.pop(record.ref or -1, None)
    changed = []
    for record in records:
        if record.host != "kaggle":
            continue
        submission = by_ref.get(record.ref or -1)
        if submission is None and record.ref is None:
            submission = next((candidate for candidate in unmatched.values() if _matches(record, candidate)), None)
            if submission is not None:
                unmatched.pop(submission.ref)
        if submission is None:
            if record.ref is None and record.status == "sending":
                changed.append(replace(record, status="lost", checked=time))
            continue
        new = replace(
            record,
            ref=submission.ref,
            status=submission.status or record.status,
            public=_newer(submission.public, record.public),
            private=_newer(submission.private, record.private),
            error=submission.error,
        )
        if new != record:
            changed.append(replace(new, checked=time))
    return changed


def _newer(value: float | None, previous: float | None) -> float | None:
    return previous if value is None else value


def _matches(record: UploadRecord, submission: KaggleSubmission) -> bool:
    name = record.notebook["file"] if record.notebook else Path(record.file).name
    if submission.file != name or submission.description != record.message:
        return False
    return not submission.date or (to_timestamp(submission.date) - to_timestamp(record.time)) > -CLOCK_TOLERANCE


def to_timestamp(text: str) -> float:
    """Convert a time in ISO format to seconds since 1970; a time without a time zone is taken as UTC."""
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()


def _read(path: Path) -> UploadRecord:
    """Read a record from its file, and validate it.

    Raises:
        MaskfoldError: the record is damaged, was edited, or has another format version.
    """
    try:
        plain = parse_json_object(path.read_bytes())
        check_unedited(path, plain, RECORD_DIGEST, DAMAGED_HINT)
        plain.pop(DIGESTS_KEY, None)
        if (version := plain.pop("version")) != VERSION:
            raise MaskfoldError(
                f"{path} has the format version {version!r}, expected {VERSION}.",
                "Use the Maskfold version that wrote this record, or move the record to another folder. The "
                "host still has the scores.",
            )
        record = UploadRecord(**plain)  # raises an error for an unknown key
        if record.id != path.stem:
            raise ValueError(f"id: found {record.id!r}, expected {path.stem!r}, the name of the file")
        to_timestamp(record.time)
        if record.metric:
            metric_of_record(record.metric)
        if any(
            not isinstance(run["weight"], int | float) or not run["experiment"] or not run["hash"]
            for run in record.runs
        ):
            raise ValueError("runs: each run requires experiment, hash and a numeric weight")
        if record.notebook is not None and not record.notebook.keys() >= {"kernel", "version", "file"}:
            raise ValueError("notebook: kernel, version and file are required")
        return TypeAdapter(UploadRecord).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged_error(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", DAMAGED_HINT) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_error(path, error, DAMAGED_HINT) from error


# Changes between uploads


def describe_changes(before: UploadRecord | None, after: UploadRecord) -> list[str]:
    """Return one line for each change between two uploads: runs, weights, values of the YAML, and post-processing.

    A run that was removed and a run that was added are paired if they belong to the same experiment, or if only one run
    was removed and only one was added. For such a pair, the values of their YAML are compared.

    Args:
        before: the earlier upload; None if `after` is the first one.
        after: the later upload.
    """
    if before is None:
        return ["first"]
    if after.sha256 and before.sha256 == after.sha256:
        return ["the same file"]
    before, after = _with_short_names(before), _with_short_names(after)
    lines = _run_changes(before, after) if before.runs and after.runs else []
    if after.notebook is not None and after.notebook != before.notebook:
        lines.append(f"notebook {after.notebook['kernel']} version {after.notebook['version']}")
    if not lines:
        lines.append("another file of the same runs" if after.runs and before.runs else "unknown")
    return lines


def _run_changes(before: UploadRecord, after: UploadRecord) -> list[str]:
    """Return one line for each change between two uploads whose runs are known."""
    lines: list[str] = []
    old_runs = {run["hash"]: run for run in before.runs}
    new_runs = {run["hash"]: run for run in after.runs}
    kept = old_runs.keys() & new_runs.keys()
    removed = [run for name, run in old_runs.items() if name not in kept]
    added = [run for name, run in new_runs.items() if name not in kept]
    pairs = _pairs(removed, added)
    for old, new in pairs:
        if old is not None and new is not None:
            lines += _replacement_changes(old, new, before, after)
        elif old is not None:
            lines.append(f"− {_name(old)}")
        elif new is not None:
            lines.append(f"+ {_name(new)}")
    lines += [
        f"weight of {_name(new_runs[name])}: {old_runs[name]['weight']:g} → {new_runs[name]['weight']:g}"
        for name in new_runs
        if name in kept and abs(old_runs[name]["weight"] - new_runs[name]["weight"]) > 1e-9
    ]
    if before.postprocess != after.postprocess:
        lines.append(f"post-processing: {format_steps(before.postprocess)} → {format_steps(after.postprocess)}")
    return lines


def format_steps(settings: dict[str, Any] | None) -> str:
    """Return the steps of a section `postprocess` as a short text; `none` if there are no steps."""
    if not settings:
        return "none"
    steps = settings.get("steps") or []
    parts = (
        [f"{cls}: {_format_steps(class_steps)}" for cls, class_steps in steps.items() if class_steps]
        if isinstance(steps, dict)
        else ([_format_steps(steps)] if steps else [])
    )
    parts += [key for key in ("number", "forbid_overlap") if settings.get(key)]
    return "; ".join(parts) or "none"


def _format_steps(steps: list[dict[str, Any]]) -> str:
    parts = []
    for step in steps:
        for name, value in step.items():
            if value is not None and value is not False:
                parts.append(name if value is True else f"{name} {json.dumps(value)}")
    return ", ".join(parts)


def _pairs(
    removed: list[dict[str, Any]], added: list[dict[str, Any]]
) -> list[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    pairs: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = []
    for new in list(added):
        old = next((run for run in removed if run["experiment"] == new["experiment"]), None)
        if old is None and len(removed) == len(added) == 1:
            old = removed[0]
        if old is not None:
            removed, added = [run for run in removed if run is not old], [run for run in added if run is not new]
            pairs.append((old, new))
    return [*pairs, *((old, None) for old in removed), *((None, new) for new in added)]


def _replacement_changes(
    old: dict[str, Any], new: dict[str, Any], before: UploadRecord, after: UploadRecord
) -> list[str]:
    """Return lines of text about a run of an ensemble that another run has replaced in a later upload.

    The first line names both runs. If the YAML of both runs is known, there is also a line for each value that differs,
    and a line for the weights if they differ.

    Args:
        old: the run that was removed, an entry of `UploadRecord.runs`.
        new: the run that replaced it.
        before: the earlier upload.
        after: the later upload.
    """
    old_keys, new_keys = before.keys.get(old["hash"]), after.keys.get(new["hash"])
    lines = [f"{_name(old)} → {_name(new)}"]
    if old_keys is None or new_keys is None:
        return lines
    for key in dict.fromkeys([*old_keys, *new_keys]):
        old_value, new_value = old_keys.get(key), new_keys.get(key)
        if old_value != new_value:
            lines.append(
                f"{key}: {old_value if old_value is not None else '–'} → {new_value if new_value is not None else '–'}"
            )
    if abs(old["weight"] - new["weight"]) >= 1e-9:
        lines.append(f"weight {old['weight']:g} → {new['weight']:g}")
    return lines


def _with_short_names(record: UploadRecord) -> UploadRecord:
    """Return a copy of a record in which names of experiments omit the competition: `unet3d`, not `spleen-unet3d`."""
    return replace(
        record,
        runs=[
            {**run, "experiment": str(run["experiment"]).removeprefix(f"{record.competition}-")} for run in record.runs
        ],
    )


def _name(run: dict[str, Any]) -> str:
    return f"{run['experiment']}/{run['hash']}"
