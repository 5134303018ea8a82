"""Keep the content of small files in memory, so that decoding, checking and hashing read each file only once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from io import BufferedReader, BytesIO
from pathlib import Path

MAX_KEPT = 2**24  # bytes; larger files are read from the disk each time

PATHS = 256  # paths that `file_below` keeps; a case needs each of its paths several times

_kept: ContextVar[dict[str, bytes] | None] = ContextVar("contents of files", default=None)


@lru_cache(maxsize=PATHS)
def file_below(root: Path, name: str) -> Path:
    """Return the path `root / name`; results are cached, because a case needs each path several times."""
    return Path(root) / name


@contextmanager
def keep_contents() -> Iterator[None]:
    """Keep the content of each small file that `open_file` opens in the `with` block.

    Each such file is read once, so all code in the block gets the same content, even if the file changes. Blocks may be
    nested: the outermost block keeps the contents.
    """
    if _kept.get() is not None:
        yield
        return
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def open_file(path: Path) -> BytesIO | BufferedReader:
    """Open a file for reading. Inside a `keep_contents` block, a small file is read from the disk only once.

    Later calls in the block return the content that was read first, even if the file has changed.

    Raises:
        OSError: the file cannot be read.
    """
    kept = _kept.get()
    if kept is None:
        return open(path, "rb")
    name = os.fspath(path)
    content = kept.get(name)
    if content is None:
        with open(name, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > MAX_KEPT:
                return open(name, "rb")
            content = kept[name] = file.readall()
    return BytesIO(content)
