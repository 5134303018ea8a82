"""Write and read the weights, checkpoints and metrics of a fold.

All files are written by `competition.io.atomic_write`, because `Fabric.save` does not sync its file to the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickletools
import time
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from competition.errors import MaskfoldError
from competition.io import DiskFullError, as_disk_error, atomic_append, atomic_write
from competition.records import parse_json_object, parse_metrics_line
from competition.runs.fold import exchanged_error

CHECKPOINT_VERSION = 1
LAST_CHECKPOINT = "last.pt"  # file name of the checkpoint to resume from
MAX_HEADER_BYTES = 100_000_000  # maximum size of the header of a .safetensors file, as in the library
GOOD_CHECKPOINT = "good.pt"  # checkpoint from the end of an epoch; `training.on_nan: restore` continues from it


# Weights


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a network's weights to a safetensors file.

    The file's metadata contain the SHA-256 of the tensors' bytes, because the format itself has no checksum.

    Args:
        path: path of the file.
        tensors: the tensors by name, on any device.
    """
    from safetensors.torch import save

    # Clone a tensor that shares memory with another (e.g. a layer with two names in DynUNet), because safetensors
    # rejects it.
    cpu_tensors, storages = {}, set()
    for name, tensor in tensors.items():
        one = tensor.detach().cpu().contiguous()
        storage = one.untyped_storage().data_ptr()
        cpu_tensors[name] = one.clone() if storage in storages else one
        storages.add(storage)
    content = save(cpu_tensors)
    data_start = 8 + int.from_bytes(content[:8], "little")
    data = memoryview(content)[data_start:]
    # Build the header with the metadata here, because `save` would copy all tensors again to write it.
    names = content[9:data_start].rstrip(b" ")
    header = b'{"__metadata__":{"sha256":"' + hashlib.sha256(data).hexdigest().encode() + b'"},' + names
    header += b" " * (-len(header) % 8)

    def write(file: IO[bytes]) -> None:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(data)

    atomic_write(path, write, 8 + len(header) + len(data))


def load_weights(network: nn.Module, path: Path | str, sha256: str | None = None) -> None:
    """Load weights into a network; all names and shapes must match. After an error, the network is unchanged.

    The names and shapes in the file's header are compared with the network before the tensors are read.

    Args:
        network: the network, on any device.
        path: a .safetensors file.
        sha256: expected SHA-256 (hexadecimal) of the whole file, as the fold's result records it. None accepts every
            file with the names and shapes of the network.

    Raises:
        MaskfoldError: the file is missing or damaged, has another SHA-256, contains non-finite values, or does not
            match the network.
    """
    path, expected = Path(path), network.state_dict()
    mismatch = _mismatch(expected, header) if (header := _read_header(path)) is not None else None
    tensors = read_weights(path, sha256=sha256) if mismatch is None else {}
    mismatch = mismatch or _mismatch(expected, _shapes(tensors))
    if mismatch:
        raise MaskfoldError(
            f"The weights {path} do not match the network: {mismatch}.", "Use the same section `model` as in training."
        )
    non_finite = next(
        (name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()), None
    )
    if non_finite is not None:
        raise MaskfoldError(
            f"The weights {path} contain NaN or infinite values in {non_finite}.",
            "Replace the file by an intact copy. Or train the fold again with a lower learning rate.",
        )
    network.load_state_dict(tensors)


