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
from competition.data.rle_table import rle_format, rle_grid, rows_are_parts

FORMAT = 1  # rises when the files of a prepared case change
LATER = ("boundary", "stretch", "long_side")  # keys of `prepare` that came after the first cases: off, they change no name
BESIDES = ("cache_gib",)  # keys of `prepare` that change no array
RECORD = "case.json"


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
        if not intact(folder):
            raise MaskfoldError(f"The prepared case {folder} is missing or damaged.",
                                "Run the same command again to rebuild it.")
        try:
            record = json.loads((folder / RECORD).read_bytes())
            return cls(folder, str(record["id"]), Geometry.from_dict(record["geometry"]),
                       Intensity.from_dict(record["intensity"]), bool(record["normalised"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder, RECORD, error) from error

    @cached_property
    def image(self) -> np.ndarray:
        """(C, *prepared): volumes float32, normalised; pictures uint8, or float32 in [0, 1], not normalised."""
        return self._array("image.npy", len(self.intensity.shift), self.geometry.shape)

    @cached_property
    def mask(self) -> np.ndarray | None:
        """(M, *prepared) uint8, 255 where ignored; None for a test case."""
        return self._array("mask.npy", None, self.geometry.shape) if (self.folder / "mask.npy").exists() else None

    @cached_property
    def foreground(self) -> np.ndarray:
        """(n, 1 + d) int32: class 1..K and coordinates of up to 10,000 of its voxels, evenly spread."""
        return self._array("foreground.npy", None, (1 + len(self.geometry.shape),))

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of its arrays' files."""
        return [file.stat().st_size for file in sorted(self.folder.glob("*.npy"))]

    def network_image(self) -> np.ndarray:
        """The image as a network sees it without augmentation: (C, *prepared) float32, normalised."""
        return self.image if self.normalised else self.intensity.apply(self.image)

    def _array(self, name: str, first: int | None, rest: tuple[int, ...]) -> np.ndarray:
        """A memory map of a file's array, (first or any, *rest), whose header is as it was written.

        Raises:
            MaskfoldError: it is not; the array's own values are not looked at.
        """
        try:
            array: np.ndarray = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
            if array.shape[1:] != rest or first not in (None, len(array)) or not array.flags.c_contiguous:
                raise ValueError(f"its shape is {array.shape}")
        except Exception as error:  # numpy's header is Python's own syntax, and raises whatever that raises
            raise _damaged(self.folder, name, error) from error
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedCase.open, (self.folder,)  # loader processes map the files themselves; no array is pickled


def _damaged(folder: Path, name: str, error: Exception) -> MaskfoldError:
    return MaskfoldError(f"The prepared case {folder} is damaged: {name}, {' '.join(str(error).split())[:160]}.",
                         f"Delete {folder}; the same command makes it again.")


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
        record["sizes"] = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        content = json.dumps(record).encode()
        with whole_file(folder / RECORD, len(content)) as stream:
            stream.write(content)
        sync_folder(folder)
        _publish(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # there after a failure, or when another process was first
    return final


def intact(folder: Path) -> bool:
    """Whether the folder has its record and every file that the record lists, in the right size."""
    try:
        sizes = json.loads((folder / RECORD).read_bytes())["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _publish(folder: Path, final: Path) -> None:
    """Renames the built folder to its final name; an intact one that is already there stays."""
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        with _exchanging(final.parent):
            if intact(final):
                return
            broken = temporary(final)
            final.rename(broken)
            folder.rename(final)
        shutil.rmtree(broken, ignore_errors=True)
    sync_folder(final.parent)


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
