"""Record the uploads from a run's folder (`shipped.json`), and read the new lines of `metrics.jsonl`."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from competition.io import atomic_write, parse_json_object, parse_metrics_line

MAX_READ_BYTES = 2_000_000  # bytes read at a time
SEAL_BYTES = 512  # the digest covers this many bytes before an offset
STATE_FILE = "shipped.json"
STATE_VERSION = 1
MAX_DIGESTED_BYTES = 4_000_000  # files of more bytes are compared by size and time only

logger = logging.getLogger(__name__)

# New lines of `metrics.jsonl`


class MetricPoint(NamedTuple):
    """Hold one value of a metric, with the time (ms) in the file, so that a repeated upload has the same time."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class FileOffset:
    """Hold the position up to which a file was read.

    Attributes:
        offset: position in bytes.
        seal: digest of the last bytes before the offset; it changes if the file is rewritten.
        head: digest of the first line; it changes if the fold is trained again from the start.
    """

    offset: int = 0
    seal: str = ""
    head: str = ""


@dataclass(frozen=True)
class JournalChunk:
    """Hold new content of a `metrics.jsonl`.

    Attributes:
        points: new values, in the file's order.
        end: position up to which the file is now read.
        is_restarted: whether the first line has changed, because the fold was trained again from the start.
        has_more: whether more lines can be read.
    """

    points: list[MetricPoint]
    end: FileOffset
    is_restarted: bool = False
    has_more: bool = False


def read_chunk(path: Path, position: FileOffset) -> JournalChunk:
    """Read the complete lines after a position; leave an incomplete last line for the next call.

    A resumed fold removes the lines after its checkpoint and writes them again. The file is then shorter, or has other
    bytes before the offset, so it is read again from its start.
    """
    with open(path, "rb") as file:
        is_rewritten = position.offset > 0 and _seal(file, position.offset) != position.seal
        start = 0 if is_rewritten else position.offset
        file.seek(start)
        block = file.read(MAX_READ_BYTES)
        lines = block[: block.rfind(b"\n") + 1]
        end = start + len(lines)
        end_position = FileOffset(end, _seal(file, end), _digest(_first_line(file)))
    return JournalChunk(
        points=[point for line in lines.split(b"\n")[:-1] for point in _points(line, path)],
        end=end_position,
        is_restarted=is_rewritten and end_position.head != position.head,
        has_more=len(block) == MAX_READ_BYTES and bool(lines),
    )


def _seal(file: BinaryIO, offset: int) -> str:
    file.seek(max(0, offset - SEAL_BYTES))
    return _digest(b"%d " % offset + file.read(min(offset, SEAL_BYTES)))


