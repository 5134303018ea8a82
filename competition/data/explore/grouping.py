"""Groups of train and test cases; and whether the ids look as if they were grouped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.data import groups
from competition.data.explore.findings import Findings
from competition.data.explore.measured import Measured

GUESSES = (r"^(.+)[_-][^_-]+$", r"^([A-Za-z]*[_-]?[0-9]+)[_-].+$")  # all but the last part; the first number
SHOWN = 5  # ids in a sentence


def give_groups(comp: Competition, cases: Sequence[Measured], findings: Findings) -> None:
    """Writes the group of each case, train and test; an id that the rule cannot tell is listed.

    Test cases that a table does not name have no group: `cv` does not ask for one.
    """
    for split in ("train", "test"):
        mine = {case.id: case for case in cases if case.split == split}
        for case_id, group in _by_id(comp, list(mine), split, "group", findings).items():
            mine[case_id].group = group
    _by_id(comp, [case.id for case in cases if case.split == "train"], "train", "stratum", findings)
    _remark_shared(cases, findings)
    if comp.group is None:
        _guess(cases, findings)


def _by_id(comp: Competition, ids: list[str], split: str, key: str, findings: Findings) -> dict[str, str]:
    """What the rule gives for each id that it can tell."""
    if getattr(comp, key) is None or not ids:
        return {}
    try:
        groups.values(comp, [], key)
    except MaskfoldError as error:  # the rule itself, or its table
        findings.fault("group", "", "", error)
        return {}
    found: dict[str, str] = {}
    waiting = [ids]
    while waiting:  # halves until each id that cannot be told is alone: a table is not searched once for every id
        some = waiting.pop()
        try:
            found.update(zip(some, groups.values(comp, some, key) or [], strict=True))
        except MaskfoldError as error:
            if len(some) > 1:
                waiting += [some[len(some) // 2:], some[: len(some) // 2]]
            elif split == "train" and (split, some[0]) not in findings.left_out:
                findings.fault("group", split, some[0], error)
    return found


def _remark_shared(cases: Sequence[Measured], findings: Findings) -> None:
    """Groups that are in train and in test."""
    members: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        if case.group is not None:
            members.setdefault(case.group, {"train": [], "test": []})[case.split].append(case.id)
    for name, sides in sorted(members.items()):
        if sides["train"] and sides["test"]:
            findings.remark("group", "", ", ".join(shown(sides["train"] + sides["test"])),
                            f"The group {name} is in train ({', '.join(shown(sides['train']))}) and in test "
                            f"({', '.join(shown(sides['test']))}).",
                            "Expect a better score on the test set than cross-validation says, which keeps groups apart; "
                            "ask the host if it was meant.")


def _guess(cases: Sequence[Measured], findings: Findings) -> None:
    """Says it where ids of train cases share their beginnings in several groups."""
    ids = [case.id for case in cases if case.split == "train"]
    for rule in GUESSES:
        match = [re.match(rule, case_id) for case_id in ids]
        if not ids or not all(match):
            continue
        counts = Counter(found.group(1) for found in match if found)
        repeated = sum(count for count in counts.values() if count > 1)
        if len(counts) >= 3 and len(counts) <= 0.8 * len(ids) and repeated >= 0.5 * len(ids):
            example = next(name for name, count in counts.items() if count > 1)
            findings.remark("group", "train", "", f"The ids look grouped: `{rule}` makes {len(counts)} groups of {len(ids)} "
                            f"cases, one is {example} with {counts[example]}; competition.group is not set.",
                            f"If a group is one patient, film or slide, set competition.group to '{rule}'.")
            return


def shown(ids: Sequence[str]) -> list[str]:
    """The first few ids, and how many more there are."""
    return list(ids) if len(ids) <= SHOWN else [*ids[:SHOWN], f"and {len(ids) - SHOWN} more"]
