"""Store preprocessed cases on disk, and limit the memory that open cases use.

Each case is one folder. The folder is either complete or absent, even if several processes write it or a process is
killed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.experiment import Experiment
from competition.data.geometry import Geometry
from competition.data.normalisation import Intensity
from competition.data.rle.tables import rle_format, rle_grid, rows_are_parts
from competition.errors import MaskfoldError
from competition.io import disk_full_as_error, make_temporary_path, sync_file, sync_folder
from competition.records import json_digest, parse_json_object

CACHE_FORMAT = 1  # increase it when the files of a preprocessed case change
# Keys of `prepare` that were added later. They are hashed only if set, so that old caches stay valid.
OPTIONAL_KEYS = ("boundary", "rings", "stretch", "long_side")
UNHASHED_KEYS = ("cache_gib",)  # keys of `prepare` that do not affect the arrays
ARRAY_FILES = ("image.npy", "mask.npy", "foreground.npy")
POINTS = re.compile(rb"'shape': \((0|[1-9]\d*), ")
HEADER_BYTES = 128  # size of the header of the arrays that Maskfold writes (NumPy's format 1.0)
RECORD_FILE, DIGEST_KEY = "case.json", "sha256"
UNSIGNED_KEYS = {"id", "geometry", "intensity", "normalised", "sizes"}  # keys of an old record, without a digest
# Errors that reading a damaged record may raise.
READ_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError)
REBUILD_HINT = "Repeat the `maskfold` command, which preprocesses the case again."
PAGE_BYTES = mmap.PAGESIZE


@dataclass(frozen=True)
class PreprocessedCase:
    """Read a preprocessed case from disk. Its arrays are read-only memory maps, opened on first use.

    Attributes:
        folder: folder of the preprocessed case.
        id: id of the case.
        geometry: maps the preprocessed grid back to the file's grid.
        intensity: normalisation of each channel. Volumes are stored normalised; 2D images are normalised after
            augmentation.
        normalised: whether `image` is stored normalised.
    """

    folder: Path
    id: str
    geometry: Geometry
    intensity: Intensity
    normalised: bool

    @classmethod
    def open(cls, folder: Path | str) -> PreprocessedCase:
        """Open a folder that `preprocess_case` wrote.

        Raises:
            MaskfoldError: the folder is missing or damaged.
        """
        folder = Path(folder)
        try:
            return cls._from_record(folder, read_case_record(folder))
        except READ_ERRORS as error:
            raise MaskfoldError(
                f"The preprocessed case {folder} is missing or damaged: {format_damage(error)}.", REBUILD_HINT
            ) from error

    @classmethod
    def _from_record(cls, folder: Path, record: dict[str, Any]) -> PreprocessedCase:
        """Build the case from its record.

        Raise one of `READ_ERRORS` if the record is damaged.
        """
        case = cls(
            folder,
            str(record["id"]),
            Geometry.from_dict(record["geometry"]),
            Intensity.from_dict(record["intensity"]),
            bool(record["normalised"]),
        )
        if not all(type(n) is int and n > 0 for n in case.geometry.shape):
            raise ValueError(f"its grid is {case.geometry.shape}, expected whole numbers above 0")
        return case

    @cached_property
    def image(self) -> np.ndarray:
        """The image (C, *preprocessed shape): volumes are float32 and normalised.

        2D images are uint8, or float32 in [0, 1], and not normalised.
        """
        return self._load_array(
            "image.npy",
            len(self.intensity.shift),
            self.geometry.shape,
            ("float32",) if self.normalised else ("uint8", "float32"),
        )

    @cached_property
    def mask(self) -> np.ndarray | None:
        """The mask (M, *preprocessed shape) uint8, 255 where ignored; None for a test case.

        M is 1 for exclusive classes, and the number of classes for overlapping classes.
        `competition.data.preprocessing.write_mask` describes the values.
        """
        if not (self.folder / "mask.npy").exists():
            return None
        return self._load_array("mask.npy", None, self.geometry.shape, ("uint8",))

    @cached_property
    def foreground(self) -> np.ndarray:
        """A sample of foreground voxels, (n, 1 + d) int32: the class (1 to K) and the d coordinates of each voxel.

        The sample has at most 10,000 voxels per class. They are spread evenly over the voxels of the class.
        """
        return self._load_array("foreground.npy", None, (1 + len(self.geometry.shape),), ("int32",))

    @cached_property
    def file_sizes(self) -> list[int]:
        """Sizes in bytes of the array files."""
        return [file.stat().st_size for file in sorted(self.folder.glob("*.npy"))]

    @property
    def network_input(self) -> np.ndarray | NormalisedWindows:
        """The input of the network without augmentation, (C, *preprocessed shape) float32 and normalised.

        2D images are stored without normalisation, so the result normalises each window when the window is read.
        """
        return self.image if self.normalised else NormalisedWindows(self.image, self.intensity)

    def _load_array(
        self, name: str, length: int | None, item_shape: tuple[int, ...], dtypes: tuple[str, ...]
    ) -> np.ndarray:
        """Map an array file into memory, and check its shape and dtype.

        Args:
            name: name of the file.
            length: expected length of the first axis; None accepts any length.
            item_shape: expected lengths of the other axes.
            dtypes: names of the accepted dtypes.

        Raises:
            MaskfoldError: the file is missing, or its header is damaged or has another shape or dtype. The values are
                not checked.
        """
        try:
            array: np.ndarray = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
            if array.shape[1:] != item_shape or length not in (None, len(array)):
                expected = ", ".join(map(str, ("any length" if length is None else length, *item_shape)))
                raise ValueError(f"found shape {array.shape}, expected ({expected})")
            if str(array.dtype) not in dtypes or not array.flags.c_contiguous:  # str(dtype) includes the byte order
                raise ValueError(f"found dtype {array.dtype.str}, expected C-ordered {' or '.join(dtypes)}")
        except Exception as error:  # numpy evaluates the header as Python source, which may raise anything
            raise _damaged_array(self.folder, name, error) from error
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        # Each loader process maps the files itself; arrays are not pickled.
        return PreprocessedCase.open, (self.folder,)


@dataclass(frozen=True)
class NormalisedWindows:
    """Normalise each window of an image (C, *spatial) when the window is read, to keep no normalised copy in memory.

    Attributes:
        image: the image of a preprocessed case, uint8 or float32.
        intensity: the normalisation of the image.
    """

    image: np.ndarray
    intensity: Intensity

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image."""
        return self.image.shape

    def __getitem__(self, window: slice | tuple[slice, ...]) -> np.ndarray:
        """Return a window of all channels as a new array, float32."""
        return self.intensity.apply(self.image[window])


