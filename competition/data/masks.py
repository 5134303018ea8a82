"""Read the ground truth of a case as class masks or as objects; convert masks of other competitions' cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from competition import large_arrays
from competition.config.axes import rle_counts_in_pictures
from competition.config.competition import Competition
from competition.data.content.open_once import file_below
from competition.data.geometry import resample_nearest
from competition.data.objects import CaseObjects, HiddenPixels, crop_hidden, find_covered, hidden_at
from competition.data.patterns import match_cases
from competition.data.readers import display_name, extension_of, get_column, get_json, read_case_labels, row_axes
from competition.data.rle.tables import rle_format, rle_grid, row_texts, rows_are_parts
from competition.errors import MaskfoldError
from competition.rle import decode, decode_overlapping_labels
from competition.rle_text import RleError
from competition.text import format_count

IGNORED = 255
MAX_TRANSLATED = 2**22  # voxels of 8 bits whose values are replaced all at once, which needs two copies


def load_mask(comp: Competition, row: Any) -> np.ndarray:
    """Read the ground truth of a training case as class masks.

    Args:
        comp: the competition.
        row: a row of the case table.

    Returns:
        (M, *spatial) uint8. Exclusive classes: M = 1; 0 is background, 1 to K are the classes in order, and 255 is
        ignored. Overlapping classes: M = K; each channel has the values 0 and 1, and 255 for ignored pixels.

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
    """Return a label image in which the objects of a training case are numbered.

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
    """Return the objects of a training case, numbered from 1, each with all its pixels.

    Each row of run lengths is an object. If the host's profile says that rows are parts of one mask, all rows of a
    class are one object. Each file in a folder of instances is an object. If `train.object_numbers` is true, each value
    above 0 in a label file is an object. In other label files, an object is a connected component of a class (8
    neighbours in 2D, 26 in 3D). If the competition has one class with several label values, pixels with different
    values are never in the same component.

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
    """Read a case's label file, and replace its values inside a mask by the numbers 1 to N, in ascending order.

    Args:
        comp: the competition.
        row: a row of the case table.
        masks: the parsed column `masks` of the row; its `kind` is `labels`.
        mask: (*spatial) bool.

    Returns:
        (*spatial) int32: 0 outside the mask, and 1…N inside, for N different values.
    """
    labels = _read_label_file(comp, masks["files"], mask.shape, get_column(row, "id"), row_axes(comp, row))
    numbers = np.zeros(mask.shape, np.int32)
    numbers[mask] = np.unique(labels[mask], return_inverse=True)[1].reshape(-1) + 1
    return numbers


class _Canvas:
    """Collect objects in a label image, and list the pixels in which a later object covers an earlier object."""

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


