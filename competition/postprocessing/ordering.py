"""Assign classes to similar objects that lie in a row, such as vertebrae, by their order along the row.

"Row" means this sequence of objects in the patient; it has nothing to do with the rows of an array. "The network's
labels" are the most probable class of each voxel.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from competition.config.axes import case_axes
from competition.config.competition import Competition
from competition.config.postprocess import LabelOrdering
from competition.data.geometry import nonzero_box
from competition.data.readers import get_column, read_case_header
from competition.errors import MaskfoldError
from competition.metrics.instances import connected_components
from competition.postprocessing import mask_operations

if TYPE_CHECKING:
    from competition.runs.run import Run

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]
Floats = NDArray[Any]

# Index of the axis in world coordinates (RAS+), and sign, of each anatomical direction.
WORLD_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
# An object smaller than this share of the largest object is a fragment, unless `number.smallest` is set.
FRAGMENT_SHARE = 0.1
# A region of the network's labels and an object are treated as the same if their overlap (a share, or Dice) is at least
# this.
MIN_AGREEMENT = 0.8
DOUBLE_OBJECT_RATIO = 1.6  # an object larger than the median size times this may consist of two objects
LARGE_CLASS_RATIO = 1.3  # a class with two cores that is larger than the median size times this covers two objects
# A piece belongs to the object around it if more than this share of its voxel faces touches other parts of the row.
INSIDE_FACE_SHARE = 0.3
MIN_CLASS_SHARE = 0.25  # a class is one of the two in a double object if it has at least this share of the voxels


def relabel_by_order(
    probabilities: Floats, comp: Competition, number: LabelOrdering, affine: NDArray[np.float64]
) -> Floats:
    """Assign classes by position to objects that lie in a row, such as vertebrae, and return the new probabilities.

    A network is often sure that a voxel is in a vertebra, but not in which one. Therefore the probabilities of the
    classes are combined first: by their sum if classes are exclusive, by their maximum if classes overlap. If classes
    are exclusive, the combined mask contains the voxels whose combined probability exceeds the probability of every
    other channel. If classes overlap, it contains the voxels whose combined probability is above 0.5. `split_touching`
    splits the combined mask into objects.

    The objects then get the classes in order. The first class goes to the object at the end of the row that
    `number.along` names. Two situations need a rule:

    - There are more objects than classes: the classes go to those consecutive objects whose total size is largest. The
      other objects become background.
    - There are fewer objects than classes: the objects get consecutive classes. The first of these classes is chosen so
      that as many voxels as possible keep the network's label.

    Objects below the minimum size (see `_in_order`), and voxels outside the combined mask, keep their probabilities.

    Args:
        probabilities: (P, *spatial) floats.
        comp: the competition, which must have volumes.
        number: section `postprocess.number`: the classes in order, and the end of the row at which the first one lies.
        affine: 4×4 matrix from voxel indices to world coordinates (RAS+, mm).

    Returns:
        (P, *spatial) with the same dtype; a new array.
    """
    exclusive = comp.labels == "exclusive"
    channels = [comp.classes.index(name) + exclusive for name in number.classes]
    class_probabilities = probabilities[channels]
    if exclusive:
        total = class_probabilities.astype(np.float32).sum(axis=0).astype(class_probabilities.dtype)
        row = total > np.delete(probabilities, channels, axis=0).max(axis=0)
    else:
        total = class_probabilities.max(axis=0)
        row = total > 0.5
    result = np.array(probabilities)
    if not row.any():
        return result
    box = tuple(slice(*ends) for ends in nonzero_box(row[None]))
    total, votes = total[box], class_probabilities[(slice(None), *box)].argmax(axis=0)
    changed = result[(slice(None), *box)]  # this is a view of the result
    world, sign = WORLD_AXES[number.along]
    # For each voxel axis, how many mm one step moves towards the end that `number.along` names.
    upwards = sign * affine[world, :3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    objects = split_touching(np.ascontiguousarray(row[box]), votes, number.split, spacing, upwards)
    ordered = _in_order(objects, number, upwards)
    class_of = np.full(int(objects.max()) + 1, -2)  # class index of each object; -1: background, -2: unchanged
    class_of[ordered] = _class_indices(ordered, objects, votes, len(channels))
    new_class = class_of[objects]
    for index, channel in enumerate(channels):
        changed[channel][new_class >= -1] = 0
        np.copyto(changed[channel], total, where=new_class == index)
    if exclusive:
        changed[0][new_class == -1] += total[new_class == -1]
    return result


def case_affine(row: Any, comp: Competition) -> NDArray[np.float64]:
    """Return the 4×4 affine of the first image of a case, from voxel indices to world coordinates (RAS+, mm).

    Args:
        row: row of the case table, or an `InMemoryCase` of `competition.ensembling.ensemble`.
        comp: the competition.

    Raises:
        MaskfoldError: the file has no affine, or cannot be read.
    """
    if hasattr(row, "image"):  # an image in memory
        name, affine = row.id, row.image.affine
    else:
        name, first = get_column(row, "id"), next(iter(json.loads(get_column(row, "images")).values()))
        is_stack = not isinstance(first, str)  # files of slices do not have the affine of the volume
        affine = None if is_stack else read_case_header(comp, first, False, case_axes(comp, first)).affine
    if affine is None:
        raise MaskfoldError(
            f"`postprocess.number` requires the orientation of the patient, but case {name} has no affine.",
            "Use NIfTI images, or remove `postprocess.number`.",
        )
    return np.asarray(affine, np.float64)


def check_affine(run: Run) -> None:
    """Check before training that numbering has an affine, because it fails after training otherwise.

    Only the first case is checked, because all images of a competition usually have the same format.

    Raises:
        MaskfoldError: `postprocess.number` is set, and the first case has no affine.
    """
    if run.exp.postprocess.number is not None and len(run.cases):
        case_affine(run.cases.iloc[0], run.exp.competition)


def split_touching(
    row: Mask, votes: NDArray[Any], split: float | None, spacing: NDArray[np.float64], upwards: NDArray[np.float64]
) -> Labels:
    """Split the mask of objects in a row, such as vertebrae, into single objects, even where objects touch.

    Objects are found by their cores. The core of an object is its thick part: the voxels whose distance to the edge of
    the mask exceeds `split` times the maximum distance. Vertebrae that touch at their joints have one core each, the
    vertebral body. Each voxel is assigned to the core with the shortest path (in mm) inside the mask. Paths may cross
    edges and corners of voxels, because thin parts of a bone may be connected only there. Otherwise, the arch of a
    vertebra could be assigned to the next vertebra.

    Where the network's labels are reliable, they show the border between two objects better than the cores:

    - If all labels are reliable (`_objects_by_votes`), they define the objects.
    - Otherwise, the labels define those objects on which labels and cores nearly agree, and the cores define the
      other objects. If an object is larger than 1.6 times the median size, the labels then split it.

    A voxel that no path connects to a core is assigned to the nearest object.

    Args:
        row: (*spatial) bool mask of all objects in the row, e.g. of all vertebrae.
        votes: (*spatial) integers, the network's labels: index of the most probable class at each voxel.
        split: minimum thickness of a core, as a share of the maximum thickness; None to use connected components as
            objects.
        spacing: voxel size in mm along each axis.
        upwards: (3,) mm, one value per voxel axis: how far one step along the axis moves towards the end of the row at
            which the first class lies.

    Returns:
        (*spatial) int32 label image. Objects are numbered from 1; some numbers may be unused. A voxel is 0 if it is
        outside the mask, or if its nearest object is farther away than twice the maximum thickness.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    if split is None:
        return connected_components(row).astype(np.int32)
    height = distance_transform_edt(np.pad(row, 1), sampling=spacing)[(slice(1, -1),) * row.ndim]
    smooth = gaussian_filter(height, spacing.min() / spacing) * row
    cores = connected_components(smooth > split * smooth.max()).astype(np.int32)
    cores = np.asarray(
        mask_operations.remove_small_objects(cores, int(FRAGMENT_SHARE * np.bincount(cores[cores != 0]).max())),
        np.int32,
    )
    labels = _grow(cores, row, spacing)
    by_votes = _objects_by_votes(row, votes, cores, labels, upwards)
    if by_votes is not None:
        labels = _grow(by_votes, row, spacing)
    else:
        labels = _grow(_reliable_seeds(row, votes, cores, labels, spacing), row, spacing)
        _split_large(labels, votes)
    if (row & (labels == 0)).any():
        distance, nearest = distance_transform_edt(labels == 0, sampling=spacing, return_indices=True)
        labels = np.where(row & (distance <= 2 * height.max()), labels[tuple(nearest)], 0)
    return labels


