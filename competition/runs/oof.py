"""Store out-of-fold probabilities on disk, one zipped Zarr array per case, and average them over a run's seeds."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote

import numpy as np

from competition import large_arrays
from competition.data.content.digests import FileStamp, file_stamp, is_settled
from competition.data.patterns import OOF_SUFFIX, oof_file_name
from competition.errors import MaskfoldError
from competition.io import disk_full_as_error, make_temporary_path, remove_all_stale_temp, sync_folder
from competition.runs.fold import RESULT_FILE

if TYPE_CHECKING:
    from types import SimpleNamespace

    import pandas as pd

    from competition.config.experiment import Experiment
    from competition.runs.run import Run

T = TypeVar("T")
CHUNK_BYTES = 2**23
OOF_DTYPES, OOF_CODECS = ("float16", "uint8"), {"BytesCodec", "ZstdCodec"}  # the codecs that `write` uses
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_HEADER_BYTES = 18  # maximum header size in bytes, see RFC 8878, 3.1.1.1
# Attribute: SHA-256 of the stored values, little-endian, in C order; stores of version 0.1 have none.
DIGEST_ATTRIBUTE = "sha256"
WEIGHTS_ATTRIBUTE = "weights"  # SHA-256 of the weights that made the prediction; stores before 0.2 have none

_verified: dict[Path, FileStamp] = {}  # files whose checksum this process has verified


class OofStore:
    """Write and read the predicted probabilities of cases, in a folder with one file per case.

    Each file is a zip archive of a Zarr array, because a single file can be replaced atomically and a folder of chunks
    cannot. Every reader of Zarr 3 can open it with `zarr.storage.ZipStore`.

    A file may come from an untrusted source. Therefore the declared shape, dtype, codecs and chunk sizes, and the size
    to which each chunk decompresses, are checked before memory is allocated.

    A file also contains the id and shape of its case, and a checksum of the values. `read` checks all three. So it
    rejects a file of another case, and a file with a missing chunk, which Zarr would read as zeros. Files of version
    0.1 have no checksum. For exclusive classes, a missing chunk is then found because the probabilities of a pixel do
    not add up to 1.

    Args:
        folder: the folder; it is created when the first case is written.
        dtype: type of the stored probabilities: float16, or uint8 in steps of 1/255.
        shapes: expected shape (P, *file shape) of each case by id, see `stored_shapes`. None accepts all shapes that
            fit into the free memory.
        exclusive: whether the probabilities of a pixel add up to 1.
        weights: SHA-256 (hexadecimal) of the weight file with which the predictions are made. It is stored with each
            prediction, and compared when a prediction is read. If None, it is neither stored nor compared.

    Example:
        >>> store = OofStore("oof")                                              # doctest: +SKIP
        >>> store.write("case_7", probabilities); store.read("case_7").shape     # doctest: +SKIP
        (3, 35, 50, 36)
    """

    def __init__(
        self,
        folder: Path | str,
        dtype: Literal["float16", "uint8"] = "float16",
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        exclusive: bool = False,
        weights: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.weights = weights
        self.dtype = dtype
        self.shapes = shapes
        self.exclusive = exclusive
        self._is_swept = False  # whether `write` has removed the temporary files of dead processes

    def write(self, case: str, probabilities: np.ndarray, presence: np.ndarray | None = None) -> None:
        """Write the probabilities of a case; an earlier prediction of the case is replaced.

        Args:
            case: id of the case.
            probabilities: (P, *file shape) floats in [0, 1].
            presence: class presence, see `competition.inference.predict.Prediction`; stored as the array's attribute
                `gate`. None if the network has no presence head.

        Raises:
            DiskFullError: the disk has too little free space.
        """
        import zarr
        from zarr.storage import ZipStore

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(case)
        if not self._is_swept:  # only once, because the time to list the folder grows with the number of cases
            remove_all_stale_temp(self.folder)
            self._is_swept = True
        temporary_path = make_temporary_path(path)
        shape = probabilities.shape
        per_plane = max(1, int(np.prod(shape[2:])) * np.dtype(self.dtype).itemsize)
        chunks = (1, max(1, min(shape[1], CHUNK_BYTES // per_plane)), *shape[2:])
        blocks = [
            (channel, slice(low, low + chunks[1]))
            for channel in range(shape[0])
            for low in range(0, shape[1], chunks[1])
        ]
        # The values are encoded twice, because the attributes with the checksum come first, and a file in a zip cannot
        # be changed later.
        digest = _digest_of_blocks(self._encode(probabilities[block]) for block in blocks)
        attributes = {"id": case, "shape": list(shape), DIGEST_ATTRIBUTE: digest}
        if self.weights is not None:
            attributes[WEIGHTS_ATTRIBUTE] = self.weights
        try:
            with disk_full_as_error(path, int(np.prod(shape)) * np.dtype(self.dtype).itemsize):
                with ZipStore(temporary_path, mode="w") as zip_store:
                    array = zarr.create_array(
                        zip_store,
                        shape=shape,
                        dtype=self.dtype,
                        chunks=chunks,
                        attributes={**attributes, **({} if presence is None else {"gate": presence.tolist()})},
                    )
                    for block in blocks:  # chunk by chunk, to avoid a second copy of the case
                        array[block] = self._encode(probabilities[block])
                with open(temporary_path, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(temporary_path, path)
                sync_folder(self.folder)
        finally:
            temporary_path.unlink(missing_ok=True)

    def read(self, case: str) -> np.ndarray:
        """Read the probabilities of a case, (P, *file shape) float16.

        Raises:
            MaskfoldError: the file is missing or damaged, contains another id or shape than expected, or was predicted
                with other weights.
        """

        def read_values(array: Any) -> np.ndarray:
            values = _read_array(array)
            self._check_values(self.path(case), array, values)
            return values

        values = self._read(case, read_values)
        return values if values.dtype == np.float16 else _decode(values)

    def presence(self, case: str) -> np.ndarray | None:
        """Read the class presence of a case, (K, 1, …) float32; return None if the network had no presence head.

        Raises:
            MaskfoldError: the file is missing or damaged, contains another id or shape than expected, or was predicted
                with other weights.
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
                raise ValueError(
                    f"the shape {values.shape} of its attribute `gate` does not fit the array's shape {array.shape}"
                )
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError("its attribute `gate` has values outside of [0, 1]")
            return values

        return self._read(case, read_attribute)

    def digest(self, case: str) -> str:
        """Return the checksum that the file of a case records: the SHA-256 (hexadecimal) of its values.

        The values themselves are not read.

        Raises:
            MaskfoldError: the file is missing or damaged, contains another id or shape than expected, was predicted
                with other weights, or has no checksum because version 0.1 wrote it.
        """

        def read_attribute(array: Any) -> str:
            digest = array.attrs.get(DIGEST_ATTRIBUTE)
            if not isinstance(digest, str):
                raise ValueError("it has no checksum")
            return digest

        return self._read(case, read_attribute)

    def _read(self, case: str, extract: Callable[[Any], T]) -> T:
        """Open the Zarr array of a case, check everything except its values, and return `extract(array)`.

        Raises:
            MaskfoldError: the file is missing or damaged, contains another id or shape than expected, or was predicted
                with other weights.
        """
        import zarr
        from zarr.storage import ZipStore

        path = self.path(case)
        if not path.exists():
            raise MaskfoldError(
                f"{self.folder} has no out-of-fold prediction of the case {case}.",
                "With `maskfold cv`, train the fold that validates this case.",
            )
        try:
            # ZipStore raises an error when it closes a file that it could not open
            with zipfile.ZipFile(path) as archive:
                _check_members(archive, path)
            with ZipStore(path, mode="r") as zip_store:
                array = zarr.open_array(zip_store, mode="r", zarr_format=3)
                _check_codecs(array)
                _check_shape(array, None if self.shapes is None else self.shapes.get(case))
                _check_attributes(array, case)
                self._check_weights(path, array)
                _check_chunks(path, math.prod(array.chunks) * array.dtype.itemsize)
                return extract(array)
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise MaskfoldError(
                f"The out-of-fold prediction {path} is damaged: {error}.",
                "Delete the file, and repeat `maskfold cv`, which predicts the case again.",
            ) from error

    def _check_weights(self, path: Path, array: Any) -> None:
        """Check that a prediction was made with the expected weights, if both SHA-256 are known.

        Raises:
            MaskfoldError: the prediction was made with other weights.
        """
        found = array.attrs.get(WEIGHTS_ATTRIBUTE)
        if self.weights is not None and found is not None and found != self.weights:
            raise MaskfoldError(
                f"The prediction {path} was made with other weights than the present weights of its fold: found "
                f"the checksum {str(found)[:12]}, expected {self.weights[:12]}.",
                f"Restore the weights or the predictions. Or delete {self.folder.parent / RESULT_FILE} and the "
                "folders oof and test next to it, so that `maskfold cv` predicts with the present weights.",
            )

    def _check_values(self, path: Path, array: Any, values: np.ndarray) -> None:
        """Compare stored values with their checksum.

        If the file has no checksum and classes are exclusive, check instead that the probabilities of each pixel add up
        to 1. This is done only if chunks are missing in the file.

        Raises:
            ValueError: the values have changed since they were written.
        """
        expected = array.attrs.get(DIGEST_ATTRIBUTE)
        if expected is not None:
            stamp = file_stamp(path)
            if _verified.get(path) == stamp:
                return
            if _digest_of_blocks(iter(values)) != expected:
                missing = _count_missing_chunks(path, array)
                reason = f"; {missing} of its {array.nchunks} chunks are missing" if missing else ""
                raise ValueError(f"its checksum is wrong{reason}")
            if is_settled(stamp):
                _verified[path] = stamp
        elif self.exclusive and len(values) and (missing := _count_missing_chunks(path, array)):
            decoded = values if values.dtype == np.float16 else _decode(values)
            tolerance = 0.02 + len(values) / 510  # tolerance for rounding to uint8: half a step per class
            if np.abs(decoded.sum(axis=0, dtype=np.float32) - 1).max(initial=0.0) > tolerance:
                raise ValueError(
                    f"the probabilities of a pixel do not add up to 1; {missing} of its {array.nchunks} chunks are "
                    "missing"
                )

    def ids(self) -> list[str]:
        """Return the ids of all cases that have a file in the folder, sorted."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(unquote(name.removesuffix(OOF_SUFFIX)) for name in names if name.endswith(OOF_SUFFIX))

    def __contains__(self, case: str) -> bool:
        return self.path(case).exists()

    def path(self, case: str) -> Path:
        """Return the path of the file of a case; the file need not exist."""
        return self.folder / oof_file_name(case)

    def _encode(self, block: np.ndarray) -> np.ndarray:
        if self.dtype == "float16":
            return block.astype(np.float16)
        return np.rint(block.astype(np.float32) * 255).astype(np.uint8)


@dataclass(frozen=True)
class OofPredictions:
    """Read the out-of-fold predictions of a run's finished folds, averaged over the seeds of each fold.

    Args:
        run: the run.
        folds: numbers of the folds to read; None for all finished folds.
        weights: name of the weight file whose predictions to read: `PLAIN_WEIGHTS` or `SOUP_WEIGHTS`. None reads, for
            each fold and seed, the predictions of the weight file that its `result.json` names.
    """

    run: Run
    folds: tuple[int, ...] | None = None
    weights: str | None = None

    @cached_property
    def stores(self) -> dict[int, list[OofStore]]:
        """The stores of each fold by the fold's number: one store for each finished seed."""
        stores: dict[int, list[OofStore]] = {}
        shapes = stored_shapes(self.run.exp, self.run.cases)
        for fold in self.run.fold_numbers() if self.folds is None else self.folds:
            for seed in range(len(self.run.exp.seeds)):
                if (result := self.run.result(fold, seed)) is not None:
                    weights = self.weights or result.weights
                    folder = self.run.member_folder(fold, seed) / f"{result.prefix_of(weights)}oof"
                    store = open_store(self.run.exp, folder, shapes, result.digests.get(weights))
                    stores.setdefault(fold, []).append(store)
        return stores

    @cached_property
    def fold_of(self) -> dict[str, int]:
        """The fold of each case that has a prediction, by case id, in the order of the case table."""
        folds = self.run.fold_of()
        return {case: int(folds[case]) for case in self.run.cases["id"] if folds.get(case) in self.stores}

    @property
    def cases(self) -> pd.DataFrame:
        """The rows of the case table for cases that have a prediction."""
        return self.run.cases[self.run.cases["id"].isin(self.fold_of.keys())]

    def rows(self) -> dict[str, SimpleNamespace]:
        """Return the rows of the case table for cases that have a prediction, as objects by case id; see `Run.rows`."""
        return self.run.rows(self.fold_of)

    def read(self, case: str) -> np.ndarray[Any, Any]:
        """Return the probabilities of a case, averaged over the finished seeds of its fold: (P, *file shape) float16.

        Raises:
            MaskfoldError: the case was not predicted, or the file is damaged.
        """
        if case not in self.fold_of:
            raise MaskfoldError(
                f"The run {self.run.folder} has no out-of-fold prediction of the case {case}.",
                "With `maskfold cv`, train the fold that validates this case.",
            )
        stores = self.stores[self.fold_of[case]]
        if len(stores) == 1:
            return stores[0].read(case)
        mean = large_arrays.copy(stores[0].read(case), np.float32)
        for store in stores[1:]:
            mean += store.read(case)
        mean /= len(stores)
        return large_arrays.copy(mean, np.float16)

    def digests(self, case: str) -> list[str]:
        """Return the checksums of the stored probabilities of a case, one for each seed; see `OofStore.digest`."""
        return [store.digest(case) for store in self.stores[self.fold_of[case]]]

    def presence(self, case: str) -> np.ndarray[Any, Any] | None:
        """Return the class presence of a case, (K, 1, …) float32, combined over the seeds of its fold.

        If the run has no presence head (`gate`), return None.

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
                    "Delete the file, and repeat `maskfold cv`, which predicts the case again.",
                )
            values.append(presence)
        from competition.inference.presence import mean_log_odds

        return mean_log_odds(values).astype(np.float32)


def open_store(
    exp: Experiment, folder: Path, shapes: Mapping[str, tuple[int, ...]] | None, weights: str | None = None
) -> OofStore:
    """Return the `OofStore` that reads and writes the predictions in a folder with the settings of an experiment.

    Args:
        exp: the experiment; `inference.store` and the kind of labels are read.
        folder: the folder of the predictions.
        shapes: expected shape of each case by id, a result of `stored_shapes`; None accepts all shapes.
        weights: SHA-256 of the weights with which the predictions are made, see `OofStore`.
    """
    return OofStore(folder, exp.inference.store, shapes, exp.competition.labels == "exclusive", weights)


def stored_shapes(exp: Experiment, cases: pd.DataFrame) -> dict[str, tuple[int, ...]]:
    """Return the shape of the stored probabilities of each case, by id: (P, *file shape), with P output channels.

    Args:
        exp: the experiment; P is its `output_channels`.
        cases: the run's case table; the column shape is read.

    Raises:
        MaskfoldError: a shape in the table is not a list of positive integers.
    """
    shapes = {}
    for case, text in zip(cases["id"], cases["shape"], strict=True):
        shape = json.loads(text)
        if not isinstance(shape, list) or not all(type(length) is int and length > 0 for length in shape):
            raise MaskfoldError(
                f"The case table of the run says that the case {case} has the shape {text[:60]}, expected "
                "positive whole numbers.",
                "Copy the run's folder again from its origin, or start another run with --new.",
            )
        shapes[str(case)] = (exp.output_channels, *shape)
    return shapes


# Checks of a file before memory is allocated


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Check that no file in a zip archive is compressed, because a small compressed file could fill the memory.

    Raises:
        ValueError: a file in the archive is compressed, or these files declare more bytes than the archive has.
    """
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member of the zip archive is compressed, but Maskfold never compresses members")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its members declare more bytes than the file has")


