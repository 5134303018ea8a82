"""Read the prediction of a case by another program, and convert it to probabilities on the grid of the case."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from competition.config.axes import NIFTI, file_axes, permutation
from competition.config.competition import Competition
from competition.data.formats.raster import open_raster
from competition.data.geometry import check_same_grid
from competition.data.image_types import check_declared_size, check_not_bomb, convert_decoder_errors
from competition.data.masks import merge_numbers
from competition.data.readers import extension_of, read_case_header, read_header, read_image, read_labels, row_axes
from competition.errors import MaskfoldError
from competition.importing.sources import ARRAYS, CaseFiles
from competition.text import format_count

Array = NDArray[Any]
NNUNET_KEYS = ("probabilities", "softmax")  # names of the array in nnU-Net's archives, version 2 and 1
ARRAY_KEYS = (*NNUNET_KEYS, "probs", "prediction", "pred", "arr_0")
VALUE_TOLERANCE = 1e-3  # because of rounding, values may be outside of [0, 1] by this much
SUM_TOLERANCE = 0.02  # because of rounding (float16, uint8), the sum of a pixel's probabilities may differ by this much
MAX_LABEL_DIFFERENCE = 0.01  # maximum share of pixels in which an array and the label file next to it may differ
Kind = Literal["auto", "labels", "probabilities"]


@dataclass(frozen=True)
class ReadingOptions:
    """Hold the options for reading prediction files.

    Attributes:
        kind: what the files contain: `labels` or `probabilities`. `auto` means that the channels and values of the
            files decide.
        axes: order of the spatial axes in NPY and NPZ files, e.g. `zyx`. None means `zyx` (in 2D: `yx`) for nnU-Net's
            archives. For other files, None means the order in `competition.array_axes` or, if this key is not set, the
            order of the case's images.
        channels: names of the channels in their order. Empty for the usual order: the background, if there is one, and
            then the classes.
    """

    kind: Kind = "auto"
    axes: str | None = None
    channels: tuple[str, ...] = ()


def decide_kind(comp: Competition, found: Iterable[CaseFiles], options: ReadingOptions) -> Kind:
    """Decide, in a competition with one class, whether files with integers contain labels or probabilities.

    The integer 1 may be a label value, or the probability 1/255. A single file may not be enough to decide this. So the
    files of all cases are read: they contain labels if every value in them is a label value. If the competition scores
    objects, integers are always probabilities.

    Args:
        comp: the competition.
        found: the files of all cases.
        options: options for reading the files.

    Returns:
        `labels` or `probabilities`. The result is `options.kind` if the user has set it, if there are several classes,
        or if no file has integers in a single channel.

    Raises:
        MaskfoldError: a file cannot be read.
    """
    if options.kind != "auto" or len(comp.classes) > 1:
        return options.kind
    has_integers = False
    for files in found:
        if files.by_class:
            continue
        if extension_of(files.main.name) in ARRAYS:
            array = _with_channels(_load_array(files.main)[0], comp, files.main, options)
        else:
            array = _read_picture(files.main, comp, options)
        if array.dtype.kind != "f" and len(array) == 1:
            has_integers = True
            if not _are_labels(array, comp):
                return "probabilities"
    return "labels" if has_integers and not comp.instances else options.kind


def read_prediction(comp: Competition, row: Any, files: CaseFiles, options: ReadingOptions) -> Array:
    """Read the prediction of a case as probabilities.

    Args:
        comp: the competition.
        row: row of the case table.
        files: files of the prediction.
        options: options for reading the files.

    Returns:
        (P, *file shape) float32 in [0, 1], with P = `comp.output_channels`, in the case's order of axes.

    Raises:
        MaskfoldError: a file cannot be read, or its shape, channels or values do not fit the case.
    """
    if files.by_class:
        parts = [read_prediction_file(comp, row, path, options) for path in files.by_class]
        for path, part in zip(files.by_class, parts, strict=True):
            if len(part) != 1:
                raise MaskfoldError(
                    f"{path}: found {len(part)} channels, expected 1, because each class has its own file.",
                    "Write one mask per file.",
                )
        masks = [_binary(part, path) for part, path in zip(parts, files.by_class, strict=True)]
        return _from_class_files(np.concatenate(masks), comp, files.main)
    array = read_prediction_file(comp, row, files.main, options)
    probabilities = to_probabilities(array, comp, files.main, options)
    if files.labels is not None and comp.labels == "exclusive" and not options.channels:
        _check_beside(comp, row, files, probabilities, options)
    return probabilities


def read_prediction_file(comp: Competition, row: Any, path: Path, options: ReadingOptions) -> Array:
    """Read one prediction file as an array (C, *file shape) in the case's order of axes, with unchanged values.

    Args:
        comp: the competition.
        row: row of the case table.
        path: path of the file.
        options: options for reading the file.

    Raises:
        MaskfoldError: the file cannot be read, or its shape or affine differs from the image's.
    """
    try:
        return _read_on_case_axes(comp, row, path, options)
    except MaskfoldError as error:
        if "competition." not in error.hint:
            raise
        # The hints of the readers name keys of the YAML that concern the images of the competition, so replace them.
        raise MaskfoldError(error.message, "Predict the case again, or copy the file again.") from error


def _read_on_case_axes(comp: Competition, row: Any, path: Path, options: ReadingOptions) -> Array:
    shape = tuple(json.loads(row.shape))
    target = row_axes(comp, row)
    if extension_of(path.name) in ARRAYS:
        array, is_nnunet = _load_array(path)
        array = _with_channels(array, comp, path, options)
        source = options.axes or (None if is_nnunet else comp.array_axes)
        if source is None and is_nnunet:
            source = "zyx" if comp.dimensions == 3 else "yx"
    else:
        _check_affine(comp, row, path, target)
        array, source = _read_picture(path, comp, options), file_axes(comp, path.name)
    order = permutation(source, target)
    if order is not None:
        array = array.transpose(0, *(axis + 1 for axis in order))
    if array.shape[1:] != shape:
        found, expected = ("×".join(map(str, sizes)) for sizes in (array.shape[1:], shape))
        hint = "Write the prediction on the grid of its image."
        if sorted(array.shape[1:]) == sorted(shape) and extension_of(path.name) in ARRAYS:
            hint = "If the axes of the file have another order, set --axes: for example --axes zyx for (C, Z, Y, X)."
        raise MaskfoldError(
            f"{path} has the wrong shape: found {found}, expected {expected}, the shape of its image.", hint
        )
    return array


def _load_array(path: Path) -> tuple[Array, bool]:
    """Read an NPY or NPZ file.

    Returns:
        The array, and whether the file is an archive of nnU-Net, whose order of axes is `zyx`.

    Raises:
        MaskfoldError: the file is damaged, or it contains several arrays and none of them has a known name.
    """
    with convert_decoder_errors(path):
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)), False
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        check_declared_size(path, size)
        check_not_bomb(path, size)
        key = names[0] if len(names) == 1 else next((name for name in ARRAY_KEYS if name in names), None)
        if key is None:
            raise MaskfoldError(
                f"{path}: found {', '.join(names[:5]) or 'no array'}, expected a single array, or an array with "
                f"one of the names {', '.join(ARRAY_KEYS)}.",
                "Save only one array per file.",
            )
        with np.load(path, allow_pickle=False) as loaded:
            return np.asarray(loaded[key]), key in NNUNET_KEYS


def _with_channels(array: Array, comp: Competition, path: Path, options: ReadingOptions) -> Array:
    """Return an array as (C, *spatial): move its channel axis to the front, or add a channel axis if it has none.

    Raises:
        MaskfoldError: the array has another number of axes, or its values are not numbers.
    """
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise MaskfoldError(f"{path} has values of type {array.dtype}, expected numbers.", "Save integers or floats.")
    dims = comp.dimensions
    if dims == 2 and array.ndim == 4 and array.shape[1] == 1:  # nnU-Net writes images as (C, 1, Y, X)
        array = array[:, 0]
    if array.ndim == dims:
        return array[None]
    if array.ndim != dims + 1:
        raise MaskfoldError(
            f"{path} has {array.ndim} axes, expected {dims + 1} for probabilities (channel and {dims} "
            f"spatial axes), or {dims} for labels.",
            "Save one case per file, without an axis for the batch.",
        )
    counts = {comp.output_channels, len(comp.classes), len(options.channels) or 1, 1}
    if array.shape[0] not in counts and array.shape[-1] in counts:
        return np.moveaxis(array, -1, 0)
    return array


def _read_picture(path: Path, comp: Competition, options: ReadingOptions) -> Array:
    """Read a NIfTI, PNG or TIFF file as an array (C, *spatial), in the file's order of axes.

    If a PNG has a palette, the values are the indices of the palette, which are labels.
    """
    has_palette = False
    if path.suffix.lower() == ".png":
        with convert_decoder_errors(path), open_raster(path) as image:
            has_palette = image.mode == "P"
    if options.kind == "labels" or has_palette:
        return read_labels(path, comp.dimensions)[0][None]
    return read_image(path, comp.dimensions).array


def _check_affine(comp: Competition, row: Any, path: Path, target: str | None) -> None:
    """Check that a prediction has the same grid as the image of the case, if both are NIfTI files.

    Args:
        comp: the competition.
        row: row of the case table.
        path: path of the prediction.
        target: order of the axes of the case's image, e.g. `zyx`; None for the order in its file.

    Raises:
        MaskfoldError: the affine or the shape differs.
    """
    if not NIFTI.search(path.name):
        return
    source = next(iter(json.loads(row.images).values()))
    if not isinstance(source, str) or not NIFTI.search(source):
        return
    image = read_case_header(comp, source, labels=False, axes=target)
    header = read_header(path, comp.dimensions)
    try:
        check_same_grid(str(row.id), (source, image), (str(path), header), is_mask=False)
    except MaskfoldError as error:
        raise MaskfoldError(
            error.message, "Write the prediction on the grid of its image, with the same affine."
        ) from error


# Values


def to_probabilities(array: Array, comp: Competition, path: Path, options: ReadingOptions) -> Array:
    """Convert the values of a prediction file to probabilities.

    Args:
        array: (C, *file shape). C is 1 for labels. For probabilities, C is the number of classes, or one more with the
            background.
        comp: the competition.
        path: path of the file, for messages.
        options: options for reading the file.

    Returns:
        (P, *file shape) float32 in [0, 1], with P = `comp.output_channels`.

    Raises:
        MaskfoldError: the number of channels is wrong; a value is NaN or outside of its range; or the probabilities of
            exclusive classes do not add up to 1.
    """
    _check_finite(array, path)
    if len(array) == 1 and options.kind != "probabilities":
        several = len(comp.classes) > 1 and array.dtype.kind != "f" and not comp.instances
        if options.kind == "labels" or several or _are_labels(array, comp):
            return labels_to_probabilities(array[0], comp, path)
    count, classes = comp.output_channels, len(comp.classes)
    order = _channel_order(comp, options.channels)
    if order is not None:
        if len(array) != len(options.channels):
            raise MaskfoldError(
                f"{path}: found {format_count(len(array), 'channel')}, expected the {len(options.channels)} channels "
                f"of --channels ({', '.join(options.channels)}).",
                "With --channels, give the name of each channel of the file, in the order of the channels.",
            )
        array = array[order]
    values = _scale(array, path)
    if len(values) == classes and comp.labels == "exclusive":
        background = 1 - values.sum(axis=0, dtype=np.float32)
        if background.min() < -SUM_TOLERANCE - classes / 510:
            raise _sum_error(path, 1 - float(background.min()), "at most 1")
        return np.concatenate([np.clip(background, 0, 1)[None], values])
    if len(values) != count:
        expected = f"{count}" + (
            f" (background first) or {classes} (without the background)" if count != classes else ""
        )
        expected += ", or 1 channel with labels" if comp.labels == "exclusive" or classes == 1 else ""
        raise MaskfoldError(
            f"{path}: found {format_count(len(values), 'channel')}, expected {expected}.",
            f"Save a channel for each of the classes {', '.join(comp.classes)}. If the channels have "
            "another order, set --channels.",
        )
    if comp.labels == "exclusive":
        total = values.sum(axis=0, dtype=np.float32)
        worst = float(total.flat[np.abs(total - 1).argmax()])
        if abs(worst - 1) > SUM_TOLERANCE + count / 510:
            raise _sum_error(path, worst, "1, because classes are exclusive")
    return values


def _sum_error(path: Path, found: float, expected: str) -> MaskfoldError:
    return MaskfoldError(
        f"{path}: the probabilities of a pixel add up to {found:.3g}, expected {expected}.",
        "Save the result of softmax over the background and the classes.",
    )


def _check_finite(array: Array, path: Path) -> None:
    if array.dtype.kind == "f" and (invalid := int(array.size - np.isfinite(array).sum())):
        raise MaskfoldError(
            f"{path} has {invalid:,} NaN or infinite value{'s' * (invalid > 1)}.", "Predict the case again."
        )


def _are_labels(array: Array, comp: Competition) -> bool:
    """Return whether all values of an array are label values of the competition.

    If the competition scores objects, return False, because the values may be object numbers.
    """
    known = {comp.background, *(value for values in comp.class_values for value in values)}
    if comp.instances:
        return False
    present = np.unique(array)
    is_integer = array.dtype.kind != "f" or bool((present == np.rint(present)).all())
    return is_integer and {int(value) for value in present} <= known


def labels_to_probabilities(labels: Array, comp: Competition, path: Path) -> Array:
    """Convert a label array (*spatial) to probabilities of 0 and 1, (P, *spatial) float32.

    Args:
        labels: the label array.
        comp: the competition.
        path: path of its file, for messages.

    Raises:
        MaskfoldError: a value belongs to no class.
    """
    labels = merge_numbers(labels, comp)
    known = {comp.background, *(value for values in comp.class_values for value in values)}
    present = np.unique(labels)
    if unknown := [value for value in present.tolist() if value not in known]:
        raise MaskfoldError(
            f"{path} has label values that belong to no class: found "
            f"{', '.join(f'{value:g}' for value in unknown[:5])}, expected "
            f"{', '.join(map(str, sorted(known)))}.",
            "Write the label values of competition.yaml into the file. If the file contains probabilities of one "
            "class, add --kind probabilities.",
        )
    masks = np.stack([np.isin(labels, values) for values in comp.class_values]).astype(np.float32)
    if comp.labels == "overlapping":
        return masks
    return np.concatenate([(1 - masks.sum(axis=0))[None], masks])


def _scale(array: Array, path: Path) -> Array:
    """Return probabilities as float32 in [0, 1].

    Integers of the types uint8 and uint16 are divided by the largest value of their type. Other integers must be 0 or
    1.

    Raises:
        MaskfoldError: a value is outside of the range.
    """
    if array.dtype.kind != "f":
        if array.dtype.name not in ("uint8", "uint16"):
            if array.min() >= 0 and array.max() <= 1:
                return array.astype(np.float32)
            raise MaskfoldError(
                f"{path} has integers of type {array.dtype} up to {array.max()}, expected probabilities.",
                "Save floats from 0 to 1, or uint8 from 0 to 255.",
            )
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    low, high = float(array.min()), float(array.max())
    if low < -VALUE_TOLERANCE or high > 1 + VALUE_TOLERANCE:
        raise MaskfoldError(
            f"{path} has values from {low:.3g} to {high:.3g}, expected probabilities from 0 to 1.",
            "Save the result of softmax or sigmoid. If the file contains labels, add --kind labels.",
        )
    return np.clip(array.astype(np.float32), 0, 1)


def _binary(part: Array, path: Path) -> Array:
    """Return the values of a file for one class as probabilities; `path` is the path of the file, for messages.

    Floats are not changed. Integers with at most two different values, one of them 0, are a mask and become 0 and 1.
    Other integers are scaled by `_scale`.
    """
    if part.dtype.kind == "f":
        return part.astype(np.float32)
    present = np.unique(part)
    if len(present) <= 2 and (len(present) < 2 or present[0] == 0):
        return (part != 0).astype(np.float32)
    return _scale(part, path)


def _from_class_files(masks: Array, comp: Competition, path: Path) -> Array:
    """Return the probabilities of a case whose prediction consists of one file for each class.

    If classes exclude each other, the background is added as the first channel.

    Args:
        masks: (K, *file shape), the values of the files of K classes.
        comp: the competition.
        path: path of the first file, for messages.

    Raises:
        MaskfoldError: classes exclude each other, but their probabilities add up to more than 1.
    """
    values = _scale(masks, path)
    if comp.labels == "overlapping":
        return values
    background = 1 - values.sum(axis=0, dtype=np.float32)
    if background.min() < -SUM_TOLERANCE - len(masks) / 510:
        raise _sum_error(path, 1 - float(background.min()), "at most 1, because classes are exclusive")
    return np.concatenate([np.clip(background, 0, 1)[None], values])


def _channel_order(comp: Competition, channels: tuple[str, ...]) -> list[int] | None:
    """Return the index of the channel in the file for each output channel; None if the user has set no order.

    Args:
        comp: the competition.
        channels: names of the channels in the file, in their order; empty if the user has set none.

    Raises:
        MaskfoldError: the names differ from the class names (status 2).
    """
    if not channels:
        return None
    expected = comp.classes if len(channels) == len(comp.classes) else ["background", *comp.classes]
    names = {name.lower(): number for number, name in enumerate(channels)}
    if sorted(names) != sorted(name.lower() for name in expected) or len(names) != len(channels):
        raise MaskfoldError(
            f"--channels: found {', '.join(channels)}, expected the names {', '.join(expected)}, in the "
            "order of the channels.",
            "Name each channel once.",
            status=2,
        )
    return [names[name.lower()] for name in expected]


def _check_beside(comp: Competition, row: Any, files: CaseFiles, probabilities: Array, options: ReadingOptions) -> None:
    """Check that the probabilities agree with the label file next to their file, to detect e.g. a flipped axis.

    Args:
        comp: the competition.
        row: row of the case table.
        files: files of the prediction, with a label file.
        probabilities: the probabilities that were read.
        options: options for reading the files.

    Raises:
        MaskfoldError: of the pixels that are foreground in at least one file, more than the share
            `MAX_LABEL_DIFFERENCE` have different classes in the two files.
    """
    assert files.labels is not None
    labels = read_prediction_file(comp, row, files.labels, ReadingOptions("labels"))
    expected = labels_to_probabilities(labels[0], comp, files.labels).argmax(axis=0)
    found = probabilities.argmax(axis=0)
    foreground = (expected != 0) | (found != 0)
    share = float((expected != found)[foreground].mean()) if foreground.any() else 0.0
    if share > MAX_LABEL_DIFFERENCE:
        raise MaskfoldError(
            f"{files.main} and {files.labels.name} next to it differ in {share:.0%} of the pixels with a "
            "class, so the two files differ in the order of axes or classes.",
            "Set the order of the axes (--axes) or of the channels (--channels). Or remove the wrong one of the "
            "two files.",
        )
