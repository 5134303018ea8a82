"""What a network has learnt from, through whatever stood between; none may meet a case that its fold validates.

A fold learns from cases by their labels, from images by the pseudo-labels of other networks, and from the weights it starts
with (`init_from`). Through its teachers and its first weights it has seen what they have seen. A plain run says this
by its `cases.csv` and `folds.csv`; the others keep it in each member's `lineage.json`, whole, so that no former run has
to be there to tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from competition.config import MaskfoldError
from competition.training.besides import same_competition
from competition.training.checkpoint import write_json
from competition.training.job import Job
from competition.training.runs import CvRun, load_run

FILE = "lineage.json"
LABELS, TAUGHT, EXTRA = "trained on", "taught pseudo-labels of", "trained on another competition's"  # as errors read
SHOWN = 8  # lines of an error


@dataclass(frozen=True)
class Source:
    """Cases that a network has learnt from in one way.

    Attributes:
        how: `LABELS`, `TAUGHT` or `EXTRA`.
        competition: name of the competition that they are of.
        root: its folder, when it was.
        cases: id, group, SHA-256 of the image.
        chain: the networks between it and the cases, the nearest first: `started from name/hash/fold_0`.
        weight: how often one was drawn for each time that a labelled case was.
    """

    how: str
    competition: str
    root: str
    cases: tuple[tuple[str, str, str], ...]
    chain: tuple[str, ...] = ()
    weight: float = 1.0

    @classmethod
    def of(cls, how: str, run: CvRun, table: Any, weight: float = 1.0, comp: Any = None) -> Source:
        """A table's cases."""
        comp = comp or run.exp.competition
        hashes = table["image_hash"] if "image_hash" in table.columns else [""] * len(table)
        rows = tuple(
            (str(one), str(group), str(image))
            for one, group, image in zip(table["id"], table["group"], hashes, strict=True)
        )
        return cls(how, comp.name, str(comp.root), rows, weight=weight)


@dataclass(frozen=True)
class Leak:
    """A network has learnt from something that a fold validates.

    Attributes:
        member: the network.
        source: from what.
        cases: the cases of the source, each with what it has to do with the fold.
    """

    member: str
    source: Source
    cases: list[tuple[str, str]]

    def __str__(self) -> str:
        way = "".join(f" {step}, which was" for step in self.source.chain)
        first, why = self.cases[0]
        more = f" and {len(self.cases) - 1} more" if len(self.cases) > 1 else ""
        return f"{self.member} was{way} {self.source.how} {first}{why}{more}"


@dataclass
class Protected:
    """What a fold of a run validates (and the share held out for the end), by id, unit and image.

    Args:
        run: the run.
        fold: its fold; a fit on all cases protects nothing.
    """

    run: CvRun
    fold: int
    ids: set[str] = field(init=False)
    units: set[str] = field(init=False)
    hashes: set[str] = field(init=False)

    def __post_init__(self) -> None:
        folds, cases = self.run.folds, self.run.cases
        mine = folds["fold"].isin([self.fold, -2]) & (self.fold >= 0)
        self.ids = set(folds.loc[mine, "id"])
        self.units = set(folds.loc[mine, "group"]) | set(cases.loc[cases["id"].isin(self.ids), "group"])
        self.hashes = (
            set(cases.loc[cases["id"].isin(self.ids), "image_hash"]) if "image_hash" in cases.columns else set()
        )
        # A unit joins groups that share an image: each of these groups is protected with it.
        unit_of = dict(zip(folds["id"], folds["group"], strict=True))
        self.units |= {
            group for one, group in zip(cases["id"], cases["group"], strict=True) if unit_of.get(one) in self.units
        }
        self.unit_of = unit_of

    def hits(self, source: Source) -> list[tuple[str, str]]:
        """Those of a source's cases that the fold validates, each with the reason in words."""
        if not self.ids:
            return []
        same = same_competition(self.run.exp.competition, source.competition, source.root)
        groups = self._groups([one for one, _, _ in source.cases if one not in self.unit_of]) if same else {}
        found = []
        for one, group, image in source.cases:
            if same and one in self.ids:
                found.append((one, ""))
            elif image and image in self.hashes:
                found.append((one, " (the same image as a case that it validates)"))
            elif same and (unit := self.unit_of.get(one, groups.get(one, group))) in self.units:
                found.append((one, f" (of the group {unit}, which it validates)"))
        return found

    def _groups(self, ids: list[str]) -> dict[str, str]:
        """Groups by the run's own rule, of cases that are not its own."""
        from competition.data import groups

        return groups.known(self.run.exp.competition, ids) if ids and self.run.exp.competition.group is not None else {}