def _check_shape(array: Any, expected: tuple[int, ...] | None) -> None:
    """Check the shape of a Zarr array and of its chunks.

    Args:
        array: the Zarr array.
        expected: expected shape; None accepts every shape that fits into the free memory.

    Raises:
        ValueError: the array has another shape or does not fit into the free memory, or a chunk is larger than the
            array.
    """
    import psutil

    if expected is not None and array.shape != expected:
        raise ValueError(f"found the shape {array.shape}, expected {expected}")
    if any(chunk > max(length, 1) for chunk, length in zip(array.chunks, array.shape, strict=True)):
        raise ValueError(f"found chunks of {array.chunks}, which are larger than the array, {array.shape}")
    needed = math.prod(array.shape) * np.dtype(np.float16).itemsize
    if needed > (free := psutil.virtual_memory().available):
        raise ValueError(f"it needs {needed / 2**30:,.1f} GiB of memory, but only {free / 2**30:,.1f} GiB are free")


def _check_attributes(array: Any, case: str) -> None:
    """Check that the attributes of a Zarr array contain the id of the case and the shape of the array.

    Attributes that are missing are not compared: version 0.1 stored no shape, and older versions stored no id.

    Raises:
        ValueError: the attributes contain another id or shape.
    """
    found_id, found_shape = array.attrs.get("id", case), array.attrs.get("shape", list(array.shape))
    if found_id != case:
        raise ValueError(f"it is the prediction of the case {str(found_id)[:60]}, expected {case[:60]}")
    if found_shape != list(array.shape):
        raise ValueError(f"found the shape {array.shape}, but its attribute `shape` is {str(found_shape)[:60]}")


