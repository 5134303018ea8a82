"""Find out whether the values of label files number the objects of each case, or stand for classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from competition.data.readers import read_labels
from competition.errors import MaskfoldError
from competition.planning.layout import Layout
from competition.planning.layouts.content import LabelValues, label_values
from competition.planning.layouts.matching.held_out import natural
from competition.planning.words import tokens, words

Meaning = Literal["objects", "unclear", "classes"]
INSTANCE_WORDS = words("instance instances inst insts")  # folders whose masks number objects
SEMANTIC_WORDS = words("semantic sem semseg class classes classlabels")
MIN_NUMBERED = 8  # so many values are enough to tell object numbers from label values without asking
MIN_ASKED = 3  # of fewer values, none suggests that they number objects
MAX_CLASSES = 250  # more values cannot be classes
MAX_MASKS = 3000  # maximum number of masks that are read; of more masks, those of evenly spaced cases are read
# Share of the values of all cases that are one connected part: at least so many to ask, and to decide without asking
ASKED_SINGLE, CERTAIN_SINGLE = 0.8, 0.95
CODE, MAX_CODED = 1000, 100  # a value of class and number is CODE times the class, plus a number below MAX_CODED
WHOLE_PART = 0.95  # a value is one connected part if its largest part has this share of its pixels
MAX_EQUAL = 0.5  # share of the cases that may have the same values
MAX_SPACING = 3  # the highest number is at most so many times the count of the numbers
LOW_START, MIN_LOW = 0.1, 0.8  # in this share of the cases, the lowest number is at most this share of the highest
# The different values of all cases, as a share of their sum over the cases, if few values are in two cases, as in parts
# of one large image
MIN_UNIQUE = 0.8
MIN_RANGE = 1.5  # the highest number of some case is so many times the median one: cases have different counts
SAMPLE = 24  # cases whose parts are searched
MAX_VOXELS = 2**27  # of these cases together, at most
SHUFFLES = 199  # random orders of the values, with which the sizes are compared
# The values tell the sizes if they explain a larger share of them than by chance, with a smaller probability of chance:
WEAK, STRONG = (0.1, 0.05), (0.3, 0.01)  # so that objects are not certain; so that classes are certain


@dataclass(frozen=True)
class Part:
    """Describe the pixels of one value in one case.

    Attributes:
        value: the value.
        size: number of its pixels.
        is_single: whether nearly all of its pixels are connected.
        is_inner: whether none of its pixels lies at an edge of the mask, so that the whole object is visible.
    """

    value: int
    size: int
    is_single: bool
    is_inner: bool


def meaning_of_values(layout: Layout, ignored: int | None = None) -> Meaning:
    """Return whether the label values of a layout number objects, stand for classes, or may be either.

    Object numbers are 1, 2, … in each case, up to a number that differs between the cases. Some numbers may be missing,
    because objects may have been removed. In addition, nearly each number must mark one connected part of a case, and
    objects of the same number must differ in size between the cases, unlike organs. Words such as `instances` and
    `semantic` in the pattern of the masks count as evidence.

    Args:
        layout: layout with one label file, or one stack of label files, for each case.
        ignored: a value that is left out, such as 255; None leaves out no value.
    """
    own = _values_of_cases(layout, ignored)
    every = set().union(*own.values()) if own else set()
    if len(every) < 2 or min(every) < 1 or _are_coded(every):
        return "classes"
    named = set(tokens(str(layout.masks).replace("{id}", " ")))
    says_objects = bool(named & INSTANCE_WORDS) and not named & SEMANTIC_WORDS
    sets = list(own.values())
    counting = all(values == set(range(1, len(values) + 1)) for values in sets)
    if not says_objects and (len(every) < MIN_ASKED or not _differ(sets, counting) or named & SEMANTIC_WORDS):
        return "classes"
    parts = _sample_parts(layout, own, ignored)
    found = [part for case in parts for part in case]
    single = sum(part.is_single for part in found) / max(1, len(found))
    most = max(map(len, sets))
    if single < ASKED_SINGLE:
        return "unclear" if counting and most >= MIN_NUMBERED else "classes"
    if says_objects:
        return "objects"
    are_unique = len(every) >= MIN_UNIQUE * sum(map(len, sets))  # then few sizes of the same value can be compared
    if len(every) < MIN_NUMBERED:
        are_dense = max(every) <= MAX_SPACING * len(every)
        may_be_objects = single >= CERTAIN_SINGLE and are_dense and not _value_tells_size(parts, *STRONG)
        return "unclear" if may_be_objects else "classes"
    if not are_unique and _value_tells_size(parts, *WEAK):
        return "unclear"
    if counting and most >= MIN_NUMBERED:
        return "objects"
    is_certain = single >= CERTAIN_SINGLE and most >= MIN_NUMBERED and (are_unique or _are_counted(sets))
    return "objects" if is_certain else "unclear"


def _are_counted(sets: Sequence[set[int]]) -> bool:
    """Return whether the values of each case number its objects from 1 on, possibly with gaps.

    Removed objects leave gaps. Even so, nearly every case must have a low number, and most cases must have many of the
    numbers up to their highest number. In addition, the highest number must differ much between cases, or there must be
    more than `MAX_CLASSES` numbers. The numbers of vertebrae are no object numbers, because in some cases, the lowest
    number is high.

    Args:
        sets: the values of each case.
    """
    every = set().union(*sets)
    highest = [max(values) for values in sets]
    begin_low = sum(min(values) <= max(2, LOW_START * max(values)) for values in sets)
    are_dense = median(len(values) / max(values) for values in sets) >= 1 / MAX_SPACING
    has_range = max(highest) >= MIN_RANGE * median(highest) or len(every) > MAX_CLASSES
    return begin_low >= MIN_LOW * len(sets) and are_dense and has_range and median(map(len, sets)) >= MIN_ASKED


def values_by_case(layout: Layout) -> dict[str, list[LabelValues]]:
    """Read the label values of the masks of all cases.

    If there are more than `MAX_MASKS` masks, only the masks of evenly spaced cases are read.

    Returns:
        The values of each mask file that can be read, by case.
    """
    dimensions = 2 if "{z}" in str(layout.masks) else layout.dimensions
    files = {case_id: paths for by_id in layout.mask_files.values() for case_id, paths in by_id.items()}
    count = min(len(files), max(1, MAX_MASKS * len(files) // max(1, sum(map(len, files.values())))))
    ids = list(files)
    chosen = [ids[number * len(ids) // count] for number in range(count)]
    read = {
        case_id: [label_values(layout.folder.root / path, dimensions) for path in files[case_id]] for case_id in chosen
    }
    return {case_id: [item for item in own if item is not None] for case_id, own in read.items()}


def _values_of_cases(layout: Layout, ignored: int | None) -> dict[str, set[int]]:
    """Return the label values of each case, without 0 and `ignored`; leave out cases that have no other value."""
    own = {
        case_id: {value for item in items for value in item.foreground} - {ignored}
        for case_id, items in values_by_case(layout).items()
    }
    return {case_id: values for case_id, values in own.items() if values}


def _are_coded(values: set[int]) -> bool:
    """Return whether values are 1000 times a class plus the number of an object (26001), as in Cityscapes and MOTS."""
    return max(values) >= CODE and all(value % CODE < MAX_CODED for value in values)


def _differ(sets: Sequence[set[int]], counting: bool) -> bool:
    """Return whether the values differ between cases as object numbers do, not as label values do.

    Args:
        sets: the values of each case.
        counting: whether the values of each case are 1, 2, … without a gap.
    """
    kinds = [frozenset(values) for values in sets]
    most = max(kinds.count(kind) for kind in set(kinds))
    return most <= MAX_EQUAL * len(kinds) or (counting and len(set(kinds)) >= MIN_ASKED)


# Connected parts


def _sample_parts(layout: Layout, own: Mapping[str, set[int]], ignored: int | None) -> list[list[Part]]:
    """Return the parts of evenly spaced cases; stop when the cases read so far have at least `MAX_VOXELS` voxels."""
    ids = sorted(own)
    chosen = ids[:: max(1, len(ids) // SAMPLE)][:SAMPLE]
    found, voxels = [], 0
    for case_id in chosen:
        for files in layout.mask_files.values():
            labels = _read(layout, files.get(case_id, []))
            if labels is not None:
                found.append(parts_of(labels, ignored))
                voxels += labels.size
        if voxels >= MAX_VOXELS:
            break
    return found


def _read(layout: Layout, paths: Sequence[str]) -> np.ndarray | None:
    """Return the labels of a case; the slice files of a stack are joined. Return None if a file cannot be read."""
    is_stack = "{z}" in str(layout.masks)
    try:
        slices = [
            read_labels(layout.folder.root / path, 2 if is_stack else layout.dimensions)[0]
            for path in sorted(paths, key=natural)
        ]
    except MaskfoldError:
        return None
    if not slices or len({labels.shape for labels in slices}) > 1:
        return None
    return np.stack(slices, axis=-1) if is_stack else slices[0]


def parts_of(labels: np.ndarray, ignored: int | None = None) -> list[Part]:
    """Return a `Part` for each value above 0 in a mask.

    Args:
        labels: label values of at least 0, an integer array (*spatial).
        ignored: a value that is left out; None leaves out no value.
    """
    import cc3d

    values, codes = np.unique(labels, return_inverse=True)
    codes = np.ascontiguousarray(codes.reshape(labels.shape), dtype=np.uint32)
    codes += np.uint32(values[0] != 0)  # 0 is the background of cc3d
    components = np.asarray(cc3d.connected_components(codes, connectivity=8 if labels.ndim == 2 else 26)).ravel()
    sizes = np.bincount(components)
    code_of = np.zeros(len(sizes), np.int64)
    code_of[components] = codes.ravel()
    edges = [np.take(codes, (0, -1), axis) for axis in range(labels.ndim) if labels.shape[axis] > 2]
    at_edge = set(np.unique(np.concatenate([edge.ravel() for edge in edges])).tolist()) if edges else set()
    found = []
    for code, value in enumerate(values.tolist(), start=int(values[0] != 0)):
        own = sizes[1:][code_of[1:] == code]
        if value > 0 and value != ignored and own.size:
            size = int(own.sum())
            found.append(Part(value, size, bool(own.max() >= WHOLE_PART * size), code not in at_edge))
    return found


# Sizes


def _value_tells_size(parts: Sequence[Sequence[Part]], min_share: float, max_chance: float) -> bool:
    """Return whether objects of the same value have similar sizes in all cases, as an organ or a bone has.

    The values explain a share of the variance of the sizes. This share is compared with the shares after the sizes of
    each case were shuffled. Each size is a logarithm, minus the mean of its case. Objects at the edges of the mask are
    left out if enough other objects are left.

    Args:
        parts: the parts of each case.
        min_share: the explained share must exceed the mean share after shuffling by at least this number.
        max_chance: at most this share of the shuffled orders may explain as much as the original order.
    """
    inner = [[part for part in case if part.is_inner] for case in parts]
    chosen = inner if 2 * sum(map(len, inner)) >= sum(map(len, parts)) else parts
    rows = [case for case in chosen if len(case) > 1]
    if not rows:
        return False
    sizes = [np.log([part.size for part in case]) for case in rows]
    sizes = [own - own.mean() for own in sizes]
    values = np.concatenate([[part.value for part in case] for case in rows])
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    repeated = counts[codes] > 1
    joined = np.concatenate(sizes)
    total = float((joined[repeated] ** 2).sum())
    if np.count_nonzero(repeated) < 2 or total == 0:
        return False
    rng = np.random.default_rng(0)
    own_share = _between(joined, codes, counts) / total
    shuffled: Iterable[np.ndarray] = (np.concatenate([rng.permutation(own) for own in sizes]) for _ in range(SHUFFLES))
    others = np.array([_between(order, codes, counts) / total for order in shuffled])
    chance = (1 + np.count_nonzero(others >= own_share)) / (1 + SHUFFLES)
    return bool(chance <= max_chance and own_share - others.mean() >= min_share)


def _between(sizes: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> float:
    """Return the part of the sum of squares of `sizes` that the label values explain.

    Values that occur only once are left out.

    Args:
        sizes: size of each object, as a logarithm minus the mean of its case.
        codes: index of each object's value.
        counts: number of objects of each value.
    """
    sums = np.bincount(codes, sizes)
    is_repeated = counts > 1
    return float((sums[is_repeated] ** 2 / counts[is_repeated]).sum())
