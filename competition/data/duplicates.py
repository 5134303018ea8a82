"""Find duplicate images: equal files, equal pixels, and near-duplicates, whose thumbnails are alike.

Near-duplicates are copies that were re-encoded, brightened or rescaled; on request also mirrored and rotated copies.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas

SHRINK_BLOCK = 2**24  # values averaged at a time
SIDES = {2: 64, 3: 16}  # side of a thumbnail by number of axes; each has 4096 values
COARSE_SIDES = {2: 16, 3: 8}
MIN_CORRELATION = {2: 0.95, 3: 0.98}  # of thumbnails; volumes of the same anatomy reach 0.975, copies 0.985
# Minimum correlation of the details. It excludes images that share only their illumination.
MIN_DETAIL_CORRELATION = {2: 0.8, 3: 0.95}
MIN_COARSE_CORRELATION = 0.9  # minimum correlation of coarse thumbnails, as a fast first filter
# Number of images up to which `explore` also searches for turned copies, which takes 8 or 48 times as long.
MAX_TURNED = {2: 10_000, 3: 2_000}
# If one set of look-alikes has at least this number of cases, and more than this share of all cases, these images may
# only have the same frame (retinas, scans of one scanner): the thumbnails cannot tell copies from other cases.
MIN_COMMON_CASES, MAX_SHARE = 8, 0.5
MAX_PAIRS_PER_IMAGE = 5  # for videos with many similar frames; clusters remain connected
SAMPLES = 256  # number of values of an image that are compared first
BLOCK = 512  # number of images that are compared with all others at once
Floats = NDArray[np.float32]


# Duplicates by the hash of the image files


def find_duplicates(table: pandas.DataFrame) -> list[list[str]]:
    """Return a sorted list of ids for each set of cases whose image files are equal byte for byte."""
    if "image_hash" not in table.columns:
        return []
    return sorted(sorted(ids) for ids in ids_in_common(table["id"], table["image_hash"]))


def ids_in_common(ids: Iterable[str], keys: Iterable[str]) -> list[list[str]]:
    """Return a list of ids for each key that several cases have; each list has the order of `ids`.

    Args:
        ids: ids of the cases.
        keys: the key of each case, e.g. the case's group, in the order of `ids`.
    """
    # `groupby` of pandas takes 50 times as long. Only repeated keys get a list, because Python's garbage collector
    # would search through the lists of all cases again and again.
    keys = list(keys)
    counts = Counter(keys)
    found: dict[str, list[str]] = {}
    for case_id, key in zip(ids, keys, strict=True):
        if counts[key] > 1:
            found.setdefault(key, []).append(str(case_id))
    return list(found.values())


def duplicates_with_other_masks(table: pandas.DataFrame) -> list[list[str]]:
    """Return the lists of `find_duplicates` whose cases have different masks."""
    content = dict(zip(table["id"], table["hash"], strict=True))
    return [ids for ids in find_duplicates(table) if len({content[case_id] for case_id in ids}) > 1]


def split_groups(table: pandas.DataFrame, alike: Iterable[Sequence[str]] = ()) -> list[str]:
    """Return the split group of each case: groups that share an image are merged into one split group.

    Args:
        table: the case table.
        alike: lists of ids of cases that show the same image although their files differ.

    Returns:
        For each case, the name of its split group. If groups were merged, this is the first of their names in sorted
        order.
    """
    group = {str(case_id): str(name) for case_id, name in zip(table["id"], table["group"], strict=True)}
    parent = {name: name for name in group.values()}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for ids in [*find_duplicates(table), *alike]:
        roots = sorted({root(group[case_id]) for case_id in ids})
        for merged in roots[1:]:
            parent[merged] = roots[0]
    return [root(group[str(case_id)]) for case_id in table["id"]]


# Equal pixels of prepared images


def find_equal_images(prepared: Mapping[str, Path]) -> list[list[str]]:
    """Return a list of ids for each set of preprocessed images with equal pixels; leave out constant images.

    A few values of each image are compared first. Only images that agree in these values are read completely.

    Args:
        prepared: folder of each preprocessed case, by id.

    Returns:
        Lists of at least two ids, sorted.

    Raises:
        MaskfoldError: a folder is damaged.
    """
    from competition.data.cache import PreprocessedCase

    candidates: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for case_id, folder in prepared.items():
        image = PreprocessedCase.open(folder).image
        values = image.reshape(-1)[:: max(1, image.size // SAMPLES)]
        candidates[image.shape, str(image.dtype), values.tobytes()].append(case_id)
    equal: dict[bytes, list[str]] = defaultdict(list)
    for ids in candidates.values():
        if len(ids) < 2:
            continue
        for case_id in ids:
            image = PreprocessedCase.open(prepared[case_id]).image
            if image.min() != image.max():
                digest = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
                digest.update(image.data)
                equal[digest.digest()].append(case_id)
    return sorted(sorted(ids) for ids in equal.values() if len(ids) > 1)


def find_similar_images(prepared: Mapping[str, Path]) -> list[list[str]]:
    """Return a list of ids for each set of preprocessed images that look alike, even if mirrored or rotated.

    If A looks like B and B looks like C, all three are in one list.

    Args:
        prepared: folder of each preprocessed case, by id.

    Returns:
        Lists of at least two ids, sorted.

    Raises:
        MaskfoldError: a folder is damaged.
    """
    from competition.data.cache import PreprocessedCase

    ids, thumbnails = list(prepared), []
    for folder in prepared.values():
        case = PreprocessedCase.open(folder)
        # Remove the padding of `prepare.resize`, because a turned copy has it at other edges.
        inside = tuple(
            slice(before, side - after)
            for (before, after), side in zip(case.geometry.pad, case.image.shape[1:], strict=True)
        )
        thumbnails.append(make_thumbnail(np.asarray(case.image[(slice(None), *inside)], np.float32), symmetric=True))
    pairs = find_near_duplicates(thumbnails, turned=True)
    return sorted(sorted(ids[index] for index in cluster) for cluster in cluster_pairs(pairs))


# Near-duplicates by thumbnails


@dataclass(frozen=True)
class ImagePair:
    """Hold the indices of two near-duplicate images, and the correlation of their thumbnails.

    Attributes:
        first: index of the first image.
        second: index of the second image, larger than `first`.
        correlation: correlation of the thumbnails.
        turned: whether the images look the same only after one of them is mirrored or rotated.
    """

    first: int
    second: int
    correlation: float
    turned: bool = False


def make_thumbnail(array: np.ndarray, symmetric: bool = False) -> Floats | None:
    """Return an image's thumbnail: its mean over all channels in each of 64×64 (2D) or 16×16×16 (3D) boxes.

    Args:
        array: (C, *spatial), two or three spatial axes.
        symmetric: whether to average over two grids that start at opposite ends of each axis. The thumbnail of a
            mirrored image is then the mirrored thumbnail, for every image size.

    Returns:
        float32 (side, side[, side]); None for a constant image.
    """
    side = SIDES[array.ndim - 1]
    small = array
    for axis in range(1, array.ndim):
        shrunk = _shrink(small, axis, side)
        if symmetric:
            shrunk = (shrunk + np.flip(_shrink(np.flip(small, axis), axis, side), axis)) / 2
        small = shrunk
    result = small.mean(axis=0, dtype=np.float32)
    return result if float(result.std()) > 1e-6 * max(1.0, float(np.abs(result).max())) else None


def find_near_duplicates(thumbnails: Sequence[Floats | None], turned: bool = False) -> list[ImagePair]:
    """Find pairs of images that look the same apart from brightness, contrast, size and compression.

    Both the thumbnails and their details (thumbnails minus the local mean) must correlate. The time grows with the
    square of the number of images: some seconds for 5,000 images.

    Args:
        thumbnails: thumbnails with the same number of axes; an entry None (a constant image) is in no pair.
        turned: whether to also find mirrored copies and copies rotated by 90°, 180° and 270°. This takes 8 times as
            long (volumes: 48 times).

    Returns:
        Pairs with first < second, highest correlation first.
    """
    indices = [index for index, small in enumerate(thumbnails) if small is not None]
    if len(indices) < 2:
        return []
    stack = np.stack([small for small in thumbnails if small is not None])
    coarse = _coarsen(stack)
    features = [(_normalise(small), small.shape) for small in (coarse, stack, _details(stack))]
    first = [flat for flat, _ in features]
    best: dict[tuple[int, int], float] = {}
    straight: set[tuple[int, int]] = set()
    for number, (order, steps) in enumerate(_views(stack.ndim - 1, turned)):
        # The features of a rotated thumbnail are the rotated features.
        second = [
            flat.reshape(shape).transpose(0, *order)[(slice(None), *steps)].reshape(flat.shape)
            for flat, shape in features
        ]
        for row, column, correlation in _matches(first, second, stack.ndim - 1):
            key = indices[row], indices[column]
            best[key] = max(correlation, best.get(key, 0.0))
        if number == 0:  # the first view is unchanged
            straight = set(best)
    pairs = [ImagePair(*key, min(1.0, correlation), key not in straight) for key, correlation in best.items()]
    return sorted(pairs, key=lambda pair: (-pair.correlation, pair.first, pair.second))


def _views(dims: int, turned: bool) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Yield the views of a thumbnail: the unchanged image and, if `turned`, each mirrored or rotated version.

    A view is the order of the axes 1 to `dims`, and the direction (a slice) of each axis.
    """
    axes, forward, backward = tuple(range(1, dims + 1)), slice(None), slice(None, None, -1)
    if not turned:
        yield axes, (forward,) * dims
        return
    for order in permutations(axes):
        for steps in product((forward, backward), repeat=dims):
            yield order, steps


