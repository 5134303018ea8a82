"""A folder of prepared cases: each appears whole or not at all, whoever builds it and however often."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.competition import Competition
from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment
from competition.data.files import room, sweep, sync_folder, temporary, whole_file
from competition.data.geometry import Geometry
from competition.data.intensity import Intensity
from competition.data.records import parsed
from competition.data.rle_table import rle_format, rle_grid, rows_are_parts

FORMAT = 1  # rises when the files of a prepared case change
LATER = ("boundary", "stretch", "long_side")  # keys of `prepare` that came after the first cases: off, they change no name
BESIDES = ("cache_gib",)  # keys of `prepare` that change no array
RECORD, DIGEST = "case.json", "sha256"
UNSIGNED = {"id", "geometry", "intensity", "normalised", "sizes"}  # what a record without a digest holds, no more and no less
UNSOUND = (OSError, ValueError, LookupError, TypeError, AttributeError)  # what comes of reading a damaged record
REBUILD = "Type the same `maskfold` command again: it prepares the case anew."


@dataclass(frozen=True)
class PreparedCase:
    """A case as `prepare_case` left it on disk. Arrays are read-only memory maps, opened when first used.

    Attributes:
        folder: of the prepared case.
        id: of the case.
        geometry: the way back to the file's grid.
        intensity: per-channel normalisation: of volumes already done, of pictures to be done after augmentation.
        normalised: whether it is done.
    """

    folder: Path
    id: str
    geometry: Geometry
    intensity: Intensity
    normalised: bool

    @classmethod
    def open(cls, folder: Path | str) -> PreparedCase:
        """Opens a folder of `prepare_case`.

        Raises:
            MaskfoldError: the folder is missing or damaged.
        """
        folder = Path(folder)
        try:
            return cls._of(folder, read_case(folder))
        except UNSOUND as error:
            raise MaskfoldError(f"The prepared case {folder} is missing or damaged: {said(error)}.", REBUILD) from error

    @classmethod
    def _of(cls, folder: Path, record: dict[str, Any]) -> PreparedCase:
        """The case of a record; one from before records had a digest may raise any of `UNSOUND`."""
        case = cls(folder, str(record["id"]), Geometry.from_dict(record["geometry"]),
                   Intensity.from_dict(record["intensity"]), bool(record["normalised"]))
        if not all(type(n) is int and n > 0 for n in case.geometry.shape):
            raise ValueError(f"its grid is {case.geometry.shape}")
        return case

    @cached_property
    def image(self) -> np.ndarray:
        """(C, *prepared): volumes float32, normalised; pictures uint8, or float32 in [0, 1], not normalised."""
        return self._array("image.npy", len(self.intensity.shift), self.geometry.shape,
                           ("float32",) if self.normalised else ("uint8", "float32"))

    @cached_property
    def mask(self) -> np.ndarray | None:
        """(M, *prepared) uint8, 255 where ignored; None for a test case."""
        return self._array("mask.npy", None, self.geometry.shape, ("uint8",)) if (self.folder / "mask.npy").exists() else None

    @cached_property
    def foreground(self) -> np.ndarray:
        """(n, 1 + d) int32: class 1..K and coordinates of up to 10,000 of its voxels, evenly spread."""
        return self._array("foreground.npy", None, (1 + len(self.geometry.shape),), ("int32",))

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of its arrays' files."""
        return [file.stat().st_size for file in sorted(self.folder.glob("*.npy"))]

    def network_image(self) -> np.ndarray:
        """The image as a network sees it without augmentation: (C, *prepared) float32, normalised."""
        return self.image if self.normalised else self.intensity.apply(self.image)

    def _array(self, name: str, first: int | None, rest: tuple[int, ...], kinds: tuple[str, ...]) -> np.ndarray:
        """A memory map of a file's array, (first or any, *rest) of one of the kinds, whose header is as it was written.

        Raises:
            MaskfoldError: it is not; the array's own values are not looked at.
        """
        try:
            array: np.ndarray = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
            if array.shape[1:] != rest or first not in (None, len(array)):
                raise ValueError(f"its shape is {array.shape}")
            if str(array.dtype) not in kinds or not array.flags.c_contiguous:  # the byte order counts too
                raise ValueError(f"it is of the type {array.dtype.str}, or in another order")
        except Exception as error:  # numpy's header is Python's own syntax, and raises whatever that raises
            raise _damaged(self.folder, name, error) from error
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedCase.open, (self.folder,)  # loader processes map the files themselves; no array is pickled


def _damaged(folder: Path, name: str, error: Exception) -> MaskfoldError:
    return MaskfoldError(f"The prepared case {folder} is damaged: {name}, {said(error)}.", REBUILD)


