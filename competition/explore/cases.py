"""Read one case in the same way as `cv`, and measure it; unreadable parts become findings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition import large_arrays
from competition.config.competition import Competition
from competition.data.case_files import ImagesByChannel
from competition.data.cases import case_row, check_files_agree
from competition.data.content.digests import label_files
from competition.data.duplicates import make_thumbnail
from competition.data.geometry import header_orientation
from competition.data.image_types import Header
from competition.data.masks import IGNORED, load_mask, load_objects, merge_numbers
from competition.data.normalisation import GREY_WEIGHTS, convert_channels, may_have_alpha
from competition.data.objects import CaseObjects
from competition.data.readers import load_image, read_header, read_labels
from competition.errors import MaskfoldError
from competition.explore.symmetry import frequency_map
from competition.explore.types import CaseStats, ChannelStats, Findings, TruthStats
from competition.large_arrays import row_blocks
from competition.metrics.scoring import split_classes

Masks = dict[str, Any]


def measure_case(
    comp: Competition, split: str, case_id: str, images: ImagesByChannel, masks: Masks | None, findings: Findings
) -> CaseStats:
    """Read and measure a case.

    Args:
        comp: the competition, with `on_bad_case: stop`.
        split: train or test.
        case_id: id of the case.
        images: the case's images, from `discovery.find_cases`.
        masks: the case's masks, from `discovery.find_cases`; None for a case without a truth.
        findings: receives a finding for each file or row that stops `cv`.

    Returns:
        The measurements. Attributes that cannot be measured are None.
    """
    case = CaseStats(case_id, split, [path for channel in images.values() for path in _as_list(channel.files)])
    checks = _Checks(findings, split, case_id)
    matching_masks, row = masks, None
    header = checks.run(
        "image", lambda part: check_files_agree(comp, case_id, part, None), images, _each_channel(images)
    )
    if header is not None:
        _add_header(case, header)
        if masks is not None:
            case.label_channels = _label_channels(comp, masks)
            checked = checks.run(
                "mask", lambda part: check_files_agree(comp, case_id, images, part), masks, _each_mask(masks)
            )
            matching_masks = None if checked is None else masks
        row = checks.run(
            "image", lambda part: SimpleNamespace(**case_row(comp, split, case_id, images, part)), matching_masks
        )
    image = None
    if row is not None:
        case.row, case.image_hash, case.hash = row, row.image_hash, row.hash
        image = checks.run("image", lambda part: load_image(comp, part), row, _each_file(row))
    mask = None
    if masks is not None:
        mask = _read_truth(case, comp, row if matching_masks is not None else None, masks, checks)
    if image is not None:
        _measure_image(case, comp, image.array, mask)
    return case


class _Checks:
    """Run the checks of `cv` on one case, and record their errors as findings."""

    def __init__(self, findings: Findings, split: str, case_id: str) -> None:
        self.findings, self.split, self.case_id = findings, split, case_id

    def run(
        self, kind: str, check: Callable[[Any], Any], whole: Any, parts: Iterable[Any] = (), skippable: bool = True
    ) -> Any:
        """Return the result of `check(whole)`, or None if the check fails.

        If the check raises an error, each part of `whole` is checked alone, so that the errors of all parts are
        recorded.

        Args:
            kind: kind of the findings, see `Finding`.
            check: function that raises a MaskfoldError if it finds a fault.
            whole: argument of the check.
            parts: parts of `whole` that the check can test one by one; empty if `whole` has no parts.
            skippable: whether `cv` may skip the case because of the error.
        """
        try:
            return check(whole)
        except MaskfoldError as error:
            whole_error = error
        errors = []
        for part in parts:
            try:
                check(part)
            except MaskfoldError as error:
                errors.append(error)
        record = self.findings.add_bad_case if skippable else self.findings.add_fault
        for case_error in errors or [whole_error]:
            record(kind, self.split, self.case_id, case_error)
        return None


def _read_truth(
    case: CaseStats, comp: Competition, row: SimpleNamespace | None, masks: Masks, checks: _Checks
) -> np.ndarray | None:
    """Return the mask (M, *spatial) on the image's grid and set `case.truth`; return None if there is no such mask.

    If the case has no readable image, its label file is read only to find faults.

    Args:
        case: measurements of the case; changed in place.
        comp: the competition.
        row: row of the case table; None if the case has no readable image.
        masks: the case's masks.
        checks: the checks of the case.
    """
    has_image = row is not None
    if not has_image and masks["kind"] == "labels":
        row = _row_without_image(comp, case.id, masks)
    if row is None:
        return None
    mask: np.ndarray | None = checks.run("mask", lambda part: load_mask(comp, part), row, _each_truth(row))
    if mask is None and masks["kind"] == "labels":
        case.undeclared_labels = count_undeclared_labels(comp, masks["files"])
    if mask is None or not has_image:
        return None
    case.truth = checks.run("mask", lambda part: measure_truth(comp, part, mask, masks["kind"]), row, skippable=False)
    return mask


def count_undeclared_labels(comp: Competition, files: str | list[str]) -> dict[int, int]:
    """Return the number of voxels of each label value that belongs to no class; unreadable files are ignored."""
    declared = {comp.background, comp.ignore, *(value for values in comp.class_values for value in values)}
    counts: dict[int, int] = {}
    for path in _as_list(files):
        try:
            dimensions = comp.dimensions if isinstance(files, str) else 2
            labels, _ = read_labels(Path(comp.root) / path, dimensions, comp.applies_exif)
        except MaskfoldError:
            continue
        values, voxels = np.unique(merge_numbers(labels, comp), return_counts=True)
        for value, count in zip(values.tolist(), voxels.tolist(), strict=True):
            if value not in declared:
                counts[value] = counts.get(value, 0) + count
    return counts


def _add_header(case: CaseStats, header: Header) -> None:
    case.shape, case.spacing, case.dtype, case.channels = header.shape, header.spacing, header.dtype, header.channels
    case.pixdim = header.plain_spacing if header.affine is not None else None
    if len(header.shape) == 3:
        case.orientation = header_orientation(header)


def _measure_image(case: CaseStats, comp: Competition, array: np.ndarray, mask: np.ndarray | None) -> None:
    array = used_channels(array, comp, case.id)
    is_foreground = is_valid = None
    if mask is not None:
        is_foreground = foreground_mask(mask)
        is_valid = ~(mask == IGNORED).any(axis=0) if comp.has_ignored_pixels else None
    case.stats = measure_channels(array, channel_names(len(array), comp), is_foreground, is_valid)
    case.is_colour = is_colour(array)
    case.thumbnail = make_thumbnail(array, symmetric=True)


def _each_channel(images: ImagesByChannel) -> Iterator[ImagesByChannel]:
    """Yield each channel together with the first channel, to check that both can be read and match."""
    first = next(iter(images))
    for name, channel in images.items():
        yield {first: images[first], name: channel} if name != first else {name: channel}


def _each_file(row: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """Yield one copy of a case-table row per channel, with this channel only."""
    for name, files in json.loads(row.images).items():
        yield SimpleNamespace(**{**vars(row), "images": json.dumps({name: files})})


def _each_mask(masks: Masks) -> Iterator[Masks]:
    """Yield one copy of `masks` per file or row of the truth, with this file or row only."""
    if masks["kind"] == "classes":
        yield from ({"kind": "classes", "files": {name: files}} for name, files in masks["files"].items())
    elif masks["kind"] == "instances":
        yield from (
            {"kind": "instances", "files": {name: [path]}} for name, paths in masks["files"].items() for path in paths
        )
    elif masks["kind"] == "rle":
        yield from ({**masks, "rows": [row]} for row in masks["rows"])


def _each_truth(row: SimpleNamespace) -> Iterator[SimpleNamespace]:
    for masks in _each_mask(json.loads(row.masks)):
        yield SimpleNamespace(**{**vars(row), "masks": json.dumps(masks)})


def _row_without_image(comp: Competition, case_id: str, masks: Masks) -> SimpleNamespace | None:
    """Build a row of the case table from a label file, for a case without a usable image.

    Return None if the label file cannot be read.
    """
    files = masks["files"]
    try:
        shape = _label_header(comp, files).shape
    except MaskfoldError:
        return None
    if not isinstance(files, str):
        shape = (*shape, len(files))
    return SimpleNamespace(id=case_id, images="{}", masks=json.dumps(masks), shape=json.dumps(shape))


def _label_channels(comp: Competition, masks: Masks) -> int | None:
    """Return the number of channels of the first label file; None if it cannot be read."""
    for files in label_files(masks)[:1]:
        try:
            return _label_header(comp, files).channels
        except MaskfoldError:
            return None
    return None


def _label_header(comp: Competition, files: str | list[str]) -> Header:
    dimensions = comp.dimensions if isinstance(files, str) else 2
    return read_header(Path(comp.root) / _as_list(files)[0], dimensions, True, comp.applies_exif)


def _as_list(files: str | list[str]) -> list[str]:
    return [files] if isinstance(files, str) else files


# Intensities

SAMPLE_SIZE = 2**18  # values per channel, so that quantiles have an error of about a thousandth of the range
# Quantiles of the foreground that exclude background pixels at the border of an imprecise mask.
FOREGROUND_QUANTILES = (0.05, 0.95)
COLOURS = ("red", "green", "blue")


def used_channels(array: np.ndarray, comp: Competition, case_id: str) -> np.ndarray:
    """Return an image without its alpha channel, as `prepare.channels: keep` does; return volumes unchanged."""
    if comp.dimensions == 3:
        return array
    return convert_channels(array, "keep", may_have_alpha(comp.train.images), case_id)


def channel_names(count: int, comp: Competition) -> list[str]:
    """Return the names of the channels: the names in the YAML, the names of colours, or numbers."""
    images = comp.train.images
    if isinstance(images, dict) and len(images) == count:
        return list(images)
    if comp.dimensions == 2 and may_have_alpha(images) and count == 3:
        return list(COLOURS)
    return ["image"] if count == 1 else [str(number) for number in range(count)]


def is_colour(array: np.ndarray) -> bool:
    """Return whether the image has three channels that are not all equal; equal channels mean a grey image."""
    return len(array) == 3 and any(
        bool((array[1:, rows] != array[0, rows]).any()) for rows in row_blocks(array[0].shape)
    )


def measure_channels(
    array: np.ndarray,
    names: list[str],
    is_foreground: NDArray[np.bool_] | None,
    is_valid: NDArray[np.bool_] | None = None,
) -> list[ChannelStats]:
    """Measure each channel; for colour images, also measure the grey value of `prepare.channels: grey`.

    Args:
        array: (C, *spatial), finite.
        names: names of the channels.
        is_foreground: (*spatial) bool; None if the foreground is unknown.
        is_valid: (*spatial) bool, False where the truth is ignored; None if no pixel is ignored.
    """
    stats = [
        _measure_channel(
            name, (channel[rows] for rows in row_blocks(channel.shape)), channel.shape, is_foreground, is_valid
        )
        for name, channel in zip(names, array, strict=True)
    ]
    if tuple(names) == COLOURS:
        if is_colour(array):
            weights = np.array(GREY_WEIGHTS, np.float32)
            grey = (
                np.tensordot(weights, array[:, rows].astype(np.float32), axes=1) for rows in row_blocks(array[0].shape)
            )
            stats.append(_measure_channel("grey", grey, array.shape[1:], is_foreground, is_valid))
        else:
            stats.append(replace(stats[0], name="grey"))
    return stats


def _measure_channel(
    name: str,
    values: Iterable[np.ndarray],
    shape: tuple[int, ...],
    is_foreground: NDArray[np.bool_] | None,
    is_valid: NDArray[np.bool_] | None,
) -> ChannelStats:
    """Measure a channel (*shape) block by block, because a large image would need too much memory as floats."""
    size = math.prod(shape)
    n_foreground = 0 if is_foreground is None else int(np.count_nonzero(is_foreground))
    n_background = size - n_foreground
    if is_foreground is not None and is_valid is not None:
        n_background = sum(
            int(np.count_nonzero(~is_foreground[rows] & is_valid[rows])) for rows in row_blocks(is_foreground.shape)
        )
    everything, foreground, background = Sample(size), Sample(n_foreground), Sample(n_background)
    low_high: list[tuple[float, float]] = []
    for rows, block in zip(row_blocks(shape), values, strict=True):
        everything.add(block.reshape(-1))
        low_high.append((float(block.min()), float(block.max())))
        if is_foreground is not None and n_foreground:
            foreground.add(block[is_foreground[rows]])
            is_background = ~is_foreground[rows] if is_valid is None else ~is_foreground[rows] & is_valid[rows]
            background.add(block[is_background])
    sample = everything.values()
    low, median, high = (float(value) for value in np.quantile(sample, (0.005, 0.5, 0.995)))
    contrast = foreground_low = foreground_high = math.nan
    if n_foreground:
        inside = foreground.values()
        foreground_low, foreground_high = (float(value) for value in np.quantile(inside, FOREGROUND_QUANTILES))
        contrast = cohens_d(inside, background.values())
    return ChannelStats(
        name,
        min(low for low, _ in low_high),
        low,
        median,
        high,
        max(high for _, high in low_high),
        float(sample.mean()),
        float(sample.std()),
        contrast,
        foreground_low,
        foreground_high,
    )


class Sample:
    """Sample at most `SAMPLE_SIZE` evenly spaced values of a flat array that arrives in parts.

    The step between values is odd, because an even step would sample only some columns of most images.
    """

    def __init__(self, total: int) -> None:
        step = -(-total // SAMPLE_SIZE)
        self.step, self.seen = step + (step % 2 == 0), 0
        self.parts: list[NDArray[np.float64]] = [np.empty(0)]

    def add(self, values: np.ndarray) -> None:
        """Add the next values of the array."""
        self.parts.append(values[-self.seen % self.step :: self.step].astype(np.float64))
        self.seen += values.size

    def values(self) -> NDArray[np.float64]:
        """Return the sampled values, which are all values if there are at most `SAMPLE_SIZE`."""
        return np.concatenate(self.parts)


def cohens_d(foreground: NDArray[np.float64], background: NDArray[np.float64]) -> float:
    """Return Cohen's d of two samples: the difference of their means divided by the root of their mean variance.

    Reference: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, section 2.3.
    """
    if not foreground.size or not background.size:
        return math.nan
    pooled_std = math.sqrt((float(foreground.var()) + float(background.var())) / 2)
    return float(foreground.mean() - background.mean()) / pooled_std if pooled_std > 0 else math.nan


# Truth


def measure_truth(comp: Competition, row: Any, mask: np.ndarray, kind: str) -> TruthStats:
    """Count the voxels and objects of the truth.

    Args:
        comp: the competition.
        row: row of the case table.
        mask: (M, *spatial) from `load_mask`.
        kind: kind of the truth, see `find_masks`. If the truth lists objects (as rows of run lengths or as instance
            masks), or if label values separate objects, these objects are counted. Otherwise an object is a connected
            component of a class, as in `load_instances`.

    Raises:
        MaskfoldError: the objects cannot be read.
    """
    classes = class_layers(mask, comp)
    is_listed = kind in ("rle", "instances")  # files or rows, which may overlap or be empty
    given = load_objects(comp, row) if is_listed or (kind == "labels" and comp.values_separate_objects) else None
    if given is not None and given.hidden:
        objects = [given.of_class(layer, index).sizes() for index, layer in enumerate(classes)]
    elif given is not None:
        objects = instance_sizes(given.labels, classes)
    else:
        objects = [component_sizes(layer) for layer in classes]
    is_foreground = foreground_mask(mask)
    return TruthStats(
        np.array([np.count_nonzero(layer) for layer in classes], np.int64),
        int(np.count_nonzero(is_foreground)),
        int(np.count_nonzero((mask == IGNORED).any(axis=0))),
        is_foreground.size,
        objects,
        *(_count_overlaps(given) if given is not None and is_listed and comp.instances else (0, 0, 0)),
        frequency_map(classes),
        np.array([mean_width(layer) for layer in classes]) if is_foreground.ndim == 2 else None,
    )


def mean_width(layer: np.ndarray) -> float:
    """Return the mean width of the structures in a 2D mask, in pixels; 0 if the mask is empty.

    The width is twice the area divided by the length of the outline. So it is the width of a long line or vessel, half
    the side of a square, and about 0.4 times the diameter of a disk, because the outline follows the edges of pixels.
    """
    padded = np.pad(layer != 0, 1)
    outline = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in range(2))
    return 2.0 * np.count_nonzero(padded) / max(1, outline)


def _count_overlaps(objects: CaseObjects) -> tuple[int, int, int]:
    """Count the objects that share pixels with others.

    Returns:
        Three numbers: the objects of which a later object covers at least one pixel; how many of these objects are
            copies of another object; and the files or rows without a pixel.
    """
    boxes: dict[int, list[tuple[slice, ...]]] = {}
    for part in objects.hidden:
        boxes.setdefault(part.number, []).append(part.box)
    if not boxes:
        return 0, 0, objects.empty
    areas = np.bincount(objects.labels.ravel(), minlength=max(boxes) + 1)
    wholly_covered = [number for number in boxes if not areas[number]]
    for part in objects.hidden:
        areas[part.number] += np.count_nonzero(part.mask)
    copies = 0
    for number in wholly_covered:  # a later copy has the same area and contains all pixels
        box = tuple(
            slice(min(axis.start for axis in along), max(axis.stop for axis in along))
            for along in zip(*boxes[number], strict=True)
        )
        own = objects.mask_in(box, number)
        equal = (other for other in np.flatnonzero(areas == areas[number]).tolist() if other > number)
        copies += any(bool(objects.mask_in(box, other)[own].all()) for other in equal)
    return len(boxes), copies, objects.empty


def foreground_mask(mask: np.ndarray) -> NDArray[np.bool_]:
    """Return where a mask (M, *spatial) has any class, as (*spatial) bool; ignored pixels are False."""
    result = large_arrays.empty(mask.shape[1:], np.bool_)
    for rows in row_blocks(result.shape):
        part = mask[:, rows]
        result[rows] = ((part != 0) & (part != IGNORED)).any(axis=0)
    return result


def class_layers(mask: np.ndarray, comp: Competition) -> list[NDArray[np.bool_]]:
    """Return the mask (*spatial) of each class."""
    return list(split_classes(mask, comp))


def component_sizes(layer: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of voxels of each connected component: 8 neighbours in 2D, 26 in 3D."""
    import cc3d

    if not layer.any():
        return np.empty(0, np.int64)
    if layer.ndim == 2 and large_arrays.is_large(layer.shape, np.uint32):
        return _component_sizes_in_strips(layer)
    # Contiguous uint8, because cc3d 4.1 gives wrong labels for some boolean arrays.
    labels = cc3d.connected_components(
        np.ascontiguousarray(layer).view(np.uint8), connectivity=8 if layer.ndim == 2 else 26
    )
    return np.bincount(labels[layer]).astype(np.int64)[1:]


