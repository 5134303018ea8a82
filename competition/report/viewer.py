"""Write the viewer section of a run's HTML report, which shows cases slice by slice, with labels and prediction.

The page contains the data of the viewer: for each case, some slices as one JPEG, and the labels and the prediction as
run lengths. With many cases, the slices are fewer and smaller, so that the page stays small. A script in the page draws
the slices.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from types import SimpleNamespace
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from competition.config.competition import Competition
from competition.context import Context
from competition.data.content.unchanged import load_unchanged_mask
from competition.data.geometry import find_axes, reorient
from competition.inference.masks import to_masks
from competition.report.html import format_score, render
from competition.report.learning import rank_cases
from competition.report.results import RunResults
from competition.runs.oof import OofPredictions
from competition.text import format_count
from competition.viz.overlays import (
    IGNORE_LABEL,
    class_colour,
    display_range,
    drawn_channels,
    label_to_class_masks,
    to_rgb,
)
from competition.viz.preview import load_unchanged_picture
from competition.viz.reduction import reduce_image, reduce_mask, reduce_truth

TEMPLATE = "run.html.j2"
MAX_CASES = 200
MAX_VOXELS = 3 * 2**30  # maximum number of voxels of all cases together, to limit the time to read them
TOTAL_BYTES = 12 * 2**20  # maximum size of the data of all cases in the page
CASE_BYTES = 400 * 2**10  # maximum size of the data of one case in the page
# (Maximum side of a slice in pixels, maximum number of slices): the first pair that is small enough is used.
LIMITS = ((256, 32), (256, 20), (192, 16), (160, 12), (128, 10), (96, 8), (64, 6))
JPEG_QUALITY = 78
MAX_SETS = 250  # maximum number of different sets of overlapping classes in one case


@dataclass(frozen=True)
class Slices:
    """Hold the slices of a case for the viewer; a 2D image has one slice.

    Attributes:
        image: (slices, rows, columns, 3) float in [0, 1]; the channels of grey images are equal.
        truth: (slices, K, rows, columns) bool, the true masks of K classes.
        masks: (slices, K, rows, columns) bool, the predicted masks.
        ignored: (slices, rows, columns) bool, the pixels that are left out of scores.
        numbers: number of each slice in the file; empty for a 2D image.
        axis: axis of the file along which the slices lie.
        aspect: height of a pixel divided by its width.
    """

    image: NDArray[np.float32]
    truth: NDArray[np.bool_]
    masks: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    numbers: list[int]
    axis: int
    aspect: float


def viewer_script() -> Markup:
    """Return the JavaScript of the viewer, to be passed to `write_page`."""
    return Markup((resources.files("competition.report") / "viewer.js").read_text(encoding="utf-8"))


def viewer_cases(results: RunResults, oof: OofPredictions) -> list[str]:
    """Return the ids of the cases for the viewer: those with a score, the worst first, then those without a score.

    If there are more than `MAX_CASES` cases, three quarters of the returned cases are the worst ones. The last quarter
    is an even sample of the remaining cases. If the cases have more than `MAX_VOXELS` voxels together, the last ones
    are left out, but at least ten stay.
    """
    ranked = [case for case, _ in reversed(rank_cases(results))]
    order = [*ranked, *(case for case in oof.fold_of if case not in set(ranked))]
    if len(order) > MAX_CASES:
        worst = 3 * MAX_CASES // 4
        rest = np.linspace(worst, len(order) - 1, MAX_CASES - worst).round().astype(int)
        order = [*order[:worst], *(order[index] for index in rest)]
    shapes = dict(zip(oof.run.cases["id"], oof.run.cases["shape"], strict=True))
    chosen: list[str] = []
    voxels = 0
    for case in order:
        voxels += math.prod(json.loads(shapes[case]))
        if voxels > MAX_VOXELS and len(chosen) >= 10:
            break
        chosen.append(case)
    return chosen


def viewer_section(results: RunResults, oof: OofPredictions, cases: Sequence[str], context: Context) -> Markup:
    """Return the section with the viewer and its data.

    Args:
        results: the results of the run.
        oof: the run's out-of-fold predictions.
        cases: ids of the cases, from `viewer_cases`.
        context: context whose log receives progress messages.
    """
    comp, rows, scores = results.run.exp.competition, oof.rows(), dict(rank_cases(results))
    context.say(f"preparing slices of {format_count(len(cases), 'case')} for the viewer")
    budget = min(CASE_BYTES, TOTAL_BYTES // max(1, len(cases)))
    entries, options = [], []
    for case in cases:
        entries.append(encode_case(rows[case], oof, comp, budget))
        options.append(f"{case} · fold {oof.fold_of[case]} · {comp.metric.name} {format_score(scores.get(case))}")
    colours = ["#" + "".join(f"{round(255 * part):02x}" for part in class_colour(i)) for i in range(len(comp.classes))]
    data = json.dumps({"classes": comp.classes, "colours": colours, "cases": entries}, ensure_ascii=True)
    total = len(oof.fold_of)
    return render(
        TEMPLATE,
        "viewer",
        options=options,
        classes=list(comp.classes),
        shown="all cases" if len(cases) == total else f"{len(cases)} of {total} cases, among them the worst",
        volumes=comp.dimensions == 3,
        # In a script element, `<` could end the element or start a comment.
        data=Markup(data.replace("<", "\\u003c").replace("&", "\\u0026").replace(">", "\\u003e")),
    )


def encode_case(row: SimpleNamespace, oof: OofPredictions, comp: Competition, budget: int) -> dict[str, Any]:
    """Return the data of a case for the viewer.

    The sizes in `LIMITS` are tried in order until the data fit into `budget` bytes. If no size fits, the slices have
    the last size.

    Args:
        row: row of the case table.
        oof: the run's out-of-fold predictions.
        comp: the competition.
        budget: maximum size of the data in bytes.
    """
    image = load_unchanged_picture(comp, row)
    truth, masks = load_unchanged_mask(comp, row), to_masks(oof.read(row.id), comp)
    entry: dict[str, Any] = {}
    for side, count in LIMITS:
        slices = select_slices(image.array, truth, masks, comp, side, count, json.loads(row.spacing), image.affine)
        entry = _encode(slices)
        if len(json.dumps(entry)) <= budget:
            break
    return entry


def select_slices(
    image: NDArray[Any],
    truth: NDArray[Any],
    masks: NDArray[np.bool_],
    comp: Competition,
    side: int,
    count: int,
    spacing: Sequence[float],
    affine: NDArray[Any] | None = None,
) -> Slices:
    """Select slices of a case, and reduce them in size.

    The slices are evenly distributed over the range of slices whose labels or prediction have foreground. The slice in
    which labels and prediction differ most is always included. Ignored pixels do not count.

    Args:
        image: (C, *spatial); may be reduced by `load_picture`.
        truth: (M, *spatial) uint8 labels, a result of `competition.data.masks.load_mask`.
        masks: (K, *spatial) bool, the prediction.
        comp: the competition.
        side: maximum length of the sides of a slice in pixels.
        count: maximum number of slices.
        spacing: voxel size in mm along each axis.
        affine: 4×4 matrix from voxel indices to world coordinates, with which the slices are turned as radiologists
            expect; None to keep the orientation of the file.
    """
    if comp.dimensions == 2:
        channels = drawn_channels(image)
        parts = [(channels, truth, masks)]
        numbers, axis, aspect = [], 0, spacing[0] / spacing[1]
    else:
        channels, numbers, axis = image[:1], list(range(truth.shape[-1])), 2
        is_flat = "{z}" not in str(comp.train.images)
        if affine is not None:
            order, flips = find_axes(affine, 3, "LAS", "viewer")
            channels, truth, masks = (reorient(array, order, flips) for array in (channels, truth, masks))
            spacing, axis = [spacing[index] for index in order], order[2]
            numbers = numbers if axis == 2 else list(range(truth.shape[-1]))
            numbers = numbers[::-1] if flips[2] else numbers
        chosen = _choose_slices(truth, masks, comp, count)
        numbers = [numbers[index] for index in chosen]
        turn = (lambda array: np.flip(np.swapaxes(array, -1, -2), -2)) if is_flat else (lambda array: array)
        parts = [tuple(turn(array[..., index]) for array in (channels, truth, masks)) for index in chosen]
        aspect = spacing[1] / spacing[0] if is_flat else spacing[0] / spacing[1]
    bounds = display_range(channels)
    images, truths, predictions, ignored = [], [], [], []
    for plane, labels, mask in parts:
        step = max(1, math.ceil(max(labels.shape[1:]) / side))
        small = reduce_truth(labels, comp, step)
        images.append(to_rgb(_to_shape(plane, small.shape[1:], step, labels.shape[1:]), bounds))
        truths.append(label_to_class_masks(small, comp))
        predictions.append(reduce_mask(mask, step))
        ignored.append((small == IGNORE_LABEL).any(axis=0))
    return Slices(
        np.stack(images), np.stack(truths), np.stack(predictions), np.stack(ignored), numbers, axis, float(aspect)
    )


def _to_shape(plane: NDArray[Any], shape: Sequence[int], step: int, full: Sequence[int]) -> NDArray[Any]:
    """Reduce the channels of a slice in size.

    Channels of the full size are averaged over squares of pixels. If `load_picture` has already reduced the channels,
    rows and columns are selected at about equal distances.

    Args:
        plane: (C, rows, columns) channels.
        shape: (rows, columns) of the result.
        step: edge length of the squares in pixels. Averaging a slice of the shape `full` over these squares gives the
            shape `shape`.
        full: (rows, columns) of the slice in the file.
    """
    if tuple(plane.shape[1:]) == tuple(full):
        return reduce_image(np.ascontiguousarray(plane), step)
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, plane.shape[1:], strict=True))
    return plane[:, rows][:, :, columns]


def _choose_slices(truth: NDArray[Any], masks: NDArray[np.bool_], comp: Competition, count: int) -> list[int]:
    """Return the indices of the selected slices along the last axis; see `select_slices` for the selection."""
    length = truth.shape[-1]
    if length <= count:
        return list(range(length))
    filled, wrong = np.zeros(length, bool), np.zeros(length, np.int64)
    for index in range(length):
        valid = (truth[..., index] != IGNORE_LABEL).all(axis=0)
        true, seen = label_to_class_masks(truth[..., index], comp), masks[..., index] & valid
        filled[index] = true.any() or seen.any()
        wrong[index] = np.count_nonzero((true != seen) & valid)
    inside = np.flatnonzero(filled)
    first, last = (max(inside[0] - 2, 0), min(inside[-1] + 2, length - 1)) if inside.size else (0, length - 1)
    chosen = {int(index) for index in np.linspace(first, last, min(count, last - first + 1)).round()}
    worst = int(wrong.argmax())
    if worst not in chosen:
        chosen.remove(min(chosen, key=lambda index: abs(index - worst)))
        chosen.add(worst)
    return sorted(chosen)


def _encode(slices: Slices) -> dict[str, Any]:
    """Return slices as plain data for JSON, with the image as a JPEG and the masks as run lengths."""
    import cv2

    count, height, width = slices.image.shape[:3]
    pixels = np.rint(255 * slices.image.reshape(count * height, width, 3)).astype(np.uint8)
    is_grey = bool((pixels[..., :1] == pixels).all())
    encoded = cv2.imencode(
        ".jpg",
        np.ascontiguousarray(pixels[..., 0] if is_grey else pixels[..., ::-1]),
        [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY],
    )[1]
    sets: list[tuple[int, ...]] = []
    truth, masks = (_set_numbers(each, sets) for each in (slices.truth, slices.masks))
    truth[slices.ignored] = IGNORE_LABEL
    return {
        "width": width,
        "height": height,
        "aspect": round(slices.aspect, 4),
        "slices": slices.numbers or [0],
        "axis": slices.axis,
        "image": "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode(),
        "sets": [list(one) for one in sets],
        "truth": encode_runs(truth),
        "prediction": encode_runs(masks),
    }


def _set_numbers(masks: NDArray[np.bool_], sets: list[tuple[int, ...]]) -> NDArray[np.uint8]:
    """Return one number per pixel, which stands for the classes at the pixel: (slices, rows, columns) uint8.

    A pixel without a class has the number 0. Classes may overlap, so each combination of classes gets its own number.

    Args:
        masks: (slices, K, rows, columns) bool.
        sets: the combinations that have a number; the combination with the number n is at index n - 1. New combinations
            are appended, up to `MAX_SETS` combinations; pixels with further combinations get 0.
    """
    numbers = np.zeros((masks.shape[0], *masks.shape[2:]), np.uint8)
    where = np.nonzero(masks.any(axis=1))
    found, inverse = np.unique(masks[where[0], :, where[1], where[2]], axis=0, return_inverse=True)
    codes = np.zeros(len(found), np.uint8)
    for index, members in enumerate(found):
        one = tuple(np.flatnonzero(members).tolist())
        if one not in sets and len(sets) < MAX_SETS:
            sets.append(one)
        codes[index] = sets.index(one) + 1 if one in sets else 0
    numbers[where] = codes[inverse.reshape(-1)]
    return numbers


def encode_runs(values: NDArray[np.uint8]) -> str:
    """Return the run lengths of an array, in C order, as base64.

    For each run, one byte contains its value. The next bytes contain its length, with 7 bits in each byte, the lowest
    bits first. The highest bit of a byte is set if another byte of the length follows.
    """
    flat = values.reshape(-1)
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    content = bytearray()
    for value, length in zip(flat[starts].tolist(), np.diff([*starts, len(flat)]).tolist(), strict=True):
        content.append(value)
        while length > 127:
            content.append(length & 127 | 128)
            length >>= 7
        content.append(length)
    return base64.b64encode(bytes(content)).decode()
