"""Compute the size of files that `competition.cleaning.candidates` has found, and delete them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from competition.cleaning.candidates import Candidate, is_unlocked
from competition.io import remove_folder
from competition.runs.lock import lock_if_free


def freed_bytes(paths: Iterable[Path]) -> int:
    """Return the number of bytes on the disk that become free if all these files and folders are deleted.

    A file with a hard link elsewhere frees nothing, e.g. weights that are also artifacts in MLflow.
    """
    links: Counter[tuple[int, int]] = Counter()
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for stat in _stats(paths):
        inode = (stat.st_dev, stat.st_ino)
        links[inode] += 1
        sizes[inode] = (stat.st_nlink, stat.st_size)
    return sum(size for inode, (count, size) in sizes.items() if links[inode] >= count)


def _stats(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    for path in paths:
        files = [path]
        if path.is_dir() and not path.is_symlink():
            files = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
        for file in files:
            try:
                yield file.lstat()
            except OSError:  # another process has just deleted the file
                continue


def delete(candidate: Candidate) -> bool:
    """Delete the files of a candidate; if it is a run in which a process works, delete nothing.

    The folder of a run is deleted before its artifacts in MLflow. So if the deletion is interrupted, no run remains
    without its artifacts.

    Returns:
        Whether the files were deleted.

    Raises:
        OSError: a file cannot be deleted.
    """
    first, *others = candidate.paths
    if candidate.is_run:
        with lock_if_free(first) as is_held:
            if not is_held or not all(is_unlocked(path) for path in first.iterdir() if path.is_dir()):
                return False
            _remove(first)
    else:
        _remove(first)
    for path in others:
        _remove(path)
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)