def said(error: Exception) -> str:
    """What was wrong, in a few words."""
    if isinstance(error, MaskfoldError):
        return error.wrong.removesuffix(".")
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is not there"
    return f"{RECORD} has no {error.args[0]}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]


def cache_key(row: Any, exp: Experiment) -> str:
    """The name of a prepared case: a hash of all that its arrays depend on.

    Args:
        row: a row of the case table; read are `id`, `split` and `hash`, the hash of the case's files.
        exp: read are `prepare` and what the competition says about channels, classes and labels.
    """
    comp = exp.competition
    parts = {
        "format": FORMAT, "id": str(row.id), "split": str(row.split), "hash": str(row.hash),
        "prepare": {key: value for key, value in exp.prepare.model_dump(mode="json").items()
                    if key not in BESIDES and (key not in LATER or value)}, "dimensions": comp.dimensions,
        "channels": list(comp.train.images) if isinstance(comp.train.images, dict) else None,
        "classes": comp.classes, "values": comp.label_values or comp.values, "labels": comp.labels, "ignore": comp.ignore,
        "rle": _rle(comp) if comp.train.rle else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _rle(comp: Competition) -> dict[str, Any]:
    """How the truth is read from `train.rle`; what only a profile can ask for is there only where one does."""
    fmt = rle_format(comp)
    said: dict[str, Any] = {"order": fmt.order, "base": fmt.base, "relative": fmt.relative, "empty": fmt.empty}
    special = {"container": fmt.container if fmt.container != "pairs" else None, "grid": rle_grid(comp),
               "parts": rows_are_parts(comp)}
    return said | {key: value for key, value in special.items() if value}


def fetch(root: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> Path:
    """The folder `root / key`, built if it is missing or damaged.

    `build` fills an empty folder and returns what `case.json` shall say. Two processes may build the same case at the
    same time: the one that is done first wins, and the other one throws its work away.

    Raises:
        FullDisk: there is no room for it.
    """
    final = root / key
    if intact(final):
        return final
    folder = temporary(final)
    with room(final):
        root.mkdir(parents=True, exist_ok=True)
        sweep(root, key)
        folder.mkdir()
    try:
        record = build(folder)
        record = {**record, DIGEST: _digest(record),
                  "sizes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())}}
        content = json.dumps(record).encode()
        with whole_file(folder / RECORD, len(content)) as stream:
            stream.write(content)
        sync_folder(folder)
        _publish(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # there after a failure, or when another process was first
    return final


def intact(folder: Path) -> bool:
    """Whether the folder has its record and every file that the record lists; see `problem`."""
    return problem(folder) is None


def problem(folder: Path) -> str | None:
    """What is wrong with a prepared case, in words; None where nothing is.

    Looked at are the record with its digest, the files' sizes and the headers of the arrays; not the arrays' values.
    """
    try:
        record = read_case(folder)
        if "geometry" in record:
            case = PreparedCase._of(folder, record)
            _ = (case.image, case.mask, case.foreground if "foreground.npy" in record["sizes"] else None)
    except (MaskfoldError, *UNSOUND) as error:
        return said(error)
    return None


def read_case(folder: Path) -> dict[str, Any]:
    """The record of a prepared case whose files have the sizes that it lists.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError: the record or a file is missing or damaged.
    """
    record = parsed((folder / RECORD).read_bytes())
    sizes = record["sizes"]
    if DIGEST in record and record[DIGEST] != _digest(record):
        raise ValueError(f"the checksum of {RECORD} is wrong")
    if DIGEST not in record and set(record) != UNSIGNED:  # made before there was a digest, or its name is what was damaged
        raise ValueError(f"{RECORD} holds {', '.join(sorted(record))[:100]}")
    for name, size in sizes.items():
        if Path(name).name != name:
            raise ValueError(f"{RECORD} names {name[:100]}")
        if (found := (folder / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found:,} bytes, and had {size}")
    return record


def _digest(record: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) of what a record says, but for the files' sizes, which the files prove."""
    plain = {key: value for key, value in record.items() if key not in (DIGEST, "sizes")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _publish(folder: Path, final: Path) -> None:
    """Renames the built folder to its final name; an intact one that is already there stays."""
    if not _renamed(folder, final):
        with _exchanging(final.parent):
            while not intact(final):
                broken = temporary(final)
                with suppress(FileNotFoundError):
                    final.rename(broken)
                done = _renamed(folder, final)  # else one that found the place empty just now was quicker
                shutil.rmtree(broken, ignore_errors=True)
                if done:
                    break
    sync_folder(final.parent)


def _renamed(folder: Path, final: Path) -> bool:
    """Whether a folder got its name; False where there is one of that name."""
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


@contextmanager
def _exchanging(root: Path) -> Iterator[None]:
    """One process at a time: two that find the same damaged case must not take away each other's whole one."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: the worst is a case that is built once more
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