def member_name(run: CvRun, fold: int, seed: int) -> str:
    """A member in words: `hippocampus-unet3d/2cb50ff146c0/fold_0`."""
    return f"{run.name}/{run.folder.name}/{run.member_folder(fold, seed).name}"


def learnt(run: CvRun, fold: int, seed: int, trust: tuple[str, ...] = ()) -> list[Source]:
    """All that a member has learnt from.

    Args:
        run: its run.
        fold: its fold; -1 is the fit on all cases.
        seed: which of the seeds.
        trust: packages besides the known ones that `target` may name.

    Raises:
        MaskfoldError: the record is missing or damaged, so that nobody can tell.
    """
    path, name = run.member_folder(fold, seed) / FILE, member_name(run, fold, seed)
    if path.exists():
        return _read(path)
    if run.exp.pseudo is not None or run.exp.extras:
        raise MaskfoldError(
            f"{name} has learnt from more than its labelled cases, and its {FILE} is missing.",
            "Copy the file back; without it nobody can tell what the network has seen.",
        )
    return [own(run, fold), *inherited(run, fold, trust)]


def own(run: CvRun, fold: int) -> Source:
    """The labelled cases that a fold trains on."""
    ids = run.folds["id"] if fold < 0 else run.folds.loc[~run.folds["fold"].isin([fold, -2]), "id"]
    return Source.of(LABELS, run, run.cases[run.cases["id"].isin(set(ids))])


def inherited(run: CvRun, fold: int, trust: tuple[str, ...] = ()) -> list[Source]:
    """What the weights that a fold starts with (`init_from`) have learnt from."""
    if run.exp.init_from is None:
        return []
    other = load_run(Path(run.exp.init_from), trust)
    return through("started from", other, fold, 0, trust)


def through(how: str, run: CvRun, fold: int, seed: int, trust: tuple[str, ...] = ()) -> list[Source]:
    """What one learns from by way of a member of another run: `how` is what that member did for it."""
    step = f"{how} {member_name(run, fold, seed)}"
    return [replace(source, chain=(step, *source.chain)) for source in learnt(run, fold, seed, trust)]


def leaks(member: str, sources: Iterable[Source], protected: Protected) -> list[Leak]:
    """Where sources meet what a fold validates."""
    return [Leak(member, source, cases) for source in sources if (cases := protected.hits(source))]


def told_leaks(found: Sequence[Leak]) -> str:
    """The lineage in lines, one for each leak."""
    lines = [f"\n  {leak}" for leak in found[:SHOWN]]
    return "".join(lines) + (f"\n  … and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def check_lineage(source: Path, job: Job, run: CvRun) -> Path:
    """The weights of `source` that this fold may start from.

    Args:
        source: another run's folder.
        job: the fold that is about to start.
        run: the run it belongs to.

    Returns:
        The path of the weights: the same fold's, or those of the fit on all cases for a fit on all cases.

    Raises:
        MaskfoldError: there are none, or they have seen a case that this fold validates; its lineage says how.
    """
    other = load_run(source, job.trust)
    weights = other.member_folder(job.fold, 0) / "weights.safetensors"
    if not weights.exists():
        raise MaskfoldError(
            f"init_from: {weights} does not exist.", "Finish that run's fold first, or name another run."
        )
    member = member_name(other, job.fold, 0)
    if found := leaks(member, learnt(other, job.fold, 0, job.trust), Protected(run, job.fold)):
        raise MaskfoldError(
            f"init_from: {member} has seen cases that fold {job.fold} validates:{told_leaks(found)}.",
            "Use the same folds in both (folds.scheme: file).",
            status=2,
        )
    return weights


def write_lineage(folder: Path, sources: Sequence[Source], said: dict[str, Any]) -> None:
    """Write a member's `lineage.json`: what it says of itself, and all its sources."""
    write_json(
        folder / FILE,
        {
            **said,
            "sources": [
                {
                    "how": one.how,
                    "competition": one.competition,
                    "root": one.root,
                    "chain": list(one.chain),
                    "weight": one.weight,
                    "cases": [list(case) for case in one.cases],
                }
                for one in sources
            ],
        },
    )


def read_said(folder: Path) -> dict[str, Any] | None:
    """What a member says of its lessons, without the sources; None where it has no `lineage.json`."""
    path = folder / FILE
    if not path.exists():
        return None
    return {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key != "sources"}


def _read(path: Path) -> list[Source]:
    try:
        return [
            Source(
                one["how"],
                one["competition"],
                one["root"],
                tuple((case[0], case[1], case[2]) for case in one["cases"]),
                tuple(one["chain"]),
                one["weight"],
            )
            for one in json.loads(path.read_text(encoding="utf-8"))["sources"]
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise MaskfoldError(
            f"{path} cannot be read: {error}.",
            "Copy the file back; without it nobody can tell what the network has seen.",
        ) from error
