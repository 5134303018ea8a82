"""Out-of-fold probabilities on disk, one Zarr array in one zip file per case, and their mean over a run's seeds."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, unquote

import numpy as np

from competition.errors import MaskfoldError
from competition.inference.presence import mean_log_odds
from competition.io import disk_full_as_error, make_temporary_path, remove_stale_temp, sync_folder

if TYPE_CHECKING:
    from types import SimpleNamespace

    import pandas as pd

    from competition.runs.run import Run

T = TypeVar("T")
OOF_SUFFIX = ".zarr.zip"
CHUNK_BYTES = 2**23
OOF_DTYPES, OOF_CODECS = ("float16", "uint8"), {"BytesCodec", "ZstdCodec"}  # those that `write` uses


class OofStore:
    """Folder with the probabilities of each case.

    Each case is one file, because a file can be replaced atomically and a folder of chunks cannot. Any reader of Zarr 3
    opens it with `zarr.storage.ZipStore`.

    Args:
        folder: created when the first case is written.
        dtype: type of the stored probabilities: float16, or uint8 in steps of 1/255.

    Example:
        >>> store = OofStore("oof")                                              # doctest: +SKIP
        >>> store.write("case_7", probabilities); store.read("case_7").shape     # doctest: +SKIP
        (3, 35, 50, 36)
    """

    def __init__(self, folder: Path | str, dtype: Literal["float16", "uint8"] = "float16") -> None:
        self.folder = Path(folder)
        self.dtype = dtype

    def write(self, case: str, probabilities: np.ndarray, presence: np.ndarray | None = None) -> None:
        """Write (P, *spatial) floats in [0, 1]; an earlier prediction of the case is replaced.

        Args:
            case: its id.
            probabilities: of the case.
            presence: see `competition.inference.predict.Prediction`; written as the array's attribute `gate`.

        Raises:
            DiskFullError: the disk has too little free space.
        """
        import zarr
        from zarr.storage import ZipStore

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(case)
        remove_stale_temp(self.folder, path.name)
        temporary_path = make_temporary_path(path)
        shape = probabilities.shape
        per_plane = max(1, int(np.prod(shape[2:])) * np.dtype(self.dtype).itemsize)
        chunks = (1, max(1, min(shape[1], CHUNK_BYTES // per_plane)), *shape[2:])
        try:
            with disk_full_as_error(path, int(np.prod(shape)) * np.dtype(self.dtype).itemsize):
                with ZipStore(temporary_path, mode="w") as zip_store:
                    array = zarr.create_array(
                        zip_store,
                        shape=shape,
                        dtype=self.dtype,
                        chunks=chunks,
                        attributes={"id": case, **({} if presence is None else {"gate": presence.tolist()})},
                    )
                    for channel in range(shape[0]):
                        for low in range(0, shape[1], chunks[1]):  # by chunk, to avoid a second copy of the case
                            block = slice(low, low + chunks[1])
                            array[channel, block] = self._encode(probabilities[channel, block])
                with open(temporary_path, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(temporary_path, path)
                sync_folder(self.folder)
        finally:
            temporary_path.unlink(missing_ok=True)

    def read(self, case: str) -> np.ndarray:
        """Read the probabilities of a case, (P, *spatial) float16.

        Raises:
            MaskfoldError: the case is missing or damaged.
        """
        values = self._read(case, lambda array: np.asarray(array[:]))
        return values if values.dtype == np.float16 else _decode(values)

    def presence(self, case: str) -> np.ndarray | None:
        """Read the class presence of a case, (K, 1, …) float32; None if the network had no presence head.

        Raises:
            MaskfoldError: the case is missing or damaged.
        """

        def read_attribute(array: Any) -> np.ndarray | None:
            attribute = array.attrs.get("gate")
            if attribute is None:
                return None
            values = np.asarray(attribute, np.float32)
            broadcasts = values.ndim == array.ndim and all(
                size in (1, full) for size, full in zip(values.shape[1:], array.shape[1:], strict=True)
            )
            if not broadcasts:
                raise ValueError(f"its attribute `gate` has shape {values.shape}, the array {array.shape}")
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError("its attribute `gate` has values outside of [0, 1]")
            return values

        return self._read(case, read_attribute)

    def _read(self, case: str, extract: Callable[[Any], T]) -> T:
        """Open a case's Zarr array and return `extract(array)`."""
        import zarr
        from zarr.storage import ZipStore

        path = self.path(case)
        if not path.exists():
            raise MaskfoldError(
                f"{self.folder} contains no out-of-fold prediction of case {case}.", "Run the fold that validates it."
            )
        try:
            with zipfile.ZipFile(path):  # ZipStore opens lazily, and fails to close a file that it could not open
                pass
            with ZipStore(path, mode="r") as zip_store:
                array = zarr.open_array(zip_store, mode="r", zarr_format=3)
                _check_codecs(array)
                return extract(array)
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise MaskfoldError(
                f"The out-of-fold prediction {path} is damaged: {error}.", "Delete the file and run the fold again."
            ) from error

    def ids(self) -> list[str]:
        """Return the ids of all cases in the folder, sorted."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(unquote(name.removesuffix(OOF_SUFFIX)) for name in names if name.endswith(OOF_SUFFIX))

    def __contains__(self, case: str) -> bool:
        return self.path(case).exists()

    def path(self, case: str) -> Path:
        """Return the file of a case. Letters, digits and `-_. ` are kept; other characters are quoted as in a URL."""
        return self.folder / (
            "".join(c if c.isalnum() or c in "-_. " else quote(c, safe="") for c in case) + OOF_SUFFIX
        )

    def _encode(self, block: np.ndarray) -> np.ndarray:
        if self.dtype == "float16":
            return block.astype(np.float16)
        return np.rint(block.astype(np.float32) * 255).astype(np.uint8)


@dataclass(frozen=True)
class OofPredictions:
    """The out-of-fold predictions of a run's finished folds.

    Args:
        run: the run.
        folds: the folds to read; None: all that are finished.
        weights: `PLAIN_WEIGHTS` or `SOUP_WEIGHTS`, whose predictions are read; None: the selected ones.
    """

    run: Run
    folds: tuple[int, ...] | None = None
    weights: str | None = None

    @cached_property
    def stores(self) -> dict[int, list[OofStore]]:
        """The stores of each finished fold, one for each of its seeds."""
        stores: dict[int, list[OofStore]] = {}
        for fold in self.run.fold_numbers() if self.folds is None else self.folds:
            for seed in range(len(self.run.exp.seeds)):
                if (result := self.run.result(fold, seed)) is not None:
                    prefix = result.prefix_of(self.weights or result.weights)
                    folder = self.run.member_folder(fold, seed) / f"{prefix}oof"
                    stores.setdefault(fold, []).append(OofStore(folder, self.run.exp.inference.store))
        return stores

    @cached_property
    def fold_of(self) -> dict[str, int]:
        """The fold of each predicted case, in the order of the case table."""
        folds = self.run.fold_of()
        return {case: int(folds[case]) for case in self.run.cases["id"] if folds.get(case) in self.stores}

    @property
    def cases(self) -> pd.DataFrame:
        """The rows of the case table with a prediction."""
        return self.run.cases[self.run.cases["id"].isin(self.fold_of.keys())]

    def rows(self) -> dict[str, SimpleNamespace]:
        """Return these rows by id, see `Run.rows`."""
        return self.run.rows(self.fold_of)

    def read(self, case: str) -> np.ndarray[Any, Any]:
        """Return the probabilities (P, *file shape) float16 of a case, the mean over the seeds of its fold.

        Raises:
            MaskfoldError: the case was not predicted, or the file is damaged.
        """
        if case not in self.fold_of:
            raise MaskfoldError(
                f"The run {self.run.folder} has no out-of-fold prediction of the case {case}.",
                "Run the fold that validates it.",
            )
        stores = self.stores[self.fold_of[case]]
        if len(stores) == 1:
            return stores[0].read(case)
        mean = stores[0].read(case).astype(np.float32)
        for store in stores[1:]:
            mean += store.read(case)
        return (mean / len(stores)).astype(np.float16)

    def presence(self, case: str) -> np.ndarray[Any, Any] | None:
        """Return the presence head's probabilities of a case, (K, 1, …) float32, over the seeds of its fold.

        None if the run has no presence head (`gate`).

        Raises:
            MaskfoldError: the file is damaged, or has no values of the presence head.
        """
        if self.run.exp.gate is None:
            return None
        values = []
        for store in self.stores[self.fold_of[case]]:
            if (presence := store.presence(case)) is None:
                raise MaskfoldError(
                    f"The out-of-fold prediction {store.path(case)} has no values of the presence head (`gate`).",
                    "Delete the file and run the fold again.",
                )
            values.append(presence)
        return mean_log_odds(values).astype(np.float32)


def _check_codecs(array: Any) -> None:
    """Check that an array has a dtype and codecs that this store writes, since some Zarr codecs unpickle.

    Raises:
        ValueError: it has another dtype or codec.
    """
    codecs = {type(codec).__name__ for codec in array.metadata.codecs}
    if str(array.dtype) not in OOF_DTYPES or not codecs <= OOF_CODECS:
        raise ValueError(f"found {array.dtype} with the codecs {', '.join(sorted(codecs))}")


def _decode(values: np.ndarray) -> np.ndarray:
    result = np.empty(values.shape, np.float16)
    for channel, source in zip(result, values, strict=True):
        np.divide(source, np.float32(255), out=channel, dtype=np.float32, casting="unsafe")
    return result