def _grow(seeds: Labels, mask: Mask, spacing: NDArray[np.float64]) -> Labels:
    """Assign each voxel of a mask to the seed with the shortest path (in mm) inside the mask; 0 if there is no path.

    Args:
        seeds: (*spatial) int32 numbers of the seeds, 0 elsewhere.
        mask: (*spatial) bool.
        spacing: voxel size in mm along each axis.
    """
    from skimage.graph import MCP_Geometric

    if not (mask & (seeds == 0)).any() or not (seeds * mask).any():
        return np.asarray(seeds * mask, np.int32)
    paths = MCP_Geometric(np.where(mask, 1.0, np.inf), sampling=tuple(spacing))
    _, traceback = paths.find_costs(np.argwhere(seeds * mask))
    strides = np.array([int(np.prod(mask.shape[axis + 1 :])) for axis in range(mask.ndim)])
    jumps = np.append(np.asarray(paths.offsets) @ strides, [0, 0])  # -1: a seed, -2: no path
    origin = np.arange(mask.size) - jumps[traceback.ravel()]
    while not np.array_equal(earlier := origin[origin], origin):  # each round doubles the length of the jumps
        origin = earlier
    return np.asarray((seeds * mask).ravel()[origin].reshape(mask.shape), np.int32)


def _reliable_seeds(
    row: Mask, votes: NDArray[Any], cores: Labels, labels: Labels, spacing: NDArray[np.float64]
) -> Labels:
    """Return a seed for each object: a region of the network's labels, or the object that grew from its core.

    The region of a core consists of the voxels around the core that have the core's most frequent label. If the region
    nearly agrees with the object that grew from the core, the labels are reliable, and the region becomes the seed.
    Otherwise, the object itself is the seed.

    Args:
        row: (*spatial) bool mask of all objects in the row, e.g. of all vertebrae.
        votes: (*spatial) integers, the network's labels.
        cores: (*spatial) int32 numbers of the cores.
        labels: (*spatial) int32, the objects that grew from the cores.
        spacing: voxel size in mm along each axis.
    """
    table = _counts(cores.ravel(), votes.ravel())
    own = np.where(table.argmax(axis=1)[cores] == votes, cores, 0)
    by_votes = np.zeros_like(cores)
    for cls in np.unique(votes[own != 0]):
        class_mask = row & (votes == cls)
        by_votes += _grow(np.where(class_mask, own, 0), class_mask, spacing)
    count = int(labels.max()) + 1
    both = np.bincount(labels[(labels == by_votes) & row], minlength=count)
    sizes = np.bincount(labels[row], minlength=count) + np.bincount(by_votes[row], minlength=count)
    agrees = 2 * both >= MIN_AGREEMENT * sizes
    seeds = np.where(agrees[by_votes], by_votes, 0)
    return np.where((seeds == 0) & ~agrees[labels], labels, seeds)