class _DamagedArrayError(MaskfoldError):
    """Report a damaged array file of a preprocessed case.

    `damage` is the part of the message that says what is wrong with the file, without the folder of the case.
    """

    damage = ""


def _damaged_array(folder: Path, name: str, error: Exception) -> _DamagedArrayError:
    damage = format_damage(error)
    damage = damage if damage.startswith(name) else f"{damage} (file {name})"
    damaged = _DamagedArrayError(f"The preprocessed case {folder} is damaged: {damage}.", REBUILD_HINT)
    damaged.damage = damage
    return damaged


def format_damage(error: Exception) -> str:
    """Return a short description of the damage that an error reports, without the folder of the case."""
    if isinstance(error, _DamagedArrayError):
        return error.damage
    if isinstance(error, MaskfoldError):
        return error.message.removesuffix(".")
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    if isinstance(error, KeyError):
        return f"{RECORD_FILE} has no key {error.args[0]}"
    return " ".join(str(error).split())[:160]


# Folders of the cache


def cache_key(row: Any, exp: Experiment) -> str:
    """Return the folder name of a preprocessed case: a hash of everything that its arrays depend on.

    Args:
        row: a row of the case table; only `id`, `split` and `hash` (hash of the case's files) are read.
        exp: the experiment; its section `prepare` is read, and those keys of its competition that change the arrays.
    """
    case = {"id": str(row.id), "split": str(row.split), "hash": str(row.hash)}
    return json_digest(case | _shared_key_parts(exp))[:32]


_last_parts: tuple[Experiment, dict[str, Any]] | None = None  # the last experiment, and its parts of the key


