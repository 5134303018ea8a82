"""Hold the numbered objects of a case, and derive the pixels of their boundaries and rings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


class HiddenPixels(NamedTuple):
    """Hold the pixels in which one object is covered by a later object in a label image.

    Attributes:
        number: number of the covered object. Several `HiddenPixels` may belong to the same object.
        box: region of the case that contains the pixels, one slice per axis.
        mask: the covered pixels in the region, bool of the region's shape.
    """

    number: int
    box: tuple[slice, ...]
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class CaseObjects:
    """Hold the numbered objects of a case, which may share pixels.

    Attributes:
        labels: (*spatial) integers: 0 for background, 1 to N for the objects. Where two objects overlap, the value is
            the number of the later object.
        hidden: pixels in which a later object covers an earlier object; empty if no objects overlap.
        class_of: (N + 1,) integers, the class index of each object number. None means that all objects have one class.
        empty: number of mask files (or rows of run lengths) that have no pixels. For label files, this is the number
            of classes without pixels.
    """

    labels: np.ndarray
    hidden: tuple[HiddenPixels, ...] = ()
    class_of: np.ndarray | None = None
    empty: int = 0

    def any(self) -> bool:
        """Return whether the case has at least one object."""
        return bool(self.labels.any()) or bool(self.hidden)

    def of_class(self, mask: np.ndarray, index: int) -> CaseObjects:
        """Return the objects of one class.

        Args:
            mask: (*spatial) bool, the mask of the class. Pixels of objects outside the mask are removed.
            index: index of the class, counted from 0.
        """
        labels = np.where(mask, self.labels, 0)
        if not self.hidden:
            return CaseObjects(labels)
        hidden = self.hidden
        if self.class_of is not None:
            labels[self.class_of[labels] != index] = 0
            hidden = tuple(part for part in hidden if self.class_of[part.number] == index)
        cut = (part._replace(mask=part.mask & mask[part.box]) for part in hidden)
        return CaseObjects(labels, tuple(part for part in cut if part.mask.any()))

    def without(self, outside: np.ndarray) -> CaseObjects:
        """Return the objects without the pixels of a mask; the objects keep their numbers.

        Args:
            outside: (*spatial) bool, the pixels to remove.
        """
        cut = (part._replace(mask=part.mask & ~outside[part.box]) for part in self.hidden)
        return replace(
            self, labels=np.where(outside, 0, self.labels), hidden=tuple(part for part in cut if part.mask.any())
        )

    def mask_in(self, box: tuple[slice, ...], number: int) -> np.ndarray:
        """Return the pixels of object number `number` inside the region `box`, as bool of the region's shape."""
        mask = self.labels[box] == number
        for part in self.hidden:
            if part.number == number:
                inside, source = shared_region(box, part.box)
                mask[inside] |= part.mask[source]
        return np.asarray(mask)

    def sizes(self) -> np.ndarray:
        """Return the number of pixels of each object, in order of the objects' numbers, as int64 (n,).

        Objects without pixels are left out.
        """
        counts = np.bincount(self.labels.ravel().astype(np.int64))
        for part in self.hidden:
            if part.number >= len(counts):
                counts = np.pad(counts, (0, part.number + 1 - len(counts)))
            counts[part.number] += np.count_nonzero(part.mask)
        return counts[1:][counts[1:] > 0]


def find_covered(labels: np.ndarray, mask: np.ndarray) -> Iterator[HiddenPixels]:
    """Yield, for each object in a label image, its pixels inside a mask.

    The mask belongs to a later object, which will cover these pixels in the label image.

    Args:
        labels: (*spatial) integers, the objects so far; 0 for background.
        mask: (*spatial) bool, with at least one True.
    """
    box = bounding_box(mask)
    covered = np.where(mask[box], labels[box], 0)
    for number in np.unique(covered[covered != 0]).tolist():
        yield crop_hidden(number, covered == number, box)


def crop_hidden(number: int, mask: np.ndarray, box: tuple[slice, ...] | None = None) -> HiddenPixels:
    """Return the covered pixels of an object, cropped to their bounding box.

    Args:
        number: number of the object.
        mask: bool array of the covered pixels, with at least one True.
        box: region of the case that the mask covers; None means the whole case.
    """
    inner = bounding_box(mask)
    starts = [0] * mask.ndim if box is None else [axis.start for axis in box]
    outer = tuple(slice(start + axis.start, start + axis.stop) for start, axis in zip(starts, inner, strict=True))
    return HiddenPixels(number, outer, mask[inner].copy())


