"""Find cases with the same image or nearly the same image: in training, in test, and in both."""

from __future__ import annotations

from collections.abc import Sequence

from competition.config.competition import Competition
from competition.data.duplicates import (
    MAX_TURNED,
    ImagePair,
    cluster_pairs,
    describe_common_look,
    duplicates_with_other_masks,
    find_duplicates,
    find_near_duplicates,
    is_common_look,
)
from competition.explore.types import CaseStats, Finding, Findings, limit_ids
from competition.text import format_listed_case, has_or_have, shorten_id


def find_similar_cases(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> list[ImagePair]:
    """Add findings for cases with identical images, and for cases whose images look nearly the same.

    Returns:
        Pairs of cases that look nearly the same; the cases are given by their indices in `cases`. Pairs with identical
        files are left out, and so are cases that look like most others.
    """
    _find_copies(cases, findings)
    pairs = [
        pair
        for pair in find_near_duplicates(
            [case.thumbnail for case in cases], turned=len(cases) <= MAX_TURNED[comp.dimensions]
        )
        if cases[pair.first].image_hash != cases[pair.second].image_hash
    ]
    for indices in cluster_pairs(pairs):
        members, alike = set(indices), [cases[index] for index in indices]
        if _is_common_look(alike, cases):
            _add_common_look(alike, cases, comp.dimensions, findings)
            pairs = [pair for pair in pairs if pair.first not in members]
            continue
        inside = [pair for pair in pairs if pair.first in members]
        _add_near_duplicates(alike, inside, findings)
    return pairs


def _find_copies(cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add findings for cases with identical images: within training, within test, and between training and test."""
    import pandas

    def to_table(cases: list[CaseStats]) -> pandas.DataFrame:
        columns = {key: [getattr(case, key) for case in cases] for key in ("id", "image_hash", "hash")}
        return pandas.DataFrame(columns, dtype=str)

    readable = [case for case in cases if case.image_hash]
    train = [case for case in readable if case.split == "train"]
    files = {case.id: case.images[0] for case in train}

    def listed(ids: list[str]) -> str:
        return ", ".join(limit_ids([format_listed_case(case_id, files[case_id]) for case_id in ids]))

    conflicts = duplicates_with_other_masks(
        to_table([case for case in train if case.truth is not None and not case.skipped])
    )
    for ids in conflicts:
        findings.add(
            Finding(
                "fault",
                "conflict",
                "train",
                ", ".join(ids),
                f"The cases {listed(ids)} have identical images but different masks.",
                "Remove the cases whose masks are wrong.",
            )
        )
    for ids in find_duplicates(to_table(train)):
        if ids not in conflicts:
            findings.add_remark(
                "duplicate",
                "train",
                ", ".join(ids),
                f"The cases {listed(ids)} have identical images.",
                "Remove all but one of them. If you keep several, these stay in one fold.",
            )
    train_by_hash = {case.image_hash: case for case in train}
    test_ids: dict[str, list[str]] = {}
    for case in readable:
        if case.split == "test":
            test_ids.setdefault(case.image_hash, []).append(case.id)
    for image_hash, ids in test_ids.items():
        names = ", ".join(limit_ids([shorten_id(case_id) for case_id in ids]))
        if image_hash in train_by_hash:
            copy = train_by_hash[image_hash]
            findings.add_remark(
                "duplicate",
                "",
                ", ".join([copy.id, *ids]),
                f"The test {'case' if len(ids) == 1 else 'cases'} {names} {has_or_have(len(ids))} the same image as "
                f"the training case {format_listed_case(copy.id, copy.images[0])}.",
                "The training set contains the truth of this image, so the host's score will be optimistic. Inform the "
                "host.",
            )
        elif len(ids) > 1:
            findings.add_remark(
                "duplicate",
                "test",
                ", ".join(ids),
                f"The test cases {names} have identical images.",
                "You need not do anything; the host scores each of them.",
            )


def _is_common_look(alike: Sequence[CaseStats], cases: Sequence[CaseStats]) -> bool:
    """Return whether most of the cases, or most of the training cases, are in a set of cases that look alike.

    If all cases of the set are in one group, such as the images of one video, return False: these cases are real
    near-duplicates.
    """
    groups = {case.group for case in alike}
    if len(groups) == 1 and groups != {None}:
        return False

    def count(some: Sequence[CaseStats], splits: set[str]) -> int:
        return len({case.image_hash for case in some if case.split in splits and case.thumbnail is not None})

    return any(is_common_look(count(alike, splits), count(cases, splits)) for splits in ({"train"}, {"train", "test"}))


def _add_common_look(alike: Sequence[CaseStats], cases: Sequence[CaseStats], dims: int, findings: Findings) -> None:
    """Add a remark which says that so many cases look alike that near-duplicates cannot be found among them."""
    splits = {case.split for case in alike}
    split = next(iter(splits)) if len(splits) == 1 else ""
    total = sum(case.split in splits for case in cases)
    text = describe_common_look(len(alike), total, dims, f"{split} cases" if split else "train and test cases")
    findings.add_remark(
        "near-duplicate",
        split,
        ", ".join(limit_ids([case.id for case in alike])),
        f"{text}.",
        "You need not do anything. If you know that several cases show the same object, put them into one group "
        "(competition.group).",
    )


def _add_near_duplicates(cases: list[CaseStats], pairs: Sequence[ImagePair], findings: Findings) -> None:
    """Add a remark about a cluster of cases whose images look nearly the same."""
    correlation = max(pair.correlation for pair in pairs)
    turned = sum(pair.turned for pair in pairs)
    way = (
        ""
        if not turned
        else " after a rotation or mirroring"
        if turned == len(pairs)
        else ", some of them after a rotation or mirroring"
    )
    splits, groups = {case.split for case in cases}, {case.group for case in cases}
    if splits == {"test"}:
        hint = "You need not do anything; the host scores each of them."
    elif len(splits) > 1:
        hint = "Look at these cases. If they show the same object, the host's score will be optimistic."
    elif groups != {None} and len(groups) == 1:
        hint = "You need not do anything; they are in one group, which stays in one fold."
    else:
        hint = (
            "Look at these cases. If they show the same object, keep only one, put all of them into one "
            "group (competition.group), or set folds.duplicates to near. By default, only "
            "images with equal pixels stay in one fold."
        )
    names = ", ".join(limit_ids([format_listed_case(case.id, case.images[0]) for case in cases]))
    split = next(iter(splits)) if len(splits) == 1 else ""
    kind = f"{split} cases" if split else "train and test cases"
    findings.add_remark(
        "near-duplicate",
        split,
        ", ".join(case.id for case in cases),
        f"The {kind} {names} look the same{way}: the correlation of their thumbnails is "
        f"{'up to ' if len(cases) > 2 else ''}{correlation:.3f}.",
        hint,
    )
