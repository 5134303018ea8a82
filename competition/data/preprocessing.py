"""Preprocess each case once: write its image and mask, on the experiment's grid, into the cache."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from competition.config.experiment import Experiment
from competition.data.cache import BuiltCase, PreprocessedCase, build_case, cache_key, find_damage
from competition.data.content.unchanged import unchanged_files
from competition.data.geometry import Geometry
from competition.data.masks import IGNORED, load_instances, load_mask
from competition.data.normalisation import (
    ChannelStatistics,
    Intensity,
    channel_statistics,
    convert_channels,
    may_have_alpha,
    select_channels,
    to_uint8_or_unit_range,
)
from competition.data.objects import boundary_mask, ring_mask
from competition.data.readers import load_image
from competition.errors import ChangedDataError, MaskfoldError
from competition.io import DiskFullError, remove_all_stale_temp, write_array
from competition.process import ProcessPool, count_cores

if TYPE_CHECKING:
    import pandas as pd

    from competition.data.image_types import Image

__all__ = ["PreprocessedCase", "preprocess_case", "preprocess_cases"]

MAX_FOREGROUND = 10_000  # maximum number of voxels of a class whose coordinates are stored
# A process takes about PROBE_SECONDS to start, so a pool must save more time than that.
PROBE_SECONDS, POOL_SECONDS = 1.0, 5.0
BYTES_PER_VALUE, PROCESS_BYTES = 24, 2**29  # bytes of memory per value of an image, and per process
SYNC_THREADS = 16  # threads that wait for the disk
UNCHANGED = {"lo": None, "hi": None, "shift": 0.0, "scale": 1.0}  # the normalisation of an added channel
MAX_WHOLE = 2**23  # a mask of more voxels is searched plane by plane, which needs less memory
_KILLED_HINT = "Free some memory, then repeat the command, which continues with the remaining cases."
log = logging.getLogger(__name__)


def preprocess_case(row: Any, exp: Experiment, root: Path, *, durable: bool = True) -> Path:
    """Preprocess one case, unless the cache contains it.

    A case enters the cache only if the files that were read have the digest in the case table: `unchanged_files` hashes
    them after they are decoded.

    Args:
        row: a row of the case table.
        exp: the experiment.
        root: the cache's folder.
        durable: as for `competition.data.cache.get_or_build`.

    Returns:
        The folder for `PreprocessedCase.open`.

    Raises:
        ChangedDataError: a file has changed since the case table was made.
        MaskfoldError: the case cannot be read or preprocessed, or the disk is full.
    """
    return _build(row, exp, Path(root)).publish(durable=durable)


def _build(row: Any, exp: Experiment, root: Path) -> BuiltCase:
    """Build the folder of a case, as described for `preprocess_case`, but do not publish it."""

    def build(folder: Path) -> dict[str, Any]:
        with unchanged_files(exp.competition, row, truth=row.split == "train", fresh=True):
            record = write_image(folder, load_image(exp.competition, row), exp, str(row.id))
            if row.split == "train":  # load the mask now, after the memory of the image was freed
                geometry = Geometry(**record["geometry"])
                objects = load_instances(exp.competition, row) if exp.prepare.object_key else None
                write_mask(folder, load_mask(exp.competition, row), geometry, exp, str(row.id), objects)
        return record

    return build_case(root, cache_key(row, exp), build)


def preprocess_cases(
    table: pd.DataFrame,
    exp: Experiment,
    root: Path,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
    skipped: dict[str, str] | None = None,
    bar: Callable[[Iterator[Any], int], Iterator[Any]] | None = None,
) -> dict[str, Path]:
    """Preprocess all cases of a table.

    Args:
        table: the case table, or rows of it.
        exp: the experiment.
        root: the cache's folder. If a case is missing in the cache, the temporary files of killed processes are
            removed first.
        workers: number of processes. If None, this process starts alone. If much work remains after a second, one
            process per core takes over, or fewer processes if the memory is too small for so many cases.
        progress: function that is called about ten times with a line of progress. It is not called if the cache has
            all cases, or if there is a `bar`.
        skipped: receives the reason for each skipped case, by id.
        bar: function that wraps the iteration over the missing cases to show progress; it receives the iterator and
            the number of cases.

    Returns:
        The folder of each case by id, in the table's order. If `on_bad_case` is `skip`, an unreadable case is skipped
        with a warning.

    Raises:
        MaskfoldError: a case cannot be preprocessed.
    """
    root = Path(root)
    rows = [SimpleNamespace(**{str(name): value for name, value in row.items()}) for row in table.to_dict("records")]
    intact = _find_intact(rows, exp, root)
    missing = [row for row, folder in zip(rows, intact, strict=True) if folder is None]
    if missing:
        remove_all_stale_temp(root)
    folders: dict[str, Path] = {}
    with closing(_run(missing, exp, root, workers)) as source, ExitStack() as stack:
        results: Iterator[Path | MaskfoldError] = source
        if bar is not None and missing:
            results = bar(source, len(missing))
            stack.callback(getattr(results, "close", lambda: None))  # the bar ends before an error is shown
        for done, (row, known) in enumerate(zip(rows, intact, strict=True), start=1):
            result = next(results) if known is None else known
            if isinstance(result, MaskfoldError):
                skippable = result.status == 1 and not isinstance(result, DiskFullError | ChangedDataError)
                if exp.competition.on_bad_case == "stop" or not skippable:
                    raise result
                log.warning("Case %s is skipped: %s", row.id, result)
                if skipped is not None:
                    skipped[str(row.id)] = result.message
            else:
                folders[str(row.id)] = result
            shows_line = done % max(1, len(rows) // 10) == 0 or done == len(rows)
            if progress is not None and bar is None and missing and shows_line:
                progress(f"{done} of {len(rows)} cases preprocessed")
        next(results, None)  # so that the bar is full
    return folders


def _find_intact(rows: list[SimpleNamespace], exp: Experiment, root: Path) -> list[Path | None]:
    """Return the folder of each case, or None if the cache lacks it; log a warning for each damaged case."""
    found: list[Path | None] = []
    for row in rows:
        folder = root / cache_key(row, exp)
        damage = find_damage(folder)
        found.append(folder if damage is None else None)
        if damage is not None and folder.exists():
            log.warning(
                "The preprocessed case %s (%s) is damaged: %s. Maskfold preprocesses it again.", row.id, folder, damage
            )
    return found


def _run(
    rows: list[SimpleNamespace], exp: Experiment, root: Path, workers: int | None
) -> Generator[Path | MaskfoldError]:
    """Yield the folder or the error of each row, in order; `workers` as for `preprocess_cases`."""
    worker, start, done = _Preprocessor(exp, root), time.monotonic(), 0

    def run_alone() -> Iterator[BuiltCase | MaskfoldError]:
        """Build cases in this process, until a pool would be faster."""
        nonlocal workers, done
        while workers is None and done < len(rows):
            yield worker.run(rows[done])
            done += 1
            elapsed = time.monotonic() - start
            if elapsed > PROBE_SECONDS and elapsed / done * (len(rows) - done) > POOL_SECONDS:
                workers = _count_workers(rows[done:])

    yield from _publish(run_alone())
    rest = rows[done:]
    count = min(workers or 1, len(rest))
    with ProcessPool(worker, count if count > 1 else 0, "preprocessed cases", _KILLED_HINT) as pool:
        yield from _publish(pool.map(_Preprocessor.run, rest))


def _publish(cases: Iterable[BuiltCase | MaskfoldError]) -> Iterator[Path | MaskfoldError]:
    """Publish cases in threads, and yield the folder or the error of each case, in order.

    A small case waits longer for the disk than for the processor. The waits of several threads overlap, because a disk
    syncs many files as fast as one.
    """

    def publish(case: BuiltCase | MaskfoldError) -> Path | MaskfoldError:
        try:
            return case if isinstance(case, MaskfoldError) else case.publish()
        except MaskfoldError as error:
            return error

    waiting: deque[Future[Path | MaskfoldError]] = deque()
    with ThreadPoolExecutor(SYNC_THREADS) as threads:
        for case in cases:
            waiting.append(threads.submit(publish, case))
            while waiting and (len(waiting) > 2 * SYNC_THREADS or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _count_workers(rows: list[SimpleNamespace]) -> int:
    """Return the number of worker processes: one per core, or fewer if the free memory is too small.

    The memory of a process is estimated from the largest case.
    """
    import psutil

    largest = max(math.prod(json.loads(row.shape)) * int(row.channels) for row in rows)
    fitting = psutil.virtual_memory().available // (BYTES_PER_VALUE * largest + PROCESS_BYTES)
    return max(1, min(count_cores(), fitting))


@dataclass(frozen=True)
class _Preprocessor:
    """Preprocess cases in a worker process, one case per call of `run`."""

    exp: Experiment
    root: Path

    def run(self, row: SimpleNamespace) -> BuiltCase | MaskfoldError:
        try:
            return _build(row, self.exp, self.root)
        except MaskfoldError as error:
            return error


def write_image(folder: Path, image: Image, exp: Experiment, case: str) -> dict[str, Any]:
    """Write image.npy, channel by channel, and return the case's record (the content of case.json).

    Args:
        folder: folder of the preprocessed case.
        image: the image of the case; its array is (C, *file shape) of any dtype.
        exp: the experiment.
        case: id of the case.

    Raises:
        MaskfoldError: the image is empty, or preprocessing is impossible.
    """
    prepare, is_2d = exp.prepare, exp.competition.dimensions == 2
    array = image.array
    if array.size == 0:
        raise MaskfoldError(f"The image of case {case} is empty: found shape {array.shape}.", "Replace the file.")
    if is_2d:
        alpha = may_have_alpha(exp.competition.train.images)
        array = convert_channels(to_uint8_or_unit_range(array), prepare.channels, alpha, case)
    elif isinstance(prepare.channels, list):
        array = select_channels(array, prepare.channels, case)
    geometry = Geometry.plan(array, image.spacing, image.affine, prepare, exp.competition.labels == "exclusive", case)
    statistics: list[ChannelStatistics] = []
    is_unchanged = is_2d and geometry.is_identity  # volumes are converted to float32

    def channels() -> Iterator[np.ndarray]:
        for index, channel in enumerate(array):
            values = np.ascontiguousarray(channel) if is_unchanged else geometry.resample_channel(channel, order=1)
            statistics.append(
                channel_statistics(values, prepare, unit=255.0 if is_2d and values.dtype == np.uint8 else 1.0)
            )
            if not is_2d:
                Intensity.from_channels(statistics).apply_to(values, index)
            yield (
                values if is_unchanged else geometry.pad_channel(values)
            )  # volumes are padded with 0 after normalisation, like small patches

    write_array(folder / "image.npy", (len(array), *geometry.shape), array.dtype if is_2d else np.float32, channels())
    return {
        "id": case,
        "geometry": geometry.to_dict(),
        "intensity": Intensity.from_channels(statistics).to_dict(),
        "normalised": not is_2d,
    }


def write_mask(
    folder: Path, mask: np.ndarray, geometry: Geometry, exp: Experiment, case: str, objects: np.ndarray | None = None
) -> None:
    """Write mask.npy and foreground.npy.

    mask.npy contains the values of `load_mask` on the preprocessed grid. Two keys change the values of K exclusive
    classes. If `prepare.boundary` is set, the boundaries of objects have the value K + 1. If `prepare.rings` is R, ring
    number r of the objects of class k has the value (k - 1) * R + r.

    Args:
        folder: folder of the preprocessed case.
        mask: (M, *file shape) uint8; see `competition.data.masks.load_mask`.
        geometry: geometry of the image.
        exp: the experiment.
        case: id of the case.
        objects: (*file shape) integers, see `competition.data.masks.load_instances`; required for `prepare.boundary`
            and `prepare.rings`.

    Raises:
        MaskfoldError: mask and image have different shapes.
    """
    classes, exclusive = len(exp.competition.classes), exp.competition.labels == "exclusive"
    points: list[np.ndarray] = []
    is_unchanged = geometry.is_identity

    def channels() -> Iterator[np.ndarray]:
        for index, channel in enumerate(mask):
            resampled = np.ascontiguousarray(channel) if is_unchanged else geometry.resample_channel(channel, order=0)
            if objects is not None and exp.prepare.boundary is not None:
                edge = boundary_mask(geometry.resample_channel(objects, order=0), exp.prepare.boundary)
                resampled = np.where(edge & (resampled != IGNORED), np.uint8(classes + 1), resampled)
            padded = resampled if is_unchanged else geometry.pad_channel(resampled)
            if objects is not None and (rings := exp.prepare.rings) is not None:
                ring = geometry.pad_channel(ring_mask(geometry.resample_channel(objects, order=0), rings))
                inside = (padded != 0) & (padded != IGNORED)
                stored = np.where(inside, (padded - 1) * rings + np.maximum(ring, 1), padded).astype(np.uint8)
            else:
                stored = padded
            for number in range(1, classes + 1) if exclusive else (index + 1,):
                voxels = sample_voxels(padded, number if exclusive else 1, MAX_FOREGROUND)
                numbered = np.empty((len(voxels), 1 + padded.ndim), np.int32)
                numbered[:, 0], numbered[:, 1:] = number, voxels
                points.append(numbered)
            yield stored

    if mask.shape[1:] != geometry.file_shape:
        raise MaskfoldError(
            f"The mask of case {case} has the wrong shape: found {mask.shape[1:]}, expected "
            f"{geometry.file_shape}, which is the shape of its image.",
            "Resample image and mask to the same grid.",
        )
    _warn_of_cropped_classes(mask, geometry, exp, case)
    write_array(folder / "mask.npy", (len(mask), *geometry.shape), np.uint8, channels())
    shape = (sum(map(len, points)), 1 + len(geometry.shape))
    write_array(folder / "foreground.npy", shape, np.int32, points)


def write_with_channels(folder: Path, case: PreprocessedCase, channels: np.ndarray) -> dict[str, Any]:
    """Write a copy of a preprocessed volume, with additional channels after its own channels.

    This is a `build` function of `get_or_build`. The additional channels are interpolated linearly to the grid of the
    case, as an image is, but not normalised. Padding is 0. If the file's grid equals the case's grid, the values are
    copied.

    Args:
        folder: empty folder for the files of a preprocessed case.
        case: a preprocessed volume, with or without a mask.
        channels: (A, *file shape) float16 or float32.

    Returns:
        The content of `case.json`.

    Raises:
        MaskfoldError: the channels do not have the shape of the case's file.
    """
    if channels.shape[1:] != case.geometry.file_shape:
        raise MaskfoldError(
            f"The predictions of the first stage for case {case.id} have the wrong shape: found {channels.shape[1:]}, "
            f"expected {case.geometry.file_shape}, which is the shape of its image.",
            "Restore the image with which the first stage was trained. Or train the first stage again, with "
            "`maskfold cv --new`.",
        )

    def all_channels() -> Iterator[np.ndarray]:
        yield from case.image
        for channel in channels:
            yield case.geometry.pad_channel(case.geometry.resample_channel(channel, order=1))

    shape = (len(case.image) + len(channels), *case.geometry.shape)
    write_array(folder / "image.npy", shape, np.float32, all_channels())
    for name in ("mask.npy", "foreground.npy"):
        if (case.folder / name).exists():
            link_or_copy(case.folder / name, folder / name)
    intensity = case.intensity.to_dict()
    return {
        "id": case.id,
        "geometry": case.geometry.to_dict(),
        "intensity": {key: [*values, *[UNCHANGED[key]] * len(channels)] for key, values in intensity.items()},
        "normalised": case.normalised,
    }


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _warn_of_cropped_classes(mask: np.ndarray, geometry: Geometry, exp: Experiment, case: str) -> None:
    """Log a warning if the crop removes voxels of a class, because the network cannot predict these voxels."""
    names, exclusive = exp.competition.classes, exp.competition.labels == "exclusive"
    for number, name in enumerate(names if exp.prepare.crop != "none" else (), start=1):
        channel, value = (mask[0], number) if exclusive else (mask[number - 1], 1)
        total = np.count_nonzero(channel == value)
        if lost := total - np.count_nonzero(geometry.crop_channel(channel) == value):
            log.warning(
                "Case %s: `prepare.crop: %s` removes %d of the %d voxels of %s from training and prediction. If this "
                "is not intended, remove `prepare.crop`.",
                case,
                exp.prepare.crop,
                lost,
                total,
                name,
            )


def sample_voxels(mask: np.ndarray, value: int, most: int) -> np.ndarray:
    """Return the coordinates of up to `most` voxels whose value is `value`, as int32 (n, number of axes).

    If there are more such voxels, the sample is spread evenly over them, in C order.
    """
    if mask.size <= MAX_WHOLE:
        flat = np.flatnonzero(mask == value)
        chosen = flat if len(flat) <= most else flat[_spread_ranks(len(flat), most)]
        found = np.empty((len(chosen), mask.ndim), np.int32)
        for axis, values in enumerate(np.unravel_index(chosen, mask.shape)):
            found[:, axis] = values
        return found
    counts = np.array([np.count_nonzero(plane == value) for plane in mask], np.int64)
    ends = counts.cumsum()
    ranks = _spread_ranks(int(ends[-1]), most)
    coordinates = np.empty((len(ranks), mask.ndim), np.int32)
    plane_of = np.searchsorted(ends, ranks, side="right")
    for index in np.unique(plane_of):
        in_plane = plane_of == index
        flat = np.flatnonzero(mask[index] == value)[ranks[in_plane] - (ends[index] - counts[index])]
        coordinates[in_plane, 0] = index
        coordinates[in_plane, 1:] = np.column_stack(np.unravel_index(flat, mask.shape[1:]))
    return coordinates


def _spread_ranks(total: int, most: int) -> np.ndarray:
    """Return up to `most` whole numbers from 0 to total - 1, evenly spread and in ascending order."""
    if total <= most:
        return np.arange(total)
    ranks = np.linspace(0, total - 1, most).round().astype(np.int64)
    return ranks[np.diff(ranks, prepend=-1) > 0]
