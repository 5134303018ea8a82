"""A file on its way to the host: whose it is, whether it is sound, and the record of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config import Competition, MaskfoldError, load_competition, load_experiment, resolved
from competition.data.table import case_table
from competition.scoring.summary import bootstrap_interval, cv_score, prediction_interval
from competition.submission.ledger import Record, now, record_id
from competition.submission.remembered import SCORES
from competition.submission.submit import scores_beside
from competition.submission.testset import TestSet
from competition.submission.validate import Verdict, validate_submission
from competition.tracking.names import flatten

if TYPE_CHECKING:
    import pandas as pd

YAMLS = "experiments/*/competition.yaml"
NOT_KEYS = ("run.", "study", "competition.root", "postprocess.", "competition.submission.")  # of no interest to a board
RUN_KEYS = ("run", "experiment", "hash", "weight")  # what a note says of each run
CLOSE = 1e-6  # a table of scores belongs to a note whose score it has


@dataclass(frozen=True)
class Parcel:
    """What is to be handed in.

    Attributes:
        path: the CSV; None for a notebook whose output is not here.
        note: the JSON that `maskfold submit` wrote beside it; empty where there is none.
        comp: the competition; None for a notebook of which nothing else is known.
        slug: its name at the host.
    """

    path: Path | None
    note: dict[str, Any]
    comp: Competition | None
    slug: str

    @property
    def competition(self) -> str:
        """The competition's name in our YAML, else the host's."""
        return self.comp.name if self.comp is not None else str(self.note.get("competition") or self.slug)


def pack(path: Path | None, given: str | None, overrides: Sequence[str] = (), at_kaggle: bool = True) -> Parcel:
    """Finds out whose a file is.

    The competition's YAML is the one that is given, else the one below `experiments/` with the name that the file's JSON
    says, or with the host's name that is given; else the YAML of the run that the JSON names.

    Args:
        path: the CSV; None for a notebook.
        given: the competition's name at the host, or its YAML.
        overrides: `key=value` of the competition.
        at_kaggle: whether it goes there, so that the name is needed.

    Raises:
        MaskfoldError: the file is not there, its competition or the host's name for it is not known (status 2).
    """
    if path is not None and not path.is_file():
        raise MaskfoldError(f"The file {path} does not exist.", "Write it with `maskfold submit`.", status=2)
    note = _note(path)
    words = [word.removeprefix("competition.") for word in overrides]
    slug = given
    if given is not None and Path(given).suffix in (".yaml", ".yml"):
        comp: Competition | None = load_competition(given, words)
        slug = None
    else:
        comp = _from_yamls(note.get("competition"), given, words) or _from_runs(note, words)
    if comp is None and path is not None:
        more = ", with `submission.kaggle` in it" if at_kaggle else ""
        raise MaskfoldError(
            f"Of which competition {path} is cannot be told: there is no sound JSON of `maskfold submit` beside it.",
            f"Add --competition experiments/…/competition.yaml{more}.",
            status=2,
        )
    slug = slug or (comp.submission.kaggle if comp is not None else None)
    if not slug and at_kaggle:
        raise MaskfoldError(
            f"The name of {comp.name if comp else 'the competition'} at Kaggle is not known.",
            "Add `submission: {kaggle: the-name-in-its-address}` to competition.yaml, or --competition NAME.",
            status=2,
        )
    return Parcel(path, note, comp, slug or "")


def check(path: Path, comp: Competition) -> Verdict:
    """Checks a CSV against the host's sample and the test images.

    Raises:
        MaskfoldError: it is not sound, or the competition has no test images.
    """
    tests = TestSet.of(comp, case_table(comp, "test"))
    shapes: dict[str, tuple[int, ...]] = {}
    for row in tests.rows:
        names, shape = tests.names[row.id], tuple(json.loads(row.shape))
        sliced = len(names) > 1 or (tests.profile.rows == "slice_class" and len(shape) == 3)
        shapes |= dict.fromkeys(names, shape[:2] if sliced else shape)
    verdict = validate_submission(path, tests.profile, tests.sample, shapes)
    verdict.check()
    return verdict


def make_record(
    parcel: Parcel,
    message: str | None,
    notebook: dict[str, Any] | None,
    earlier: Sequence[Record],
    host: str = "kaggle",
) -> tuple[Record, pd.DataFrame | None]:
    """What is kept of an upload, and the out-of-fold scores by case and class where they are to be had.

    Args:
        parcel: what is handed in.
        message: for the host; None: the file's name, its score and the first digits of its SHA-256.
        notebook: of a code submission: `kernel`, `version` and `file`.
        earlier: the ledger as it is.
        host: kaggle, or `by hand`.
    """
    path, note, comp = parcel.path, parcel.note, parcel.comp
    digest = sha256_of(path) if path is not None else ""
    if note and note.get("sha256") != digest:
        note = {}  # of a file that was there before
    expected = note.get("expected") or {}
    rows = _rows(path, note, comp)
    cases = expected.get("test_cases")
    public = None if cases is None or comp is None else max(1, round(cases * comp.submission.public_share))
    time = now()
    record = Record(
        record_id(time, digest),
        parcel.competition,
        host,
        parcel.slug,
        time.isoformat(),
        str(path) if path is not None else str((notebook or {}).get("file", "")),
        digest,
        "",
        notebook,
        comp.metric.model_dump() if comp is not None else {},
        [{key: run[key] for key in RUN_KEYS} for run in note.get("runs", [])],
        _keys(note),
        note.get("postprocess"),
        _cv(expected, rows, comp),
        _expected(expected, rows, comp, public),
        public,
        again=sum(record.sha256 == digest for record in earlier) if digest else 0,
    )
    taken = {one.id for one in earlier}
    while record.id in taken:  # the same file twice in one second
        record = _replace(record, id=record.id + "b")
    return _replace(record, message=message or _words(record)), rows


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _replace(record: Record, **values: Any) -> Record:
    from dataclasses import replace

    return replace(record, **values)


def _words(record: Record) -> str:
    name = Path(record.file).stem if record.sha256 else f"notebook version {(record.notebook or {}).get('version')}"
    score = f" CV {record.score:.4f}" if record.score is not None else ""
    return f"{name}{score} {record.sha256[:8]}".strip()


def _note(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    runs = note.get("runs") if isinstance(note, dict) else None
    sound = isinstance(runs, list) and all(isinstance(run, dict) and run.keys() >= set(RUN_KEYS) for run in runs)
    return note if sound else {}


def _from_yamls(name: str | None, slug: str | None, words: Sequence[str]) -> Competition | None:
    """The competition below `experiments/` that has the name, or the host's name; the last broken file is passed over."""
    for file in sorted(Path().glob(YAMLS)):
        try:
            plain = load_competition(file)
        except MaskfoldError:
            continue
        if plain.name == name or (name is None and slug is not None and plain.submission.kaggle == slug):
            return load_competition(file, words)
    return None


