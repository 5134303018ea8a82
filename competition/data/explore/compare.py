"""What only shows when cases are compared: copies, classes that are nowhere, mixed formats, empty masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from competition.config.competition import Competition
from competition.data.duplicates import conflicting, duplicates
from competition.data.explore.findings import Finding, Findings
from competition.data.explore.grouping import shown
from competition.data.explore.measured import Measured
from competition.data.explore.thumbnails import Pair, clusters, near_duplicates
from competition.data.explore.words import alone, beside, have, many, short

FEW = 5  # cases with a class: fewer cannot be in every fold of five


def compare_cases(comp: Competition, cases: Sequence[Measured], findings: Findings) -> list[Pair]:
    """Lists what it finds.

    Returns:
        Near-duplicates as places in `cases`; copies byte for byte are not among them.
    """
    _copies(cases, findings)
    pairs = [pair for pair in near_duplicates([case.thumbnail for case in cases])
             if cases[pair.one].image_hash != cases[pair.other].image_hash]
    for places in clusters(pairs):
        inside = set(places)
        _near([cases[place] for place in places], max(pair.likeness for pair in pairs if pair.one in inside), findings)
    _strange(comp, cases, findings)
    _classes(comp, cases, findings)
    _formats(comp, cases, findings)
    return pairs


def _copies(cases: Sequence[Measured], findings: Findings) -> None:
    """Images that are the same byte for byte, as `cv` finds them, and over train and test."""
    import pandas

    read = [case for case in cases if case.image_hash]
    def table(those: list[Measured]) -> pandas.DataFrame:
        return pandas.DataFrame({key: [getattr(case, key) for case in those] for key in ("id", "image_hash", "hash")}, dtype=str)

    mine = [case for case in read if case.split == "train"]
    files = {case.id: case.images[0] for case in mine}

    def named(ids: list[str]) -> list[str]:
        return [beside(case_id, files[case_id]) for case_id in ids]

    train, torn = table(mine), conflicting(table([case for case in mine if case.truth is not None and not case.left_out]))
    for ids in torn:
        findings.add(Finding("fault", "conflict", "train", ", ".join(ids),
                             f"The cases {', '.join(shown(named(ids)))} have the same image, byte for byte, and different "
                             "masks.",
                             "Remove the wrong ones; what is right for one is wrong for the other."))
    for ids in duplicates(train):
        if ids not in torn:
            findings.remark("duplicate", "train", ", ".join(ids),
                            f"The cases {', '.join(shown(named(ids)))} have the same image, byte for byte.",
                            "Remove all but one; until then folds keep them together.")
    first = {case.image_hash: case for case in read if case.split == "train"}
    seen: dict[str, list[str]] = {}
    for case in read:
        if case.split == "test":
            seen.setdefault(case.image_hash, []).append(case.id)
    for image_hash, ids in seen.items():
        listed = ", ".join(shown([short(case_id) for case_id in ids]))
        if image_hash in first:
            one = first[image_hash]
            findings.remark("duplicate", "", ", ".join([one.id, *ids]),
                            f"The test {'case' if len(ids) == 1 else 'cases'} {listed} {have(len(ids))} the same image as the "
                            f"training case {beside(one.id, one.images[0])}, byte for byte.",
                            "Its truth is in the training set: the host's score will flatter; tell the host.")
        elif len(ids) > 1:
            findings.remark("duplicate", "test", ", ".join(ids), f"The test cases {listed} have the same image, byte for byte.",
                            "Nothing is to be done; the host counts it that often.")


def _near(those: list[Measured], likeness: float, findings: Findings) -> None:
    """Says it of images that hang together."""
    splits, groups = {case.split for case in those}, {case.group for case in those}
    if splits == {"test"}:
        cure = "Nothing is to be done; the host counts it that often."
    elif len(splits) > 1:
        cure = "Look at them; if they show the same, the host's score will flatter what was trained on the one."
    elif groups != {None} and len(groups) == 1:
        cure = "They are in one group, which folds keep together."
    else:
        cure = ("Look at them; if they show the same, keep one or give all one group (competition.group): folds keep only what "
                "is the same byte for byte together by themselves.")
    named = shown([beside(case.id, case.images[0]) for case in those])
    where = f"{splits.copy().pop()} cases" if len(splits) == 1 else "cases, of train and of test,"
    least = "up to " if len(those) > 2 else ""
    findings.remark("near-duplicate", splits.pop() if len(splits) == 1 else "", ", ".join(case.id for case in those),
                    f"The {where} {', '.join(named)} look the same: their thumbnails correlate with {least}{likeness:.3f}.", cure)


def _strange(comp: Competition, cases: Sequence[Measured], findings: Findings) -> None:
    """Images of one value, label files of several channels."""
    for case in cases:
        flat = [one for one in case.values or [] if one.least == one.most]
        for one in flat:
            findings.remark("image", case.split, case.id, f"The case {alone(case.id, case.images[0])} has the value {one.least:g} "
                            f"everywhere in the channel {one.name}.", "Look at it; nothing can be learnt from it.")
    several = [case for case in cases if (case.label_channels or 1) > 1]
    if several:
        findings.remark("mixed", "train", ", ".join(shown([case.id for case in several])),
                        f"The masks of {many(len(several), 'case')} have {several[0].label_channels} channels (the first "
                        f"is {several[0].id}); as long as they are equal they are read as one.",
                        "Nothing is to be done; a mask with one channel is smaller.")
    for case in cases:
        if case.truth is not None and case.truth.ignored == case.truth.total:
            findings.remark("empty", case.split, case.id, f"All of the case {case.id} is ignored (label {comp.ignore}).",
                            "Look at its mask; it teaches nothing.")


def _classes(comp: Competition, cases: Sequence[Measured], findings: Findings) -> None:
    """Classes that are rare or nowhere, and masks without any."""
    cases = [case for case in cases if case.truth is not None and not case.left_out]
    for case in cases:
        if case.truth is not None and case.truth.foreground == 0:
            findings.remark("empty", "train", case.id, f"The mask of the case {alone(case.id, case.images[0])} is empty.",
                            "Look at the image: if something is to be seen there the mask is missing.")
    for index, name in enumerate(comp.classes):
        there = [case.id for case in cases if case.truth is not None and case.truth.voxels[index]]
        if cases and not there:
            findings.add(Finding("fault", "class", "train", "", f"The class {name} is in none of the "
                                 f"{many(len(cases), 'training case')} whose truth was read.",
                                 "Correct competition.classes or competition.label_values; what is nowhere cannot be learnt."))
        elif there and len(there) < FEW:
            findings.remark("class", "train", ", ".join(there), f"The class {name} is in {len(there)} of "
                            f"{many(len(cases), 'training case')} only: {', '.join(there)}.",
                            "Some folds will be validated without it; take fewer folds, stratified.")


def _formats(comp: Competition, cases: Sequence[Measured], findings: Findings) -> None:
    """Channels, dtypes and orientations that are not the same in all cases."""
    keep = "Set prepare.channels to grey or rgb." if comp.dimensions == 2 else "Leave the others out, or mend them."
    checks: list[tuple[str, Callable[[Measured], object], str]] = [
        ("channels", lambda case: None if case.values is None else len([one for one in case.values if one.name != "grey"]),
         f"`cv` stops at cases of several kinds. {keep}"),
        ("dtype", lambda case: case.dtype, "Look whether all have one range of values; prepare.intensity zscore levels it."),
        ("orientation", lambda case: case.orientation, "Set prepare.orientation, which turns all to one."),
    ]
    for what, of, cure in checks:
        counts = Counter(value for case in cases if (value := of(case)) is not None)
        if len(counts) > 1:
            rare = counts.most_common()[-1][0]
            few = [case.id for case in cases if of(case) == rare]
            words = ", ".join(f"{value} in {count}" for value, count in counts.most_common())
            findings.remark("mixed", "", ", ".join(shown(few)), f"The cases differ in {what}: {words}; the first with {rare} is "
                            f"{few[0]}.", cure)
