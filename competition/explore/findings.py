"""Compare the cases of a competition with each other, and record what only the comparison shows.

The findings are about groups, copies, rare classes, mixed formats, and differences between training and test cases.
Channels are ranked by their contrast between foreground and background.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

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
from competition.data.normalisation import channels_error, find_other_channels
from competition.data.splits import group_values
from competition.errors import MaskfoldError
from competition.explore.cases import COLOURS
from competition.explore.group_rules import are_dates, guess_group_rule
from competition.explore.types import CaseStats, Finding, Findings, TruthStats
from competition.text import format_count, format_listed_case, format_single_case, has_or_have, is_or_are, shorten_id

# Groups

MAX_SHOWN_IDS = 5


def assign_groups(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> None:
    """Set the group of each case, and add a fault for each training id without a group.

    Test cases may have no group, because `cv` does not require one.
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


def limit_ids(ids: Sequence[str]) -> list[str]:
    """Return the first ids, followed by a text with the number of the remaining ids."""
    return list(ids) if len(ids) <= MAX_SHOWN_IDS else [*ids[:MAX_SHOWN_IDS], f"and {len(ids) - MAX_SHOWN_IDS} more"]


# Copies, rare classes and mixed formats

MAX_SPACING_ERROR = 0.01  # a larger relative difference between pixdim and affine gives a remark
MIN_CLASS_CASES = 5  # with fewer cases, a class cannot be in each of five folds


