"""Objects that stand in a row and look alike, vertebrae say: they are told apart by their order, not one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.postprocess import Number
from competition.data.boxes import nonzero_box
from competition.data.readers import read_header
from competition.data.rows import cell
from competition.scoring.instances import components
from competition.submission import steps

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]
Floats = NDArray[Any]

AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}  # row of the affine, and its sign
SMALL = 0.1  # of the largest object: the size below which one is a fragment, unless `smallest` says another
AGREE = 0.9  # of the voxels: where the network's labels agree with the objects so well, they say where one ends
TWICE = 1.6  # of the middle object: one larger than this may be two
ENOUGH = 0.25  # of such an object: a class with this share of its voxels may be one of the two


def numbered(probabilities: Floats, comp: Competition, number: Number, affine: NDArray[np.float64]) -> Floats:
    """Probabilities in which every object of the row has one class, by its place.

    The classes' probabilities are taken together (their sum where classes are exclusive, else the largest): that
    something is a vertebra is sure long before it is sure which one. Objects are what hangs together in their mask,
    parted where they only touch (`parted`). From the end of the row that `number.along` names, they get the classes in
    order. Of more objects than classes, the largest neighbouring ones get them and the others become background. Of
    fewer, the network's own labels, voxel by voxel, vote where the counting starts. Fragments, and whatever lies
    outside of the mask, keep the network's labels.

    Args:
        probabilities: (P, *spatial) floats.
        comp: the competition, of volumes.
        number: which classes, and along which direction.
        affine: 4×4, voxel to world (RAS+, mm).

    Returns:
        (P, *spatial), the same dtype; an array of its own.
    """
    exclusive = comp.labels == "exclusive"
    channels = [comp.classes.index(name) + exclusive for name in number.classes]
    mine = probabilities[channels]
    if exclusive:
        total = mine.astype(np.float32).sum(axis=0).astype(mine.dtype)
        row = total > np.delete(probabilities, channels, axis=0).max(axis=0)
    else:
        total = mine.max(axis=0)
        row = total > 0.5
    result = np.array(probabilities)
    if not row.any():
        return result
    box = tuple(slice(*ends) for ends in nonzero_box(row[None]))
    total, votes, changed = total[box], mine[(slice(None), *box)].argmax(axis=0), result[(slice(None), *box)]
    objects = parted(np.ascontiguousarray(row[box]), votes, number.split, np.linalg.norm(affine[:3, :3], axis=0))
    chosen = _in_order(objects, number, affine)
    named = _named(chosen, objects, votes, len(channels))
    places = np.full(int(objects.max()) + 1, -2)  # of each object: its class, -1 where it has none, -2 as it was
    places[chosen] = named
    place = places[objects]
    for index, channel in enumerate(channels):
        changed[channel][place >= -1] = 0
        np.copyto(changed[channel], total, where=place == index)
    if exclusive:
        changed[0][place == -1] += total[place == -1]
    return result


def affine_of(row: Any, comp: Competition) -> NDArray[np.float64]:
    """The affine of a case's first image, 4×4, voxel to world (RAS+, mm), from the file's header.

    Args:
        row: a row of the case table, or `competition.submission.members.Loose`.
        comp: the competition.

    Raises:
        MaskfoldError: the file has none, or cannot be read.
    """
    if hasattr(row, "picture"):
        name, affine = row.id, row.picture.affine
    else:
        name, first = cell(row, "id"), next(iter(json.loads(cell(row, "images")).values()))
        affine = read_header(Path(comp.root) / first, comp.dimensions).affine if isinstance(first, str) else None
    if affine is None:
        raise MaskfoldError(f"Case {name} has no affine, so that `postprocess.number` cannot know how the patient lies.",
                            "Use NIfTI images, or remove `postprocess.number`.")
    return np.asarray(affine, np.float64)


def parted(row: Mask, votes: NDArray[Any], split: float | None, spacing: NDArray[np.float64]) -> Labels:
    """The objects of a row, parted where they touch.

    The core of an object is where it is thick: where the distance to the edge is more than `split` times the largest of
    all. Vertebrae that touch by their joints have a core each, the bodies. Around the cores objects grow, voxel by
    voxel, until they meet; where the network's labels tell the objects apart anyway, each first within the labels that
    its core has. An object more than 1.6 times as large as the middle one falls apart by the network's labels. Each voxel
    of a piece without a core goes to the nearest object.

    Args:
        row: (*spatial) bool.
        votes: (*spatial) integers, the network's class of each voxel among those of the row.
        split: see above; None: an object is what hangs together.
        spacing: mm per axis.

    Returns:
        (*spatial) int32: objects from 1, with gaps; 0 outside, and where the nearest object is farther away than the
        thickest is thick.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    if split is None:
        return components(row).astype(np.int32)
    height = distance_transform_edt(np.pad(row, 1), sampling=spacing)[(slice(1, -1),) * row.ndim]
    smooth = gaussian_filter(height, spacing.min() / spacing) * row
    cores = components(smooth > split * smooth.max()).astype(np.int32)
    cores = steps.remove_small_objects(cores, int(SMALL * np.bincount(cores[cores != 0]).max()))
    labels = _grown(cores, row)
    table = _counts(labels[labels != 0], votes[labels != 0])
    table = table[table.any(axis=1)]
    if len(set(table.argmax(axis=1))) == len(table) and table.max(axis=1).sum() >= AGREE * table.sum():
        first = np.zeros_like(cores)
        for cls in np.unique(votes[row]):
            mine = row & (votes == cls)
            first += _grown(np.where(mine, cores, 0), mine)
        labels = _grown(first, row)
    _split_large(labels, votes)
    if (row & (labels == 0)).any():
        away, nearest = distance_transform_edt(labels == 0, sampling=spacing, return_indices=True)
        labels = np.where(row & (away <= 2 * height.max()), labels[tuple(nearest)], 0)
    return labels


