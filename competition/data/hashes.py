"""What identifies the content of files and of whole cases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from competition.data.readers_types import reading


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes.

    A gzip file's own header is passed over: it keeps the name under which the file was packed, so that two copies of
    one volume under two ids would look different (RFC 1952, section 2.3).

    Raises:
        MaskfoldError: the file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        if path.suffix.lower() == ".gz":
            _skip_gzip_header(file)
        return hashlib.file_digest(file, "sha256").digest()


def joined(parts: Iterable[bytes]) -> str:
    """SHA-256 (hexadecimal) of parts, each by its own digest, so that their borders count."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()


def _skip_gzip_header(file: IO[bytes]) -> None:
    head = file.read(10)
    if head[:2] != b"\x1f\x8b" or len(head) < 10:
        file.seek(0)
        return
    flags = head[3]
    if flags & 4:  # extra field
        file.read(int.from_bytes(file.read(2), "little"))
    for flag in (8, 16):  # name and comment, each closed by a zero byte
        while flags & flag and file.read(1) not in (b"\0", b""):
            pass
    if flags & 2:  # checksum of the header
        file.read(2)
