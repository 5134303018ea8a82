"""What a fold learns besides its labelled cases: which images and cases, from whom, and how often each is drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config import Experiment, MaskfoldError
from competition.data.cache import RECORD, PreparedCase, cache_key, fetch
from competition.data.turns import Turns
from competition.training.besides import PSEUDO, find_copies, same_competition
from competition.training.checkpoint import LAST
from competition.training.job import Job
from competition.training.lineage import EXTRA, TAUGHT, Protected, Source, inherited, own, read_said, write_lineage
from competition.training.ranks import is_first
from competition.training.runs import CvRun
from competition.training.taught import extra_case, label
from competition.training.teachers import Classroom, Teacher, find_teachers

if TYPE_CHECKING:
    import pandas as pd

    from competition.config.pseudo import Extra

Say = Callable[[str], None]


@dataclass
class Lessons:
    """Prepared cases besides the labelled ones, kind by kind.

    Attributes:
        folders: of the prepared cases.
        kinds: (number of cases, weight) of each kind, in the order of `folders`.
        said: what `lineage.json` and the fold's result say of them.
    """

    folders: list[Path] = field(default_factory=list)
    kinds: list[tuple[int, float]] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)

    def turns(self, labelled: int) -> Turns:
        """How often each case is drawn, after so many labelled ones."""
        return Turns(labelled, self.kinds)

    def add(self, folders: Sequence[Path], weight: float) -> None:
        """One more kind."""
        if folders:
            self.folders += folders
            self.kinds.append((len(folders), weight))


def ready_lessons(run: CvRun, jobs: Sequence[Job], labelled: dict[str, Path], cache: Path, say: Say) -> None:
    """Prepare the images of all lessons, and find copies of labelled cases among them.

    Raises:
        MaskfoldError: an image cannot be prepared, or a fold would have no teacher or no image left.
    """
    from competition.data.prepare import prepare_cases

    if not run.besides:
        return
    others = {}
    for key, table in run.besides.items():
        extra = _extra(run.exp, key)
        others[key] = (
            prepare_cases(table, run.exp, cache, progress=say)
            if extra is None
            else {row.id: extra_case(row, extra, run.exp, cache) for row in _rows(table)}
        )
        expected = _channels(labelled)
        for case_id, folder in others[key].items():
            if (found := PreparedCase.open(folder).image.shape[0]) != expected:
                raise MaskfoldError(
                    f"The image {case_id} of {_what(key, run.exp)} has {found} channels, the labelled cases "
                    f"{expected}.",
                    "Set prepare.channels to grey or rgb, or leave it out.",
                )
    copies = find_copies(run, labelled, others)
    for key, table in run.besides.items():
        labels = table.attrs.get("labelled", 0)
        say(
            f"{_what(key, run.exp)}: {len(table)} images"
            + (f", {labels} more have labels and are left out" if labels else "")
            + (
                f"; {copies[key]} look like a labelled case and do not teach the fold that validates it"
                if copies[key]
                else ""
            )
        )
        for job in jobs:
            allowed(run, table, job.fold, key)


def check_lessons(run: CvRun, jobs: Sequence[Job]) -> None:
    """Refuse teachers that have seen what a fold validates.

    Raises:
        MaskfoldError: with the lineage that shows the leak.
    """
    for job in jobs if run.exp.pseudo is not None else ():
        find_teachers(run, job)


def learn(job: Job, run: CvRun, say: Say) -> Lessons:
    """Make the fold's lessons, and write its `lineage.json`; what was made before is found again.

    Args:
        job: the fold.
        run: its run.
        say: takes lines for the log.

    Raises:
        MaskfoldError: a teacher has seen what the fold validates, was trained anew since the fold began, or is sure of
            no image.
    """
    exp, lessons, fold = run.exp, Lessons(), job.fold
    if not run.besides and exp.init_from is None:
        return lessons
    began, before = (job.folder / LAST).exists(), read_said(job.folder)
    if not run.besides and before is not None:
        return lessons
    sources = [own(run, fold), *inherited(run, fold, job.trust)]
    for key, table in run.besides.items():
        extra, (rows, left_out) = _extra(exp, key), allowed(run, table, fold, key)
        if extra is not None:
            lessons.add([extra_case(row, extra, exp, job.cache) for row in _rows(rows)], extra.weight)
            sources.append(Source.of(EXTRA, run, rows, extra.weight, extra.competition))
            lessons.said[key.removeprefix("besides_")] = {
                "cases": len(rows),
                "weight": extra.weight,
                "left_out": left_out,
            }
            continue
        teachers = find_teachers(run, job)
        said: dict[str, Any] = {
            "teachers": [
                {"member": name, "sha256": digest}
                for one in teachers
                for name, digest in zip(one.names, one.digests(), strict=True)
            ]
        }
        if began and before is not None and before.get("pseudo", {}).get("teachers") != said["teachers"]:
            raise MaskfoldError(
                f"{job.folder.name} began with pseudo-labels of other networks than {', '.join(teachers[0].names)} "
                "are now.",
                f"Delete {job.folder} to train this fold afresh, or start another run with --new.",
            )
        taught, sure = _taught(rows, teachers, exp, job, say)
        weight = exp.pseudo.weight if exp.pseudo is not None else 0.0
        said |= {"cases": len(taught), "weight": weight, "left_out": left_out | sure.pop("left_out"), **sure}
        lessons.add(list(taught.values()), weight)
        sources.append(Source.of(TAUGHT, run, rows[rows["id"].isin(set(taught))], weight))
        sources += [source for one in teachers for source in one.sources]
        lessons.said["pseudo"] = said
        say(
            f"pseudo-labels of {len(taught)} of {len(rows)} images by {', '.join(name for one in teachers for name in one.names)}; "
            f"{100 * said['ignored']:.1f} % of their voxels are in doubt and count nowhere"
        )
    if is_first():
        write_lineage(job.folder, sources, lessons.said)
    return lessons


def allowed(run: CvRun, table: pd.DataFrame, fold: int, key: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The images that may teach a fold: no copy, and none of the group, of a case that it validates.

    Args:
        run: the run.
        table: of `besides`, with the column `alike` where copies were looked for.
        fold: the fold.
        key: the table's name.

    Returns:
        The rows, and how many were left out by reason.

    Raises:
        MaskfoldError: none is left.
    """
    protected, extra = Protected(run, fold), _extra(run.exp, key)
    ours = run.exp.competition
    same = extra is None or same_competition(extra.competition, ours.name, str(ours.root))
    grouped = same if extra is None or same else ours.group is not None and extra.competition.group is not None
    reasons = []
    for row in _rows(table):
        alike = set(json.loads(getattr(row, "alike", "[]")))
        if row.image_hash in protected.hashes or (extra is not None and same and row.id in protected.ids):
            reasons.append("same")
        elif grouped and row.group in protected.units:
            reasons.append("group")
        else:
            reasons.append("alike" if alike & protected.ids else "")
    kept = table[[not reason for reason in reasons]]
    if kept.empty:
        raise MaskfoldError(
            f"Fold {fold} validates copies or groups of all images of {_what(key, run.exp)}.",
            "Name other images, or leave the section out.",
        )
    return kept, {reason: count for reason, count in Counter(reasons).items() if reason}