def _first_line(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.readline()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _points(line: bytes, path: Path) -> list[MetricPoint]:
    """Return the metrics in a line of a file; infinity becomes nan, because MLflow would plot infinity as 1.8e308."""
    parsed = parse_metrics_line(line)
    if parsed is None:
        logger.warning("%s has a line that cannot be read; it is skipped: %.80r", path, line[:200])
        return []
    return [MetricPoint(name, value, round(1000 * parsed.time), parsed.step) for name, value in parsed.metrics.items()]


# What was uploaded


@dataclass(frozen=True)
class FileFingerprint:
    """Hold what shows a change of a file: the file's size, its time of change (ns) and, for small files, a digest."""

    size: int
    time: int
    digest: str

    @classmethod
    def of(cls, path: Path, before: FileFingerprint | None) -> FileFingerprint:
        """Return the fingerprint of a file; return `before` if the content equals that of the fingerprint `before`."""
        stat = path.stat()
        if before is not None and (before.size, before.time) == (stat.st_size, stat.st_mtime_ns):
            return before
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if stat.st_size <= MAX_DIGESTED_BYTES else ""
        if before is not None and digest and digest == before.digest:
            return before
        return cls(stat.st_size, stat.st_mtime_ns, digest)


@dataclass
class Uploaded:
    """Record the uploads from one folder.

    Attributes:
        token: a tag of the MLflow run. It is stored before the run is created, so that the run can be found even if the
            process is killed before it has stored the run's id.
        run_id: id of the MLflow run; None: the run is not created yet.
        name: name of the MLflow run at the last upload; empty for runs of versions that did not store it.
        status: status in MLflow at the last upload: RUNNING, FINISHED, FAILED or KILLED.
        parameters: whether parameters and tags were uploaded.
        journal: position up to which `metrics.jsonl` was uploaded.
        steps: last uploaded step of each metric.
        final: digest of the uploaded final metrics.
        cases: digest of the datasets that were logged; empty for runs of versions that logged none.
        model: id of the fold's logged model; empty for runs of versions that logged none.
        model_result: digest of the result file whose scores were logged for the model.
        files: fingerprint of each uploaded file, by path relative to the folder.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str | None = None
    name: str = ""
    status: str = ""
    parameters: bool = False
    journal: FileOffset = field(default_factory=FileOffset)
    steps: dict[str, int] = field(default_factory=dict)
    final: str = ""
    cases: str = ""
    model: str = ""
    model_result: str = ""
    files: dict[str, FileFingerprint] = field(default_factory=dict)


@dataclass
class SyncState:
    """Record the uploads of a run: `folders["."]` is the run itself, the other entries are its folds.

    Attributes:
        store: address of the store, without its password.
        folders: record of the uploads from each folder.
        experiment: MLflow's id of the experiment; empty if the run is not in MLflow yet.
    """

    store: str
    folders: dict[str, Uploaded] = field(default_factory=dict)
    experiment: str = ""

    def uploaded(self, name: str) -> Uploaded:
        """Return the entry of a folder; create the entry if it does not exist."""
        return self.folders.setdefault(name, Uploaded())

    def write(self, run_folder: Path) -> None:
        """Write the state atomically."""
        content = json.dumps({"version": STATE_VERSION, **asdict(self)}, indent=1).encode()
        atomic_write(run_folder / STATE_FILE, lambda file: file.write(content), len(content))


def read_sync_state(run_folder: Path, store: str) -> SyncState:
    """Return the record of a run; empty if nothing was uploaded.

    If the run was uploaded under another store address, only the tokens are kept. If both addresses lead to the same
    store, the tokens identify the runs.
    """
    path = run_folder / STATE_FILE
    try:
        plain = parse_json_object(path.read_bytes())
        if plain["version"] != STATE_VERSION:
            return SyncState(store)
        read = _parse_checked if plain["store"] == store else _parse_token
        experiment = plain.get("experiment", "") if plain["store"] == store else ""
        if not isinstance(experiment, str):
            raise TypeError(f"experiment: found {experiment!r}, expected a text")
        return SyncState(store, {name: read(fields) for name, fields in plain["folders"].items()}, experiment)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # upload everything again, because a repeated upload is better than none
        path.replace(path.with_name(f"{STATE_FILE}.unreadable"))
        logger.warning(
            "%s is damaged (%.160s); it is renamed to %s.unreadable, and everything is uploaded to MLflow again.",
            path,
            error,
            STATE_FILE,
        )
    return SyncState(store)


def _parse_checked(fields: dict[str, Any]) -> Uploaded:
    """Check the types and ranges of the fields of one folder's entry, and return the entry."""
    files = {name: FileFingerprint(**file) for name, file in fields["files"].items()}
    uploaded = Uploaded(**{**fields, "journal": FileOffset(**fields["journal"]), "files": files})
    texts = (
        uploaded.token,
        uploaded.run_id or "",
        uploaded.name,
        uploaded.status,
        uploaded.final,
        uploaded.cases,
        uploaded.model,
        uploaded.model_result,
        uploaded.journal.seal,
        uploaded.journal.head,
    )
    numbers = (
        uploaded.journal.offset,
        *uploaded.steps.values(),
        *(number for file in files.values() for number in (file.size, file.time)),
    )
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a field has another type than expected")
    if uploaded.journal.offset < 0:
        raise ValueError(f"journal.offset: found {uploaded.journal.offset}, expected at least 0")
    return uploaded


def _parse_token(fields: dict[str, Any]) -> Uploaded:
    return Uploaded(token=str(fields["token"]))
