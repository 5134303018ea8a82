"""Functions that make small archives for tests, valid and invalid."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = {
    "Task04_Toy/imagesTr/toy_001.nii.gz": b"image" * 150_000,
    "Task04_Toy/imagesTr/._toy_001.nii.gz": b"junk",
    "Task04_Toy/labelsTr/toy_001.nii.gz": b"label" * 900,
    "Task04_Toy/imagesTs/toy_002.nii.gz": b"test" * 700_000,
    "Task04_Toy/dataset.json": b"{}",
    "._Task04_Toy": b"junk",
}


def tar_of(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    """Return the bytes of a tar archive.

    Args:
        files: contents of regular files, by name.
        *members: further members, e.g. links.
    """
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in members:
            tar.addfile(info)
    return memory.getvalue()


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return a member of a tar archive that has no content, e.g. a link to `target`."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def silent(rows: Iterator[Any], _count: int) -> Iterator[Any]:
    """Return the rows unchanged, as a progress bar that prints nothing."""
    return rows


def tree(folder: Path) -> set[str]:
    """Return the paths of all files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
