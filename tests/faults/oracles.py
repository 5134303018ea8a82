"""Independent decoders, which do not use Maskfold's code and test all checksums and limits of a format."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml


class Unsound(Exception):
    """The bytes are not a valid file of the format."""


def png(content: bytes) -> np.ndarray:
    """Return the stored pixels (C, H, W) of a PNG, decoded by its specification; test all checksums."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise Unsound("magic")
    place, head, data, ended = 8, b"", b"", False
    while not ended:
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        body, check = content[place + 8 : place + 8 + length], content[place + 8 + length : place + 12 + length]
        if len(body) < length or struct.unpack(">I", check)[0] != zlib.crc32(kind + body):
            raise Unsound("checksum")
        head, data = (body, data) if kind == b"IHDR" else (head, data + body if kind == b"IDAT" else data)
        place, ended = place + 12 + length, kind == b"IEND"
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", head)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if interlace or depth not in (8, 16):
        raise Unsound("not written by these tests")
    step = samples * depth // 8
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * step)
    above = np.zeros(width * step, np.int64)
    rows = []
    for line in lines:
        above = _unfiltered(int(line[0]), line[1:].astype(np.int64), above, step)
        rows.append(above.astype(np.uint8))
    values = np.stack(rows).view(np.uint8 if depth == 8 else ">u2").reshape(height, width, samples)
    return np.moveaxis(values, -1, 0)


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """Return a line of a PNG without its filter.

    Args:
        kind: number of the filter.
        line: the filtered bytes.
        above: the unfiltered bytes of the line above.
        step: bytes per pixel.
    """
    if kind == 0:
        return line
    if kind == 2:
        return (line + above) % 256
    out = line.copy()
    for x in range(len(line)):
        left, corner = (out[x - step], above[x - step]) if x >= step else (0, 0)
        guess = left + above[x] - corner
        near = min((abs(guess - left), 0, left), (abs(guess - above[x]), 1, above[x]), (abs(guess - corner), 2, corner))
        out[x] = (line[x] + {1: left, 3: (left + above[x]) // 2, 4: near[2]}[kind]) % 256
    return out


NIFTI = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}


def nifti(content: bytes) -> tuple[Any, ...]:
    """Return values (C, X, Y, Z), spacing and affine (or None) of a NIfTI file, decoded by nifti1.h.

    The file may be packed with gzip, whose checksum is tested.
    """
    raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    order = "<" if struct.unpack("<i", raw[:4])[0] == 348 else ">"
    if struct.unpack(order + "i", raw[:4])[0] != 348 or raw[344:348] != b"n+1\0":
        raise Unsound("magic")
    dim = struct.unpack(order + "8h", raw[40:56])
    kind, bits = struct.unpack(order + "2h", raw[70:74])
    pixdim = struct.unpack(order + "8f", raw[76:108])
    offset, slope, inter = struct.unpack(order + "3f", raw[108:120])
    qform, sform = struct.unpack(order + "2h", raw[252:256])
    if not 1 <= dim[0] <= 7 or kind not in NIFTI or offset < 352:
        raise Unsound("header")
    shape = [max(n, 0) for n in dim[1 : dim[0] + 1]]
    dtype = np.dtype(order + NIFTI[kind])
    count = int(np.prod(shape, dtype=object))
    values = np.frombuffer(raw, dtype, count, int(offset)).reshape(shape, order="F")
    if np.isfinite(slope) and slope != 0 and (slope, inter) != (1.0, 0.0):
        values = values.astype(np.float64) * slope + inter
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise Unsound("NaN")
    factor = {1: 1000.0, 3: 0.001}.get(raw[123] & 7, 1.0)
    spacing = tuple(abs(float(one)) * factor for one in pixdim[1:4])
    if not all(np.isfinite(one) and one > 0 for one in spacing):
        raise Unsound("spacing")
    affine = None
    if sform > 0:
        affine = np.eye(4)
        affine[:3] = np.array(struct.unpack(order + "12f", raw[280:328])).reshape(3, 4) * factor
        if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
            raise Unsound("affine")
    elif qform > 0:
        affine = _quaternion(raw, order, pixdim) if factor == 1 else None
    spatial = tuple(shape[:3])
    return np.moveaxis(values.reshape(*spatial, -1), -1, 0), spacing, affine


def _quaternion(raw: bytes, order: str, pixdim: tuple[float, ...]) -> np.ndarray:
    """Return the affine (4, 4) that the header's quaternion (qform) gives."""
    b, c, d, x, y, z = struct.unpack(order + "6f", raw[256:280])
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * [pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] < 0 else 1)]
    affine[:3, 3] = x, y, z
    return affine


