"""Extensions of a NIfTI header: a small file must not unpack to gigabytes before its voxels are read."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from competition.data.readers import read_header, read_image
from competition.errors import MaskfoldError

SIZE = 2**24


def file_with_extension(path: Path, kind: type, order: str, declared: int, content: bytes, offset: int | None) -> None:
    """Write 4×5×6 voxels behind an extension that declares a size."""
    header = kind(endianness=order)
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(np.uint8)
    start = header.sizeof_hdr + 4
    header["vox_offset"] = start + 8 + len(content) if offset is None else offset
    header["magic"] = header.single_magic
    parts = (header.binaryblock, b"\1\0\0\0", struct.pack(f"{order}ii", declared, 6), content, bytes(range(120)))
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        file.write(b"".join(parts))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
def test_an_extension_is_skipped(tmp_path: Path, kind: type, order: str, name: str) -> None:
    file_with_extension(tmp_path / name, kind, order, 32, b"a comment".ljust(24, b"\0"), None)
    array = read_image(tmp_path / name, 3).array
    assert array.shape == (1, 4, 5, 6) and array.sum() == sum(range(120))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@pytest.mark.parametrize(
    ("declared", "offset"),
    [
        (-16, None),  # nibabel reads to the end of the file, whatever its size
        (2**31 - 16, None),
        (2**31 - 16, 2**31 + 512),
        (2**20, 0),  # nibabel reads extensions until the file ends
    ],
)
def test_an_extension_that_would_fill_the_memory_is_refused(
    tmp_path: Path, kind: type, order: str, declared: int, offset: int | None
) -> None:
    path = tmp_path / "a.nii.gz"
    file_with_extension(path, kind, order, declared, bytes(SIZE), offset)
    for read in (read_header, read_image):
        tracemalloc.start()
        with pytest.raises(MaskfoldError, match="extensions? of its header"):
            read(path, 3)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < SIZE / 2, "the extension was not unpacked"
