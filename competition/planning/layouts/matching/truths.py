"""Interpret several masks of the same images.

They may be one mask per class, alternatives of which the user chooses one, or files of objects.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from competition.planning.folder import HostFolder
from competition.planning.layout import Patterns
from competition.planning.layouts.content import dimensions_of, label_values, read_mask
from competition.planning.layouts.series import Series
from competition.planning.words import (
    ANNOTATOR_WORDS,
    COMBINED_WORDS,
    OBJECT_WORDS,
    OPINION_WORDS,
    has_word,
    tokens,
    without_role_words,
)
from competition.text import name_problem

OPINION_DICE = 0.6  # minimum Dice of two annotators' masks of the same object
MAX_OPINIONS = 4  # maximum number of annotators' masks of one image
# A region mask covers more than REGION_SHARE of the image, and each mask in the region less than PART_SHARE of it.
REGION_SHARE, PART_SHARE = 0.5, 0.9
SEPARATORS = re.compile(r"[\s_\-.]+")
SAME_SHARE = 0.01  # the foreground of two masks may differ in this share of the pixels, and still be the same
BINARY_SAMPLE = 8  # masks per class that are read to check that each has one foreground value


@dataclass(frozen=True)
class Truth:
    """Describe one way to read the masks of the training cases.

    Attributes:
        kind: labels (one label file per case), classes (one file per class) or objects (one file per object).
        classes: name and masks of each class. If the kind is labels or objects, a single entry with an empty name.
        region: masks that are 0 where pixels are excluded from training and scoring; None if there are none.
        remarks: remarks on masks that are not used.
        unused: the masks that these remarks name; None if there are none.
    """

    kind: str
    classes: tuple[tuple[str, Series], ...]
    region: Series | None = None
    remarks: tuple[str, ...] = ()
    unused: Series | None = None

    @property
    def patterns(self) -> Patterns:
        """The patterns of the mask files, as a value of the key `train.masks`."""
        return {name: series.pattern for name, series in self.classes} if self.kind == "classes" else self.first.pattern

    @property
    def first(self) -> Series:
        """The series of the first class."""
        return self.classes[0][1]

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the cases that have a mask of at least one class."""
        return frozenset().union(*(series.ids for _, series in self.classes))


def truths_of(host: HostFolder, masks: list[Series]) -> Iterator[Truth]:
    """Yield the ways to read several masks of the same images: as one class each, or as alternatives to choose from.

    Beside the masks of single classes, there may be label files with all classes. If the label files only repeat these
    masks, the label files are left out. If the label files may contain further classes, they are an alternative.
    """
    singles = [mask for mask in masks if mask.kind != "objects"]
    combined = _combined_of(host, singles)
    if combined is not None:
        singles = [mask for mask in singles if mask is not combined]
    is_classes = combined is not None or _are_classes(host, singles)
    if is_classes:
        remarks: tuple[str, ...] = ()
        repeats = combined is not None and _repeats(host, combined, singles)
        if combined is not None:
            remarks = (
                f"{combined.pattern} contains the same classes as the files of single classes, and is not used"
                if repeats
                else f"{combined.pattern} has several label values, and is not used, because each class has a file of "
                f"its own. If {combined.pattern} contains further classes, choose the layout with this pattern",
            )
        names = class_names(singles)
        yield Truth("classes", tuple(sorted(zip(names, singles, strict=True))[:250]), remarks=remarks, unused=combined)
        if combined is not None and not repeats:
            yield Truth("labels", (("", combined),))
    if not is_classes:
        for region in [mask for mask in singles if len(singles) > 1 and _covers_most(host, mask)]:
            yield from (Truth("labels", (("", mask),), region) for mask in singles if _is_region_of(host, region, mask))
    if not is_classes or _are_alike(host, singles):
        yield from (Truth("labels", (("", mask),)) for mask in singles)
    yield from (Truth("objects", (("", mask),)) for mask in masks if mask.kind == "objects")


def _are_classes(host: HostFolder, masks: list[Series]) -> bool:
    """Return whether each series of masks is one class.

    The names of the series must differ and be possible names of classes, and each mask must have only one value
    besides 0.
    """
    names = class_names(masks)
    return (
        len(masks) > 1
        and len(set(map(str.casefold, names))) == len(names)
        and all(name and name_problem(name) is None for name in names)
        and not any(_is_opinion(name) for name in names)
        and not any(ANNOTATOR_WORDS & set(tokens(mask.label)) for mask in masks)
        and all(_is_binary(host, mask) for mask in masks)
    )


def _combined_of(host: HostFolder, masks: list[Series]) -> Series | None:
    """Return the one series whose label files contain all classes; None if there is no such series.

    Every other series must be the masks of a single class, so the returned series is the only one with several label
    values. In addition, its files must have a name such as `all_labels` or `segmentation`, or repeat the masks of the
    other series.
    """
    if len(masks) < 3:
        return None
    several = [mask for mask in masks if not _is_binary(host, mask)]
    if len(several) != 1:
        return None
    (combined,) = several
    others = [mask for mask in masks if mask is not combined]
    is_named = set(tokens(_class_name(combined))) <= COMBINED_WORDS
    are_objects = any(has_word(mask.pattern, OBJECT_WORDS) for mask in others)
    if are_objects or not _are_classes(host, others) or _are_alike(host, others):
        return None
    if _repeats(host, combined, others):
        return combined
    return combined if is_named and not any(_covers_most(host, mask) for mask in others) else None  # not a region