def load_relabelled_mask(source: Competition, row: Any, target: Competition, mapping: dict[str, str]) -> np.ndarray:
    """Read the mask of a case from the competition `source`, and convert it to the classes of `target`.

    Source classes without a mapping become background. A target class is unknown if no source class maps to it. For
    overlapping classes, the mask of an unknown class is 255 everywhere. For exclusive classes, 255 replaces the
    background if any class is unknown.

    Args:
        source: the other competition.
        row: a row of the source's case table.
        target: the competition that is trained.
        mapping: the target class of each source class that is used.

    Returns:
        (M, *spatial) uint8 in the target's classes, as from `load_mask`; 255 where the class is unknown, and in pixels
        that the source ignores.

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
            f"Case {row.id} of {source.name} has {format_count(overlap, 'voxel')} to which extra.classes gives several "
            "classes of this competition, expected one class for each voxel, because competition.labels is exclusive.",
            f"In extra.classes, map all but one of the overlapping classes of {source.name} to null.",
            status=2,
        )
    single = np.full(mask.shape[1:], 0 if len(planes) == len(target.classes) else IGNORED, np.uint8)
    for number, name in enumerate(target.classes, start=1):
        if name in planes:
            single[planes[name]] = number
    single[ignored] = IGNORED
    return single[None]


# Files and table rows of a case


def _mask_sources(row: Any) -> dict[str, Any]:
    masks = get_json(row, "masks")
    if masks is None:
        raise ValueError(f"{get_column(row, 'id')} is a test case, which has no ground truth")
    sources: dict[str, Any] = masks
    return sources


@dataclass(frozen=True, eq=False)
class _Part:
    """Hold the objects of one class that come from one mask file, or from the table rows of one case or slice.

    Attributes:
        cls: name of the class.
        objects: integers 1 to n for the objects, and 0 elsewhere.
        where: index of the region of the case that `objects` covers: the whole case, or one slice of it.
        ignored: bool mask of the ignored pixels in the region; None for run lengths, or if the YAML sets no `ignore`.
        hidden: pixels in which a later object of this part covers an earlier object, in coordinates of the region.
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
    """Decode rows of `train.rle` to a label image on the case's axes, and find the pixels where objects overlap.

    Args:
        comp: the competition.
        case_id: id of the case, for messages.
        lines: line numbers of the rows in the table.
        shape: shape of the case, or of one slice.

    Returns:
        The label image (*shape), and the pixels in which a later object covers an earlier object.

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
                    f"{error.hint} The format of this table is set by train.rle_format in the competition's YAML. If "
                    "this key is absent, submission.profile sets the format, or, without a profile, submission.rle.",
                ) from error
        raise
    if rows_are_parts(comp):
        objects, covered = (objects != 0).view(np.uint8), {}
    hidden = []
    for number, positions in covered.items():
        order: Literal["C", "F"] = "F" if fmt.order == "column" else "C"
        part = hidden_at(number, np.unravel_index(positions, objects.shape, order=order))
        if objects.shape != shape:
            whole = np.zeros(objects.shape, bool)
            whole[part.box] = part.mask
            whole = resample_nearest(whole, shape)
            if not whole.any():  # a smaller grid may lose a few pixels
                continue
            part = crop_hidden(number, whole)
        hidden.append(part._replace(box=part.box[::-1], mask=part.mask.T) if in_pictures else part)
    objects = objects if objects.shape == shape else resample_nearest(objects, shape)
    return large_arrays.copy(objects.T) if in_pictures else objects, tuple(hidden)


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
    """Return a bool mask (*spatial) of the pixels that the case's region mask excludes.

    Return None if `train.region` is not set.
    """
    if masks.get("region") is None:
        return None
    region = _read_label_file(comp, masks["region"], shape, get_column(row, "id"), row_axes(comp, row))
    return _is_outside(comp, region)


def _is_outside(comp: Competition, region: np.ndarray) -> np.ndarray:
    """Return a bool mask of the pixels outside a region mask (*spatial).

    If `train.threshold` is set, these are the pixels below the threshold. If it is not set, or if the region mask has
    no values above 1 (then it is no JPEG), these are the pixels of value 0.
    """
    threshold = comp.train.threshold if comp.train.threshold is not None and region.max() > 1 else 1
    outside: np.ndarray = region < threshold
    return outside


def unpredicted_pixels(comp: Competition, row: Any) -> np.ndarray | None:
    """Return a bool mask (*spatial) of the pixels of a case in which nothing is predicted: those outside its region.

    If `test.region` is set, out-of-fold predictions are restricted to the region masks of the training cases, so that
    post-processing is tuned on predictions like those of the test cases.

    Args:
        comp: the competition.
        row: a row of the case table, or an image in memory, which has no region mask.

    Returns:
        The mask; None if `test.region` is not set or the case has no region mask.

    Raises:
        MaskfoldError: a test case has no region mask, or the file cannot be read.
    """
    split = getattr(row, "split", "")
    if comp.test is None or comp.test.region is None or split not in ("train", "test"):
        return None
    if split == "train":
        return _outside_region(comp, row, _mask_sources(row), tuple(get_json(row, "shape")))
    # Listing the folder for each case would take longer the more cases there are, so try the usual name first.
    usual = comp.test.region.replace("{id}", row.id)
    files: str | list[str] = usual
    if not (Path(comp.root) / usual).is_file():
        case = match_cases(Path(comp.root), comp.test.region, "test.region").get(row.id)
        files = "" if case is None else case.files
    if not files:
        raise MaskfoldError(
            f"Test case {row.id} has no region mask: no file matches test.region `{comp.test.region}`.",
            "Add the file, or set competition.test.region=null to predict the whole images.",
        )
    region = _read_label_file(comp, files, tuple(get_json(row, "shape")), row.id, row_axes(comp, row))
    return _is_outside(comp, region)


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

    Negative values and the ignored value are kept. If `train.object_numbers` is false, the array is returned unchanged.
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
            "Set competition.label_values, or competition.ignore for pixels that do not count. The YAML now "
            f"defines these values: {comp.background} background, {known}."
        )
        if extension_of(path.name) in (".jpg", ".jpeg"):
            hint = (
                "JPEG changes values near edges. Set competition.train.threshold=128 for masks of 0 and 255, or save "
                "the masks as PNG."
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

    The function searches the array block by block, which needs no copy of the whole array.
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
            f"The mask {path} of the class {cls} has several values besides 0: found {shown}, expected only one.",
            "Save the mask as a PNG without smoothing. Or set competition.train.threshold, or competition.ignore for "
            "pixels that do not count.",
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
            f"Case {case_id} has {format_count(overlap, 'pixel')} in several classes, expected one class for each "
            "pixel, because competition.labels is exclusive.",
            "If the classes may overlap, set competition.labels=overlapping. Otherwise correct the masks.",
        )
    mask = large_arrays.zeros(class_masks.shape[1:], np.uint8)
    for number, class_mask in enumerate(class_masks, 1):
        mask[class_mask] = number
    mask[ignored] = IGNORED
    return mask[None]
