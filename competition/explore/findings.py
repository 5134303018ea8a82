"""Compare the cases of a competition with each other, and record what only the comparison shows.

The findings are about copies, unusual cases and objects, rare classes and mixed formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from competition.config.competition import Competition
from competition.data.duplicates import ImagePair
from competition.data.normalisation import channels_error, find_other_channels
from competition.explore.copies import find_similar_cases
from competition.explore.types import CaseStats, Finding, Findings, TruthStats, limit_ids
from competition.text import format_count, format_single_case, has_or_have, is_or_are, join_or, shorten_id

MAX_SPACING_ERROR = 0.01  # a larger relative difference between pixdim and affine gives a remark
MIN_CLASS_CASES = 5  # with fewer cases, a class cannot be in each of five folds


def compare_cases(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> list[ImagePair]:
    """Compare all cases, and add findings such as copies and rare classes.

    Returns:
        Pairs of cases that look nearly the same; the cases are given by their indices in `cases`. Pairs with identical
        files are left out, and so are cases that look like most others.
    """
    pairs = find_similar_cases(comp, cases, findings)
    _find_unusual_cases(comp, cases, findings)
    _find_unusual_objects(cases, findings)
    _find_rare_classes(comp, cases, findings)
    _find_mixed_formats(cases, comp, findings)
    _find_contradictory_spacings(cases, findings)
    return pairs


def _find_unusual_cases(comp: Competition, cases: Sequence[CaseStats], findings: Findings) -> None:
    """Add remarks about constant channels, label files with several channels, and cases with only ignored pixels."""
    for case in cases:
        for channel in case.stats or []:
            if channel.minimum == channel.maximum:
                where = "" if channel.name == "image" else f" of the channel {channel.name}"
                findings.add_remark(
                    "image",
                    case.split,
                    case.id,
                    f"In the case {format_single_case(case.id, case.images[0])}, all pixels{where} have the "
                    f"value {channel.minimum:g}.",
                    "Look at the image; a network cannot learn from a channel in which all pixels are equal.",
                )
    multichannel = [case for case in cases if (case.label_channels or 1) > 1]
    if multichannel:
        first = multichannel[0]
        findings.add_remark(
            "mixed",
            "train",
            ", ".join(limit_ids([case.id for case in multichannel])),
            f"The masks of {format_count(len(multichannel), 'case')} have {first.label_channels} channels "
            f"(the first such case is {first.id}). The channels are equal, so they are read as one.",
            "You need not do anything; masks with one channel would be smaller files.",
        )
    reasons = [f"`ignore: {comp.ignore}`"] if comp.ignore is not None else []
    reasons += ["train.region"] if comp.train.region is not None else []
    for case in cases:
        if case.truth is not None and case.truth.ignored == case.truth.total:
            findings.add_remark(
                "empty",
                case.split,
                case.id,
                f"In the case {case.id}, all pixels are ignored because of {join_or(reasons)}.",
                "Look at the mask of this case; a network cannot learn from this case.",
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
                "Some folds will have no validation case with this class. Use fewer folds (folds.k) and a stratified "
                "scheme (folds.scheme).",
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
            lambda case: None if case.shape is None else case.orientation or "no orientation",
            (
                "Set prepare.orientation, which gives all cases the same orientation. If sform_code and "
                "qform_code of a NIfTI file are 0, the file has no orientation; correct its header first."
            ),
        ),
    ]
    if comp.dimensions == 2:
        hint = "`cv` stops if cases differ in the number of channels. Set prepare.channels to grey or rgb."
        properties.insert(0, ("number of channels", _count_channels, hint))
    cases = [case for case in cases if not case.skipped]
    for name, get, hint in properties:
        counts = Counter(value for case in cases if (value := get(case)) is not None)
        if len(counts) > 1:
            rarest = counts.most_common()[-1][0]
            ids = [case.id for case in cases if get(case) == rarest]
            listed = ", ".join(
                f"{format_count(count, 'case')} {has_or_have(count)} {value}" for value, count in counts.most_common()
            )
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