def _from_runs(note: dict[str, Any], words: Sequence[str]) -> Competition | None:
    for run in note.get("runs", []):
        yaml = Path(str(run.get("run"))) / "experiment.yaml"
        if yaml.exists():
            return load_experiment(yaml, [f"competition.{word}" for word in words], trust=None).competition
    return None


def _keys(note: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The resolved YAML of each run, by its dotted keys; of a run that is gone, nothing."""
    found = {}
    for run in note.get("runs", []):
        yaml = Path(str(run.get("run"))) / "experiment.yaml"
        if yaml.exists():
            keys = flatten(resolved(load_experiment(yaml, trust=None)))
            found[str(run["hash"])] = {key: value for key, value in keys.items() if not key.startswith(NOT_KEYS)}
    return found


def _rows(path: Path | None, note: dict[str, Any], comp: Competition | None) -> pd.DataFrame | None:
    """The table behind the note's score: beside the CSV, else the run's own where one run predicted alone."""
    import pandas as pd

    if path is None or comp is None or not note.get("expected"):
        return None
    active = [Path(str(run["run"])) for run in note["runs"] if run["weight"] > 0]
    places = [scores_beside(path), *([active[0] / SCORES, active[0] / "scores.csv"] if len(active) == 1 else [])]
    for place in places:
        if not place.exists():
            continue
        rows = pd.read_csv(
            place,
            dtype={"id": str, "class": str},
            keep_default_na=False,
            float_precision="round_trip",
            na_values={name: [""] for name in ("score", "dice", "iou")},
        )
        if abs(cv_score(rows, comp.metric) - note["expected"]["score"]) < CLOSE:
            groups = _groups(active)
            return rows if groups is None or not comp.group else rows.assign(group=rows["id"].map(groups))
    return None


def _groups(runs: Sequence[Path]) -> dict[str, str] | None:
    import pandas as pd

    file = runs[0] / "cases.csv" if runs else Path("cases.csv")
    if not runs or not file.exists():
        return None
    cases = pd.read_csv(file, dtype=str, keep_default_na=False)
    return dict(zip(cases["id"], cases["group"], strict=True))


def groups_in(rows: pd.DataFrame) -> dict[str, str] | None:
    """The group of each case, where the table has them."""
    return dict(zip(rows["id"], rows["group"], strict=True)) if "group" in rows else None


def _cv(expected: dict[str, Any], rows: pd.DataFrame | None, comp: Competition | None) -> dict[str, float | None]:
    if not expected:
        return {}
    low, high = (
        bootstrap_interval(rows, comp.metric, groups=groups_in(rows))
        if rows is not None and comp is not None
        else (float("nan"), float("nan"))
    )
    return {"score": expected["score"], "low": _finite(low), "high": _finite(high)}


def _expected(
    expected: dict[str, Any], rows: pd.DataFrame | None, comp: Competition | None, public: int | None
) -> dict[str, float | None]:
    """The interval for the public board: from the cases' scores, else the note's own, wider by the root of the share."""
    if not expected or public is None:
        return {}
    if rows is not None and comp is not None:
        low, high = prediction_interval(rows, comp.metric, public, groups=groups_in(rows))
        return {"score": expected["score"], "low": _finite(low), "high": _finite(high)}
    if expected.get("low") is None or expected.get("high") is None:
        return {}
    wider = (expected["test_cases"] / public) ** 0.5
    return {
        "score": expected["score"],
        "low": expected["score"] - wider * (expected["score"] - expected["low"]),
        "high": expected["score"] + wider * (expected["high"] - expected["score"]),
    }


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None