def compare_cases(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> list[ImagePair]:
    """Compare all cases, and add findings such as copies and rare classes.

    Returns:
        Near-duplicates as indices of `cases`, without identical files, and without cases that look like most others.
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
    _find_unusual_cases(comp, cases, findings)
    _find_unusual_objects(cases, findings)
    _find_rare_classes(comp, cases, findings)
    _find_mixed_formats(cases, comp, findings)
    _find_contradictory_spacings(cases, findings)
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
                "The training set contains the truth of this test case, so the host's score will be "
                "optimistic. Inform the host.",
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

    If all cases of the set are in one group, such as the images of one video, they do show the same.
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


def _find_unusual_cases(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add remarks about constant channels, label files with several channels, and cases that are ignored completely."""
    for case in cases:
        for channel in case.stats or []:
            if channel.minimum == channel.maximum:
                findings.add_remark(
                    "image",
                    case.split,
                    case.id,
                    f"In the case {format_single_case(case.id, case.images[0])}, all pixels of the channel "
                    f"{channel.name} have the value {channel.minimum:g}.",
                    "Look at the image; a network cannot learn from a constant channel.",
                )
    multichannel = [case for case in cases if (case.label_channels or 1) > 1]
    if multichannel:
        first = multichannel[0]
        findings.add_remark(
            "mixed",
            "train",
            ", ".join(limit_ids([case.id for case in multichannel])),
            f"The masks of {format_count(len(multichannel), 'case')} have {first.label_channels} channels "
            f"(the first is {first.id}). The channels are equal, so they are read as one.",
            "You need not do anything; masks with one channel would be smaller files.",
        )
    for case in cases:
        if case.truth is not None and case.truth.ignored == case.truth.total:
            findings.add_remark(
                "empty",
                case.split,
                case.id,
                f"In the case {case.id}, all pixels are ignored "
                f"({'train.region' if comp.ignore is None else f'label {comp.ignore}'}).",
                "Look at its mask; a network cannot learn from this case.",
            )


def _find_unusual_objects(cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add remarks about objects that overlap, that are copies of other objects, or that have no pixel."""
    kinds: list[tuple[Callable[[TruthStats], int], str, str]] = [
        (
            lambda truth: truth.covered - truth.copies,
            "{} that share{s} pixels with another object",
            (
                "Scores use all pixels of each object. In training, a pixel that several objects share belongs to the "
                "last of them. In a submission, hosts forbid objects that overlap."
            ),
        ),
        (
            lambda truth: truth.copies,
            "{} that {is_} identical to another object",
            (
                "Remove the copies, because each copy counts as an object. If the host's truth also has the copies, "
                "keep them."
            ),
        ),
        (
            lambda truth: truth.empty_objects,
            "{} without a pixel",
            "Remove these files or rows, or add their masks. At present, they do not count as objects.",
        ),
    ]
    for count, text, hint in kinds:
        numbers = {case.id: count(case.truth) for case in cases if case.truth is not None and count(case.truth)}
        total = sum(numbers.values())
        if total:
            what = text.format(format_count(total, "object"), s="s" if total == 1 else "", is_=is_or_are(total))
            findings.add_remark(
                "objects",
                "train",
                ", ".join(limit_ids(list(numbers))),
                f"{format_count(len(numbers), 'case')} {has_or_have(len(numbers))} {what} "
                f"({', '.join(limit_ids([shorten_id(case_id) for case_id in numbers]))}).",
                hint,
            )


def _find_rare_classes(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add findings for empty masks, and for classes that are rare or absent."""
    cases = [case for case in cases if case.truth is not None and not case.skipped]
    for case in cases:
        if case.truth is not None and case.truth.foreground == 0:
            findings.add_remark(
                "empty",
                "train",
                case.id,
                f"The mask of the case {format_single_case(case.id, case.images[0])} is empty.",
                "Look at the image. If it shows an object, the mask is wrong.",
            )
    for index, name in enumerate(comp.classes):
        ids = [case.id for case in cases if case.truth is not None and case.truth.voxels[index]]
        if cases and not ids:
            findings.add(
                Finding(
                    "fault",
                    "class",
                    "train",
                    "",
                    f"None of the {format_count(len(cases), 'training case')} with readable truth has the class "
                    f"{name}.",
                    "Change competition.classes or competition.label_values.",
                )
            )
        elif ids and len(ids) < min(MIN_CLASS_CASES, len(cases)):
            findings.add_remark(
                "class",
                "train",
                ", ".join(ids),
                f"The class {name} is in only {len(ids)} of {format_count(len(cases), 'training case')}: "
                f"{', '.join(ids)}.",
                "Some folds will have no validation case with this class. Use fewer folds, and a stratified scheme.",
            )


def find_mixed_channels(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add findings for volumes that have another number of channels than most training cases.

    `cv` stops at such volumes. For 2D images, `_find_mixed_formats` adds only a remark, because `prepare.channels` can
    convert their channels.
    """
    counts = {case.id: case.channels for case in cases if case.split == "train" and case.readable and case.channels}
    if comp.dimensions == 2 or not counts:
        return
    others = find_other_channels(counts, comp.dimensions)
    for case_id, error in others.items():
        findings.add_bad_case("image", "train", case_id, error)
    example, expected = next((case_id, count) for case_id, count in counts.items() if case_id not in others)
    for case in cases:
        if case.split == "test" and case.readable and case.channels and case.channels != expected:
            error = channels_error(case.id, case.channels, expected, example, comp.dimensions)
            findings.add_fault("image", "test", case.id, error)


def _find_mixed_formats(cases: Sequence[CaseStats], comp: Competition, findings: Findings) -> None:
    """Add remarks if cases differ in dtype, orientation or (for 2D images) number of channels."""
    properties: list[tuple[str, Callable[[CaseStats], object], str]] = [
        (
            "dtype",
            lambda case: case.dtype,
            "Check that all cases have the same range of values, or set prepare.intensity to zscore.",
        ),
        (
            "orientation",
            lambda case: None if case.shape is None else case.orientation or "none",
            (
                "Set prepare.orientation, which gives all cases the same orientation. If sform_code and "
                "qform_code of a NIfTI file are 0, the file has no orientation; correct its header first."
            ),
        ),
    ]
    if comp.dimensions == 2:
        hint = "`cv` stops if cases differ in the number of channels. Set prepare.channels to grey or rgb."
        properties.insert(0, ("channels", _count_channels, hint))
    cases = [case for case in cases if not case.skipped]
    for name, get, hint in properties:
        counts = Counter(value for case in cases if (value := get(case)) is not None)
        if len(counts) > 1:
            rarest = counts.most_common()[-1][0]
            ids = [case.id for case in cases if get(case) == rarest]
            listed = ", ".join(f"{value} in {count}" for value, count in counts.most_common())
            findings.add_remark(
                "mixed",
                "",
                ", ".join(limit_ids(ids)),
                f"The cases differ in {name}: {listed}. The first case with {rarest} is {ids[0]}.",
                hint,
            )


def _find_contradictory_spacings(cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add a remark about NIfTI files whose pixdim and affine give voxel sizes that differ by more than 1 %."""
    different = [
        case
        for case in cases
        if case.pixdim is not None
        and case.spacing is not None
        and any(abs(pixdim - mm) > MAX_SPACING_ERROR * mm for pixdim, mm in zip(case.pixdim, case.spacing, strict=True))
    ]
    if different:
        first = different[0]
        pixdim, spacing = (" × ".join(f"{mm:.4g}" for mm in sizes or ()) for sizes in (first.pixdim, first.spacing))
        findings.add_remark(
            "mixed",
            "",
            ", ".join(limit_ids([case.id for case in different])),
            f"In the headers of {format_count(len(different), 'case')}, two entries for the voxel size "
            f"differ. In the case {first.id}, pixdim is {pixdim} mm, but the affine gives {spacing} mm.",
            "Maskfold uses the affine, as nibabel does. If pixdim is right, correct the headers.",
        )


def _count_channels(case: CaseStats) -> int | None:
    return None if case.stats is None else len([channel for channel in case.stats if channel.name != "grey"])


# Contrasts

SIMILAR_RATIO = 0.99  # a channel with at least this share of the best contrast counts as equally good


@dataclass(frozen=True)
class ChannelContrast:
    """Hold the contrast of one channel over all training cases with foreground and background.

    Attributes:
        name: name of the channel.
        channel: index of the channel in `prepare.channels`; None for the grey value of colour images.
        effect_size: median over cases of |Cohen's d|: 0.2 is small and 0.8 large; above 2, an intensity threshold
            nearly separates foreground and background.
        brighter_share: share of the cases whose foreground is brighter than their background.
        n_cases: number of cases.
    """

    name: str
    channel: int | None
    effect_size: float
    brighter_share: float
    n_cases: int


def similar_contrasts(ranked: Sequence[ChannelContrast]) -> list[ChannelContrast]:
    """Return the channels whose contrast is within 1 % of the highest contrast."""
    return [contrast for contrast in ranked if contrast.effect_size >= SIMILAR_RATIO * ranked[0].effect_size]


def rank_contrasts(cases: Sequence[CaseStats]) -> list[ChannelContrast]:
    """Return the channels by contrast, the highest first. Channels without a known contrast are omitted."""
    contrasts: dict[str, list[float]] = {}
    indices: dict[str, int] = {}
    for case in cases:
        for index, channel in enumerate(case.stats or []):
            is_derived = channel.name == "grey" and index == len(COLOURS)
            if not is_derived:
                indices.setdefault(channel.name, index)
            if not math.isnan(channel.contrast):
                contrasts.setdefault(channel.name, []).append(channel.contrast)
    ranked = [
        ChannelContrast(
            name,
            indices.get(name),
            median(map(abs, values)),
            sum(value > 0 for value in values) / len(values),
            len(values),
        )
        for name, values in contrasts.items()
    ]
    return sorted(ranked, key=lambda contrast: -contrast.effect_size)


# Training against test cases

SIGNIFICANCE = 0.01  # probability of a false alarm in any measure; each measure gets an equal part
MIN_DISTANCE = 0.3  # Kolmogorov-Smirnov distance below which a shift is ignored
MIN_CASES = 5  # minimum number of values in each split


@dataclass(frozen=True)
class DistributionShift:
    """Hold the comparison of one measure between training and test cases.

    Attributes:
        measure: name of the measure.
        train_median: median over training cases.
        test_median: median over test cases.
        distance: Kolmogorov-Smirnov distance, 0 to 1.
        p_value: p-value of the distance.
        significant: whether the distance is large enough, and the p-value small enough, for a remark.
    """

    measure: str
    train_median: float
    test_median: float
    distance: float
    p_value: float
    significant: bool


def find_shifts(cases: Sequence[CaseStats], findings: Findings) -> list[DistributionShift]:
    """Compare sizes, spacings and intensities between training and test cases.

    Each measure has one value per case. A remark is added for each significant difference.
    """
    shifts = []
    all_measures = get_measures(cases)
    for name, get in all_measures.items():
        values = {
            split: [value for case in cases if case.split == split and (value := get(case)) is not None]
            for split in ("train", "test")
        }
        if min(map(len, values.values())) >= MIN_CASES:
            shifts.append(_compare(name, values["train"], values["test"], SIGNIFICANCE / len(all_measures)))
    for shift in shifts:
        if shift.significant:
            if shift.test_median == shift.train_median:
                change = "distributed differently"
            else:
                change = "greater" if shift.test_median > shift.train_median else "smaller"
            findings.add_remark(
                "shift",
                "",
                "",
                f"The test cases differ from the training cases: their {shift.measure} is {change} (median "
                f"{shift.test_median:.4g} in test and {shift.train_median:.4g} in training; Kolmogorov-Smirnov "
                f"distance {shift.distance:.2f}, p = {shift.p_value:.1g}).",
                "Expect a lower score on the test set than in cross-validation. Stronger augmentation may help.",
            )
    return shifts


def get_measures(cases: Sequence[CaseStats]) -> dict[str, Callable[[CaseStats], float | None]]:
    """Return the measures to compare, by name.

    Each measure is a function that returns a number for a case, or None if the case has no value of the measure.
    """
    first = next((case for case in cases if case.shape is not None), None)
    functions: dict[str, Callable[[CaseStats], float | None]] = {}
    if first is None or first.shape is None:
        return functions
    for axis in range(len(first.shape)):
        functions[f"size along axis {axis}"] = lambda case, axis=axis: case.shape and float(case.shape[axis])  # type: ignore[misc]
        if any(case.spacing and case.spacing[axis] != 1 for case in cases):
            functions[f"spacing along axis {axis}"] = lambda case, axis=axis: case.spacing and case.spacing[axis]  # type: ignore[misc]
    for name in dict.fromkeys(channel.name for case in cases for channel in case.stats or []):
        for label, key in (("brightness", "mean"), ("contrast", "std")):
            functions[f"{label} of {name} ({key})"] = _channel_measure(name, key)
    return functions


def _channel_measure(name: str, key: str) -> Callable[[CaseStats], float | None]:
    def get(case: CaseStats) -> float | None:
        return next((float(getattr(channel, key)) for channel in case.stats or [] if channel.name == name), None)

    return get


def _compare(measure: str, train: list[float], test: list[float], max_p: float) -> DistributionShift:
    from scipy.stats import ks_2samp

    result = ks_2samp(train, test)
    distance, p_value = float(result.statistic), float(result.pvalue)
    return DistributionShift(
        measure, median(train), median(test), distance, p_value, p_value < max_p and distance >= MIN_DISTANCE
    )
