"""Damaged DICOM files: one slice in a series of four, with changed bytes or a changed header."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import oracles
from tests.faults.fuzz_targets import GIB, Target
from tests.faults.mutations import patched, zlib_zeros


def _converted(path: Path) -> Any:
    """Convert the series in a file's folder, and return array, spacing and affine of the volume.

    Raises:
        MaskfoldError: the series was not converted.
    """
    import shutil

    import nibabel

    from competition.dicom.convert import convert_folder
    from competition.errors import MaskfoldError

    output = path.parent.parent / "converted"
    shutil.rmtree(output, ignore_errors=True)
    rows = convert_folder(path.parent, output).rows
    refused = [row for row in rows if row.status == "refused"]
    if refused:
        raise MaskfoldError(f"{refused[0].title}: {refused[0].reason}", "Export the series again.")
    [row] = rows
    image: Any = nibabel.load(output / row.file)
    return np.asarray(image.dataobj)[None], tuple(map(float, image.header.get_zooms())), np.asarray(image.affine)


def dicom(folder: Path) -> dict[str, Target]:
    """Return the target for the first slice of a series that is written to `folder`."""
    from tests.dicom.files import volume, write_series

    paths = write_series(folder, volume((9, 8, 4)))
    contents = {path.name: path.read_bytes() for path in paths}
    first, *others = contents

    def said(content: bytes) -> Any:
        place = folder.parent / "other"
        place.mkdir(exist_ok=True)
        for name in others:
            (place / name).write_bytes(contents[name])
        (place / first).write_bytes(content)
        return oracles.dicom(place)

    sound = contents[first]
    tag = lambda group, element, kind: struct.pack("<HH", group, element) + kind  # noqa: E731

    def number(keyword: bytes, new: bytes) -> bytes:
        at = sound.index(keyword) + len(keyword) + 2
        return patched(sound, (at, new))

    def text(keyword: bytes, new: bytes) -> bytes:
        at = sound.index(keyword) + len(keyword)
        size = int.from_bytes(sound[at : at + 2], "little")
        new = new.ljust(len(new) + len(new) % 2)
        return sound[:at] + struct.pack("<H", len(new)) + new + sound[at + 2 + size :]

    rows, columns, bits = tag(0x28, 0x10, b"US"), tag(0x28, 0x11, b"US"), tag(0x28, 0x100, b"US")
    spacing, place, turn = tag(0x28, 0x30, b"DS"), tag(0x20, 0x32, b"DS"), tag(0x20, 0x37, b"DS")
    deflated = _deflated(sound)
    tricks = [
        ("65,535 rows", number(rows, b"\xff\xff")),
        ("no columns", number(columns, b"\0\0")),
        ("9 bits", number(bits, b"\x09\0")),
        ("spacing 0", text(spacing, b"0\\0")),
        ("spacing NaN", text(spacing, b"nan\\0.8")),
        ("spacing of words", text(spacing, b"wide\\x")),
        ("position infinite", text(place, b"1e999\\0\\0")),
        ("position of the next slice", text(place, b"-40\\12.5\\-297.5")),
        ("orientation of zeros", text(turn, b"0\\0\\0\\0\\0\\0")),
        ("one number of two", text(spacing, b"0.7")),
        ("a huge element", patched(sound, (sound.index(tag(0x7FE0, 0x10, b"OW")) + 8, b"\xfe\xff\xff\xff"))),
        ("deflated zeros", deflated),
        ("a name that leads out", text(tag(0x10, 0x20, b"LO"), b"../../../tmp/evil")),
    ]
    return {
        "dicom": Target(
            f"study/{first}",
            sound,
            44,
            _converted,
            said,
            tricks,
            {f"study/{name}": contents[name] for name in others},
            ("study", "series 1", "Abdomen"),
        )
    }


def _deflated(sound: bytes) -> bytes:
    """Return a DICOM file of the deflated transfer syntax whose dataset unpacks to 3 GiB of zeros."""
    old, new = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    at = sound.index(old)
    head = sound[: at - 2] + struct.pack("<H", len(new)) + new + sound[at + len(old) :]
    group = head.index(b"UL\4\0") + 4
    length = int.from_bytes(head[group : group + 4], "little") + len(new) - len(old)
    end = group + 4 + length
    return patched(head[:end], (group, struct.pack("<I", length))) + zlib_zeros(3 * GIB)[2:-4]
