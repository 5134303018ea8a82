"""A bundle's folder: files copied into it, its place taken in one step, and its zip file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from competition.config import MaskfoldError
from competition.data.files import writable, write_whole
from competition.submission.offline.bundle import FILE

MANIFEST = "manifest.json"


def refuse_overwrite(folder: Path) -> None:
    """Refuses a folder that holds anything but a bundle as it was written.

    Raises:
        MaskfoldError: status 2.
    """
    writable(folder.absolute().parent)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    cure = "Name another folder, or remove this one."
    if not (folder / FILE).is_file() or not (folder / MANIFEST).is_file():
        raise MaskfoldError(f"{folder} exists and is no bundle.", cure, status=2)
    known = set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]) | {MANIFEST}
    others = [
        name
        for name in (path.relative_to(folder).as_posix() for path in files_in(folder))
        if name not in known and "__pycache__" not in name
    ]
    if others:
        raise MaskfoldError(
            f"{folder} is a bundle that holds {others[0]}, which does not belong to it.", cure, status=2
        )


def swap(beside: Path, folder: Path) -> None:
    """The new folder in the place of the old one."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def zip_beside(folder: Path) -> Path:
    """The bundle as a zip file beside it, the folder's name before each file."""
    archive = folder.with_name(f"{folder.name}.zip")

    def write(stream: Any) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path in files_in(folder):
                info = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", (1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_DEFLATED
                with open(path, "rb") as source, zipped.open(info, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target)

    write_whole(archive, write)
    return archive


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """Of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def put_copy(source: Path, target: Path) -> None:
    """Copy a file, and make the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def put_text(path: Path, text: str) -> None:
    """Write a text as UTF-8."""
    content = text.encode()
    write_whole(path, lambda file: file.write(content), len(content))
