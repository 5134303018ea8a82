"""What is wrong with the data, and what is only worth knowing: each with the case and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.skipped import Skipped

Weight = Literal["fault", "remark"]
LEFT_OUT = "Left out by cv (on_bad_case: skip)."


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        weight: a fault stops `cv` or makes its score wrong; a remark may be meant to be so.
        kind: files, image, mask, table, group, class, conflict, duplicate, near-duplicate, empty, mixed, shift, or left out.
        split: train or test; empty where it is both.
        case: the id, or ids with commas; empty where it is of all cases.
        wrong: one sentence, with the file or row.
        cure: one sentence.
    """

    weight: Weight
    kind: str
    split: str
    case: str
    wrong: str
    cure: str


@dataclass
class Findings:
    """All of them in the order in which they were found; none is listed twice.

    Attributes:
        all: what was found.
        skip: whether the competition says `on_bad_case: skip`.
        left_out: split and id of each case that `cv` leaves out for it.
    """

    all: list[Finding] = field(default_factory=list)
    skip: bool = False
    left_out: set[tuple[str, str]] = field(default_factory=set)

    def fault(self, kind: str, split: str, case: str, error: MaskfoldError) -> None:
        """Lists what `cv` would have stopped at."""
        self.add(Finding("fault", kind, split, case, error.wrong, error.cure))

    def bad_case(self, kind: str, split: str, case: str, error: MaskfoldError) -> None:
        """Lists what is wrong with one case: under `on_bad_case: skip` that it is left out, as was decided, else a fault."""
        if not self.skip:
            self.fault(kind, split, case, error)
            return
        self.left_out.add((split, case))
        self.remark("left out", split, case, error.wrong, LEFT_OUT)

    def remark(self, kind: str, split: str, case: str, wrong: str, cure: str) -> None:
        """Lists what somebody should know."""
        self.add(Finding("remark", kind, split, case, wrong, cure))

    def add(self, finding: Finding) -> None:
        """Lists anything."""
        if finding not in self.all:
            self.all.append(finding)

    def of(self, weight: Weight) -> list[Finding]:
        """The faults, or the remarks."""
        return [one for one in self.all if one.weight == weight]


class Collector(Skipped):
    """Takes all that discovery refuses, whatever `on_bad_case` says.

    Attributes:
        errors: id and error of each bad case. stops: of what `cv` stops at even under `on_bad_case: skip`.
    """

    def __init__(self, comp: Competition) -> None:
        super().__init__(comp)
        self.allowed = True
        self.errors: list[tuple[str, MaskfoldError]] = []
        self.stops: list[tuple[str, MaskfoldError]] = []

    def add(self, case_id: str, error: MaskfoldError) -> None:
        """Keeps the error with its cure."""
        super().add(case_id, error)
        self.errors.append((case_id, error))