def _taught(
    rows: pd.DataFrame, teachers: Sequence[Teacher], exp: Experiment, job: Job, say: Say
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Folders of the images that the teachers are sure of, by id, and figures on all of them."""
    from competition.data.files import sweep_all

    assert exp.pseudo is not None
    sweep_all(job.cache)
    room = Classroom(teachers, exp, job.cache, job.trust)
    signature = [
        [(one.run.folder.name, one.digests()) for one in teachers],
        exp.pseudo.confidence.model_dump(mode="json"),
    ]
    taught, records = {}, []
    for done, row in enumerate(_rows(rows), start=1):
        key = hashlib.sha256(
            json.dumps(["pseudo", 1, cache_key(row, exp), signature], sort_keys=True).encode()
        ).hexdigest()[:32]
        folder = fetch(job.cache, key, lambda place, row=row: label(place, row, room, exp, job.cache))  # type: ignore[misc]
        record = json.loads((folder / RECORD).read_bytes())["pseudo"]
        records.append(record)
        if not record["doubt"]:
            taught[row.id] = folder
        if done % max(1, len(rows) // 4) == 0 and done < len(rows) and room.used:
            say(f"{done} of {len(rows)} images labelled")
    if not taught:
        best = max(record["dice"] for record in records)
        raise MaskfoldError(
            f"The teachers of {job.folder.name} are sure of none of {len(rows)} images; the highest Dice of a "
            f"prediction with itself is {best:.3f}.",
            "Lower pseudo.confidence.dice, or train better teachers.",
        )
    kept = [record for record in records if not record["doubt"]]
    return taught, {
        "left_out": dict(Counter(record["doubt"] for record in records if record["doubt"])),
        "ignored": float(np.mean([record["ignored"] for record in kept])),
        "dice": float(np.mean([record["dice"] for record in kept])),
    }


def _rows(table: pd.DataFrame) -> list[SimpleNamespace]:
    return [SimpleNamespace(**{str(name): value for name, value in row.items()}) for row in table.to_dict("records")]


def _extra(exp: Experiment, key: str) -> Extra | None:
    """The section that a table belongs to; None: `pseudo`."""
    return None if key == PSEUDO else exp.extras[int(key.rpartition("_")[2])]


def _what(key: str, exp: Experiment) -> str:
    extra = _extra(exp, key)
    return "pseudo-labels" if extra is None else f"extra cases of {extra.competition.name}"


def _channels(prepared: dict[str, Path]) -> int:
    return int(PreparedCase.open(next(iter(prepared.values()))).image.shape[0])