def _component_sizes_in_strips(layer: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of pixels of each component of a large mask (H, W), with little memory.

    Components are labelled in strips of rows. Then the components of neighbouring strips that touch are united.
    """
    import cc3d
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sizes, touching, total = [], [np.empty((2, 0), np.int64)], 0
    above = np.zeros(layer.shape[1] + 2, np.int64)  # parts in the row above, with a column of background on each side
    for rows in row_blocks(layer.shape):
        labels, count = cc3d.connected_components(
            np.ascontiguousarray(layer[rows]).view(np.uint8), connectivity=8, return_N=True
        )
        first, last = (np.pad(np.where(row, row + np.int64(total), 0), 1) for row in (labels[0], labels[-1]))
        for shift in (-1, 0, 1):
            pairs = np.stack([above, np.roll(first, shift)])
            touching.append(pairs[:, pairs.all(axis=0)] - 1)
        sizes.append(np.bincount(labels.reshape(-1), minlength=count + 1)[1:])
        above, total = last, total + count
    one, other = np.concatenate(touching, axis=1)
    graph = coo_array((np.ones(len(one), np.bool_), (one, other)), shape=(total, total))
    number, component = connected_components(graph, directed=False)
    return np.bincount(component, weights=np.concatenate(sizes), minlength=number).astype(np.int64)


def instance_sizes(instances: NDArray[np.int32], layers: list[NDArray[np.bool_]]) -> list[NDArray[np.int64]]:
    """Return the number of voxels of each labelled object, one array per class.

    An object belongs to the class that contains most of its voxels, and only voxels of this class are counted.
    """
    n_labels = int(instances.max(initial=0)) + 1
    shares = np.array([np.bincount(instances[layer], minlength=n_labels)[:n_labels] for layer in layers])
    shares[:, 0] = 0
    owner, sizes = shares.argmax(axis=0), shares.max(axis=0)
    return [sizes[(owner == index) & (sizes > 0)].astype(np.int64) for index in range(len(layers))]
