"""Record which content of a run's folder MLflow already has (`shipped.json`), and read new lines of `metrics.jsonl`."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from competition.io import atomic_write
from competition.records import parse_json_object, parse_metrics_line

MAX_READ_BYTES = 2_000_000  # bytes read at a time
SEAL_BYTES = 512  # the digest `FileOffset.seal` covers this many bytes before the offset
STATE_FILE = "shipped.json"
STATE_VERSION = 1
MAX_DIGESTED_BYTES = 4_000_000  # files of more bytes are compared by size and time only

logger = logging.getLogger(__name__)

# New lines of `metrics.jsonl`


class MetricPoint(NamedTuple):
    """Hold one value of a metric at a step.

    Attributes:
        name: name of the metric, e.g. `val/dice`.
        value: its value.
        time: time at which the value was written, in ms since 1970. MLflow drops a value that is uploaded again with
            the same time.
        step: step of the value in MLflow. It is the number of the optimiser step in a fold's `metrics.jsonl`, the
            number of the sample in system metrics, the epoch in mean curves, and 0 in final metrics.
    """

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class FileOffset:
    """Hold the position up to which a file was read, and digests that show whether the file was rewritten later.

    Attributes:
        offset: position in bytes.
        seal: digest of the last `SEAL_BYTES` bytes before the offset. If the file now gives another digest, it has been
            rewritten.
        head: digest of the first line. If the file now gives another digest, the fold has been trained again from the
            start.
    """

    offset: int = 0
    seal: str = ""
    head: str = ""


@dataclass(frozen=True)
class JournalChunk:
    """Hold the values that one call of `read_chunk` has read from a `metrics.jsonl`.

    Attributes:
        points: new values, in the file's order.
        end: position up to which the file is now read.
        is_restarted: whether the first line has changed, because the fold was trained again from the start.
        has_more: whether another call may return more values, because this call stopped at `MAX_READ_BYTES`.
    """

    points: list[MetricPoint]
    end: FileOffset
    is_restarted: bool = False
    has_more: bool = False


def read_chunk(path: Path, position: FileOffset) -> JournalChunk:
    """Read the complete lines after a position, at most `MAX_READ_BYTES` per call.

    An incomplete last line is left for the next call.

    A resumed fold removes the lines after its checkpoint and writes them again. The file is then shorter, or has other
    bytes before the offset. In this case, it is read again from its start.

    Args:
        path: path of the `metrics.jsonl`.
        position: end of the previous chunk.
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
    """Return the metrics in a line of a file; if the line cannot be parsed, log a warning and return an empty list.

    Infinite values are read as nan, because MLflow would plot infinity as 1.8e308.
    """
    parsed = parse_metrics_line(line)
    if parsed is None:
        logger.warning("%s has a line that cannot be read, so the line is skipped: %.80r", path, line[:200])
        return []
    return [MetricPoint(name, value, round(1000 * parsed.time), parsed.step) for name, value in parsed.metrics.items()]


# What was uploaded


@dataclass(frozen=True)
class FileFingerprint:
    """Hold the properties of a file that show whether it has changed.

    Attributes:
        size: size in bytes.
        time: time of the last change in ns since 1970.
        digest: digest of the content; empty for files larger than `MAX_DIGESTED_BYTES`.
    """

    size: int
    time: int
    digest: str

    @classmethod
    def of(cls, path: Path, before: FileFingerprint | None) -> FileFingerprint:
        """Return the fingerprint of a file.

        Args:
            path: path of the file.
            before: an earlier fingerprint of the file. If the content has not changed since, `before` itself is
                returned, even if the file has another time.
        """
        stat = path.stat()
        if before is not None and (before.size, before.time) == (stat.st_size, stat.st_mtime_ns):
            return before
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if stat.st_size <= MAX_DIGESTED_BYTES else ""
        if before is not None and digest and digest == before.digest:
            return before
        return cls(stat.st_size, stat.st_mtime_ns, digest)


@dataclass
class Uploaded:
    """Record what was uploaded from one folder: the folder of the run or of one of its folds.

    Attributes:
        token: random text that is also a tag of the MLflow run. It is stored before the run is created. So the run can
            be found even if the process is killed before it has stored the run's id.
        run_id: id of the MLflow run; None if the MLflow run does not exist yet.
        name: name of the MLflow run at the last upload; empty if an older version, which stored no name, uploaded it.
        status: status in MLflow at the last upload: RUNNING, FINISHED, FAILED or KILLED; empty before the first upload.
        parameters: whether the parameters (the values of the YAML) were uploaded.
        journal: position up to which `metrics.jsonl` was uploaded.
        steps: last uploaded step of each metric.
        final: digest of the files whose final metrics were uploaded; empty if none were uploaded.
        cases: digest of the datasets that were logged; empty if none were logged.
        model: id of the fold's logged model; empty if none was logged.
        model_result: value of `final` when the scores of the logged model were uploaded.
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
    """Record what was uploaded from a run's folder and the folders of its folds.

    Attributes:
        store: address of the MLflow store, without its password.
        folders: record of each folder, by name: `.` is the run's own folder, the others are folds, e.g. `fold_0`.
        experiment: MLflow's id of the experiment; empty if the run is not in MLflow yet.
    """

    store: str
    folders: dict[str, Uploaded] = field(default_factory=dict)
    experiment: str = ""

    def uploaded(self, name: str) -> Uploaded:
        """Return the record of a folder, by its name in `folders`; if there is none, create an empty one."""
        return self.folders.setdefault(name, Uploaded())

    def write(self, run_folder: Path) -> None:
        """Write the state atomically to `shipped.json` in the run's folder."""
        content = json.dumps({"version": STATE_VERSION, **asdict(self)}, indent=1).encode()
        atomic_write(run_folder / STATE_FILE, lambda file: file.write(content), len(content))


def read_sync_state(run_folder: Path, store: str) -> SyncState:
    """Return the upload state of a run from `shipped.json`; the state is empty if the file does not exist.

    If the run was uploaded to another store address, only the tokens are returned. If both addresses lead to the same
    store, the tokens are enough to find the MLflow runs.

    If the file is damaged, it is renamed, a warning is logged, and an empty state is returned.

    Args:
        run_folder: the run's folder.
        store: address of the current MLflow store, without its password.
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
            "%s is damaged (%.160s). It is renamed to %s.unreadable, and all data of this run are uploaded to MLflow "
            "again.",
            path,
            error,
            STATE_FILE,
        )
    return SyncState(store)


def _parse_checked(fields: dict[str, Any]) -> Uploaded:
    """Return the record of one folder from its JSON fields, after checking their types and ranges."""
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
        raise TypeError(
            "found a field of a wrong type, expected integers for offset, steps, size and time, and texts otherwise"
        )
    if uploaded.journal.offset < 0:
        raise ValueError(f"journal.offset: found {uploaded.journal.offset}, expected at least 0")
    return uploaded


def _parse_token(fields: dict[str, Any]) -> Uploaded:
    return Uploaded(token=str(fields["token"]))
