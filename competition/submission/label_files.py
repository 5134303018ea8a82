"""Predict the images of a folder, and write label files on the grid of each image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from competition import large_arrays
from competition.config.axes import permutation
from competition.config.competition import Competition, TestFiles
from competition.config.postprocess import PostprocessConfig
from competition.context import Context
from competition.data.cases import case_rows, case_table
from competition.data.patterns import match_cases
from competition.data.readers import EXTENSIONS, extension_of, has_reader, read_header, row_axes
from competition.data.selection import listed_test_cases, warn_skipped
from competition.ensembling.ensemble import EnsemblePredictor
from competition.errors import MaskfoldError
from competition.io import atomic_write, ensure_writable
from competition.postprocessing.case import CasePrediction
from competition.postprocessing.pipeline import postprocess
from competition.postprocessing.tuning import load_tuning
from competition.runs.blend import Ensemble, check_same_competition
from competition.runs.imported import refuse_imported
from competition.runs.outputs import check_output, competitions_of
from competition.runs.run import Run
from competition.runs.summary import check_search_unedited
from competition.text import fold_name
from competition.viz.overlays import draw_case
from competition.viz.preview import load_unchanged_picture

Labels = NDArray[np.unsignedinteger]
MAX_OBJECTS = 2**16 - 1  # largest number in a 16-bit label file


def label_arrays(prediction: CasePrediction, comp: Competition, label_map: bool = False) -> dict[str, Labels]:
    """Return the masks of one case as arrays of label values.

    Args:
        prediction: masks and objects of the case.
        comp: the competition.
        label_map: whether to combine overlapping classes, which must be nested, in one array, see `region_values`.

    Returns:
        Arrays (*spatial) by name of the class:

        - If the classes are exclusive, one array with the label values of all classes, under the name "".
        - If the classes overlap, one array of 0 and 1 for each class. If `label_map` is True, one array under the name
          "" instead.
        - If `competition.instances` is true, the values are numbers of objects from 1, and the dtype is uint16.
          Otherwise, the dtype is uint8, or uint16 if a label value requires it.
    """
    if label_map and comp.labels == "overlapping":
        return {"": _draw_regions(prediction.masks, region_values(comp))}
    if comp.labels == "overlapping":
        return {
            name: _objects(prediction, [index])
            if comp.instances
            else large_arrays.copy(prediction.masks[index], np.uint8)
            for index, name in enumerate(comp.classes)
        }
    if comp.instances:
        return {"": _objects(prediction, range(len(comp.classes)))}
    values = [int(value) for value in comp.output_label_values]
    labels = large_arrays.zeros(
        prediction.masks.shape[1:], np.uint8 if max(*values, comp.background) < 256 else np.uint16
    )
    if comp.background:
        labels[...] = comp.background
    for mask, value in zip(prediction.masks, values, strict=True):
        labels[mask] = value
    return {"": labels}


def submission_labels(prediction: CasePrediction, comp: Competition) -> Labels:
    """Return the masks of all classes of a case as one array of the values that the host wants in label files.

    Args:
        prediction: masks and objects of the case.
        comp: the competition; `submission.labels` sets the values. Overlapping classes must be nested, see
            `region_values`.
    """
    values = comp.submission.labels
    if comp.labels == "overlapping" and len(comp.classes) == 1:
        comp = comp.model_copy(update={"labels": "exclusive"})
    if values is None:
        return label_arrays(prediction, comp, label_map=True)[""]
    if comp.labels == "overlapping":
        # `label_values` shows which class contains which, so the classes are drawn in this order.
        return _draw_regions(prediction.masks, {index: values[index] for index in region_values(comp)})
    return label_arrays(prediction, comp.model_copy(update={"label_values": values, "background": 0}))[""]


def _draw_regions(masks: NDArray[np.bool_], values: dict[int, int]) -> Labels:
    """Draw nested masks (K, *spatial) with the values of their classes, in the order of `values`, see `region_values`.

    The smallest region is drawn last, and overwrites the larger regions that contain it.
    """
    labels = large_arrays.zeros(masks.shape[1:], np.uint8 if max(values.values()) < 256 else np.uint16)
    for index, value in values.items():
        labels[masks[index]] = value
    return labels


def region_values(
    comp: Competition, key: str = "--label-map", hint: str = "Omit --label-map. Then each class gets its own file."
) -> dict[int, int]:
    """Return the value that represents each of several nested classes in a common label array.

    Each class must have exactly one label value that none of the smaller classes inside it has. This value represents
    the class. In BraTS, for example, with `label_values: [[1, 2, 4], [1, 4], 4]`, the values are 2, 1 and 4.

    Args:
        comp: the competition.
        key: option or YAML key that requires one label array, for messages.
        hint: hint of the errors.

    Returns:
        The values by index of the class (from 0), in the order in which the classes must be drawn: the largest first.

    Raises:
        MaskfoldError: the classes are not nested, a class does not have exactly one such value, or the competition
            scores objects (status 2).
    """
    sets = [frozenset(values) for values in comp.class_values]
    if comp.instances:
        raise MaskfoldError(
            f"{key}: found competition.instances: true, expected false, because a label map has one "
            "value per class and cannot store objects.",
            hint,
            status=2,
        )
    values = {}
    for index in sorted(range(len(sets)), key=lambda index: -len(sets[index])):
        own, name = set(sets[index]), comp.classes[index]
        for other, inner in enumerate(sets):
            if other == index or not inner & sets[index]:
                continue
            if inner == sets[index] or not (inner < sets[index] or inner > sets[index]):
                pair = f"the classes {name} and {comp.classes[other]}"
                problem = (
                    f"{pair} have the same label values, so a label map cannot tell them apart"
                    if inner == sets[index]
                    else f"{pair} share label values. One label map can store both only if all values of one class are "
                    "also values of the other"
                )
                raise MaskfoldError(f"{key}: {problem}.", hint, status=2)
            own -= inner if inner < sets[index] else set()
        if len(own) != 1:
            found = ", ".join(map(str, sorted(own))) or "no such value"
            raise MaskfoldError(
                f"{key}: the class {name} must have exactly one label value that no smaller class inside it has, "
                f"found {found}.",
                hint,
                status=2,
            )
        values[index] = own.pop()
    return values


def _objects(prediction: CasePrediction, classes: Sequence[int]) -> NDArray[np.uint16]:
    """Return the objects of several classes in one label image, (*spatial) uint16, numbered from 1 without gaps.

    Args:
        prediction: masks and objects of the case.
        classes: indices of the classes.

    Raises:
        MaskfoldError: there are more than `MAX_OBJECTS` objects.
    """
    labels = np.zeros(prediction.masks.shape[1:], np.uint16)
    count = 0
    for index in classes:
        objects = prediction.object_labels(index)
        pixels = objects != 0
        present, number = np.unique(objects[pixels], return_inverse=True)
        if count + len(present) > MAX_OBJECTS:
            raise MaskfoldError(
                f"An image has {count + len(present):,} objects, expected at most {MAX_OBJECTS:,}, because a "
                "label file has 16 bits per pixel.",
                "Remove small objects with the post-processing step `remove_small`.",
            )
        labels[pixels] = number + (count + 1)
        count += len(present)
    return labels


@dataclass(frozen=True)
class LabelFiles:
    """Describe the label files that were written for one image.

    Attributes:
        case_id: id of the case.
        files: paths of the files.
        pixels: number of pixels of each class, by its name.
    """

    case_id: str
    files: tuple[Path, ...]
    pixels: dict[str, int]


def predict_images(
    runs: Sequence[Run],
    images: Path,
    output: Path,
    context: Context = Context(),
    progress: Callable[[Iterator[Any], int], Iterator[Any]] = lambda rows, _: rows,
    pictures: int = 0,
    label_map: bool = False,
) -> list[LabelFiles]:
    """Predict every image of a folder with every fold of every run, and write label files.

    For volumes, the files are `{id}.nii.gz`, with the affine and header of the image; for 2D images, `{id}.png`. The
    axes are (X, Y, Z) in NIfTI and (row, column) in PNG, whatever the format of the image is.

    The values are the label values of the classes. If `competition.instances` is true, they are numbers of objects. If
    classes overlap, each class has its own file, `{id}_{class}`.

    Args:
        runs: finished runs of one competition, which get equal weights. The post-processing is that of
            `label_file_settings`.
        images: folder of the images. The files are named as in `test.images` or `train.images`; or each case is one
            file, and all files have the same type.
        output: the folder for the label files.
        context: context with the trusted packages.
        progress: function that wraps the iteration over the cases, e.g. with a progress bar. It receives an iterator
            and the number of cases, and returns an iterator.
        pictures: number of cases, from the first one on, for which a picture of the image and the prediction is
            written to `pictures/{id}.png`.
        label_map: whether to write overlapping classes, which must be nested, into one file, see `region_values`.

    Returns:
        The files that were written for each image.

    Raises:
        MaskfoldError: the folder contains no image, a case cannot be read or predicted, or the output folder is not
            allowed.
    """
    check_same_competition(runs)
    refuse_imported(runs, "predict new images")
    if output.resolve() == images.resolve():
        raise MaskfoldError(
            f"--output: found {output}, which is also the folder of --images.",
            "Give another output folder with -o.",
            status=2,
        )
    check_output([output], competitions_of(runs))
    if label_map and runs[0].exp.competition.labels == "overlapping":
        region_values(runs[0].exp.competition)  # before the prediction, because this call may raise an error
    comp = competition_for_folder(runs[0].exp.competition, images)
    rows = case_rows(warn_skipped(case_table(comp, "test")))
    _check_holds_no_image(output, rows, comp)
    _check_file_names(rows, comp, label_map)
    ensure_writable(output)
    moved = [replace(run, exp=run.exp.model_copy(update={"competition": comp})) for run in runs]
    predictor = EnsemblePredictor(Ensemble(tuple(moved), tuple([1 / len(moved)] * len(moved))), rows[0], context)
    output.mkdir(parents=True, exist_ok=True)
    settings = label_file_settings(runs)
    predictions = []
    for row in progress(iter(rows), len(rows)):
        probabilities, presence = predictor.predict(row)
        prediction = postprocess(probabilities, comp, settings, row, presence)
        predictions.append(
            LabelFiles(
                row.id,
                tuple(_write(row, prediction, comp, output, label_map)),
                {name: int(mask.sum()) for name, mask in zip(comp.classes, prediction.masks, strict=True)},
            )
        )
        if len(predictions) <= pictures:
            _draw(output / "pictures" / f"{row.id}.png", row, prediction, comp)
    return predictions


def _check_holds_no_image(output: Path, rows: Sequence[Any], comp: Competition) -> None:
    """Check that the output folder and its subfolder `pictures` contain no image that could be overwritten.

    Raises:
        MaskfoldError: an image is in one of these folders (status 2).
    """
    places = {os.path.realpath(output), os.path.realpath(output / "pictures")}
    for row in rows:
        for files in json.loads(row.images).values():
            for file in [files] if isinstance(files, str) else files:
                if os.path.realpath(Path(comp.root, file).parent) in places:
                    raise MaskfoldError(
                        f"--output: found {output}, which contains the image {file} of --images, expected a folder "
                        "without images.",
                        "Give another output folder with -o.",
                        status=2,
                    )


def _check_file_names(rows: Sequence[Any], comp: Competition, label_map: bool) -> None:
    """Check that all label files have different names.

    Files of two cases can get the same name, e.g. `a_b_c` for class `c` of case `a_b` and for class `b_c` of case `a`.

    Raises:
        MaskfoldError: two files would have the same name.
    """
    if comp.labels != "overlapping" or label_map:
        return
    owners: dict[str, tuple[str, str]] = {}
    for row in rows:
        for name in comp.classes:
            first = owners.setdefault(fold_name(f"{row.id}_{name}"), (row.id, name))
            if first != (row.id, name):
                raise MaskfoldError(
                    f"Two label files would have the name {row.id}_{name}: that of the class {first[1]} of case "
                    f"{first[0]}, and that of the class {name} of case {row.id}.",
                    "Rename one of the images. If the classes are nested regions, add --label-map.",
                )


def label_file_settings(runs: Sequence[Run]) -> PostprocessConfig:
    """Return the post-processing for label files.

    For a single run with a stored tuning result, this is the post-processing that tuning has selected. Otherwise, it is
    the section `postprocess` of the first run.

    Raises:
        MaskfoldError: the tuned steps of a single run are damaged, or were edited.
    """
    if len(runs) == 1:
        check_search_unedited(runs[0])
    tuning = load_tuning(runs[0]) if len(runs) == 1 else None
    return tuning.settings if tuning is not None else runs[0].exp.postprocess


def competition_for_folder(comp: Competition, images: Path) -> Competition:
    """Return the competition with the images of another folder as its test cases.

    Raises:
        MaskfoldError: the folder does not exist, or contains no image of the competition.
    """
    if not images.is_dir():
        raise MaskfoldError(f"--images: found {images}, expected a folder.", "Give the folder of the images.", status=2)
    tests = [comp.test.images] if comp.test is not None else []
    for place, pattern in enumerate([*tests, comp.train.images]):
        channels = pattern if isinstance(pattern, dict) else {"image": pattern}
        depth = min(text.count("/") for text in channels.values())
        for cut in range(depth + 1):  # the given folder may replace any number of the first folders in the pattern
            tails = {name: "/".join(text.split("/")[cut:]) for name, text in channels.items()}
            if all("{id}" in tail and _has_images(images, tail) for tail in tails.values()):
                matching: Any = tails if isinstance(pattern, dict) else tails["image"]
                above = "/".join(next(iter(channels.values())).split("/")[:cut])
                is_own = place < len(tests) and os.path.realpath(images) == os.path.realpath(Path(comp.root, above))
                return _with_test_images(comp, images, matching, own_cases=is_own)
    has_channels = isinstance(comp.train.images, dict)
    extensions = {} if has_channels else _extensions(images)
    if len(extensions) == 1:
        return _with_test_images(comp, images, "{id}" + next(iter(extensions)))
    if extensions:
        counts = ", ".join(f"{count} {extension}" for extension, count in sorted(extensions.items()))
        raise MaskfoldError(
            f"The folder {images} has images of several types: {counts}, expected one type.",
            "Keep only images of one type in the folder.",
            status=2,
        )
    raise MaskfoldError(
        f"{images} contains no image whose name fits the competition's train.images ({comp.train.images}).",
        "Give the folder of the images" + (", one file per channel." if has_channels else "."),
        status=2,
    )


def _with_test_images(comp: Competition, images: Path, pattern: Any, own_cases: bool = False) -> Competition:
    """Return the competition with a folder's images as test cases.

    If `own_cases` is True, only the cases that `test.cases` of the competition lists are kept.
    """
    cases = listed_test_cases(comp) if own_cases else None
    return comp.model_copy(update={"root": images.absolute(), "test": TestFiles(images=pattern, cases=cases)})


def _has_images(root: Path, pattern: str) -> bool:
    try:
        return bool(match_cases(root, pattern, "--images"))
    except MaskfoldError:
        return False


def _extensions(images: Path) -> dict[str, int]:
    """Return the number of files of readable types in a folder, by extension; subfolders are not searched."""
    counts: dict[str, int] = {}
    for path in images.iterdir():
        if path.is_file() and has_reader(path.name) and not path.name.startswith("."):
            kind = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def _write(
    row: Any, prediction: CasePrediction, comp: Competition, output: Path, label_map: bool = False
) -> Iterator[Path]:
    """Write the label files of one case, and yield their paths."""
    source = next(iter(json.loads(row.images).values()))
    source = Path(comp.root) / (source if isinstance(source, str) else source[0])
    for name, labels in label_arrays(prediction, comp, label_map).items():
        yield _save(output / (f"{row.id}_{name}" if name else row.id), labels, source, row, comp)


def _draw(path: Path, row: Any, prediction: CasePrediction, comp: Competition) -> None:
    """Draw the image and the prediction of one case, and write the picture to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = load_unchanged_picture(comp, row)
    draw_case(
        path,
        image.array,
        None,
        prediction.masks,
        comp,
        title=str(row.id),
        spacing=json.loads(row.spacing),
        affine=image.affine,
    )


