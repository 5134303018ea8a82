"""Read the ground truth of a case: class masks, objects, boundaries, and the masks of other competitions' cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from competition import large_arrays
from competition.config.axes import rle_counts_in_pictures
from competition.config.competition import Competition
from competition.data.content.open_once import file_below
from competition.data.readers import display_name, extension_of, get_column, get_json, read_case_labels, row_axes
from competition.data.rle_tables import rle_format, rle_grid, row_texts, rows_are_parts
from competition.errors import MaskfoldError
from competition.rle import RleError, decode, decode_overlapping_labels
from competition.text import format_count

IGNORED = 255
MAX_TRANSLATED = 2**22  # voxels of 8 bits whose values are replaced all at once, which needs two copies


class HiddenPixels(NamedTuple):
    """Hold the pixels of an object that a later object covers in a label image.

    Attributes:
        number: number of the object; several entries may have the same number.
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
        hidden: pixels of objects that a later object covers; empty if no objects overlap.
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
            index: the class, from 0.
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


def load_mask(comp: Competition, row: Any) -> np.ndarray:
    """Read the ground truth of a training case as class masks.

    Args:
        comp: the competition.
        row: a row of the case table.

    Returns:
        (M, *spatial) uint8. Exclusive classes: M = 1; 0 is background, 1 to K are the classes in order, and 255 is
        ignored. Overlapping classes: M = K; each channel has the values 0 and 1, and 255 where it is ignored.

    Raises:
        MaskfoldError: a file or row cannot be read, has a value without a class, or assigns a pixel to two exclusive
            classes.
        ValueError: the row is a test case, which has no ground truth.
    """
    masks, shape = _mask_sources(row), tuple(get_json(row, "shape"))
    mask = _load_truth(comp, row, masks, shape)
    if (outside := _outside_region(comp, row, masks, shape)) is not None:
        mask[:, outside] = IGNORED
    return mask