def _matches(first: Sequence[Floats], second: Sequence[Floats], dims: int) -> Iterator[tuple[int, int, float]]:
    """Yield pairs of similar thumbnails: the index in `first`, the larger index in `second`, and the correlation.

    Args:
        first: features of the thumbnails: coarse thumbnails, thumbnails and details, each (N, values) and normalised.
        second: the same features for a rotated or mirrored version of the thumbnails.
        dims: number of spatial axes.
    """
    (coarse, whole, details), (coarse_2, whole_2, details_2) = first, second
    for start in range(0, len(whole), BLOCK):
        block = slice(start, start + BLOCK)
        is_similar = coarse[block] @ coarse_2[start:].T >= MIN_COARSE_CORRELATION
        candidates = np.triu(is_similar, 1)  # each pair once, no self-pairs
        columns = start + np.flatnonzero(candidates.any(axis=0))
        correlation, detail = whole[block] @ whole_2[columns].T, details[block] @ details_2[columns].T
        matches = candidates[:, columns - start]
        matches &= (correlation >= MIN_CORRELATION[dims]) & (detail >= MIN_DETAIL_CORRELATION[dims])
        for row in np.flatnonzero(matches.any(axis=1)):
            matched = np.flatnonzero(matches[row])
            best = matched[np.argsort(-correlation[row, matched], kind="stable")[:MAX_PAIRS_PER_IMAGE]]
            for index in best:
                yield start + int(row), int(columns[index]), float(correlation[row, index])