def hidden_at(number: int, coordinates: tuple[np.ndarray, ...]) -> HiddenPixels:
    """Return the covered pixels of an object from their coordinates.

    Args:
        number: number of the object.
        coordinates: one array per axis, each with one entry per pixel; at least one pixel.
    """
    box = tuple(slice(int(values.min()), int(values.max()) + 1) for values in coordinates)
    mask = np.zeros([axis.stop - axis.start for axis in box], bool)
    mask[tuple(values - axis.start for values, axis in zip(coordinates, box, strict=True))] = True
    return HiddenPixels(number, box, mask)


def shared_region(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the region that two boxes share, as slices into each box; empty slices if the boxes do not overlap."""
    inside: tuple[list[slice], list[slice]] = ([], [])
    for one, other in zip(first, second, strict=True):
        low = max(one.start, other.start)
        high = max(low, min(one.stop, other.stop))
        for slices, axis in zip(inside, (one, other), strict=True):
            slices.append(slice(low - axis.start, high - axis.start))
    return tuple(inside[0]), tuple(inside[1])


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around the pixels of a mask; the mask must not be empty."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def boundary_mask(objects: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of each object that are at most `width` pixels from another object or from the background.

    The boundary of a small object is thinner or absent, so that some pixels of the object keep their class. Where the
    image ends, an object has no boundary. The boundary class was proposed by Caicedo et al., "Nucleus segmentation
    across imaging experiments", Nature Methods 2019.

    Args:
        objects: (*spatial) integers, 0 for background.
        width: width in pixels, along the axes and diagonals.

    Returns:
        (*spatial) bool.
    """
    edge = np.zeros(objects.shape, np.bool_)
    remaining = objects != 0
    highest = int(objects.max(initial=0))
    for thickness in range(width, 0, -1):
        near_border = remaining & _has_neighbour(objects, thickness, highest)
        has_inside = np.zeros(highest + 1, np.bool_)
        has_inside[objects[remaining & ~near_border]] = True
        finished = has_inside[objects] & remaining
        edge |= near_border & finished
        remaining &= ~finished
        if not remaining.any():
            break
    return edge


def ring_mask(objects: np.ndarray, rings: int) -> np.ndarray:
    """Divide each object into rings from its edge to its centre, and return the ring number of each pixel.

    The depth of a pixel is its distance to the nearest pixel outside its object, divided by the largest such distance
    in the object. Each ring covers an equal range of depths, so even the smallest object has pixels of the innermost
    ring. Pixels beyond the image do not count as outside the object. Depth levels as classes were proposed by Bai and
    Urtasun, "Deep Watershed Transform for Instance Segmentation", CVPR 2017.

    Args:
        objects: (*spatial) integers, 0 for background.
        rings: number of rings R.

    Returns:
        (*spatial) uint8: 0 for background, 1 for the outermost to R for the innermost ring.
    """
    from scipy.ndimage import find_objects

    result = np.zeros(objects.shape, np.uint8)
    for number, box in enumerate(find_objects(objects), start=1):
        if box is None:
            continue
        wider = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        inside = objects[wider] == number
        distance = _edge_distance(inside)
        depth = np.ceil(distance * (rings / distance.max()) - 1e-4)
        result[wider][inside] = np.clip(depth, 1, rings)[inside]
    return result


def _edge_distance(inside: np.ndarray) -> np.ndarray:
    """Return the distance (*spatial) of each pixel of a mask to the nearest pixel outside the mask.

    If no pixel is outside the mask, all distances are 1.
    """
    if inside.all():
        return np.ones(inside.shape)
    if inside.ndim == 2:
        import cv2

        return np.asarray(cv2.distanceTransform(inside.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(inside))


def _has_neighbour(objects: np.ndarray, radius: int, highest: int) -> np.ndarray:
    """Return a mask (*spatial) of the pixels that have another pixel with a different number nearby.

    Args:
        objects: (*spatial) integers.
        radius: largest distance at which the other pixel counts as nearby, in pixels along each axis (a square or
            cube).
        highest: the largest number in `objects`.
    """
    size = 2 * radius + 1
    if objects.ndim == 2 and objects.size and highest < 2**24:  # float32 is exact here, and much faster
        import cv2

        numbers, square = np.ascontiguousarray(objects, np.float32), np.ones((size, size), np.uint8)
        return np.asarray(cv2.dilate(numbers, square) != cv2.erode(numbers, square))
    from scipy.ndimage import maximum_filter, minimum_filter

    return np.asarray(maximum_filter(objects, size, mode="nearest") != minimum_filter(objects, size, mode="nearest"))
