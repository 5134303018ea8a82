"""Large arrays are in files, and nothing else changes: readers, preparation, prediction and stored predictions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from competition import large_arrays
from competition.data.cache import PreprocessedCase
from competition.data.geometry import Geometry
from competition.data.readers import read_image, read_labels
from competition.explore.cases import component_sizes
from competition.inference.masks import to_masks
from competition.inference.predict import predict_case
from competition.inference.sliding_window import predict_image
from competition.rle import decode_labels, encode
from competition.rle_text import RleFormat
from competition.runs.oof import OofStore
from tests.prepared import experiment, prepared_case


def in_file(array: np.ndarray) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


@pytest.fixture
def every_array_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("MASKFOLD_LARGE_MIB", "0")


def test_large_arrays_are_files_without_a_name(
    every_array_is_large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [large_arrays.empty((3, 4), np.uint8), large_arrays.zeros((3, 4), np.float16)]
    made.append(large_arrays.copy(np.arange(12).reshape(4, 3).T, np.float32))
    assert all(in_file(array) and array.flags.c_contiguous and array.flags.writeable for array in made)
    assert not made[1].any()
    np.testing.assert_array_equal(made[2], np.arange(12).reshape(4, 3).T)
    assert not list((tmp_path / "temporary").iterdir())
    monkeypatch.setenv("MASKFOLD_LARGE_MIB", "1")
    assert not in_file(large_arrays.empty((2**20 - 1,), np.uint8)) and in_file(large_arrays.empty((2**20,), np.uint8))
    monkeypatch.setenv("MASKFOLD_LARGE_MIB", "many")
    assert not large_arrays.is_large((2**20,), np.uint8) and large_arrays.is_large((2**29,), np.uint8)


def test_a_full_disk_means_memory(every_array_is_large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    assert not in_file(large_arrays.empty((3, 4), np.uint8))
    assert not large_arrays.zeros((3, 4), np.uint8).any()
    with pytest.raises(MemoryError, match=r"1048576.0 GiB .*No space left"):
        large_arrays.empty((2**50,), np.uint8)


def test_blocks_cover_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_arrays, "BLOCK_VALUES", 20)
    assert [(rows.start, rows.stop) for rows in large_arrays.row_blocks((5, 9))] == [(0, 2), (2, 4), (4, 5)]
    assert len(list(large_arrays.row_blocks((2, 100)))) == 2


@pytest.mark.parametrize("shape", [(70, 90), (70, 90, 3), (3, 70, 90)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"tile": (32, 32)}, {"tile": (32, 32), "compression": "zlib", "bigtiff": True}, {"rowsperstrip": 8}],
    ids=str,
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_is_read_in_parts(
    every_array_is_large: None, tmp_path: Path, shape: tuple[int, ...], settings: dict[str, Any], order: str
) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, shape).astype(np.uint16)
    colour = {"photometric": "minisblack" if len(shape) == 2 else "rgb"}
    if len(shape) == 3:
        colour["planarconfig"] = "separate" if shape[0] == 3 else "contig"
    tifffile.imwrite(tmp_path / "a.tif", values.astype(f"{order}u2"), byteorder=order, **colour, **settings)
    image = read_image(tmp_path / "a.tif").array
    assert in_file(image) and image.dtype == np.uint16 and image.flags.c_contiguous
    expected = values[None] if len(shape) == 2 else values if shape[0] == 3 else np.moveaxis(values, -1, 0)
    np.testing.assert_array_equal(image, expected)
    if len(shape) == 2:
        labels = read_labels(tmp_path / "a.tif")[0]
        assert in_file(labels)
        np.testing.assert_array_equal(labels, values)


def test_a_pyramid_gives_its_full_resolution(every_array_is_large: None, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as file:
        file.write(values, tile=(16, 16), subifds=1, photometric="rgb")
        file.write(values[::2, ::2], tile=(16, 16), subfiletype=1, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array, np.moveaxis(values, -1, 0))


class Threes(torch.nn.Module):
    """Three output channels that depend on the pixel and on its neighbour."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        total = batch.sum(1, keepdim=True)
        return torch.cat([total, -total.roll(1, 2), 0.5 * total.roll(1, 3)], 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("prepare", [{}, {"long_side": 40}], ids=str)
def test_files_change_no_number(
    every_array_is_large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, prepare: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    image, mask = random.integers(0, 256, (3, 50, 70)).astype(dtype), random.integers(0, 3, (1, 50, 70), np.uint8)
    exp = experiment(2, [16, 24], prepare={"intensity": "percentile", **prepare})
    found = []
    for size in ("0", "512"):
        monkeypatch.setenv("MASKFOLD_LARGE_MIB", size)
        case = PreprocessedCase.open(prepared_case(tmp_path / size, "a", image, mask, exp))
        probabilities = predict_case([Threes()], case, exp)
        assert in_file(probabilities) == (size == "0")
        store = OofStore(tmp_path / size / "oof", "uint8")
        store.write("a", probabilities)
        arrays = [case.image, case.mask, case.foreground, store.read("a"), to_masks(probabilities, exp.competition)]
        found.append(([np.array(array) for array in arrays], probabilities))
    for one, other in zip(found[0][0][:3], found[1][0][:3], strict=True):
        np.testing.assert_array_equal(one, other)
    if prepare:  # blocks of rows are interpolated by NumPy instead of torch
        np.testing.assert_allclose(found[0][1], found[1][1], atol=2e-3)
        return
    np.testing.assert_array_equal(found[0][1], found[1][1])
    for one, other in zip(found[0][0][3:], found[1][0][3:], strict=True):
        np.testing.assert_array_equal(one, other)
    whole = predict_image([Threes()], case.network_input[:], exp)
    np.testing.assert_array_equal(whole, found[0][1])


def test_the_inverse_of_the_same_grid_copies_nothing() -> None:
    same = Geometry((5, 6), (1.0, 1.0), None, (0, 1), (False, False), ((0, 5), (0, 6)), (5, 6), ((0, 0), (0, 0)))
    values = np.ones((2, 5, 6), np.float16)
    assert same.is_identity and same.inverse(values) is values
    for change in ({"flips": (True, False)}, {"crop": ((1, 5), (0, 6)), "resampled": (4, 6)}, {"axes": (1, 0)}):
        other = Geometry(**{**vars(same), **change})
        assert not other.is_identity


@pytest.mark.parametrize("order", ["row", "column"])
def test_run_lengths(every_array_is_large: None, order: Any) -> None:
    random = np.random.default_rng(0)
    masks = [random.random((20, 30)) < share for share in (0.3, 0.6)]
    fmt = RleFormat(order=order)
    labels = decode_labels([encode(mask, fmt) for mask in masks], (20, 30), fmt)
    assert in_file(labels)
    np.testing.assert_array_equal(labels, np.where(masks[1], 2, masks[0]))


def test_components_of_a_large_mask(monkeypatch: pytest.MonkeyPatch, every_array_is_large: None) -> None:
    monkeypatch.setattr(large_arrays, "BLOCK_VALUES", 40 * 7)
    random = np.random.default_rng(0)
    for share in (0.1, 0.4, 0.6):
        mask = random.random((50, 40)) < share
        found = component_sizes(mask)
        monkeypatch.setenv("MASKFOLD_LARGE_MIB", "512")
        assert sorted(found) == sorted(component_sizes(mask))
        monkeypatch.setenv("MASKFOLD_LARGE_MIB", "0")