def _count_missing_chunks(path: Path, array: Any) -> int:
    """Return the number of chunks of a Zarr array that are not in its file.

    Such a chunk need not be an error, because Zarr does not write chunks that are 0 everywhere.
    """
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    keys = (array.metadata.encode_chunk_key(index) for index in np.ndindex(*array.cdata_shape))
    return sum(key not in names for key in keys)


def _digest_of_blocks(blocks: Iterator[np.ndarray]) -> str:
    """Return the SHA-256 (hexadecimal) of an array's values, given as blocks in C order."""
    digest = hashlib.sha256()
    for block in blocks:
        plain = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
        digest.update(plain.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check_chunks(path: Path, size: int) -> None:
    """Check that each compressed chunk in a file declares the expected size.

    Args:
        path: path of the zip archive.
        size: expected number of bytes of a chunk after decompression.

    Raises:
        ValueError: the header of a chunk declares another size.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename == "zarr.json":
                continue
            with archive.open(member) as file:
                found = _zstd_content_size(file.read(ZSTD_HEADER_BYTES))
            if found != size:
                raise ValueError(f"its chunk {member.filename[:60]} has {found} bytes, expected {size}")


def _zstd_content_size(header: bytes) -> int | None:
    """Return the number of bytes after decompression that a Zstandard header declares; None if it declares none.

    The format of the header is defined in RFC 8878, 3.1.1.1.
    """
    if len(header) < 6 or not header.startswith(ZSTD_MAGIC):
        return None
    descriptor = header[4]
    flag, is_single_segment = descriptor >> 6, bool(descriptor & 0x20)
    # The size follows the window and the dictionary's id.
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    length = (int(is_single_segment), 2, 4, 8)[flag]
    if length == 0:
        return None
    return int.from_bytes(header[start : start + length], "little") + (256 if length == 2 else 0)


def _check_codecs(array: Any) -> None:
    """Check that a Zarr array has one of the dtypes and only codecs that `OofStore.write` uses.

    Other codecs are dangerous, because some of them unpickle data.

    Raises:
        ValueError: the array has another dtype or codec.
    """
    codecs = {type(codec).__name__ for codec in array.metadata.codecs}
    if str(array.dtype) not in OOF_DTYPES or not codecs <= OOF_CODECS:
        raise ValueError(
            f"found {array.dtype} with the codecs {', '.join(sorted(codecs))}, expected {' or '.join(OOF_DTYPES)} with "
            f"{' and '.join(sorted(OOF_CODECS))}"
        )


def _read_array(array: Any) -> np.ndarray:
    """Return the values of a Zarr array.

    A large array is read chunk by chunk into a memory-mapped file, see `competition.large_arrays`.
    """
    if not large_arrays.is_large(array.shape, array.dtype):
        return np.asarray(array[:])
    values = large_arrays.empty(array.shape, array.dtype)
    for channel in range(array.shape[0]):
        for low in range(0, array.shape[1], array.chunks[1]):
            block = (channel, slice(low, low + array.chunks[1]))
            values[block] = array[block]
    return values


def _decode(values: np.ndarray) -> np.ndarray:
    result = large_arrays.empty(values.shape, np.float16)
    for channel, source in zip(result, values, strict=True):
        np.divide(source, np.float32(255), out=channel, dtype=np.float32, casting="unsafe")
    return result