def _grown(seeds: Labels, mask: Mask) -> Labels:
    """Seeds grown within a mask by one voxel after the other over its sides; 0 where no seed gets to."""
    from skimage.segmentation import watershed

    return np.asarray(watershed(np.zeros(mask.shape, np.uint8), seeds, mask=mask), np.int32)


def _split_large(labels: Labels, votes: NDArray[Any]) -> None:
    """Objects as large as two fall apart by the network's labels, in place."""
    sizes = np.bincount(labels[labels != 0])
    middle = np.sort(sizes[sizes > 0])[(np.count_nonzero(sizes) - 1) // 2]
    for large in np.flatnonzero(sizes > TWICE * middle):
        inside = labels == large
        shares = np.bincount(votes[inside]) / sizes[large]
        present = np.flatnonzero(shares >= ENOUGH)
        for cls in present[present != shares.argmax()]:
            labels[inside & (votes == cls)] = labels.max() + 1


def _in_order(objects: Labels, number: Number, affine: NDArray[np.float64]) -> NDArray[np.int64]:
    """The objects that are no fragments, as they follow each other from the named end of the row."""
    world, sign = AXES[number.along]
    inside = objects != 0
    sizes = np.bincount(objects[inside])
    least = number.smallest if number.smallest is not None else SMALL * sizes.max()
    heights = np.argwhere(inside) @ (sign * affine[world, :3])  # mm towards the named end, but for a constant
    middles = np.bincount(objects[inside], heights) / np.maximum(sizes, 1)
    chosen = np.flatnonzero((sizes >= least) & (sizes > 0))
    return np.asarray(chosen[np.argsort(-middles[chosen], kind="stable")], np.int64)


def _named(chosen: NDArray[np.int64], objects: Labels, votes: NDArray[Any], names: int) -> NDArray[np.int64]:
    """The place of each object among the names; -1 where it gets none."""
    inside = objects != 0
    table = np.zeros((int(objects.max()) + 1, names), np.int64)
    found = _counts(objects[inside], votes[inside])
    table[:, :found.shape[1]] = found
    table = table[chosen]
    if len(chosen) <= names:
        agreement = [int(table[np.arange(len(chosen)), first + np.arange(len(chosen))].sum())
                     for first in range(names - len(chosen) + 1)]
        return int(np.argmax(agreement)) + np.arange(len(chosen))
    sizes = table.sum(axis=1)
    windows = [(int(sizes[first:first + names].sum()), int(np.trace(table[first:first + names])), -first)
               for first in range(len(chosen) - names + 1)]
    places = np.arange(len(chosen)) + max(windows)[2]
    return np.where((places >= 0) & (places < names), places, -1)


def _counts(objects: NDArray[Any], votes: NDArray[Any]) -> NDArray[np.int64]:
    """How many voxels of each object the network gives to each class."""
    classes = int(votes.max(initial=0)) + 1
    pairs = np.bincount(objects.astype(np.int64) * classes + votes, minlength=(int(objects.max(initial=0)) + 1) * classes)
    return pairs.reshape(-1, classes)
