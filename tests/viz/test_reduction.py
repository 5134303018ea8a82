"""Large images are reduced before they are drawn; small ones are drawn as they are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from competition.data.cases import case_table
from competition.data.duplicates import make_thumbnail
from competition.data.readers import load_image
from competition.explore.cases import COLOURS, measure_channels
from competition.viz import preview, reduction
from competition.viz.overlays import draw_case, draw_comparison
from competition.viz.preview import load_picture
from competition.viz.reduction import reduce_image, reduce_mask, reduce_truth, reduction_step
from tests.host import competition as host
from tests.viz.test_overlays import competition

SIDE = 4000


def peak(work: Callable[[], Any]) -> int:
    """Bytes that a function allocates at most, in addition to its input."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def squares(array: np.ndarray, step: int) -> list[list[np.ndarray]]:
    rows, columns = array.shape[-2:]
    return [[array[..., i : i + step, j : j + step] for j in range(0, columns, step)] for i in range(0, rows, step)]


def test_slices_up_to_2048_pixels_are_not_reduced() -> None:
    assert reduction_step((2048, 10)) == reduction_step((2048, 2048)) == 1
    assert [reduction_step(shape) for shape in ((2049, 4), (6000, 8000), (30000, 30000))] == [3, 8, 30]
    image, mask = np.zeros((3, 4, 5), np.uint8), np.zeros((2, 4, 5), bool)
    assert reduce_image(image, 1) is image and reduce_mask(mask, 1) is mask
    assert reduce_truth(image, competition(), 1) is image


@pytest.mark.parametrize("block", [20, 2**22])
@pytest.mark.parametrize("step", [2, 3, 7])
def test_squares_of_pixels(step: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "BLOCK_PIXELS", block)
    rng = np.random.default_rng(step)
    image, mask = rng.integers(0, 255, (3, 22, 31), dtype=np.uint8), rng.random((2, 22, 31)) < 0.05
    means = [[square.mean(axis=(1, 2)) for square in row] for row in squares(image, step)]
    np.testing.assert_allclose(reduce_image(image, step), np.moveaxis(means, -1, 0), rtol=1e-6)
    touched = [[square.any(axis=(1, 2)) for square in row] for row in squares(mask, step)]
    np.testing.assert_array_equal(reduce_mask(mask, step), np.moveaxis(touched, -1, 0))


def test_classes_of_a_reduced_truth() -> None:
    truth = np.zeros((1, 4, 6), np.uint8)
    truth[0, 0, 0], truth[0, 0, 1], truth[0, 3, 2], truth[0, 3, 5] = 1, 2, 1, 255
    np.testing.assert_array_equal(reduce_truth(truth, competition(), 2), [[[2, 0, 0], [0, 1, 255]]])
    layers = np.stack([truth[0] == 1, truth[0] == 2]).astype(np.uint8)
    layers[:, 3, 5] = 255
    reduced = reduce_truth(layers, competition(labels="overlapping"), 2)
    np.testing.assert_array_equal(reduced, [[[1, 0, 0], [0, 1, 255]], [[1, 0, 0], [0, 0, 255]]])


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image (3, 4000, 4000), its truth and a prediction."""
    row = np.random.default_rng(0).integers(0, 255, (3, 1, SIDE), dtype=np.uint8)
    truth, masks = np.zeros((1, SIDE, SIDE), np.uint8), np.zeros((2, SIDE, SIDE), bool)
    truth[0, 500:1500, 500:3000], truth[0, :10] = 1, 255
    masks[0, 600:1600, 400:2800], masks[1, 2000:3000, 700:900] = True, True
    return np.repeat(row, SIDE, axis=1), truth, masks


def test_pictures_of_large_images_need_little_memory(large: Any, tmp_path: Path) -> None:
    image, truth, masks = large
    small = [np.ascontiguousarray(array[:, :64, :64]) for array in large]
    draw_case(tmp_path / "x.png", *small, competition(), "imports")
    other = np.roll(masks, 50, axis=1)
    draws = [
        lambda: draw_case(tmp_path / "case.png", image, truth, masks, competition(), "case"),
        lambda: draw_case(tmp_path / "test.png", image, None, masks, competition(), "test case"),
        lambda: draw_comparison(tmp_path / "two.png", image, truth, (masks, other), competition(), "two"),
    ]
    for draw in draws:
        assert peak(draw) < 10 * image.nbytes  # 19 to 60 times without reduction


@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib", "rowsperstrip": 7}, {"compression": "zlib", "tile": (32, 16)}]
)
def test_large_tiff_files_are_reduced_while_they_are_read(
    options: dict[str, Any], colours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduction, "MAX_SIDE", 50)
    monkeypatch.setattr(reduction, "REDUCED_SIDE", 20)
    image = np.random.default_rng(1).integers(0, 2**16, (90, 131, 3) if colours else (90, 131), dtype=np.uint16)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", image, photometric="rgb" if colours else "minisblack", **options)
    comp = host(tmp_path, test={"images": "images/{id}.tif"})
    (row,) = case_table(comp, "test").itertuples()
    assert load_picture(comp, row).array.shape[1:] == image.shape[:2], "a small file is read as a whole"
    monkeypatch.setattr(preview, "LARGE_FILE", 1000)
    expected = reduce_image(load_image(comp, row).array, reduction_step(image.shape[:2]))
    found = load_picture(comp, row).array
    assert found.shape == (3 if colours else 1, 13, 19) == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[0, 20:40, 20:80] = True
    for name, array in (("reduced", found), ("whole", load_image(comp, row).array)):
        draw_case(tmp_path / f"{name}.png", array, None, masks, competition(), "x")
    assert (tmp_path / "reduced.png").stat().st_size > 0 < (tmp_path / "whole.png").stat().st_size


def test_a_large_tiff_of_another_axis_order_is_read_as_for_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next to NIfTI training images, test pictures are turned to (X, Y)."""
    monkeypatch.setattr(reduction, "MAX_SIDE", 50)
    monkeypatch.setattr(reduction, "REDUCED_SIDE", 20)
    monkeypatch.setattr(preview, "LARGE_FILE", 1000)
    image = np.random.default_rng(1).integers(0, 2**16, (90, 131), dtype=np.uint16)
    (tmp_path / "test").mkdir()
    tifffile.imwrite(tmp_path / "test" / "a.tif", image)
    train = {"images": "images/{id}.nii.gz", "masks": "masks/{id}.nii.gz"}
    comp = host(tmp_path, train=train, test={"images": "test/{id}.tif"})
    (row,) = case_table(comp, "test").itertuples()
    assert load_image(comp, row).array.shape == (1, 131, 90)
    np.testing.assert_array_equal(load_picture(comp, row).array, load_image(comp, row).array)


def test_measurements_of_large_images_need_little_memory(large: Any) -> None:
    image, truth, _ = large
    foreground = truth[0] == 1
    assert peak(lambda: make_thumbnail(image)) < 2 * image.nbytes
    assert peak(lambda: measure_channels(image, list(COLOURS), foreground, None)) < 3 * image.nbytes
