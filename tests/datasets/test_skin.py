"""The skin images: JPEG of mixed sizes, masks of 0 and 255, one lesion each, matching tables, no working threshold."""

from __future__ import annotations

import csv

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, label

from competition.datasets.phantoms import skin


def test_files_are_jpeg_of_mixed_sizes_with_masks_of_0_and_255(phantoms):
    root = phantoms["a02025"]
    names = sorted(path.stem for path in (root / "Train" / "Image").iterdir())
    assert names == sorted(path.stem for path in (root / "Train" / "Mask").iterdir()) and len(names) == 16
    sizes, ratios = set(), []
    for name in names:
        files = root / "Train" / "Image" / f"{name}.jpg", root / "Train" / "Mask" / f"{name}.png"
        with Image.open(files[0]) as picture, Image.open(files[1]) as mask:
            assert (picture.format, picture.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "L")
            assert picture.size == mask.size and all(180 <= side <= 420 for side in picture.size)
            sizes.add(picture.size)
            ratios.append(picture.width / picture.height)
            values = np.asarray(mask)
            colours = np.asarray(picture).reshape(-1, 3).mean(axis=0)
        assert set(np.unique(values)) == {0, 255} and 0.01 < (values > 0).mean() < 0.6
        assert label(values)[1] == 1 and np.array_equal(binary_fill_holes(values > 0), values > 0)
        assert colours[0] > colours[2]  # skin is more red than blue: the channel order is RGB
    assert len(sizes) == 16 and min(ratios) < 0.8 and max(ratios) > 1.6


def test_tables_hold_one_row_per_test_picture(phantoms):
    root = phantoms["a02025"]
    tables = {}
    for name in ("sample_submission.csv", "solution.csv"):
        with open(root / name, newline="", encoding="utf-8") as stream:
            header, *tables[name] = csv.reader(stream)
        assert header == ["id", "rle"]
    sample, solution = tables.values()
    assert [row[0] for row in sample] == [row[0] for row in solution] and {row[1] for row in sample} == {"1 1"}
    assert sorted(row[0] for row in sample) == sorted(path.stem for path in (root / "Test" / "Image").iterdir())
    for case, text in solution:  # column order, base 1: the truth is one component inside its image
        height, width = cv2.imread(str(root / "Test" / "Image" / f"{case}.jpg"), cv2.IMREAD_GRAYSCALE).shape
        flat = np.zeros(height * width, np.uint8)
        for start, length in np.array(text.split(), int).reshape(-1, 2):
            assert start >= 1 and start - 1 + length <= flat.size
            flat[start - 1 : start - 1 + length] = 1
        assert label(flat.reshape(width, height))[1] == 1


def test_no_threshold_finds_the_lesion():
    scores = []
    for index in range(16):
        colours, mask = skin.draw_image(np.random.default_rng([0, 6, index]), skin.RATIOS[index % len(skin.RATIOS)])
        grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
        _, dark = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
        scores.append(2 * (dark & mask).sum() / (dark.sum() + mask.sum()))
    assert 0.25 < np.mean(scores) < 0.65  # darker than the skin on average, but not the darkest


def test_tones_of_skin_differ():
    tones = [np.median(skin.draw_image(np.random.default_rng([1, index]))[0].max(axis=2)) for index in range(24)]
    assert max(tones) > 1.6 * min(tones)