def _objects_by_votes(
    row: Mask, votes: NDArray[Any], cores: Labels, labels: Labels, upwards: NDArray[np.float64]
) -> Labels | None:
    """Return the objects that the network's labels define; None if the labels are unreliable.

    The labels are reliable if they contain at least two large classes, and if these conditions hold:

    - Nearly all voxels of each large class are in one connected piece.
    - No class is much larger than the median object.
    - Nearly all voxels of each core have the same class. This condition does not apply to the core of an object
      that is as large as two objects.

    The largest piece of each large class keeps its class. A smaller piece keeps its class if it contains no core, is
    not surrounded by other pieces, and is at the right position in the row. All other pieces become 0, so that the
    caller assigns them to the objects around them.

    Args:
        row: (*spatial) bool mask of all objects in the row, e.g. of all vertebrae.
        votes: (*spatial) integers, the network's labels.
        cores: (*spatial) int32 numbers of the cores.
        labels: (*spatial) int32, the objects that grew from the cores.
        upwards: (3,) mm, one value per voxel axis: how far one step along the axis moves towards the end of the row at
            which the first class lies.

    Returns:
        (*spatial) int32: index of the class plus 1, or 0.
    """
    sizes = np.bincount(votes[row])
    main_classes = np.flatnonzero(sizes >= FRAGMENT_SHARE * sizes.max())
    pieces, classes = _pieces(row, votes)
    extents = np.bincount(pieces[row], minlength=len(classes))
    main = {int(cls): int(np.argmax(np.where(classes == cls, extents, 0))) for cls in main_classes}
    objects = np.bincount(labels[labels != 0])
    median = np.sort(objects[objects > 0])[(np.count_nonzero(objects) - 1) // 2]
    numbers = np.unique(cores[cores != 0])
    table = _counts(cores[cores != 0], votes[cores != 0])[numbers]
    mixed = (table.max(axis=1) < MIN_AGREEMENT * table.sum(axis=1)) & (objects[numbers] <= DOUBLE_OBJECT_RATIO * median)
    owned = np.bincount(table.argmax(axis=1), minlength=len(sizes))
    if (
        len(main_classes) < 2
        or mixed.any()
        or any(
            extents[piece] < MIN_AGREEMENT * sizes[cls]
            or sizes[cls] > (LARGE_CLASS_RATIO if owned[cls] > 1 else DOUBLE_OBJECT_RATIO) * median
            for cls, piece in main.items()
        )
    ):
        return None
    heights = _heights(pieces, upwards)
    main_heights = np.array([heights[piece] for piece in main.values()])
    keep = ~_inside_row(pieces, row) & (np.bincount(pieces[row], cores[row] != 0, minlength=len(classes)) == 0)
    for piece in np.flatnonzero(keep):
        # Keep a piece if no other object has its middle between the piece and the largest piece of the same class.
        if classes[piece] in main:
            low, high = sorted((heights[piece], heights[main[int(classes[piece])]]))
            keep[piece] = not ((main_heights > low) & (main_heights < high)).any()
        else:  # keep a class that is small, e.g. cut off by the image border, if its position fits the order of classes
            keep[piece] = bool(((main_classes < classes[piece]) == (main_heights > heights[piece])).all())
    keep[list(main.values())] = True
    keep[0] = False
    return np.where(keep[pieces], votes + 1, 0).astype(np.int32)


def _pieces(row: Mask, votes: NDArray[Any]) -> tuple[Labels, NDArray[np.int64]]:
    """Split the row of objects into pieces: connected components of voxels with the same label of the network.

    Args:
        row: (*spatial) bool mask of all objects in the row, e.g. of all vertebrae.
        votes: (*spatial) integers, the network's labels.

    Returns:
        (*spatial) int32 label image of the pieces, numbered from 1; and an array whose element `n` is the class index
        of piece `n`. Its element 0 is -1.
    """
    pieces, classes = np.zeros(row.shape, np.int32), [np.array([-1])]
    for cls in np.unique(votes[row]):
        found = connected_components(row & (votes == cls)).astype(np.int32)
        pieces += np.where(found > 0, found + sum(map(len, classes)) - 1, 0).astype(np.int32)
        classes.append(np.full(int(found.max()), cls))
    return pieces, np.concatenate(classes)


def _inside_row(pieces: Labels, row: Mask) -> Mask:
    """Return, for each piece, whether a large share of its surface borders on other pieces rather than on background.

    Args:
        pieces: (*spatial) int32 numbers of the pieces.
        row: (*spatial) bool mask of all objects in the row, e.g. of all vertebrae.

    Returns:
        (largest number + 1,) bool. Element `n` is for piece `n`.
    """
    faces = np.zeros((2, int(pieces.max()) + 1), np.int64)
    for axis in range(row.ndim):
        for first, second in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            here, there = ((slice(None),) * axis + (side,) for side in (first, second))
            surface = pieces[here] != pieces[there]
            for index, inside in enumerate((~row[there], row[there])):
                faces[index] += np.bincount(pieces[here][surface & inside], minlength=faces.shape[1])
    return np.asarray(faces[1] > INSIDE_FACE_SHARE * faces.sum(axis=0))


def _split_large(labels: Labels, votes: NDArray[Any]) -> None:
    """Split, in place, the objects in `labels` that are much larger than the median object.

    The network's labels `votes` define the parts: each frequent class in such an object becomes an object of its own.
    """
    sizes = np.bincount(labels[labels != 0])
    median = np.sort(sizes[sizes > 0])[(np.count_nonzero(sizes) - 1) // 2]
    for large in np.flatnonzero(sizes > DOUBLE_OBJECT_RATIO * median):
        inside = labels == large
        shares = np.bincount(votes[inside]) / sizes[large]
        present = np.flatnonzero(shares >= MIN_CLASS_SHARE)
        for cls in present[present != shares.argmax()]:
            labels[inside & (votes == cls)] = labels.max() + 1


def _in_order(objects: Labels, number: LabelOrdering, upwards: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the numbers of the objects in their order along the row, starting at the end with the first class.

    Objects that are smaller than the minimum size are left out.

    Args:
        objects: (*spatial) label image of the objects.
        number: section `postprocess.number`.
        upwards: (3,) mm, one value per voxel axis: how far one step along the axis moves towards the end of the row at
            which the first class lies.
    """
    inside = objects != 0
    sizes = np.bincount(objects[inside])
    smallest = number.smallest if number.smallest is not None else FRAGMENT_SHARE * sizes.max()
    positions = _heights(objects, upwards)
    selected = np.flatnonzero((sizes >= smallest) & (sizes > 0))
    return np.asarray(selected[np.argsort(-positions[selected], kind="stable")], np.int64)


def _heights(objects: Labels, upwards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean position of each object along the row of objects, in mm.

    Args:
        objects: (*spatial) label image of the objects.
        upwards: (3,) mm, one value per voxel axis: how far one step along the axis moves towards the end of the row at
            which the first class lies.

    Returns:
        (largest number + 1,) float64. Element `n` is the position of object `n`; 0 if no object has the number `n`.
    """
    inside = objects != 0
    found = objects[inside]
    return np.asarray(np.bincount(found, np.argwhere(inside) @ upwards) / np.maximum(np.bincount(found), 1), np.float64)


def _class_indices(
    ordered: NDArray[np.int64], objects: Labels, votes: NDArray[Any], class_count: int
) -> NDArray[np.int64]:
    """Return the class index of each object; -1 for an object that gets no class and becomes background.

    Args:
        ordered: numbers of the objects in their order along the row.
        objects: (*spatial) int32 label image of the objects.
        votes: (*spatial) integers, the network's labels.
        class_count: number of classes.
    """
    inside = objects != 0
    table = np.zeros((int(objects.max()) + 1, class_count), np.int64)
    counts = _counts(objects[inside], votes[inside])
    table[:, : counts.shape[1]] = counts
    table = table[ordered]
    if len(ordered) <= class_count:
        agreement = [
            int(table[np.arange(len(ordered)), first + np.arange(len(ordered))].sum())
            for first in range(class_count - len(ordered) + 1)
        ]
        return int(np.argmax(agreement)) + np.arange(len(ordered))
    sizes = table.sum(axis=1)
    windows = [
        (int(sizes[first : first + class_count].sum()), int(np.trace(table[first : first + class_count])), -first)
        for first in range(len(ordered) - class_count + 1)
    ]
    indices = np.arange(len(ordered)) + max(windows)[2]
    return np.where((indices >= 0) & (indices < class_count), indices, -1)


def _counts(objects: NDArray[Any], votes: NDArray[Any]) -> NDArray[np.int64]:
    """Return an array (objects, classes): how many voxels of each object have each of the network's labels."""
    classes = int(votes.max(initial=0)) + 1
    pairs = np.bincount(
        objects.astype(np.int64) * classes + votes, minlength=(int(objects.max(initial=0)) + 1) * classes
    )
    return pairs.reshape(-1, classes)
