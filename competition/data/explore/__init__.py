"""A look at a competition's data before anything is trained: what `cv` would read, measured; every fault, not only the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data.explore.case import measure_case
from competition.data.explore.compare import compare_cases
from competition.data.explore.contrast import Contrast, rank
from competition.data.explore.findings import Finding, Findings
from competition.data.explore.found import find_cases
from competition.data.explore.grouping import give_groups
from competition.data.explore.measured import Measured
from competition.data.explore.shift import Shift, find_shifts
from competition.data.explore.suggest import suggest
from competition.data.explore.thumbnails import Pair

__all__ = ["Exploration", "Finding", "Measured", "explore"]

Watch = Callable[[Iterator[Any], int], Iterator[Any]]


@dataclass(frozen=True, eq=False)
class Exploration:
    """All that was found.

    Attributes:
        comp: what the host gave.
        cases: train, then test, each by id; also those that could not be read.
        findings: faults and remarks.
        pairs: near-duplicates, as places in `cases`.
        contrasts: channels, the one with the most contrast first.
        shifts: train against test.
        snippet: suggested sections of an experiment, in YAML.
    """

    comp: Competition
    cases: list[Measured]
    findings: list[Finding]
    pairs: list[Pair]
    contrasts: list[Contrast]
    shifts: list[Shift]
    snippet: str

    @property
    def faults(self) -> list[Finding]:
        """What stops `cv` or makes its score wrong."""
        return [one for one in self.findings if one.weight == "fault"]

    @property
    def remarks(self) -> list[Finding]:
        """What may be meant to be so."""
        return [one for one in self.findings if one.weight == "remark"]

    def of(self, split: str) -> list[Measured]:
        """The cases of train or test."""
        return [case for case in self.cases if case.split == split]

    def strange(self) -> dict[int, tuple[int, int]]:
        """Label values that no class has: in how many cases, and voxels."""
        cases: Counter[int] = Counter(value for case in self.cases for value in case.strange)
        voxels: Counter[int] = Counter()
        for case in self.cases:
            voxels.update(case.strange)
        return {value: (cases[value], voxels[value]) for value in sorted(cases)}


def explore(comp: Competition, watch: Watch = lambda rows, _: rows) -> Exploration:
    """Reads every case once, as `cv` would, with one in memory at a time; goes on after every fault.

    Args:
        comp: what the host gave; with `on_bad_case: skip` a bad case is a remark, for `cv` leaves it out.
        watch: wraps the loop over the cases, given their number, and tells how far it is.

    Raises:
        MaskfoldError: there is nothing to explore: no folder, or no image fits `train.images` (status 2).
    """
    findings = Findings(skip=comp.on_bad_case == "skip")
    comp = comp.model_copy(update={"on_bad_case": "stop"})  # bad cases are measured as far as they can be
    found = {"train": find_cases(comp, "train", findings)}
    if comp.test is not None:
        try:
            found["test"] = find_cases(comp, "test", findings)
        except MaskfoldError as error:
            findings.fault("files", "test", "", error)
    todo = [(split, case_id) for split, (images, _) in found.items() for case_id in images]
    cases = [measure_case(comp, split, case_id, found[split][0][case_id], found[split][1].get(case_id), findings)
             for split, case_id in watch(iter(todo), len(todo))]
    for case in cases:
        case.left_out = (case.split, case.id) in findings.left_out
    if findings.skip and all(case.left_out for case in cases if case.split == "train"):
        findings.add(Finding("fault", "files", "train", "", "All training cases are left out (on_bad_case: skip).",
                             "Correct the files or the competition's YAML."))
    give_groups(comp, cases, findings)
    pairs = compare_cases(comp, cases, findings)
    shifts = find_shifts(cases, findings)
    contrasts = rank([case for case in cases if case.split == "train"])
    order = {"fault": 0, "remark": 1}
    return Exploration(comp, cases, sorted(findings.all, key=lambda one: order[one.weight]), pairs, contrasts, shifts,
                       suggest(comp, cases, contrasts))
