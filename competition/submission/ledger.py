"""What was handed in: one JSON for each upload below `submissions/<competition>/ledger`, and its scores by case beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from competition.config import MaskfoldError, Metric
from competition.data.records import damaged, parsed
from competition.training.checkpoint import write_json, write_table

if TYPE_CHECKING:
    import pandas as pd

    from competition.submission.kaggle_board import Remote

VERSION = 1
CURE = "Restore it from a backup, or move it away; its scores are still at the host."
FOLDER, PLACE = Path("submissions"), "ledger"
SLACK = 900.0  # seconds by which two clocks may differ


@dataclass(frozen=True)
class Record:
    """One upload.

    Attributes:
        id: its time and the first digits of its file's SHA-256.
        competition: its name in our YAML.
        host: kaggle, or `by hand`.
        slug: the competition's name at the host.
        time: when, ISO in UTC.
        file: as it was named here, or the notebook's output.
        sha256: of the file; empty for a notebook whose file is not here.
        message: what the host shows beside it.
        notebook: `owner/slug`, version and file of a code submission.
        metric: the competition's: name, average and so on.
        runs: run, experiment, hash and weight of each.
        keys: of each run's hash, the resolved YAML by its dotted keys.
        postprocess: the steps that were used.
        cv: score, and low and high of its 95 % bootstrap interval; empty where it is not known.
        expected: score, and low and high of the interval that holds 95 % of test sets of the public board's size.
        public_cases: how many cases the public board is taken to score; None: not known.
        ref: the host's number.
        status: sending, pending, complete, error, or lost (the host does not know it).
        public: the score on the public board; None while it is not known.
        private: likewise.
        error: why the host did not score it.
        checked: when the host was asked last, ISO in UTC.
        again: how many uploads of the same file there were before.
        mlflow: the MLflow run that has it, as it was then; empty while there is none.
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
    def open(self) -> bool:
        """Whether the host may still have something to say: a private score comes when the competition is over."""
        return (
            self.host == "kaggle"
            and (self.status in ("sending", "pending") or self.private is None)
            and self.status not in ("error", "lost")
        )

    @property
    def score(self) -> float | None:
        """The out-of-fold score."""
        return self.cv.get("score")


class Ledger:
    """The uploads of one competition.

    Args:
        competition: its name in our YAML.
        root: the folder that holds `submissions`.
    """

    def __init__(self, competition: str, root: Path = Path()) -> None:
        self.competition, self.folder = competition, root / FOLDER / competition / PLACE

    def read(self) -> list[Record]:
        """All of them, the oldest first.

        Raises:
            MaskfoldError: a file is damaged or of another version.
        """
        return sorted(
            (_read(path) for path in self.folder.glob("*.json") if not path.name.startswith(".")),
            key=lambda record: (record.time, record.id),
        )

    def write(self, record: Record, scores: pd.DataFrame | None = None) -> None:
        """Keeps a record, whole or not at all, and the out-of-fold scores by case and class."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if scores is not None:
            write_table(scores, self._scores(record))
        write_json(self.folder / f"{record.id}.json", {"version": VERSION, **asdict(record)})

    def remove(self, record: Record) -> None:
        """Forgets a record."""
        for path in (self.folder / f"{record.id}.json", self._scores(record)):
            path.unlink(missing_ok=True)

    def scores(self, record: Record) -> pd.DataFrame | None:
        """The out-of-fold scores by case and class; None where they are not known.

        Raises:
            MaskfoldError: the table is damaged.
        """
        import pandas as pd

        path = self._scores(record)
        if not path.exists():
            return None
        try:
            rows = pd.read_csv(
                path,
                dtype={"id": str, "class": str, "group": str},
                keep_default_na=False,
                na_values={name: [""] for name in ("score", "dice", "iou")},
                float_precision="round_trip",
            )
            return rows.astype({"id": str, "class": str, "score": float})
        except (OSError, ValueError, KeyError) as error:
            raise damaged(path, error, CURE) from error

    def _scores(self, record: Record) -> Path:
        return self.folder / f"{record.id}.scores.csv"


def ledgers(root: Path = Path()) -> list[Ledger]:
    """Of every competition that has one, by name."""
    return [
        Ledger(folder.parent.name, root) for folder in sorted((root / FOLDER).glob(f"*/{PLACE}")) if folder.is_dir()
    ]


def now() -> datetime:
    """The time, in UTC; to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def record_id(time: datetime, sha256: str) -> str:
    """`20260105-101112-883a6f6e`."""
    return f"{time:%Y%m%d-%H%M%S}-{sha256[:8] or 'notebook'}"


def refreshed(records: Iterable[Record], found: Iterable[Remote], time: str) -> list[Record]:
    """The records that have changed, with what the host says now.

    A record whose sending broke off has no number; it is found by its file, its message and its time. One that the host
    does not know is lost; one that has a number and is not among the latest stays as it is.

    Args:
        records: of one competition.
        found: the host's submissions.
        time: of the answer, ISO in UTC.
    """
    by_ref = {one.ref: one for one in found}
    free = dict(by_ref)
    records = list(records)
    for record in records:
        free.pop(record.ref or -1, None)
    changed = []
    for record in records:
        if record.host != "kaggle":
            continue
        one = by_ref.get(record.ref or -1)
        if one is None and record.ref is None:
            one = next((other for other in free.values() if _same(record, other)), None)
            if one is not None:
                free.pop(one.ref)
        if one is None:
            if record.ref is None and record.status == "sending":
                changed.append(replace(record, status="lost", checked=time))
            continue
        new = replace(
            record,
            ref=one.ref,
            status=one.status or record.status,
            public=_newer(one.public, record.public),
            private=_newer(one.private, record.private),
            error=one.error,
        )
        if new != record:
            changed.append(replace(new, checked=time))
    return changed


def _newer(value: float | None, known: float | None) -> float | None:
    return known if value is None else value


def _same(record: Record, one: Remote) -> bool:
    name = record.notebook["file"] if record.notebook else Path(record.file).name
    if one.file != name or one.description != record.message:
        return False
    return not one.date or (seconds(one.date) - seconds(record.time)) > -SLACK


def seconds(text: str) -> float:
    """Seconds since 1970 of an ISO time; without a zone it is UTC."""
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()


def _read(path: Path) -> Record:
    """A record, each of its fields of its kind; raises `MaskfoldError` where it is damaged."""
    try:
        plain = parsed(path.read_bytes())
        if (version := plain.pop("version")) != VERSION:
            raise MaskfoldError(
                f"{path} is of version {version!r}, and this Maskfold reads {VERSION}.",
                "Use the Maskfold that wrote it, or move it away; its scores are still at the host.",
            )
        record = Record(**plain)  # a key that is not known is refused
        seconds(record.time)
        if record.metric:
            Metric.model_validate(record.metric)
        if any(
            not isinstance(run["weight"], int | float) or not run["experiment"] or not run["hash"]
            for run in record.runs
        ):
            raise ValueError("runs: a run needs its experiment, its hash and its weight, a number")
        if record.notebook is not None and not record.notebook.keys() >= {"kernel", "version", "file"}:
            raise ValueError("notebook: it needs kernel, version and file")
        return TypeAdapter(Record).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", CURE) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error, CURE) from error
