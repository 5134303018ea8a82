"""Where results go: can be written, and how much room there is."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path

from competition.doctor.finding import Finding
from competition.tracking.store import FOLDER, store_of

GIB = 2**30
LITTLE = 5 * GIB
TOO_LITTLE = GIB // 4
PROBE = 2**20  # bytes that are written, and removed


def look(root: Path) -> list[Finding]:
    """Rows for `mlruns/`, the cache of prepared cases, and MLflow's artifacts."""
    rows = [folder_row(f"{FOLDER}/", root / FOLDER)]
    artifacts = store_of(root).artifacts
    if artifacts is None:
        rows.append(Finding("artifacts", "ok", "kept by the server that MLFLOW_TRACKING_URI names"))
    for what, folder in (("prepared cases", root / FOLDER / "prepared"), ("artifacts", artifacts)):
        if folder is not None and (
            rows[0].state == "ok" or nearest_there(folder) == folder
        ):  # else the first row says it
            rows.append(folder_row(what, folder))
    return rows


def folder_row(what: str, folder: Path) -> Finding:
    """Whether a folder, or the one that it will be made in, takes files and has room."""
    there = nearest_there(folder)
    name = f"{folder} " if there == folder else f"{folder} (not made yet) "
    error = write_error(there)
    free = shutil.disk_usage(there).free if there.is_dir() else 0
    room = f"{free / GIB:.1f} GiB free" if free >= GIB else f"{free / 2**20:.0f} MiB free"
    if error is not None:
        return Finding(what, "unusable", f"{name}cannot be written: {error[0]}", error[1])
    if free < TOO_LITTLE:
        return Finding(
            what,
            "unusable",
            f"{name}is on a disk that is nearly full: {room}",
            "Free some space, or link it to another disk.",
        )
    if free < LITTLE:
        return Finding(
            what,
            "warning",
            f"{name}has {room}; a checkpoint, prepared cases and predictions take gigabytes",
            "Free some space, or link it to another disk.",
        )
    return Finding(what, "ok", f"{name}can be written; {room}")


def nearest_there(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    folder = folder.absolute()
    while not folder.exists() and not folder.is_symlink() and folder != folder.parent:
        folder = folder.parent
    return folder


def write_error(folder: Path) -> tuple[str, str] | None:
    """Writes a mebibyte and removes it again.

    Returns:
        None, or what is wrong and what to do.
    """
    if not folder.is_dir():
        what = "it is a link to nowhere" if folder.is_symlink() and not folder.exists() else "it is a file"
        return what, "Remove it, or put a folder there."
    path = folder / f".doctor~{os.getpid()}~{secrets.token_hex(4)}.tmp"
    try:
        with open(path, "wb") as file:
            file.write(os.urandom(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return explained(error)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def explained(error: OSError) -> tuple[str, str]:
    """An error of the file system as what is wrong and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "Free some space, or link it to another disk."
    if error.errno == errno.EROFS:
        return "the file system is read-only", "Mount it for writing, or work in another folder."
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission is denied (read-only for this user)", "Correct its owner or mode: chmod u+rwx."
    return error.strerror or str(error), "Work in another folder."
