"""Files that appear whole or not at all: checkpoints, weights, results.

`Fabric.save` goes through the system's temporary folder and does not fsync, so files are written here: beside their
place, synced, renamed.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from competition.config import MaskfoldError

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one.

    Args:
        path: where the file belongs.
        write: writes the content to an open binary file.

    Raises:
        MaskfoldError: the disk is full or cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        size = beside.stat().st_size if beside.exists() else 0
        beside.unlink(missing_ok=True)
        raise MaskfoldError(f"{path} cannot be written after {size:,} bytes: {error.strerror}.",
                            "Make room or give write access, then type the same command again.") from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a pandas table as CSV, whole or not at all; numbers keep all their digits."""
    text = table.to_csv(index=False, lineterminator="\n")
    write_whole(path, lambda file: file.write(text.encode()))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state: tensors and plain Python values only, so that it loads without executing code."""
    content = io.BytesIO()  # torch.save hides what went wrong when it writes to a full disk itself
    torch.save({"version": VERSION, **state}, content)
    write_whole(path, lambda file: file.write(content.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training state.

    Raises:
        MaskfoldError: the file cannot be read, or another version wrote it. Never taken for a fresh start.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state.pop("version")
    except Exception as error:  # torch raises whatever its unpickler met
        raise MaskfoldError(f"The checkpoint {path} cannot be read: {str(error).splitlines()[0][:200]}.",
                            f"Restore it from a backup, or delete {path.parent} to train this fold afresh.") from error
    if version != VERSION:
        raise MaskfoldError(f"The checkpoint {path} has version {version}; this Maskfold reads version {VERSION}.",
                            "Finish the run with the Maskfold that began it, or start another with --new.")
    return state


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a network's weights as safetensors."""
    from safetensors.torch import save

    # Cloned, since safetensors refuses tensors that share memory, as those of a layer with two names do (DynUNet).
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    write_whole(path, lambda file: file.write(content))