def _shared_key_parts(exp: Experiment) -> dict[str, Any]:
    """Return the parts of `cache_key` that are the same for all cases of an experiment."""
    global _last_parts
    if _last_parts is not None and _last_parts[0] is exp:
        return _last_parts[1]
    comp = exp.competition
    prepare = {
        key: value
        for key, value in exp.prepare.model_dump(mode="json").items()
        if key not in UNHASHED_KEYS and (key not in OPTIONAL_KEYS or value)
    }
    parts = {
        "format": CACHE_FORMAT,
        "prepare": prepare,
        "dimensions": comp.dimensions,
        "channels": list(comp.train.images) if isinstance(comp.train.images, dict) else None,
        "classes": comp.classes,
        "values": comp.label_values or comp.output_label_values,
        "labels": comp.labels,
        "ignore": comp.ignore,
        "rle": _rle_settings(comp) if comp.train.rle else None,
        **({"exif": "apply"} if comp.applies_exif else {}),
        **({"background": comp.background} if comp.background else {}),
        **_order_of_mask_patterns(comp),
        # Earlier versions read a region mask of 0 and 1 as empty.
        **({"region": 2} if comp.train.region is not None and comp.train.threshold is not None else {}),
    }
    _last_parts = exp, parts
    return parts


def _order_of_mask_patterns(comp: Competition) -> dict[str, Any]:
    """Return the order of the classes in `train.masks`, as a part of the cache key.

    If this order is the order in `classes`, the result is empty.

    The hash of a case covers its mask files in the order of `train.masks`, but not which class each file has. Without
    this part, a user who exchanges the classes of two patterns would get the old masks.
    """
    masks = comp.train.masks
    return {"masks": list(masks)} if isinstance(masks, dict) and list(masks) != comp.classes else {}


def _rle_settings(comp: Competition) -> dict[str, Any]:
    """Return the settings with which `train.rle` is decoded, as a part of the cache key.

    The keys `container`, `grid` and `parts` are left out if they have their default values.
    """
    fmt = rle_format(comp)
    settings: dict[str, Any] = {"order": fmt.order, "base": fmt.base, "relative": fmt.relative, "empty": fmt.empty}
    profile_settings = {
        "container": fmt.container if fmt.container != "pairs" else None,
        "grid": rle_grid(comp),
        "parts": rows_are_parts(comp),
    }
    return settings | {key: value for key, value in profile_settings.items() if value}


def get_or_build(root: Path, key: str, build: Callable[[Path], dict[str, Any]], *, durable: bool = True) -> Path:
    """Return the folder `root / key`; build it if it is missing or damaged.

    `build` fills an empty folder and returns the content of `case.json`. If two processes build the same case at the
    same time, the first result stays, and the second is discarded. Temporary files of killed processes stay in `root`,
    because looking for them at each call would take longer than building the case. `preprocess_cases` removes them once
    before it builds cases.

    Args:
        root: the cache's folder.
        key: the folder's name.
        build: function that fills the folder.
        durable: whether to sync the files to the disk, so that the folder is complete or absent even after a power
            failure. Syncing is not needed if the same command deletes the folder later.

    Raises:
        DiskFullError: the disk is full or cannot be written.
    """
    return build_case(root, key, build).publish(durable=durable)


@dataclass(frozen=True)
class BuiltCase:
    """Hold a folder of the cache that is built but may not have its final name yet.

    Building takes processor time, and `publish` waits for the disk. So a command can publish cases in threads while it
    builds the next ones.

    Attributes:
        final: the final folder.
        folder: the temporary folder; None if the final folder already exists and is intact.
    """

    final: Path
    folder: Path | None

    def publish(self, *, durable: bool = True) -> Path:
        """Sync the files to the disk if `durable`, then rename the folder; return the final folder.

        Raises:
            DiskFullError: the disk is full or cannot be written.
        """
        if self.folder is None:
            return self.final
        try:
            if durable:
                for name in sorted(os.listdir(self.folder), key=lambda name: name == RECORD_FILE):  # arrays first
                    sync_file(os.path.join(self.folder, name))
                with disk_full_as_error(self.final):
                    sync_folder(self.folder)
            _publish(self.folder, self.final)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self.final


