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

AXES = {
    "R": (0, 1),
    "L": (0, -1),
    "A": (1, 1),
    "P": (1, -1),
    "S": (2, 1),
    "I": (2, -1),
}  # row of the affine, and its sign
SMALL = 0.1  # of the largest object: the size below which one is a fragment, unless `smallest` says another
AGREE = 0.8  # share, or Dice: where the network's labels agree with the objects so well, they say where one ends
TWICE = 1.6  # of the middle object: one larger than this may be two
LARGE = 1.3  # of the middle object: a class larger than this that has two cores is two objects
BURIED = 0.3  # of a piece's faces: a piece that has more of them inside of the row is a part of what is around it
ENOUGH = 0.25  # of such an object: a class with this share of its voxels may be one of the two


def numbered(probabilities: Floats, comp: Competition, number: Number, affine: NDArray[np.float64]) -> Floats:
    """Probabilities in which every object of the row has one class, by its place.

    The classes' probabilities are taken together (their sum where classes are exclusive, else the largest): that
    something is a vertebra is sure long before it is sure which one. Objects are what hangs together in their mask,
    parted where they only touch (`parted`), by the network's labels where these are sound. From the end of the row that `number.along` names, they get the classes in
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
    world, sign = AXES[number.along]
    upwards = sign * affine[world, :3]  # mm towards the named end, per voxel
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    objects = parted(np.ascontiguousarray(row[box]), votes, number.split, spacing, upwards)
    chosen = _in_order(objects, number, upwards)
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
        raise MaskfoldError(
            f"Case {name} has no affine, so that `postprocess.number` cannot know how the patient lies.",
            "Use NIfTI images, or remove `postprocess.number`.",
        )
    return np.asarray(affine, np.float64)


def parted(
    row: Mask, votes: NDArray[Any], split: float | None, spacing: NDArray[np.float64], upwards: NDArray[np.float64]
) -> Labels:
    """The objects of a row, parted where they touch.

    The core of an object is where it is thick: where the distance to the edge is more than `split` times the largest of
    all. Vertebrae that touch by their joints have a core each, the bodies. Each voxel belongs to the core with the
    shortest way to it inside of the row, in mm. A bone's thin places may hang together by edges and corners of voxels,
    so a way may go over these: over sides alone, an arch would be its neighbour's.

    The network's labels know better where an object ends, where they are sound. Where all are (`_told`), objects are
    what these say. Else each object of which they say about the same is as they say, and only the others are cut
    by their cores; one more than 1.6 times as large as the middle one falls apart by the labels. Each voxel that no way
    leads to goes to the nearest object.

    Args:
        row: (*spatial) bool.
        votes: (*spatial) integers, the network's class of each voxel among those of the row.
        split: see above; None: an object is what hangs together.
        spacing: mm per axis.
        upwards: mm towards the end with the first class, per voxel along each axis.

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
    cores = np.asarray(steps.remove_small_objects(cores, int(SMALL * np.bincount(cores[cores != 0]).max())), np.int32)
    labels = _grown(cores, row, spacing)
    told = _told(row, votes, cores, labels, upwards)
    if told is not None:
        labels = _grown(told, row, spacing)
    else:
        labels = _grown(_sound(row, votes, cores, labels, spacing), row, spacing)
        _split_large(labels, votes)
    if (row & (labels == 0)).any():
        away, nearest = distance_transform_edt(labels == 0, sampling=spacing, return_indices=True)
        labels = np.where(row & (away <= 2 * height.max()), labels[tuple(nearest)], 0)
    return labels


def _grown(seeds: Labels, mask: Mask, spacing: NDArray[np.float64]) -> Labels:
    """Each voxel of a mask has the seed that is nearest by a way inside of it, in mm; 0 where there is no way."""
    from skimage.graph import MCP_Geometric

    if not (mask & (seeds == 0)).any() or not (seeds * mask).any():
        return np.asarray(seeds * mask, np.int32)
    ways = MCP_Geometric(np.where(mask, 1.0, np.inf), sampling=tuple(spacing))
    _, back = ways.find_costs(np.argwhere(seeds * mask))
    strides = np.array([int(np.prod(mask.shape[axis + 1 :])) for axis in range(mask.ndim)])
    jumps = np.append(np.asarray(ways.offsets) @ strides, [0, 0])  # -1: a seed, -2: no way
    origin = np.arange(mask.size) - jumps[back.ravel()]
    while not np.array_equal(earlier := origin[origin], origin):  # twice as far back each time
        origin = earlier
    return np.asarray((seeds * mask).ravel()[origin].reshape(mask.shape), np.int32)


def _sound(row: Mask, votes: NDArray[Any], cores: Labels, labels: Labels, spacing: NDArray[np.float64]) -> Labels:
    """Seeds: an object as the network's labels have it around its core, where it is about the same; else as it is cut."""
    table = _counts(cores.ravel(), votes.ravel())
    own = np.where(table.argmax(axis=1)[cores] == votes, cores, 0)
    first = np.zeros_like(cores)
    for cls in np.unique(votes[own != 0]):
        mine = row & (votes == cls)
        first += _grown(np.where(mine, own, 0), mine, spacing)
    count = int(labels.max()) + 1
    both = np.bincount(labels[(labels == first) & row], minlength=count)
    sizes = np.bincount(labels[row], minlength=count) + np.bincount(first[row], minlength=count)
    good = 2 * both >= AGREE * sizes
    seeds = np.where(good[first], first, 0)
    return np.where((seeds == 0) & ~good[labels], labels, seeds)


