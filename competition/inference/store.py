"""Out-of-fold probabilities on disk: one Zarr array in one zip file per case, there whole or not at all."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote

import numpy as np

from competition.config.errors import MaskfoldError
from competition.data.files import room, sweep, sync_folder, temporary

T = TypeVar("T")
SUFFIX = ".zarr.zip"
CHUNK_BYTES = 2**23
KINDS, CODECS = ("float16", "uint8"), {"BytesCodec", "ZstdCodec"}  # what `write` makes


class OofStore:
    """A folder of probabilities by case.

    One file per case, because a file is replaced in one step where a folder of chunks is not. Any reader of Zarr 3
    opens it with `zarr.storage.ZipStore`.

    Args:
        folder: made when the first case is written.
        kind: how probabilities are written: float16, or uint8 in steps of 1/255.

    Example:
        >>> store = OofStore("oof")                                              # doctest: +SKIP
        >>> store.write("case_7", probabilities); store.read("case_7").shape     # doctest: +SKIP
        (3, 35, 50, 36)
    """

    def __init__(self, folder: Path | str, kind: Literal["float16", "uint8"] = "float16") -> None:
        self.folder = Path(folder)
        self.kind = kind

    def write(self, case: str, probabilities: np.ndarray, gate: np.ndarray | None = None) -> None:
        """Stores (P, *spatial) floats in [0, 1], in place of what the case had.

        Args:
            case: its id.
            probabilities: of the case.
            gate: what the network's gate says, see `competition.inference.case.Predicted`; an attribute of the array.

        Raises:
            FullDisk: there is no room for it.
        """
        import zarr
        from zarr.storage import ZipStore

        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.path(case)
        sweep(self.folder, final.name)
        beside = temporary(final)
        shape = probabilities.shape
        per_plane = max(1, int(np.prod(shape[2:])) * np.dtype(self.kind).itemsize)
        chunks = (1, max(1, min(shape[1], CHUNK_BYTES // per_plane)), *shape[2:])
        try:
            with room(final, int(np.prod(shape)) * np.dtype(self.kind).itemsize):
                with ZipStore(beside, mode="w") as zipped:
                    array = zarr.create_array(
                        zipped,
                        shape=shape,
                        dtype=self.kind,
                        chunks=chunks,
                        attributes={"id": case, **({} if gate is None else {"gate": gate.tolist()})},
                    )
                    for channel in range(shape[0]):
                        for low in range(0, shape[1], chunks[1]):  # chunk by chunk: no second copy of the case
                            block = slice(low, low + chunks[1])
                            array[channel, block] = self._packed(probabilities[channel, block])
                with open(beside, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(beside, final)
                sync_folder(self.folder)
        finally:
            beside.unlink(missing_ok=True)

    def read(self, case: str) -> np.ndarray:
        """The probabilities of a case, (P, *spatial) float16.

        Raises:
            MaskfoldError: the case is missing or damaged.
        """
        values = self._opened(case, lambda array: np.asarray(array[:]))
        return values if values.dtype == np.float16 else _unpacked(values)

    def gate(self, case: str) -> np.ndarray | None:
        """What the gate says of a case, (K, 1, …) float32 as it was written; None where the network had none.

        Raises:
            MaskfoldError: the case is missing or damaged.
        """

        def kept(array: Any) -> np.ndarray | None:
            said = array.attrs.get("gate")
            if said is None:
                return None
            values = np.asarray(said, np.float32)
            fits = values.ndim == array.ndim and all(
                n in (1, whole) for n, whole in zip(values.shape[1:], array.shape[1:], strict=True)
            )
            if not fits or not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"its gate is of shape {values.shape}, or not between 0 and 1")
            return values

        return self._opened(case, kept)

    def _opened(self, case: str, work: Callable[[Any], T]) -> T:
        """The work done on a case's Zarr array."""
        import zarr
        from zarr.storage import ZipStore

        path = self.path(case)
        if not path.exists():
            raise MaskfoldError(
                f"No out-of-fold prediction of case {case} is in {self.folder}.", "Run the fold that validates it."
            )
        try:
            with zipfile.ZipFile(path):  # ZipStore opens lazily, and stumbles over closing what it could not open
                pass
            with ZipStore(path, mode="r") as zipped:
                return work(_plain(zarr.open_array(zipped, mode="r", zarr_format=3)))
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise MaskfoldError(
                f"The out-of-fold prediction {path} is damaged: {error}.", "Delete the file and run the fold again."
            ) from error

    def ids(self) -> list[str]:
        """The cases that are there, sorted."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(unquote(name.removesuffix(SUFFIX)) for name in names if name.endswith(SUFFIX))

    def __contains__(self, case: str) -> bool:
        return self.path(case).exists()

    def path(self, case: str) -> Path:
        """The file of a case. Letters, digits and `-_. ` stay readable; everything else is quoted as in a URL."""
        return self.folder / ("".join(c if c.isalnum() or c in "-_. " else quote(c, safe="") for c in case) + SUFFIX)

    def _packed(self, block: np.ndarray) -> np.ndarray:
        if self.kind == "float16":
            return block.astype(np.float16)
        return np.rint(block.astype(np.float32) * 255).astype(np.uint8)


def _plain(array: Any) -> Any:
    """The array, where it is packed as this store packs: Zarr knows other codecs, some of which unpickle.

    Raises:
        ValueError: it is packed in another way.
    """
    used = {type(codec).__name__ for codec in array.metadata.codecs}
    if str(array.dtype) not in KINDS or not used <= CODECS:
        raise ValueError(f"it holds {array.dtype}, packed by {', '.join(sorted(used))}")
    return array


def _unpacked(values: np.ndarray) -> np.ndarray:
    result = np.empty(values.shape, np.float16)
    for channel, source in zip(result, values, strict=True):
        np.divide(source, np.float32(255), out=channel, dtype=np.float32, casting="unsafe")
    return result