def npy(content: bytes) -> np.ndarray:
    """Return the array of an .npy file, decoded by NEP 1."""
    if content[:6] != b"\x93NUMPY" or content[6] not in (1, 2):
        raise Unsound("magic")
    size = 2 if content[6] == 1 else 4
    length = int.from_bytes(content[8 : 8 + size], "little")
    head = ast.literal_eval(content[8 + size : 8 + size + length].decode("latin1"))
    dtype = np.dtype(head["descr"])
    if dtype.hasobject or set(head) != {"descr", "fortran_order", "shape"}:
        raise Unsound("objects")
    count = int(np.prod(head["shape"], dtype=object))
    values = np.frombuffer(content, dtype, count, 8 + size + length)
    values = values.reshape(head["shape"], order="F" if head["fortran_order"] else "C")
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise Unsound("NaN")
    return values


def npz(content: bytes) -> np.ndarray:
    """Return the first array of an .npz file; test all checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.testzip() is not None:
            raise Unsound("checksum")
        return npy(archive.read(archive.namelist()[0]))


def table(content: bytes) -> list[list[str]]:
    """Return the rows of a CSV, with the header and without blank rows."""
    text = content.decode("utf-8-sig")
    csv.field_size_limit(2**31 - 1)
    first = text.partition("\n")[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter))
    if any(len(row) > len(rows[0]) for row in rows) or len(set(rows[0])) < len(rows[0]):
        raise Unsound("ragged")
    rows = [row + [""] * (len(rows[0]) - len(row)) for row in rows]
    return [rows[0], *(row for row in rows[1:] if any(row))]


def words(content: bytes) -> Any:
    """Return the content of a YAML file, with every scalar as the text that the file contains."""
    return yaml.load(content.decode("utf-8-sig"), Loader=yaml.BaseLoader)


def torch_zip(content: bytes) -> None:
    """Test all checksums of a checkpoint's archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.testzip() is not None:
            raise Unsound("checksum")


def safetensors(content: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file, decoded by its specification; test the digest in the metadata."""
    import hashlib

    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    said = head.pop("__metadata__", {}).get("sha256")
    data = content[8 + length :]
    if said is not None and said != hashlib.sha256(data).hexdigest():
        raise Unsound("digest")
    kinds = {"F32": "f4", "I64": "i8", "F16": "f2"}
    found = {}
    for name, one in head.items():
        start, end = one["data_offsets"]
        found[name] = np.frombuffer(data[start:end], kinds[one["dtype"]]).reshape(one["shape"])
        if not np.isfinite(found[name]).all():
            raise Unsound("NaN")
    return found


def dicom(folder: Path) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    """Return values (1, X, Y, Z), spacing and RAS affine of a folder of slices, by PS3.3 C.7.6.2.1.1."""
    import pydicom

    slices: list[Any] = [pydicom.dcmread(path, force=True) for path in sorted(folder.iterdir())]
    turn = np.array([float(one) for one in slices[0].ImageOrientationPatient])
    normal = np.cross(turn[:3], turn[3:])
    slices.sort(key=lambda one: float(np.dot(normal, [float(x) for x in one.ImagePositionPatient])))
    values = np.stack(
        [
            one.pixel_array.T * float(one.get("RescaleSlope", 1)) + float(one.get("RescaleIntercept", 0))
            for one in slices
        ],
        axis=-1,
    )
    down, across = (float(one) for one in slices[0].PixelSpacing)
    first, last = (np.array([float(x) for x in slices[end].ImagePositionPatient]) for end in (0, -1))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = turn[:3] * across, turn[3:] * down
    affine[:3, 2], affine[:3, 3] = (last - first) / (len(slices) - 1), first
    affine = np.diag([-1, -1, 1, 1]) @ affine
    return values[None], tuple(np.linalg.norm(affine[:3, :3], axis=0)), affine