def _told(row: Mask, votes: NDArray[Any], cores: Labels, labels: Labels, upwards: NDArray[np.float64]) -> Labels | None:
    """The objects by the network's labels, 1 + class; None where the names are mangled.

    Sound labels: each class is one piece but for little, is no larger than one object, and has one core, which is
    hardly any other class's (of an object as large as two, a core may be two classes'). Of smaller pieces those that are where
    their class is in the row remain with it; others are 0, for what is around them.
    """
    sizes = np.bincount(votes[row])
    mains = np.flatnonzero(sizes >= SMALL * sizes.max())
    pieces, classes = _pieces(row, votes)
    extents = np.bincount(pieces[row], minlength=len(classes))
    main = {int(cls): int(np.argmax(np.where(classes == cls, extents, 0))) for cls in mains}
    objects = np.bincount(labels[labels != 0])
    middle = np.sort(objects[objects > 0])[(np.count_nonzero(objects) - 1) // 2]
    numbers = np.unique(cores[cores != 0])
    table = _counts(cores[cores != 0], votes[cores != 0])[numbers]
    mixed = (table.max(axis=1) < AGREE * table.sum(axis=1)) & (objects[numbers] <= TWICE * middle)
    owned = np.bincount(table.argmax(axis=1), minlength=len(sizes))
    if (
        len(mains) < 2
        or mixed.any()
        or any(
            extents[piece] < AGREE * sizes[cls] or sizes[cls] > (LARGE if owned[cls] > 1 else TWICE) * middle
            for cls, piece in main.items()
        )
    ):
        return None
    heights = _heights(pieces, upwards)
    rows = np.array([heights[piece] for piece in main.values()])
    keep = ~_buried(pieces, row) & (np.bincount(pieces[row], cores[row] != 0, minlength=len(classes)) == 0)
    for piece in np.flatnonzero(keep):
        if classes[piece] in main:  # no other object's middle lies between the piece and its own
            low, high = sorted((heights[piece], heights[main[int(classes[piece])]]))
            keep[piece] = not ((rows > low) & (rows < high)).any()
        else:  # a class of little, at an end of the picture say: it is where its name belongs
            keep[piece] = bool(((mains < classes[piece]) == (rows > heights[piece])).all())
    keep[list(main.values())] = True
    keep[0] = False
    return np.where(keep[pieces], votes + 1, 0).astype(np.int32)


def _pieces(row: Mask, votes: NDArray[Any]) -> tuple[Labels, NDArray[np.int64]]:
    """What hangs together within each class, numbered from 1, and the class of each number (-1 of 0)."""
    pieces, classes = np.zeros(row.shape, np.int32), [np.array([-1])]
    for cls in np.unique(votes[row]):
        found = components(row & (votes == cls)).astype(np.int32)
        pieces += np.where(found > 0, found + sum(map(len, classes)) - 1, 0).astype(np.int32)
        classes.append(np.full(int(found.max()), cls))
    return pieces, np.concatenate(classes)


def _buried(pieces: Labels, row: Mask) -> Mask:
    """Of each piece, whether much of its surface lies inside of the row."""
    faces = np.zeros((2, int(pieces.max()) + 1), np.int64)
    for axis in range(row.ndim):
        for one, other in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            here, there = ((slice(None),) * axis + (side,) for side in (one, other))
            surface = pieces[here] != pieces[there]
            for index, inside in enumerate((~row[there], row[there])):
                faces[index] += np.bincount(pieces[here][surface & inside], minlength=faces.shape[1])
    return np.asarray(faces[1] > BURIED * faces.sum(axis=0))


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


def _in_order(objects: Labels, number: Number, upwards: NDArray[np.float64]) -> NDArray[np.int64]:
    """The objects that are no fragments, as they follow each other from the named end of the row."""
    inside = objects != 0
    sizes = np.bincount(objects[inside])
    least = number.smallest if number.smallest is not None else SMALL * sizes.max()
    middles = _heights(objects, upwards)
    chosen = np.flatnonzero((sizes >= least) & (sizes > 0))
    return np.asarray(chosen[np.argsort(-middles[chosen], kind="stable")], np.int64)


def _heights(objects: Labels, upwards: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the middle of each object lies towards the named end, in mm but for a constant; 0 where there is none."""
    inside = objects != 0
    found = objects[inside]
    return np.asarray(np.bincount(found, np.argwhere(inside) @ upwards) / np.maximum(np.bincount(found), 1), np.float64)


def _named(chosen: NDArray[np.int64], objects: Labels, votes: NDArray[Any], names: int) -> NDArray[np.int64]:
    """The place of each object among the names; -1 where it gets none."""
    inside = objects != 0
    table = np.zeros((int(objects.max()) + 1, names), np.int64)
    found = _counts(objects[inside], votes[inside])
    table[:, : found.shape[1]] = found
    table = table[chosen]
    if len(chosen) <= names:
        agreement = [
            int(table[np.arange(len(chosen)), first + np.arange(len(chosen))].sum())
            for first in range(names - len(chosen) + 1)
        ]
        return int(np.argmax(agreement)) + np.arange(len(chosen))
    sizes = table.sum(axis=1)
    windows = [
        (int(sizes[first : first + names].sum()), int(np.trace(table[first : first + names])), -first)
        for first in range(len(chosen) - names + 1)
    ]
    places = np.arange(len(chosen)) + max(windows)[2]
    return np.where((places >= 0) & (places < names), places, -1)


def _counts(objects: NDArray[Any], votes: NDArray[Any]) -> NDArray[np.int64]:
    """How many voxels of each object the network gives to each class."""
    classes = int(votes.max(initial=0)) + 1
    pairs = np.bincount(
        objects.astype(np.int64) * classes + votes, minlength=(int(objects.max(initial=0)) + 1) * classes
    )
    return pairs.reshape(-1, classes)