def _save(stem: Path, labels: np.ndarray[Any, Any], source: Path, row: Any, comp: Competition) -> Path:
    """Write one label file atomically, with the axes in its format's order, and return its path.

    Args:
        stem: path of the label file without the extension.
        labels: (*spatial) integers in the case's order of axes.
        source: an image file of the case. If it is a NIfTI file, its affine and header are copied.
        row: row of the case table.
        comp: the competition.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    order = permutation(row_axes(comp, row), "yx" if comp.dimensions == 2 else "xyz")
    labels = labels if order is None else large_arrays.copy(labels.transpose(order))
    if comp.dimensions == 2:
        import cv2

        path = stem.with_name(f"{stem.name}.png")
        atomic_write(path, lambda file: file.write(cv2.imencode(".png", labels)[1].tobytes()))
        return path
    import gzip

    path = stem.with_name(f"{stem.name}.nii.gz")
    image = nifti_labels(labels, source, row, order)
    atomic_write(path, lambda file: file.write(gzip.compress(image.to_bytes(), 6, mtime=0)))
    return path


def nifti_labels(labels: np.ndarray[Any, Any], source: Path, row: Any, order: tuple[int, ...] | None) -> Any:
    """Return labels as a NIfTI image with the geometry of the case's image.

    Args:
        labels: (X, Y, Z), or (X, Y) for a picture.
        source: an image file of the case. If it is a NIfTI file, its affine and header are copied. If it has a format
            of ITK, its affine is copied.
        row: row of the case table, whose spacing is used if the image file has no affine.
        order: permutation from the case's order of axes to (X, Y, Z); None if they are the same.
    """
    import nibabel

    if source.name.lower().endswith((".nii", ".nii.gz")):
        source_image: Any = nibabel.load(source)
        image = nibabel.Nifti1Image(labels, source_image.affine, source_image.header)
        image.set_data_dtype(labels.dtype)
        image.header.set_slope_inter(1, 0)
        image.header.set_intent("none")  # this field and the next two describe the values of the image, not labels
        image.header["cal_min"] = image.header["cal_max"] = 0
    else:
        spacing = json.loads(row.spacing)
        sizes = spacing if order is None else [spacing[axis] for axis in order]
        affine = read_header(source, labels.ndim).affine if EXTENSIONS.get(extension_of(source.name)) == "itk" else None
        sizes = [*sizes, 1.0][:3]  # a picture is one voxel deep
        # A host's sample may have 64-bit integers; nibabel accepts them only if the dtype is named explicitly.
        matrix = np.diag([*sizes, 1.0]) if affine is None else affine
        image = nibabel.Nifti1Image(labels, matrix, dtype=labels.dtype)
    return image