def build_case(root: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> BuiltCase:
    """Build the folder `root / key` under a temporary name, unless this folder exists and is intact.

    Args:
        root: the cache's folder.
        key: the folder's name.
        build: function that fills the folder, see `get_or_build`.

    Raises:
        DiskFullError: the disk is full or cannot be written.
    """
    final = root / key
    if os.path.lexists(final) and is_intact(final):
        return BuiltCase(final, None)
    folder = make_temporary_path(final)
    with disk_full_as_error(final):
        try:
            os.mkdir(folder)
        except FileNotFoundError:  # the first case of the cache
            root.mkdir(parents=True, exist_ok=True)
            os.mkdir(folder)
    try:
        record = build(folder)
        record = {
            **record,
            DIGEST_KEY: _record_digest(record),
            "sizes": {name: os.stat(os.path.join(folder, name)).st_size for name in sorted(os.listdir(folder))},
        }
        content = json.dumps(record).encode()
        path = folder / RECORD_FILE
        with disk_full_as_error(path, len(content)), open(path, "wb", buffering=len(content)) as file:
            file.write(content)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return BuiltCase(final, folder)


def is_intact(folder: Path) -> bool:
    """Return whether a folder contains a preprocessed case without damage; see `find_damage`."""
    return find_damage(folder) is None


def find_damage(folder: Path) -> str | None:
    """Describe the damage of a preprocessed case; return None if the case is intact.

    The check covers the record and its digest, the file sizes and the headers of the arrays, but not the arrays'
    values.
    """
    try:
        record = read_case_record(folder)
        if "geometry" in record:
            case = PreprocessedCase._from_record(folder, record)
            headers = _read_headers(case)
            if headers is None or not _intact_headers.issuperset(headers):
                _ = (case.image, case.mask, case.foreground if "foreground.npy" in record["sizes"] else None)
                _intact_headers.update(headers or ())
    except (MaskfoldError, *READ_ERRORS) as error:
        return format_damage(error)
    return None


# Headers and sizes of arrays that were found intact. Most cases of a cache share a few headers. Parsing and mapping
# each file would take most of the time in which a command opens a large cache.
_intact_headers: set[tuple[Any, ...]] = set()


def _read_headers(case: PreprocessedCase) -> list[tuple[Any, ...]] | None:
    """Return a tuple for each array of a case: its name, header, file size and expected shape.

    Arrays with equal tuples are either all valid or all invalid, so `find_damage` maps only the first of them into
    memory. Return None if a file is missing, or if its header does not have the form that Maskfold writes; then
    `find_damage` maps every array of the case.
    """
    names = [name for name in ARRAY_FILES if name != "mask.npy" or (case.folder / name).exists()]
    expected = (case.geometry.shape, len(case.intensity.shift), case.normalised)
    headers = []
    for name in names:
        try:
            with open(case.folder / name, "rb") as file:
                start, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
        except OSError:
            return None
        if start[:8] != b"\x93NUMPY\x01\x00" or 10 + int.from_bytes(start[8:10], "little") != HEADER_BYTES:
            return None
        length = POINTS.search(start) if name == "foreground.npy" else None
        if length is not None:  # the number of points differs between cases, and every number is valid
            size -= int(length[1]) * 4 * (1 + len(case.geometry.shape))
            start = (start[: length.start(1)] + start[length.end(1) :]).replace(b" ", b"")
        headers.append((name, start, size, *expected))
    return headers


def read_case_record(folder: Path) -> dict[str, Any]:
    """Read the record of a preprocessed case, and check that its files have the listed sizes.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError: the record or a file is missing or damaged.
    """
    record = parse_json_object((folder / RECORD_FILE).read_bytes())
    sizes = record["sizes"]
    if DIGEST_KEY in record and record[DIGEST_KEY] != _record_digest(record):
        raise ValueError(f"the checksum of {RECORD_FILE} is wrong")
    # A record without a digest was written by an old version, or the key of its digest is damaged.
    if DIGEST_KEY not in record and set(record) != UNSIGNED_KEYS:
        raise ValueError(f"{RECORD_FILE} has no key {DIGEST_KEY}; its keys are {', '.join(sorted(record))[:100]}")
    for name, size in sizes.items():
        if Path(name).name != name:
            raise ValueError(f"{RECORD_FILE} lists {name[:100]}, which is not a file name")
        if (actual := (folder / name).stat().st_size) != size:
            raise ValueError(f"found {actual:,} bytes in {name}, expected {size}")
    return record


def _record_digest(record: dict[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of a record without its file sizes; `read_case_record` checks the sizes itself."""
    plain = {key: value for key, value in record.items() if key not in (DIGEST_KEY, "sizes")}
    return json_digest(plain)


def _publish(folder: Path, final: Path) -> None:
    """Rename the built folder to its final name. If an intact folder already has this name, delete the built folder.

    The rename is not synced, so a power failure may undo it. The case is then missing from the cache, but never
    incomplete.
    """
    if not _try_rename(folder, final):
        with _exclusive(final.parent):
            while not is_intact(final):
                damaged = make_temporary_path(final)
                with suppress(FileNotFoundError):
                    final.rename(damaged)
                done = _try_rename(folder, final)  # fails if another process took the free name meanwhile
                shutil.rmtree(damaged, ignore_errors=True)
                if done:
                    return
        shutil.rmtree(folder, ignore_errors=True)  # another process was faster


def _try_rename(folder: Path, final: Path) -> bool:
    """Rename a folder; return False if the name is taken."""
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


@contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """Hold the lock of the cache during the `with` block.

    If two processes replaced the same damaged case without the lock, one process could remove the intact case that the
    other process has just written.
    """
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # without locks in the file system, the worst outcome is that a case is built twice
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# Memory of open cases


class MemoryBudget:
    """Limit the memory of the cases that one process has mapped, by releasing the least recently used cases.

    A case counts with its full size on disk, even if only a part was read. Asking the kernel for the used size would
    take too long. A case that is larger than the budget is read alone: all other cases are released first, and the
    case itself is released after it was read.

    Args:
        max_bytes: the budget in bytes; None means no limit.

    Example:
        >>> budget = MemoryBudget(2**30)
        >>> with budget.reading(case):  # doctest: +SKIP
        ...     patch = np.array(case.image[:, :32, :32, :32])
    """

    def __init__(self, max_bytes: int | None) -> None:
        self.max_bytes = max_bytes
        # bytes of each case, the least recently used case first
        self._held: OrderedDict[int, tuple[PreprocessedCase, int]] = OrderedDict()

    @classmethod
    def from_experiment(cls, exp: Experiment) -> MemoryBudget:
        """Return one process's budget: `prepare.cache_gib` is divided equally among processes and loader workers."""
        if exp.prepare.cache_gib is None:
            return cls(None)
        return cls(int(exp.prepare.cache_gib * 2**30) // (exp.run.devices * (exp.run.loader_processes + 1)))

    @property
    def held_bytes(self) -> int:
        """Upper bound of the number of bytes that the mapped cases occupy in memory now."""
        return sum(size for _, size in self._held.values())

    @contextmanager
    def reading(self, case: PreprocessedCase) -> Iterator[None]:
        """Release other cases until the budget has room for the case that the `with` block reads."""
        if self.max_bytes is None:
            yield
            return
        size = mapped_bytes(case)
        self._held.pop(id(case), None)
        while self._held and self.held_bytes + size > self.max_bytes:
            self.release(next(iter(self._held.values()))[0])
        self._held[id(case)] = (case, size)
        try:
            yield
        finally:
            if size > self.max_bytes:
                self.release(case)

    def release(self, case: PreprocessedCase) -> None:
        """Drop a case from memory and from the budget. A later read maps and counts the case again."""
        if self._held.pop(id(case), None) is not None:
            release_pages(case)


def mapped_bytes(case: PreprocessedCase) -> int:
    """Return the bytes that a case's files occupy in memory, in whole pages, when they are read completely."""
    return sum(-(-size // PAGE_BYTES) * PAGE_BYTES for size in case.file_sizes)


def release_pages(case: PreprocessedCase) -> None:
    """Remove the mapped arrays of a case from this process's memory, if the system supports this (Linux)."""
    for array in vars(case).values():
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            array.base.madvise(mmap.MADV_DONTNEED)
