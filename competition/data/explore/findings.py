"""What is wrong with the data, and what is only worth knowing: each with the case and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.skipped import Skipped

Weight = Literal["fault", "remark"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        weight: a fault stops `cv` or makes its score wrong; a remark may be meant to be so.
        kind: files, image, mask, table, group, class, conflict, duplicate, near-duplicate, empty, mixed or shift.
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
    """All of them in the order in which they were found; none is listed twice."""

    all: list[Finding] = field(default_factory=list)

    def fault(self, kind: str, split: str, case: str, error: MaskfoldError) -> None:
        """Lists what `cv` would have stopped at."""
        self.add(Finding("fault", kind, split, case, error.wrong, error.cure))

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
    """Takes all that discovery refuses, whatever `on_bad_case` says."""

    def __init__(self, comp: Competition) -> None:
        super().__init__(comp)
        self.allowed = True
        self.errors: list[tuple[str, MaskfoldError]] = []

    def add(self, case_id: str, error: MaskfoldError) -> None:
        """Keeps the error with its cure."""
        super().add(case_id, error)
        self.errors.append((case_id, error))
