"""Prepared cases: each case's image and mask on the experiment's grid, made once and mapped into memory ever after."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment
from competition.data.boundary import boundary
from competition.data.cache import PreparedCase, cache_key, fetch, problem
from competition.data.files import FullDisk, write_array
from competition.data.geometry import Geometry
from competition.data.intensity import Channel, Intensity, chosen_channels, measure, picture_channels, picture_values

if TYPE_CHECKING:
    import pandas as pd

    from competition.data.readers import Picture

__all__ = ["PreparedCase", "prepare_case", "prepare_cases"]

IGNORED = 255
MOST_FOREGROUND = 10_000  # coordinates kept per class
log = logging.getLogger(__name__)


def prepare_case(row: Any, exp: Experiment, root: Path) -> Path:
    """Prepares one case, unless that is done already.

    Args:
        row: a row of the case table.
        exp: the experiment.
        root: the cache's folder.

    Returns:
        The folder for `PreparedCase.open`.

    Raises:
        MaskfoldError: the case cannot be read or prepared, or the disk is full.
    """
    from competition.data.table import load_image, load_instances, load_mask

    def build(folder: Path) -> dict[str, Any]:
        record = write_image(folder, load_image(exp.competition, row), exp, str(row.id))
        if row.split == "train":  # the image's memory is free again by now
            geometry = Geometry.from_dict(record["geometry"])
            objects = load_instances(exp.competition, row) if exp.prepare.boundary else None
            write_mask(folder, load_mask(exp.competition, row), geometry, exp, str(row.id), objects)
        return record

    return fetch(Path(root), cache_key(row, exp), build)


def prepare_cases(table: pd.DataFrame, exp: Experiment, root: Path, workers: int = 1,
                  progress: Callable[[str], None] | None = None, skipped: dict[str, str] | None = None) -> dict[str, Path]:
    """Prepares all cases of a table.

    Args:
        table: the case table, or rows of it.
        exp: the experiment.
        root: the cache's folder.
        workers: processes.
        progress: told in a line how many cases are done, some ten times; not where all were prepared before.
        skipped: gets the reason of each case that is left out, by id.

    Returns:
        The folder of each case by id, in the table's order. Under `on_bad_case: skip` a case that cannot be read is
        left out with a warning.

    Raises:
        MaskfoldError: a case cannot be prepared.
    """
    rows = [SimpleNamespace(**{str(name): value for name, value in row.items()}) for row in table.to_dict("records")]
    missing = _missing(rows, exp, Path(root))
    found: dict[str, Path] = {}
    for done, (row, outcome) in enumerate(_outcomes(rows, exp, Path(root), workers if missing else 1),
                                             start=1):
        if isinstance(outcome, MaskfoldError):
            skippable = outcome.status == 1 and not isinstance(outcome, FullDisk)
            if exp.competition.on_bad_case == "stop" or not skippable:
                raise outcome
            log.warning("Case %s is left out: %s", row.id, outcome)
            if skipped is not None:
                skipped[str(row.id)] = outcome.wrong
        else:
            found[str(row.id)] = outcome
        if progress is not None and missing and (done % max(1, len(rows) // 10) == 0 or done == len(rows)):
            progress(f"{done} of {len(rows)} cases prepared")
    return found


def _missing(rows: list[SimpleNamespace], exp: Experiment, root: Path) -> bool:
    """Whether a case is to be prepared; says it of each that was once, and is damaged."""
    found = False
    for row in rows:
        folder = root / cache_key(row, exp)
        if (why := problem(folder)) is not None:
            found = True
            if folder.exists():
                log.warning("The prepared case %s (%s) is damaged: %s. It is prepared again.", row.id, folder, why)
    return found


def _outcomes(rows: list[SimpleNamespace], exp: Experiment, root: Path,
              workers: int) -> Iterator[tuple[SimpleNamespace, Path | MaskfoldError]]:
    """Each row with its folder or its error, in order."""
    if workers <= 1 or len(rows) <= 1:
        for row in rows:
            try:
                yield row, prepare_case(row, exp, root)
            except MaskfoldError as error:
                yield row, error
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # spawn: a fork of a process with torch's threads may hang
    pool = ProcessPoolExecutor(min(workers, len(rows)), mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        futures = [pool.submit(_remote, row, exp, root) for row in rows]
        for row, future in zip(rows, futures, strict=True):
            try:
                folder, failure = future.result()
            except BrokenProcessPool as broken:
                raise MaskfoldError(f"A process that prepared cases was killed, at case {row.id} or near it.",
                                    "Memory may have run out; use fewer workers.") from broken
            if failure is None:
                yield row, folder
            else:
                kind, wrong, cure, status = failure
                yield row, (FullDisk if kind == "FullDisk" else MaskfoldError)(wrong, cure, status=status)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, which pictures do not even need


def _remote(row: SimpleNamespace, exp: Experiment, root: Path) -> tuple[Path, tuple[str, str, str, int] | None]:
    """`prepare_case` in another process; the error travels as plain words."""
    try:
        return prepare_case(row, exp, root), None
    except MaskfoldError as error:
        return root, (type(error).__name__, error.wrong, error.cure, error.status)


def write_image(folder: Path, picture: Picture, exp: Experiment, case: str) -> dict[str, Any]:
    """Writes image.npy, channel by channel, and returns the case's record.

    Args:
        folder: where.
        picture: array (C, *file shape) of any dtype, spacing in mm, affine or None.
        exp: the experiment.
        case: the id.
    """
    prepare, flat = exp.prepare, exp.competition.dimensions == 2
    array = picture.array
    if array.size == 0:
        raise MaskfoldError(f"The image of case {case} is empty, {array.shape}.", "Replace the file.")
    if flat:
        alpha = isinstance(exp.competition.train.images, str)
        array = picture_channels(picture_values(array), prepare.channels, alpha, case)
    elif isinstance(prepare.channels, list):
        array = chosen_channels(array, prepare.channels, case)
    geometry = Geometry.plan(array, picture.spacing, picture.affine, prepare,
                             exp.competition.labels == "exclusive", case)
    normal: list[Channel] = []

    def channels() -> Iterator[np.ndarray]:
        for index, channel in enumerate(array):
            values = geometry.grid(channel, order=1)
            normal.append(measure(values, prepare, unit=255.0 if flat and values.dtype == np.uint8 else 1.0))
            if not flat:
                Intensity.of(normal).apply_to(values, index)
            yield geometry.frame(values)  # volumes are padded with 0 after normalisation, as small patches are

    write_array(folder / "image.npy", (len(array), *geometry.shape),
                array.dtype if flat else np.float32, channels())
    return {"id": case, "geometry": geometry.to_dict(), "intensity": Intensity.of(normal).to_dict(),
            "normalised": not flat}


def write_mask(folder: Path, mask: np.ndarray, geometry: Geometry, exp: Experiment, case: str,
               objects: np.ndarray | None = None) -> None:
    """Writes mask.npy and foreground.npy.

    Args:
        folder: where.
        mask: (M, *file shape) uint8; see `competition.data.table.load_mask`.
        geometry: of the image.
        exp: the experiment.
        case: the id.
        objects: (*file shape) integers, see `competition.data.table.load_instances`; for `prepare.boundary`.
    """
    classes, exclusive = len(exp.competition.classes), exp.competition.labels == "exclusive"
    points: list[np.ndarray] = []

    def channels() -> Iterator[np.ndarray]:
        for index, channel in enumerate(mask):
            grid = geometry.grid(channel, order=0)
            if objects is not None and exp.prepare.boundary is not None:
                edge = boundary(geometry.grid(objects, order=0), exp.prepare.boundary)
                grid = np.where(edge & (grid != IGNORED), np.uint8(classes + 1), grid)
            grid = geometry.frame(grid)
            for number in range(1, classes + 1) if exclusive else (index + 1,):
                chosen = spread(grid, number if exclusive else 1, MOST_FOREGROUND)
                points.append(np.column_stack([np.full(len(chosen), number, np.int32), chosen]))
            yield grid

    if mask.shape[1:] != geometry.file_shape:
        raise MaskfoldError(f"The mask of case {case} has shape {mask.shape[1:]}, its image {geometry.file_shape}.",
                            "Make both files the same size.")
    _warn_of_cuts(mask, geometry, exp, case)
    write_array(folder / "mask.npy", (len(mask), *geometry.shape), np.uint8, channels())
    found = np.concatenate(points)
    write_array(folder / "foreground.npy", found.shape, np.int32, [found])


def _warn_of_cuts(mask: np.ndarray, geometry: Geometry, exp: Experiment, case: str) -> None:
    """Says it where the crop cuts a class off: no network can find that part again."""
    names, exclusive = exp.competition.classes, exp.competition.labels == "exclusive"
    for number, name in enumerate(names if exp.prepare.crop != "none" else (), start=1):
        channel, value = (mask[0], number) if exclusive else (mask[number - 1], 1)
        whole = np.count_nonzero(channel == value)
        if lost := whole - np.count_nonzero(geometry.cropped(channel) == value):
            log.warning("Case %s: `prepare.crop: %s` cuts off %d of %d voxels of %s, which are lost to training and "
                        "prediction.", case, exp.prepare.crop, lost, whole, name)


def spread(mask: np.ndarray, value: int, most: int) -> np.ndarray:
    """Coordinates of up to `most` voxels that hold `value`, evenly spread over their flat order: (n, d) int32."""
    counts = np.array([np.count_nonzero(plane == value) for plane in mask], np.int64)
    ends = counts.cumsum()
    total = int(ends[-1])
    ranks = np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64))
    found = np.empty((len(ranks), mask.ndim), np.int32)
    owners = np.searchsorted(ends, ranks, side="right")
    for index in np.unique(owners):
        mine = owners == index
        flat = np.flatnonzero(mask[index] == value)[ranks[mine] - (ends[index] - counts[index])]
        found[mine, 0] = index
        found[mine, 1:] = np.column_stack(np.unravel_index(flat, mask.shape[1:]))
    return found
