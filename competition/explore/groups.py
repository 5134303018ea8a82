"""Assign the group of each case, find groups in both training and test, and guess groups if the YAML sets none."""

from __future__ import annotations

from collections.abc import Sequence

from competition.config.competition import Competition
from competition.data.splits import group_values
from competition.errors import MaskfoldError
from competition.explore.group_rules import are_dates, guess_group_rule
from competition.explore.types import CaseStats, Findings, limit_ids
from competition.text import format_count


def assign_groups(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> None:
    """Set the group of each case, and add a fault for each training id without a group or stratum.

    Test cases may have no group, because `cv` requires groups only for training cases.
    """
    for split in ("train", "test"):
        by_id = {case.id: case for case in cases if case.split == split}
        for case_id, group in _rule_values(comp, list(by_id), split, "group", findings).items():
            by_id[case_id].group = group
    _rule_values(comp, [case.id for case in cases if case.split == "train"], "train", "stratum", findings)
    _find_shared_groups(cases, findings)
    if comp.group is None:
        _guess_rule(cases, findings)


def _rule_values(comp: Competition, ids: list[str], split: str, key: str, findings: Findings) -> dict[str, str]:
    """Return the group or stratum of each id by the rule in the YAML.

    For each training id without a value, a fault is added. A fault that several ids have in common is added once.

    Args:
        comp: the competition.
        ids: ids of the cases.
        split: train or test.
        key: group or stratum.
        findings: receives the faults.
    """
    if getattr(comp, key) is None or not ids:
        return {}
    try:
        group_values(comp, [], key)
    except MaskfoldError as error:  # the rule itself, or its table, is invalid
        findings.add_fault("group", "", "", error)
        return {}
    values: dict[str, str] = {}
    failed: dict[tuple[str, str], list[tuple[str, MaskfoldError]]] = {}
    pending = [ids]
    while pending:  # bisection finds the ids that fail, without reading the table once for each id
        batch = pending.pop()
        try:
            values.update(zip(batch, group_values(comp, batch, key) or [], strict=True))
        except MaskfoldError as error:
            if len(batch) > 1:
                pending += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
            elif split == "train" and (split, batch[0]) not in findings.skipped:
                failed.setdefault((error.message, error.hint), []).append((batch[0], error))
    for errors in failed.values():  # a fault of the table is the same for every case
        case_id, first = errors[0]
        findings.add_fault("group", split, case_id if len(errors) == 1 else "", first)
    return values


def _find_shared_groups(cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add a remark for each group that has both training and test cases."""
    members: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        if case.group is not None:
            members.setdefault(case.group, {"train": [], "test": []})[case.split].append(case.id)
    for name, ids in sorted(members.items()):
        if ids["train"] and ids["test"]:
            findings.add_remark(
                "group",
                "",
                ", ".join(limit_ids(ids["train"] + ids["test"])),
                f"The group {name} is in train ({', '.join(limit_ids(ids['train']))}) and in test "
                f"({', '.join(limit_ids(ids['test']))}).",
                "Expect a better score on the test set than in cross-validation, which never trains on the group of a "
                "validation case. Ask the host whether this is intended.",
            )


def _guess_rule(cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add a remark if the training ids show groups that may be patients."""
    ids = [case.id for case in cases if case.split == "train"]
    found = guess_group_rule(ids)
    if found is None:
        return
    rule, counts = found
    if are_dates(list(counts)):
        return
    example = next(name for name, count in counts.items() if count > 1)
    findings.add_remark(
        "group",
        "train",
        "",
        f"The ids probably contain groups, but competition.group is not set: `{rule}` divides "
        f"{format_count(len(ids), 'case')} into {format_count(len(counts), 'group')}, such as {example} with "
        f"{format_count(counts[example], 'case')}.",
        f"If each group is one patient, film or slide, set competition.group to '{rule}'.",
    )