def read_weights(
    path: Path, hint: str = "Replace the file by an intact copy.", sha256: str | None = None
) -> dict[str, torch.Tensor]:
    """Read the tensors of a weight file to the CPU, and return them by name.

    Args:
        path: a .safetensors file.
        hint: hint of the error message if the file is damaged.
        sha256: expected SHA-256 (hexadecimal) of the whole file; None if it is not known.

    Raises:
        MaskfoldError: the file is missing or damaged, or has another SHA-256.
    """
    from safetensors import SafetensorError

    try:
        return _read(path, sha256)
    except FileNotFoundError as error:
        raise MaskfoldError(f"The weights {path} do not exist.", "Train the run first, or name another run.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise MaskfoldError(f"The weight file {path} cannot be read: {error}.", hint) from error


def _read(path: Path, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of a weight file, and verify them.

    The safetensors format has no checksum, so a flipped bit would silently change the network. If the SHA-256 of the
    whole file is `sha256`, the file is accepted. If it differs, the function raises an error. If `sha256` is None, only
    the tensors are verified: if the metadata contain a SHA-256, the tensors' bytes must have it.

    Raises:
        ValueError: the file does not fit into the free memory, has unknown metadata, or has a wrong checksum.
        MaskfoldError: the file is intact, but its SHA-256 is not `sha256`.
    """
    import psutil
    from safetensors import safe_open
    from safetensors.torch import load

    size, free = path.stat().st_size, psutil.virtual_memory().available
    if size > free:  # a sparse file occupies less space on the disk than it needs in memory
        raise ValueError(f"it has {size / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB of memory are free")
    content = path.read_bytes()
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if set(metadata) - {"sha256", "format"}:  # the key `sha256` itself may be damaged
        raise ValueError(f"its header has unknown metadata: {', '.join(sorted(metadata))[:100]!r}")
    checksum, tensors = metadata.get("sha256"), load(content)
    data_start = 8 + int.from_bytes(content[:8], "little")  # the tensors follow the header and its length
    if sha256 is not None and hashlib.sha256(content).hexdigest() == sha256:
        return tensors
    if checksum is not None and checksum != hashlib.sha256(memoryview(content)[data_start:]).hexdigest():
        raise ValueError("its checksum is wrong")
    if sha256 is not None:
        raise exchanged_error(path)
    return tensors


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], int]] | None:
    """Return the shape and the number of bytes per value of each tensor, by name, from the header of a weight file.

    If the header cannot be read, return None; `read_weights` then reports the error.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                return None
            header = parse_json_object(file.read(length))
        header.pop("__metadata__", None)
        return {name: (tuple(one["shape"]), _value_bytes(one["dtype"])) for name, one in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _value_bytes(dtype: str) -> int:
    """Return the number of bytes per value of a safetensors dtype, e.g. F32, BF16, I64, BOOL."""
    return max(1, int("".join(filter(str.isdigit, dtype.split("_")[0].partition("E")[0])) or 8) // 8)


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], int]]:
    return {name: (tuple(tensor.shape), tensor.element_size()) for name, tensor in tensors.items()}


def _mismatch(expected: dict[str, torch.Tensor], found: dict[str, tuple[tuple[int, ...], int]]) -> str | None:
    """Describe the first difference between the tensors of a network and those of a file; return None if they match.

    Values in the file may have fewer bytes than in the network, but not more.

    Args:
        expected: tensors of the network, by name.
        found: shape and bytes per value of the tensors in the file, by name.
    """
    for name, tensor in expected.items():
        if name not in found:
            return f"the tensor {name} is missing in the file"
        shape, value_bytes = found[name]
        if shape != tensor.shape:
            return f"shape of {name}: found {shape}, expected {tuple(tensor.shape)}"
        if value_bytes > tensor.element_size():
            return f"bytes per value of {name}: found {value_bytes}, expected at most {tensor.element_size()}"
    return next((f"the tensor {name} is not part of the network" for name in found if name not in expected), None)


# Checkpoints


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state to a file and sync it to the disk.

    The tensors are written directly from memory, because copying them first would take twice as long.

    Args:
        path: path of the file.
        state: nested dictionaries and lists of tensors and plain Python values, which can be loaded without executing
            code.

    Raises:
        DiskFullError: the disk has too little free space.
    """
    size = 0

    def write(file: IO[bytes]) -> None:
        nonlocal size
        stream: Any = _KeptError(file)  # `torch.save` calls only the methods that this class has
        try:
            torch.save({"version": CHECKPOINT_VERSION, **state}, stream)
        except RuntimeError:  # torch replaces the disk's error by an error of its own
            if stream.error is None:
                raise
        size = stream.size
        if stream.error is not None:
            raise stream.error

    try:
        atomic_write(path, write)
    except DiskFullError as error:
        # The disk may also fail when the buffer is flushed. At that time, all bytes of the checkpoint are counted.
        cause = error.__cause__
        raise (as_disk_error(cause, path, size) if isinstance(cause, OSError) else None) or error from cause


class _KeptError:
    """Wrap an open file for `torch.save`: count the written bytes, and store the first OSError, which torch hides."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None
        self.size = 0  # bytes

    def write(self, content: Any) -> int:
        if self.error is None:
            try:
                self.file.write(content)
            except OSError as error:
                self.error = error
        self.size += len(content)
        return len(content)

    def flush(self) -> None:
        """Do nothing: `atomic_write` flushes the file."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training state that `save_checkpoint` wrote; its tensors are on the CPU.

    Raises:
        MaskfoldError: the file cannot be read, or has another version. After this error, the caller must stop: a
            new training would overwrite the checkpoint.
    """
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(state)
        version = state.pop("version")
    except Exception as error:  # torch's unpickler raises errors of any type
        raise MaskfoldError(
            f"The checkpoint {path} cannot be read: {_first_line(error)}.",
            f"Restore the file from a backup. To train this fold from the beginning, delete {path.parent}.",
        ) from error
    if version != CHECKPOINT_VERSION:
        raise MaskfoldError(
            f"The checkpoint {path} has version {version}, expected {CHECKPOINT_VERSION}.",
            "Finish the run with the version of Maskfold that started it, or start another run with --new.",
        )
    return state


def _check_archive(path: Path) -> None:
    """Check the zip archive of a checkpoint: its checksums, and that loading it cannot fill the memory.

    torch does not compare the checksums. A compressed file, or a pickle that creates a `bytearray` of a given length,
    could be small on the disk and fill the memory when it is loaded.

    Raises:
        ValueError: a checksum is wrong, the archive is compressed, or its pickle creates a `bytearray`.
        zipfile.BadZipFile: the file is not an archive.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it is compressed, but Maskfold never compresses checkpoints")
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {bad} is wrong")
        for name in (name for name in archive.namelist() if name.endswith("/data.pkl")):
            for opcode, argument, _ in pickletools.genops(archive.read(name)):
                if opcode.name in ("GLOBAL", "STACK_GLOBAL") and str(argument).endswith("bytearray"):
                    raise ValueError("it contains a bytearray, which no checkpoint of Maskfold contains")


def _check_tensors(state: Any) -> None:
    """Check that every tensor of a loaded checkpoint is dense and has all its values in the file.

    The values of an expanded or sparse tensor take more memory than the file has bytes, so such a tensor could fill the
    memory later.

    Args:
        state: the loaded checkpoint, or a part of it.

    Raises:
        ValueError: a tensor has more values than the file contains.
    """
    if isinstance(state, torch.Tensor):
        is_dense = state.layout is torch.strided and state.device.type == "cpu"
        if not is_dense or state.untyped_storage().nbytes() < state.numel() * state.element_size():
            raise ValueError(f"the file has fewer values than the shape {tuple(state.shape)} of a tensor requires")
    elif isinstance(state, dict):
        for value in state.values():
            _check_tensors(value)
    elif isinstance(state, list | tuple | set):
        for value in state:
            _check_tensors(value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# Metrics


class MetricsLog:
    """Write the metrics of a fold to a file, one JSON object per line.

    The line of an epoch is first stored in the checkpoint, and then appended to the file. If the process is killed
    between the two, the next process appends the line from the checkpoint. So the same line is never written twice with
    different times, which would give MLflow two values for one step.

    Args:
        path: path of the `metrics.jsonl`.
        step: number of finished steps. Lines of later steps, which a killed process wrote, are removed from the file.
        last_line: line of the last epoch, as the checkpoint contains it; appended if the file does not have it. Empty
            if there is no checkpoint.
    """

    def __init__(self, path: Path, step: int, last_line: str = "") -> None:
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        kept = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n") and _step(line) <= step]
        if last_line and last_line.encode() + b"\n" not in kept:
            kept.append(last_line.encode() + b"\n")
        if b"".join(kept) != content:
            atomic_write(path, lambda file: file.writelines(kept))

    @staticmethod
    def format_line(step: int, epoch: int, metrics: dict[str, float]) -> str:
        """Return the JSON line of metrics, with the current time; metrics that are not finite are left out."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        return json.dumps({"step": step, "epoch": epoch, "time": time.time(), "metrics": finite})

    def append_line(self, line: str) -> None:
        """Append a line to the file; if the process is killed, the file contains the whole line or nothing of it."""
        atomic_append(self.path, line.encode() + b"\n")

    def append(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Append a line with the metrics of a step and the current time."""
        self.append_line(self.format_line(step, epoch, metrics))

    def has_metric(self, step: int, name: str) -> bool:
        """Return whether the file already has a value of this metric at this step.

        A resumed process calls this method, so that it does not write a second line.
        """
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        records = (parse_metrics_line(line) for line in lines)
        return any(record is not None and record.step == step and name in record.metrics for record in records)


def _step(line: bytes) -> float:
    record = parse_metrics_line(line)
    return math.inf if record is None else record.step