def _repeats(host: HostFolder, combined: Series, masks: Sequence[Series]) -> bool:
    """Return whether label files repeat the masks of several classes, and so have no further class.

    In a sample of the cases, the foreground must be the union of the masks, and there must not be more label values
    than classes.

    Args:
        host: the scanned folder.
        combined: series of label files with several values.
        masks: series of the masks, one per class.
    """
    values: set[int] = set()
    for path in (host.root / path for path in combined.sample(BINARY_SAMPLE)):
        found = label_values(path, dimensions_of(path))
        values |= set(found.foreground) if found is not None else set()
    if len(values) > len(masks):
        return False
    shared = sorted(combined.ids & frozenset().union(*(mask.ids for mask in masks)))
    for case_id in shared[:: max(1, len(shared) // BINARY_SAMPLE)]:
        paths = [mask.files[case_id][0] for mask in masks if case_id in mask.ids]
        whole, *parts = (
            read_mask(host.root / path, dimensions_of(host.root / path))
            for path in (combined.files[case_id][0], *paths)
        )
        if whole is None or any(part is None or part.shape != whole.shape for part in parts):
            return False
        union = np.any([part for part in parts if part is not None], axis=0)
        if np.count_nonzero(whole ^ union) > SAME_SHARE * np.count_nonzero(union):
            return False
    return bool(shared)


def _class_name(mask: Series) -> str:
    return without_role_words(mask.label)


def class_names(masks: Sequence[Series]) -> list[str]:
    """Return the class names of masks: their names without words for masks and without words that all of them have.

    `lesion-manual` and `seg-manual` become `lesion` and `seg`.
    """
    names = [_class_name(mask) for mask in masks]
    if len(masks) < 2:
        return names
    parts = [SEPARATORS.split(name) for name in names]
    common = set.intersection(*map(set, parts))
    short = ["_".join(part for part in own if part not in common) for own in parts]
    if all(short) or not common:
        return short
    labels = [SEPARATORS.split(mask.label) for mask in masks]
    shared = set.intersection(*map(set, labels))
    whole = ["_".join(part for part in own if part not in shared) for own in labels]
    return [name or other for name, other in zip(short, whole, strict=True)]


def _covers_most(host: HostFolder, mask: Series) -> bool:
    """Return whether one mask of a series covers most of its image.

    This is a quick check before `_is_region_of` compares several masks.
    """
    path = host.root / mask.sample(1)[0]
    pixels = read_mask(path, dimensions_of(path))
    return pixels is not None and bool(np.count_nonzero(pixels) >= REGION_SHARE * pixels.size)


def _is_region_of(host: HostFolder, region: Series, mask: Series) -> bool:
    """Return whether each mask of `region`, such as a field of view, covers most of its image and contains its `mask`.

    A sample of the cases that have both masks is compared. The condition must hold in all of these cases.

    Args:
        host: the scanned folder.
        region: series of masks that may mark the region in which the host scores.
        mask: series of the other masks of the same images.
    """
    shared = sorted(region.ids & mask.ids)
    if region is mask or not shared:
        return False
    for case_id in shared[:: max(1, len(shared) // BINARY_SAMPLE)]:
        paths = [host.root / item.files[case_id][0] for item in (region, mask)]
        outer, inner = (read_mask(path, dimensions_of(path)) for path in paths)
        if outer is None or inner is None or outer.shape != inner.shape:
            return False
        sizes = np.count_nonzero(outer), np.count_nonzero(inner)
        if sizes[0] < REGION_SHARE * outer.size or sizes[1] > PART_SHARE * sizes[0]:
            return False
        if np.count_nonzero(outer & inner) < 0.99 * sizes[1]:
            return False
    return True


def _is_opinion(name: str) -> bool:
    parts = tokens(name)
    are_opinions = all(word.isdigit() or word in OPINION_WORDS or len(word) == 1 for word in parts)
    return are_opinions or not ANNOTATOR_WORDS.isdisjoint(parts) or re.fullmatch(r"v\d+", name) is not None


def _is_binary(host: HostFolder, mask: Series) -> bool:
    for path in mask.sample(BINARY_SAMPLE):
        values = label_values(host.root / path, dimensions_of(host.root / path))
        if values is not None and not values.lossy and len(values.foreground) > 1:
            return False
    return True


def _are_alike(host: HostFolder, masks: Sequence[Series]) -> bool:
    """Return whether a few masks of the same images nearly agree, like masks of several annotators.

    A mask that lies inside another, such as a lesion in an organ, does not agree with it.
    """
    if len(masks) > MAX_OPINIONS:
        return False
    for one, other in itertools.combinations(masks, 2):
        shared = sorted(one.ids & other.ids)
        step = max(1, len(shared) // BINARY_SAMPLE)
        agreeing = compared = 0
        for case_id in shared[::step]:
            paths = [host.root / item.files[case_id][0] for item in (one, other)]
            first, second = (read_mask(path, dimensions_of(path)) for path in paths)
            if first is None or second is None or first.shape != second.shape or not (first.any() and second.any()):
                continue
            both, sizes = np.count_nonzero(first & second), (np.count_nonzero(first), np.count_nonzero(second))
            compared += 1
            is_part = both >= 0.98 * min(sizes) and min(sizes) < 0.9 * max(sizes)
            agreeing += int(2 * both >= OPINION_DICE * sum(sizes) and not is_part)
        if compared and agreeing > 0.5 * compared:
            return True
    return False
