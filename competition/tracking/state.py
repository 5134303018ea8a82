"""What has been delivered: `shipped.json` in a run's folder."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from competition.data.files import write_whole
from competition.data.records import parsed
from competition.tracking.journal import Place

FILE = "shipped.json"
VERSION = 1
LARGEST_DIGESTED = 4_000_000  # bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilePrint:
    """What tells whether a file has changed: size, time (ns) and, of files that are not large, a digest."""

    size: int
    time: int
    digest: str

    @classmethod
    def of(cls, path: Path, before: FilePrint | None) -> FilePrint:
        """The print of a file; `before` itself if the file has only been written again with the same content."""
        stat = path.stat()
        if before is not None and (before.size, before.time) == (stat.st_size, stat.st_mtime_ns):
            return before
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if stat.st_size <= LARGEST_DIGESTED else ""
        if before is not None and digest and digest == before.digest:
            return before
        return cls(stat.st_size, stat.st_mtime_ns, digest)


@dataclass
class Shipped:
    """What MLflow has of one folder.

    Attributes:
        token: a tag of the MLflow run, kept before the run is made: a process killed in between finds its run again.
        run_id: the MLflow run; None: not made yet.
        name: the MLflow run's name as last told; empty where it was made before names were kept here.
        status: MLflow's word for it as last told: RUNNING, FINISHED, FAILED, KILLED.
        parameters: whether parameters and tags are there.
        journal: how far `metrics.jsonl` is there.
        steps: the last step of each metric that is there.
        final: a digest of the final metrics that are there.
        files: the print of each file that is there, by its path below the folder.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str | None = None
    name: str = ""
    status: str = ""
    parameters: bool = False
    journal: Place = field(default_factory=Place)
    steps: dict[str, int] = field(default_factory=dict)
    final: str = ""
    files: dict[str, FilePrint] = field(default_factory=dict)


@dataclass
class State:
    """All that MLflow has of a run: `folders["."]` is the run itself, the others are its folds."""

    store: str
    folders: dict[str, Shipped] = field(default_factory=dict)

    def of(self, name: str) -> Shipped:
        """What is known of a folder; new where nothing is."""
        return self.folders.setdefault(name, Shipped())

    def write(self, run_folder: Path) -> None:
        """Keep the state, whole or not at all."""
        content = json.dumps({"version": VERSION, **asdict(self)}, indent=1).encode()
        write_whole(run_folder / FILE, lambda file: file.write(content), len(content))


def read_state(run_folder: Path, store: str) -> State:
    """The state of a run; empty when nothing was delivered.

    Of a delivery to another store only the tokens are left: should it be the same store at another place, they find the
    runs there.
    """
    path = run_folder / FILE
    try:
        plain = parsed(path.read_bytes())
        if plain["version"] != VERSION:
            return State(store)
        read = _shipped if plain["store"] == store else _token_only
        return State(store, {name: read(fields) for name, fields in plain["folders"].items()})
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        path.replace(path.with_name(f"{FILE}.unreadable"))  # delivering again is better than not delivering
        logger.warning(
            "%s is damaged (%.160s); it is kept as %s.unreadable, and MLflow is told everything again.",
            path,
            error,
            FILE,
        )
    return State(store)


def _shipped(fields: dict[str, Any]) -> Shipped:
    files = {name: FilePrint(**file) for name, file in fields["files"].items()}
    found = Shipped(**{**fields, "journal": Place(**fields["journal"]), "files": files})
    texts = (
        found.token,
        found.run_id or "",
        found.name,
        found.status,
        found.final,
        found.journal.seal,
        found.journal.head,
    )
    numbers = (
        found.journal.offset,
        *found.steps.values(),
        *(n for one in files.values() for n in (one.size, one.time)),
    )
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a text or a number is of another kind")
    if found.journal.offset < 0:
        raise ValueError("the journal is read to a place before its beginning")
    return found


def _token_only(fields: dict[str, Any]) -> Shipped:
    return Shipped(token=str(fields["token"]))