def cluster_pairs(pairs: Sequence[ImagePair]) -> list[list[int]]:
    """Return the connected components of a graph whose edges are the pairs, each as sorted indices."""
    parent: dict[int, int] = {}

    def root(index: int) -> int:
        while parent.setdefault(index, index) != index:
            index = parent[index]
        return index

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for index in sorted(parent):
        members.setdefault(root(index), []).append(index)
    return list(members.values())


def is_common_look(count: int, total: int) -> bool:
    """Return whether so many of all images look alike that their likeness is no sign of copies.

    Args:
        count: number of images that look alike; identical images count once.
        total: number of images that were compared; identical images count once.
    """
    return count >= MIN_COMMON_CASES and count > MAX_SHARE * total


def describe_common_look(count: int, total: int, dims: int, kind: str = "cases") -> str:
    """Return a text without a full stop which says that near-duplicates cannot be found among so many look-alikes.

    Args:
        count: number of cases in the set of look-alikes.
        total: number of all cases.
        dims: number of spatial axes.
        kind: kind of all cases, such as `train cases`.
    """
    size, unit = "×".join([str(SIDES[dims])] * dims), "pixels" if dims == 2 else "voxels"
    return (
        f"{count:,} of {total:,} {kind} look alike at the size of the thumbnails ({size} {unit}), so near-duplicates "
        "cannot be found among them"
    )


def _shrink(array: np.ndarray, axis: int, side: int) -> np.ndarray:
    """Return the float32 means of `side` boxes along an axis; if the axis is shorter than `side`, repeat its values."""
    length = array.shape[axis]
    starts = np.arange(side) * length // side
    if length < side:
        return np.take(array, starts, axis=axis).astype(np.float32)
    # Process a few boxes at a time, because numpy copies them as floats.
    group = max(1, SHRINK_BLOCK * side // max(1, array.size))
    ends = np.append(starts, length)
    parts = []
    for first in range(0, side, group):
        boxes = starts[first : first + group]
        inside = slice(int(boxes[0]), int(ends[min(first + group, side)]))
        part = array[(slice(None),) * axis + (inside,)]
        parts.append(np.add.reduceat(part, boxes - boxes[0], axis=axis, dtype=np.float32))
    sums = np.concatenate(parts, axis=axis)
    counts = np.diff(np.append(starts, length)).astype(np.float32)
    means: np.ndarray = sums / counts.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return means


def _coarsen(stack: Floats) -> Floats:
    """Average thumbnails (N, side, …) to a coarser grid."""
    dims = stack.ndim - 1
    side, factor = COARSE_SIDES[dims], SIDES[dims] // COARSE_SIDES[dims]
    boxes = stack.reshape(len(stack), *(size for _ in range(dims) for size in (side, factor)))
    return boxes.mean(axis=tuple(range(2, 2 * dims + 1, 2)))


def _details(stack: Floats) -> Floats:
    """Subtract the local mean from thumbnails (N, side, …)."""
    from scipy.ndimage import uniform_filter

    return np.stack([small - uniform_filter(small, 5, mode="nearest") for small in stack])


def _normalise(stack: Floats) -> Floats:
    """Return rows (N, values) with mean 0 and norm 1, so that dot products are correlations; constant rows become 0."""
    flat = stack.reshape(len(stack), math.prod(stack.shape[1:])).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 1e-12)
