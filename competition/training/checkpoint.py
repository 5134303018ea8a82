"""Files that appear whole or not at all: checkpoints, weights, results.

`Fabric.save` goes through the system's temporary folder and does not fsync, so files are written by
`competition.data.files.write_whole`: beside their place, synced, renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from competition.config import MaskfoldError
from competition.data.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GOOD",
    "LAST",
    "load_checkpoint",
    "save_checkpoint",
    "save_weights",
    "write_json",
    "write_table",
    "write_whole",
]

VERSION = 1
LAST = "last.pt"  # where training goes on after a kill
GOOD = "good.pt"  # where it goes back to with `training.on_nan: restore`: an epoch's end, however often checkpoints are written


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    content = text.encode()
    write_whole(path, lambda file: file.write(content), len(content))


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a pandas table as CSV, whole or not at all; numbers keep all their digits."""
    text = table.to_csv(index=False, lineterminator="\n")
    content = text.encode()
    write_whole(path, lambda file: file.write(content), len(content))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state: tensors and plain Python values only, so that it loads without executing code."""
    content = io.BytesIO()  # torch.save hides what went wrong when it writes to a full disk itself
    torch.save({"version": VERSION, **state}, content)
    write_whole(path, lambda file: file.write(content.getbuffer()), content.getbuffer().nbytes)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training state.

    Raises:
        MaskfoldError: the file cannot be read, or another version wrote it. Never taken for a fresh start.
    """
    try:
        _refuse_damage(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state.pop("version")
    except Exception as error:  # torch raises whatever its unpickler met
        raise MaskfoldError(
            f"The checkpoint {path} cannot be read: {_first_line(error)}.",
            f"Restore it from a backup, or delete {path.parent} to train this fold afresh.",
        ) from error
    if version != VERSION:
        raise MaskfoldError(
            f"The checkpoint {path} has version {version}; this Maskfold reads version {VERSION}.",
            "Finish the run with the Maskfold that began it, or start another with --new.",
        )
    return state


def _refuse_damage(path: Path) -> None:
    """Looks at the checksums of a checkpoint's archive: torch reads past them, so that a flipped bit went on unseen.

    Raises:
        ValueError: one is wrong, or the archive is packed, which training states never are (a small file that fills memory).
        zipfile.BadZipFile: it is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it is packed, as no training state is")
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {bad} is wrong")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a network's weights as safetensors, with the SHA-256 of their bytes among the metadata: the format has none."""
    from safetensors.torch import save

    # Cloned, since safetensors refuses tensors that share memory, as those of a layer with two names do (DynUNet).
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = save(plain)
    digest = hashlib.sha256(memoryview(content)[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    content = save(plain, {"sha256": digest})
    write_whole(path, lambda file: file.write(content), len(content))
