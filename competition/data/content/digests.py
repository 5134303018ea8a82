"""Compute the SHA-256 digests of a case's files: the columns `image_hash` and `hash` of the case table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from competition.config.axes import case_axes, file_axes, permutation, rle_counts_in_pictures
from competition.config.competition import Competition
from competition.data.content.open_once import file_below
from competition.data.image_types import (
    Header,
    combined_digest,
    convert_decoder_errors,
    detached_data_file,
    file_digest,
    has_detached_voxels,
)
from competition.data.rle.tables import row_texts

# Seconds. A digest is cached only if the file's last write is older than this, because a second write within one tick
# of the file system's clock would not change the file's times.
SETTLED_SECONDS = 2.0
# Inode, size, times of modification and of change (ns); see `file_stamp`. Eight values if there is a second file.
FileStamp = tuple[int, ...]
Files = str | list[str]  # a path below the competition's root, or the paths of a stack's slices
Digest = Callable[[Path], bytes]  # `file_digest` or `remembered_digest`

OBJECT_COUNTS = b"objects of each class "  # begins the part of `reading_parts` with the number of files per class

_remembered: dict[Path, tuple[FileStamp, bytes]] = {}  # stamp and digest


# Digests of files


def file_stamp(path: Path) -> FileStamp:
    """Return four values of a file: inode, size, modification time and change time.

    If the file is written or replaced later, at least one of these values changes. The only exception is a write
    directly after another one, see `is_settled`. For an MHD or NHDR file, the same values of the file with the voxels
    are appended.

    Raises:
        MaskfoldError: the file does not exist.
    """
    try:
        voxels = detached_data_file(path) if has_detached_voxels(path) else None
        stamp = _single_stamp(path)
        return stamp if voxels is None else stamp + _single_stamp(voxels)
    except OSError:
        with convert_decoder_errors(path):
            raise


def _single_stamp(path: Path) -> FileStamp:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(stamp: FileStamp) -> bool:
    """Return whether a file's last write is more than `SETTLED_SECONDS` ago.

    If so, another write would certainly change the file's stamp (the result of `file_stamp`).
    """
    return time.time() - max(stamp[2:4] + stamp[6:]) / 1e9 > SETTLED_SECONDS


def remembered_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file; an unchanged file that this process has hashed before is not hashed again.

    A file that was written a moment ago is hashed at every call; see `is_settled`.

    Raises:
        MaskfoldError: the file cannot be read.
    """
    stamp = file_stamp(path)
    known = _remembered.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    digest = file_digest(path)
    if file_stamp(path) == stamp and is_settled(stamp):
        _remembered[path] = (stamp, digest)
    return digest


def file_digests(comp: Competition, files: list[Files], digest: Digest = file_digest) -> list[bytes]:
    """Return the SHA-256 of each entry of `files`; for a stack, the SHA-256 of the digests of its slices.

    Args:
        comp: the competition.
        files: path of each file below the root; for a stack, the list of its paths.
        digest: `file_digest`, or `remembered_digest`, which hashes an unchanged file only once per process.

    Raises:
        MaskfoldError: a file cannot be read.
    """
    root = comp.root
    return [
        digest(file_below(root, item))
        if isinstance(item, str)
        else bytes.fromhex(combined_digest(digest(file_below(root, path)) for path in item))
        for item in files
    ]


def image_digest(comp: Competition, channels: list[Files], digest: Digest = file_digest) -> str:
    """Return a case's `image_hash` for the case table: the SHA-256 (hexadecimal) of the image files' digests."""
    return combined_digest(file_digests(comp, channels, digest))


# Digests of the truth and of the case


def label_files(masks: dict[str, Any] | None) -> list[Files]:
    """Return the label files of a case, followed by its region mask if it has one; a stack is a list of paths."""
    if masks is None:
        return []
    region = [masks["region"]] if "region" in masks else []
    if masks["kind"] == "rle":
        return region
    if masks["kind"] == "labels":
        return [masks["files"], *region]
    if masks["kind"] == "classes":
        return [*masks["files"].values(), *region]
    return [*(path for paths in masks["files"].values() for path in paths), *region]


def truth_parts(comp: Competition, masks: dict[str, Any] | None, digest: Digest = file_digest) -> list[bytes]:
    """Return the parts of a case's content hash that come from its ground truth.

    These are the texts of table rows and the digests of label files.

    Args:
        comp: the competition.
        masks: a result of `find_masks`; None for a test case.
        digest: as for `file_digests`.

    Raises:
        MaskfoldError: a file or the table cannot be read.
        KeyError: the table no longer has a line that belongs to the case.
    """
    if masks is None:
        return []
    rows = masks["rows"] if masks["kind"] == "rle" else []
    texts = row_texts(comp, [line for line, _, _ in rows])
    parts = [f"{cls}\0{index}\0{text}".encode() for (_, cls, index), text in zip(rows, texts, strict=True)]
    return parts + file_digests(comp, label_files(masks), digest)


def reading_parts(
    comp: Competition, header: Header, channels: list[Files], masks: dict[str, Any] | None
) -> list[bytes]:
    """Return the parts of a case's content hash that mark files which older versions of Maskfold read differently.

    Most cases have no such part. A case has one if, for example, the axes of a file are reordered, or the header has a
    `plain_spacing`. The parts change the hash, so that a case cached by an earlier version is not used.

    Args:
        comp: the competition.
        header: header of the first channel.
        channels: the files of each channel.
        masks: a result of `find_masks`; None for a test case.
    """
    axes, parts = case_axes(comp, channels[0]), []
    for files in [*channels, *label_files(masks)]:
        if permutation(file_axes(comp, files), axes) is not None:
            parts.append(f"axes {file_axes(comp, files)} {axes}".encode())
    if masks is not None and comp.train.threshold is not None:
        parts.append(f"threshold {comp.train.threshold}".encode())
    if masks is not None and masks["kind"] == "labels" and comp.values_separate_objects:
        parts.append(b"object numbers" if comp.train.object_numbers else b"objects of different values")
    if masks is not None and "region" in masks:
        parts.append(b"region")
    if masks is not None and masks["kind"] == "classes":
        parts += [f"no file of {name}".encode() for name in comp.classes if name not in masks["files"]]
    if masks is not None and masks["kind"] == "instances" and len(comp.classes) > 1:
        # A file that moves from the last object of one class to the first of the next would not change the digests.
        parts.append(OBJECT_COUNTS + str([len(paths) for paths in masks["files"].values()]).encode())
    if masks is not None and masks["kind"] == "rle" and rle_counts_in_pictures(comp):
        parts.append(b"run lengths of pictures")
    plain_spacing = header.plain_spacing if header.has_spacing else (1.0,) * len(header.shape)
    if plain_spacing not in (None, header.spacing):
        parts.append(f"spacing {json.dumps(header.spacing)}".encode())
    return parts


def case_digest(image_hash: str, parts: list[bytes]) -> str:
    """Return the value of the column `hash`, from `image_hash` and the results of `truth_parts` and `reading_parts`."""
    return combined_digest([bytes.fromhex(image_hash), *parts])