def _load_truth(comp: Competition, row: Any, masks: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Read the mask (M, *spatial) uint8, without applying `train.region`."""
    if masks["kind"] == "labels":
        name = display_name(masks["files"])
        labels = _read_label_file(comp, masks["files"], shape, get_column(row, "id"), row_axes(comp, row))
        if comp.train.threshold is not None:
            labels = _apply_threshold(labels, comp.train.threshold, comp.class_values[0][0])
        return _labels_to_mask(labels, file_below(comp.root, name), comp)
    class_masks = large_arrays.zeros((len(comp.classes), *shape), bool)
    ignored = large_arrays.zeros(shape, bool)
    for part in _parts(comp, row, masks, shape):
        class_masks[(comp.classes.index(part.cls), *part.where)] |= part.objects != 0
        if part.ignored is not None:
            ignored |= part.ignored
    return _merge_classes(comp, get_column(row, "id"), class_masks, ignored)


def load_instances(comp: Competition, row: Any) -> np.ndarray:
    """Number the objects of a training case in a label image.

    A pixel that belongs to two objects gets the number of the later object.

    Args:
        comp: the competition.
        row: a row of the case table.

    Returns:
        (*spatial) int32: 0 background, 1…N the objects.

    Raises:
        MaskfoldError: as for `load_mask`.
    """
    return load_objects(comp, row).labels


def load_objects(comp: Competition, row: Any) -> CaseObjects:
    """Number the objects of a training case, each with all its pixels.

    Each row of run lengths is an object. If the profile says that rows are parts of one mask, all rows of a class are
    one object. Each file in a folder of instances is an object. With `train.object_numbers`, each value of a label file
    is an object. In other label files an object is a connected component of a class (8 neighbours in 2D, 26 in 3D). If
    the only class has several values, all pixels of a component have the same value.

    Args:
        comp: the competition.
        row: a row of the case table.

    Returns:
        The objects; `labels` is int32.

    Raises:
        MaskfoldError: as for `load_mask`.
    """
    masks, shape = _mask_sources(row), tuple(get_json(row, "shape"))
    canvas = _Canvas(np.zeros(shape, np.int32))
    if masks["kind"] in ("labels", "classes"):
        import cc3d

        truth = load_mask(comp, row)
        for index, name in enumerate(comp.classes):
            mask = truth[0] == index + 1 if comp.labels == "exclusive" else truth[index] == 1
            numbers = mask.view(np.uint8)
            if masks["kind"] == "labels" and comp.values_separate_objects:
                numbers = _number_values(comp, row, masks, mask)
                if comp.train.object_numbers:
                    canvas.add(comp, _Part(name, numbers))
                    continue
            # As uint8, because cc3d 4.1 returns wrong labels for some boolean arrays.
            components = cc3d.connected_components(numbers, connectivity=8 if mask.ndim == 2 else 26)
            canvas.add(comp, _Part(name, components.astype(np.int32, copy=False)))
        return canvas.objects()
    for part in _parts(comp, row, masks, shape):
        canvas.add(comp, part)
    objects = canvas.objects()
    outside = _outside_region(comp, row, masks, shape)
    return objects if outside is None else objects.without(outside)


def _number_values(comp: Competition, row: Any, masks: dict[str, Any], mask: np.ndarray) -> np.ndarray:
    """Number the values that a case's label file has inside a mask, in ascending order.

    Args:
        comp: the competition.
        row: a row of the case table.
        masks: the sources of the row's truth, of the kind `labels`.
        mask: (*spatial) bool.

    Returns:
        (*spatial) int32: 0 outside the mask, and 1…N inside.
    """
    labels = _read_label_file(comp, masks["files"], mask.shape, get_column(row, "id"), row_axes(comp, row))
    numbers = np.zeros(mask.shape, np.int32)
    numbers[mask] = np.unique(labels[mask], return_inverse=True)[1].reshape(-1) + 1
    return numbers


class _Canvas:
    """Collect objects in a label image, together with the pixels that later objects cover."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels
        self.hidden: list[HiddenPixels] = []
        self.class_of = [-1]
        self.empty = 0

    def add(self, comp: Competition, part: _Part) -> None:
        """Add the objects of a mask file or table row, numbered from the next free number."""
        region, is_object, count = self.labels[part.where], part.objects != 0, len(self.class_of) - 1
        if region[is_object].any():
            self.hidden += map(part.place, find_covered(region, is_object))
        region[is_object] = part.objects[is_object].astype(np.int32) + count
        number = max(int(part.objects.max(initial=0)), *(0, *(hidden.number for hidden in part.hidden)))
        self.hidden += [part.place(hidden._replace(number=hidden.number + count)) for hidden in part.hidden]
        self.class_of += [comp.classes.index(part.cls)] * number
        self.empty += number == 0

    def objects(self) -> CaseObjects:
        """Return all objects that were added."""
        return CaseObjects(self.labels, tuple(self.hidden), np.array(self.class_of, np.intp), self.empty)


def find_covered(labels: np.ndarray, mask: np.ndarray) -> Iterator[HiddenPixels]:
    """Yield, for each object in a label image, its pixels inside a mask.

    The mask belongs to a later object, which will cover these pixels in the label image.
    """
    box = bounding_box(mask)
    covered = np.where(mask[box], labels[box], 0)
    for number in np.unique(covered[covered != 0]).tolist():
        yield crop_hidden(number, covered == number, box)


def shared_region(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the region that two boxes share, as slices into each box; empty slices if the boxes do not overlap."""
    inside: tuple[list[slice], list[slice]] = ([], [])
    for one, other in zip(first, second, strict=True):
        low = max(one.start, other.start)
        high = max(low, min(one.stop, other.stop))
        for slices, axis in zip(inside, (one, other), strict=True):
            slices.append(slice(low - axis.start, high - axis.start))
    return tuple(inside[0]), tuple(inside[1])


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


def _hidden_at(number: int, coordinates: tuple[np.ndarray, ...]) -> HiddenPixels:
    """Return the covered pixels of an object from their coordinates.

    Args:
        number: number of the object.
        coordinates: one array per axis, each with one entry per pixel; at least one pixel.
    """
    box = tuple(slice(int(values.min()), int(values.max()) + 1) for values in coordinates)
    mask = np.zeros([axis.stop - axis.start for axis in box], bool)
    mask[tuple(values - axis.start for values, axis in zip(coordinates, box, strict=True))] = True
    return HiddenPixels(number, box, mask)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around the pixels of a mask; the mask must not be empty."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def load_relabelled_mask(source: Competition, row: Any, target: Competition, mapping: dict[str, str]) -> np.ndarray:
    """Read the mask of another competition's case (the source) in the classes of the trained one (the target).

    Source classes without a mapping become background. A target class is unknown if no source class maps to it. For
    overlapping classes, the mask of an unknown class is 255 everywhere. For exclusive classes, 255 replaces the
    background if any class is unknown.

    Args:
        source: the other competition.
        row: a row of the source's case table.
        target: the competition that is trained.
        mapping: source class to target class.

    Returns:
        (M, *spatial) uint8 in the target's classes, as from `load_mask`; 255 where the class is unknown.

    Raises:
        MaskfoldError: the ground truth cannot be read, or a voxel maps to two exclusive classes.
    """
    mask = load_mask(source, row)
    ignored = (mask == IGNORED).any(axis=0)
    planes = {name: np.zeros(mask.shape[1:], bool) for name in target.classes if name in mapping.values()}
    for index, name in enumerate(source.classes):
        if name in mapping:
            planes[mapping[name]] |= mask[0] == index + 1 if source.labels == "exclusive" else mask[index] == 1
    if target.labels == "overlapping":
        unknown = np.full(mask.shape[1:], IGNORED, np.uint8)
        result = np.stack([planes[name].astype(np.uint8) if name in planes else unknown for name in target.classes])
        result[:, ignored] = IGNORED
        return result
    overlap = int(np.count_nonzero(np.sum(list(planes.values()), axis=0) > 1))
    if overlap:
        raise MaskfoldError(
            f"Case {row.id} of {source.name} has {format_count(overlap, 'voxel')} with two classes of this "
            "competition by extra.classes, but competition.labels is exclusive.",
            "In extra.classes, map one of the two classes to null.",
            status=2,
        )
    single = np.full(mask.shape[1:], 0 if len(planes) == len(target.classes) else IGNORED, np.uint8)
    for number, name in enumerate(target.classes, start=1):
        if name in planes:
            single[planes[name]] = number
    single[ignored] = IGNORED
    return single[None]


def boundary_mask(objects: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of each object that are at most `width` pixels from another object or from the background.

    The boundary of a small object is thinner or absent, so that some pixels of the object keep their class. Pixels at
    the edge of the image are not boundary pixels for this reason alone. The boundary class was proposed by Caicedo et
    al., "Nucleus segmentation across imaging experiments", Nature Methods 2019.

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
    ring. The edge of the image is not treated as outside of the object. Depth levels as classes were proposed by Bai
    and Urtasun, "Deep Watershed Transform for Instance Segmentation", CVPR 2017.

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
    """Return a mask (*spatial) of the pixels that have a pixel with another number near them.

    Args:
        objects: (*spatial) integers.
        radius: largest distance of the other pixel, in pixels along each axis (a square or cube).
        highest: the largest number in `objects`.
    """
    size = 2 * radius + 1
    if objects.ndim == 2 and objects.size and highest < 2**24:  # float32 is exact here, and much faster
        import cv2

        numbers, square = np.ascontiguousarray(objects, np.float32), np.ones((size, size), np.uint8)
        return np.asarray(cv2.dilate(numbers, square) != cv2.erode(numbers, square))
    from scipy.ndimage import maximum_filter, minimum_filter

    return np.asarray(maximum_filter(objects, size, mode="nearest") != minimum_filter(objects, size, mode="nearest"))


# Files and table rows of a case


def _mask_sources(row: Any) -> dict[str, Any]:
    masks = get_json(row, "masks")
    if masks is None:
        raise ValueError(f"{get_column(row, 'id')} is a test case, which has no ground truth")
    sources: dict[str, Any] = masks
    return sources


@dataclass(frozen=True, eq=False)
class _Part:
    """Hold the objects of one class that come from one mask file, or from the rows of one slice.

    Attributes:
        cls: name of the class.
        objects: integers 1 to n for the objects, and 0 elsewhere.
        where: index of the region of the case that `objects` covers: the whole case, or one slice of it.
        ignored: mask of the ignored pixels; None if there are none.
        hidden: pixels that later objects of this part cover, in coordinates of the region.
    """

    cls: str
    objects: np.ndarray
    where: tuple[Any, ...] = (...,)
    ignored: np.ndarray | None = None
    hidden: tuple[HiddenPixels, ...] = ()

    def place(self, hidden: HiddenPixels) -> HiddenPixels:
        """Convert covered pixels from coordinates of the part's region to coordinates of the case."""
        if len(self.where) == 1:
            return hidden
        index = self.where[1]  # a slice of a stack, along the last axis
        return hidden._replace(box=(*hidden.box, slice(index, index + 1)), mask=hidden.mask[..., None])


def _parts(comp: Competition, row: Any, masks: dict[str, Any], shape: tuple[int, ...]) -> Iterator[_Part]:
    """Yield the objects of each mask file, or of each class and slice in a table of run lengths."""
    if masks["kind"] == "rle":
        lines_of: dict[tuple[str, int | None], list[int]] = {}
        for line, cls, index in masks["rows"]:
            lines_of.setdefault((cls, index), []).append(line)
        for (cls, index), lines in lines_of.items():
            if index is None:
                objects, hidden = _decode_rows(comp, get_column(row, "id"), lines, shape)
                yield _Part(cls, objects, hidden=hidden)
            else:
                objects, hidden = _decode_rows(comp, get_column(row, "id"), lines, shape[:-1])
                yield _Part(cls, objects, (..., index), hidden=hidden)
        return
    for cls, files in masks["files"].items():
        for item in files if masks["kind"] == "instances" else [files]:
            labels = _read_label_file(comp, item, shape, get_column(row, "id"), row_axes(comp, row))
            if comp.train.threshold is not None:
                labels = labels >= comp.train.threshold
            ignored = None if comp.ignore is None else labels == comp.ignore
            mask = labels != 0 if ignored is None else (labels != 0) & ~ignored
            _check_binary(Path(comp.root) / display_name(item), labels[mask], cls)
            yield _Part(cls, mask.view(np.uint8), ignored=ignored)


def _decode_rows(
    comp: Competition, case_id: str, lines: list[int], shape: tuple[int, ...]
) -> tuple[np.ndarray, tuple[HiddenPixels, ...]]:
    """Decode lines of `train.rle` to a label image on the case's axes, and return the covered pixels too.

    Args:
        comp: the competition.
        case_id: id of the case, for messages.
        lines: lines of the table.
        shape: shape of the case, or of one slice.

    Returns:
        The label image (*shape), and the pixels of objects that later objects cover.

    Raises:
        MaskfoldError: a text is not valid RLE.
    """
    texts, fmt = row_texts(comp, lines), rle_format(comp)
    grid = rle_grid(comp) if len(shape) == 2 else None
    in_pictures = len(shape) == 2 and rle_counts_in_pictures(comp)
    shape = shape[::-1] if in_pictures else shape
    try:
        objects, covered = decode_overlapping_labels(texts, grid or shape, fmt)
    except RleError:
        # Decoding all rows at once is fast. After an error, the rows are decoded one by one to find the line.
        for line, text in zip(lines, texts, strict=True):
            try:
                decode(text, grid or shape, fmt)
            except RleError as error:
                raise MaskfoldError(
                    f"{Path(comp.root) / str(comp.train.rle)}, line {line}, id {case_id}: {error.message}",
                    f"{error.hint.rstrip('.')}; the format is set by train.rle_format in the competition's YAML, else "
                    "by submission.profile, else by submission.rle.",
                ) from error
        raise
    if rows_are_parts(comp):
        objects, covered = (objects != 0).view(np.uint8), {}
    hidden = []
    for number, positions in covered.items():
        order: Literal["C", "F"] = "F" if fmt.order == "column" else "C"
        part = _hidden_at(number, np.unravel_index(positions, objects.shape, order=order))
        if objects.shape != shape:
            whole = np.zeros(objects.shape, bool)
            whole[part.box] = part.mask
            whole = _resize_nearest(whole, shape)
            if not whole.any():  # a smaller grid may lose a few pixels
                continue
            part = crop_hidden(number, whole)
        hidden.append(part._replace(box=part.box[::-1], mask=part.mask.T) if in_pictures else part)
    objects = objects if objects.shape == shape else _resize_nearest(objects, shape)
    return large_arrays.copy(objects.T) if in_pictures else objects, tuple(hidden)


def _resize_nearest(objects: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize objects to another grid of the same image: each new pixel gets the number of the nearest old pixel."""
    indices = [(2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(objects.shape, shape, strict=True)]
    return objects[np.ix_(*indices)]


def _read_label_file(
    comp: Competition, files: str | list[str], shape: tuple[int, ...], case_id: str, axes: str | None
) -> np.ndarray:
    """Read the labels (*spatial) of a file or of a stack of slices, in the case's order of axes."""
    labels = read_case_labels(comp, files, axes)
    if labels.shape != shape:
        raise MaskfoldError(
            f"The mask {display_name(files)} of case {case_id} has the wrong shape: found "
            f"{'×'.join(map(str, labels.shape))}, expected {'×'.join(map(str, shape))}, which is the shape of its "
            "image.",
            "Resample image and mask to the same grid.",
        )
    return labels


def _outside_region(comp: Competition, row: Any, masks: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a mask (*spatial) of the pixels outside the region mask (`train.region`); None without a region mask."""
    if masks.get("region") is None:
        return None
    region = _read_label_file(comp, masks["region"], shape, get_column(row, "id"), row_axes(comp, row))
    outside: np.ndarray = region < (comp.train.threshold or 1)
    return outside


# Label values to classes


def _labels_to_mask(labels: np.ndarray, path: Path, comp: Competition) -> np.ndarray:
    """Convert label values to the array that `load_mask` returns."""
    labels = merge_numbers(labels, comp)
    ignored = {} if comp.ignore is None else {comp.ignore: IGNORED}
    known = {comp.background, *ignored, *(value for values_of in comp.class_values for value in values_of)}
    if labels.dtype == np.uint8 and labels.size <= MAX_TRANSLATED:
        values = [value for value in known if 0 <= value < 256]
        unknown = sorted(set(labels.tobytes().translate(None, bytes(values))))
    else:
        values = _present_values(labels)
        unknown = [value for value in values if value not in known]
    _check_known(unknown, path, comp)
    if comp.labels == "exclusive":
        numbers = {value: number for number, values_of in enumerate(comp.class_values, 1) for value in values_of}
        return _recode(labels, values, {**numbers, **ignored})[None]
    return np.stack(
        [_recode(labels, values, {**dict.fromkeys(values_of, 1), **ignored}) for values_of in comp.class_values]
    )


def merge_numbers(labels: np.ndarray, comp: Competition) -> np.ndarray:
    """Return label values (*spatial) in which 1, the value of the only class, replaces all object numbers.

    Negative values and the ignored value are kept. Without `train.object_numbers`, the array is returned unchanged.
    """
    if not comp.train.object_numbers:
        return labels
    merged = large_arrays.copy(labels)
    for block in large_arrays.row_blocks(labels.shape):
        is_number = labels[block] > 0
        if comp.ignore is not None:
            is_number &= labels[block] != comp.ignore
        merged[block][is_number] = 1
    return merged


def _check_known(unknown: list[int], path: Path, comp: Competition) -> None:
    """Raise an error if there are label values without a class."""
    if unknown:
        shown = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        known = ", ".join(
            f"{'+'.join(map(str, values))} {name}" for values, name in zip(comp.class_values, comp.classes, strict=True)
        )
        hint = (
            "Set competition.label_values, or competition.ignore for pixels that do not count. At present, "
            f"{comp.background} is background, {known}."
        )
        if extension_of(path.name) in (".jpg", ".jpeg"):
            hint = (
                "JPEG changes values near edges. Set train.threshold=128 for masks of 0 and 255, or save the masks "
                "as PNG."
            )
        elif len(unknown) == len(comp.classes) == 1 and unknown[0] > 0:
            hint = (
                f"If {unknown[0]} is the class {comp.classes[0]}, set competition.label_values=[{unknown[0]}]. If "
                f"{unknown[0]} marks ignored pixels, set competition.ignore={unknown[0]}."
            )
        values = "a label value that belongs" if len(unknown) == 1 else "label values that belong"
        raise MaskfoldError(f"{path} has {values} to no class: found {shown}.", hint)


def _recode(labels: np.ndarray, values: list[int], codes: dict[int, int]) -> np.ndarray:
    """Return the codes (uint8) of label values; a value without a code becomes 0.

    Args:
        labels: (*spatial) integers.
        values: the values that may occur in `labels`.
        codes: the code of each value.
    """
    if labels.dtype == np.uint8 and labels.size <= MAX_TRANSLATED:
        table = np.zeros(256, np.uint8)
        for value in values:
            table[value] = codes.get(value, 0)
        return table.take(labels)
    coded = large_arrays.zeros(labels.shape, np.uint8)
    for block in large_arrays.row_blocks(labels.shape):
        for value in values:
            if codes.get(value):
                coded[block][labels[block] == value] = codes[value]
    return coded


def _apply_threshold(labels: np.ndarray, threshold: float, value: int) -> np.ndarray:
    """Return `value` where the labels (*spatial) are at least `threshold`, and 0 elsewhere."""
    result = large_arrays.empty(labels.shape, np.uint8 if 0 <= value < 256 else np.int32)
    for block in large_arrays.row_blocks(labels.shape):
        result[block] = (labels[block] >= threshold) * np.int32(value)
    return result


def _present_values(labels: np.ndarray) -> list[int]:
    """Return the sorted values of an array.

    The function counts the values block by block, which needs neither sorting nor a large copy.
    """
    countable = int(labels.min()) >= 0 and int(labels.max()) < 2**16
    present: set[int] = set()
    for block in np.array_split(labels.reshape(-1), max(1, labels.size // 2**22)):
        values = np.flatnonzero(np.bincount(block.astype(np.intp))) if countable else np.unique(block)
        present.update(values.tolist())
    return sorted(present)


def _check_binary(path: Path, values: np.ndarray, cls: str) -> None:
    """Check that the mask of one class has only one value other than 0."""
    if values.size and (values != values[0]).any():
        shown = ", ".join(map(str, np.unique(values)[:5].tolist()))
        raise MaskfoldError(
            f"The mask {path} of the class {cls} has more than two values: found {shown}, expected 0 and one "
            "other value.",
            "Save the mask as a PNG without smoothing. Or set train.threshold, or competition.ignore for pixels "
            "that do not count.",
        )


def _merge_classes(comp: Competition, case_id: str, class_masks: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Merge the masks of all classes (K, *spatial) bool into the array that `load_mask` returns."""
    if comp.labels == "overlapping":
        mask = class_masks.astype(np.uint8)
        mask[:, ignored] = IGNORED
        return mask
    overlap = int((class_masks.sum(axis=0, dtype=np.uint8) > 1).sum()) if len(class_masks) > 1 else 0
    if overlap:
        raise MaskfoldError(
            f"Case {case_id} has {format_count(overlap, 'pixel')} in two classes, but competition.labels is exclusive, "
            "so each pixel may have only one class.",
            "If the classes may overlap, set competition.labels=overlapping. Otherwise correct the masks.",
        )
    mask = large_arrays.zeros(class_masks.shape[1:], np.uint8)
    for number, class_mask in enumerate(class_masks, 1):
        mask[class_mask] = number
    mask[ignored] = IGNORED
    return mask[None]
