"""The spine: L1 to L5 from the top by the affine, discs between them, similar brightness, mixed orientations."""

from __future__ import annotations

from itertools import pairwise

import nibabel
import numpy as np
from scipy.ndimage import label

from competition.datasets.phantoms import spine


def test_vertebrae_stand_in_anatomical_order_with_discs_between(phantoms):
    folder, codes, shapes, spacings = phantoms["spine"], set(), set(), set()
    files = [*(folder / "labels").iterdir(), *(folder / "solution").iterdir()]
    assert len(files) == 8
    for path in files:
        truth = nibabel.load(path)
        image = nibabel.load(folder / ("images" if path.parent.name == "labels" else "test_images") / path.name)
        assert np.array_equal(image.affine, truth.affine) and image.shape == truth.shape
        assert (image.get_data_dtype(), truth.get_data_dtype()) == (np.int16, np.uint8)
        codes.add("".join(nibabel.aff2axcodes(image.affine)))
        shapes.add(tuple(sorted(image.shape)))
        spacings.add(tuple(sorted(round(float(step), 2) for step in image.header.get_zooms())))
        labels = np.asarray(truth.dataobj)
        places = [nibabel.affines.apply_affine(truth.affine, np.argwhere(labels == k)) for k in range(1, 7)]
        heights = [points[:, 2].mean() for points in places[:5]]
        assert all(18 < above - below < 50 for above, below in pairwise(heights))  # mm
        discs, count = label(labels == 6, np.ones((3, 3, 3)))
        assert count == 5
        levels = sorted(
            (nibabel.affines.apply_affine(truth.affine, np.argwhere(discs == k))[:, 2].mean() for k in range(1, 6)),
            reverse=True,
        )
        merged = [height for pair in zip(heights, levels, strict=True) for height in pair]
        assert merged == sorted(merged, reverse=True)  # L1, disc, L2, disc, …, L5, disc
        bodies, arches = places[2][:, 1].max(), places[2][:, 1].min()
        assert bodies - arches > 60  # mm: the spinous process lies far behind the body
    assert len(codes) >= 5 and len(shapes) >= 6 and len(spacings) >= 3
    assert not (folder / "test_labels").exists()


def test_vertebrae_are_connected_and_similar(phantoms):
    spread = []
    for path in (phantoms["spine"] / "labels").iterdir():
        labels = np.asarray(nibabel.load(path).dataobj)
        image = np.asarray(nibabel.load(phantoms["spine"] / "images" / path.name).dataobj)
        assert image.min() >= -1024 and image.max() > 300 and np.median(image[labels == 6]) > 20
        sizes = [int((labels == level).sum()) for level in range(1, 6)]
        assert min(sizes) > 0.6 * max(sizes)
        for level, size in enumerate(sizes, 1):
            parts, _ = label(labels == level, np.ones((3, 3, 3)))
            assert np.bincount(parts.reshape(-1))[1:].max() > 0.9 * size
        means = [image[labels == level].mean() for level in range(1, 6)]
        spread.append(max(means) / min(means))
        bone = image > 150  # the sacrum is bone too, and background
        assert 2 * (bone & (labels > 0) & (labels < 6)).sum() / (bone.sum() + sum(sizes)) < 0.85
    assert max(spread) < 1.35


def test_straight_coordinates_follow_the_curve():
    column = spine.Column(np.random.default_rng(3))
    s = np.linspace(5.0, column.sacrum - 15.0, 30)
    right, ahead = column.curve_at(s)
    u, v, found = column.straighten((right, ahead, -s))
    assert np.abs(u).max() < 1e-6 and np.abs(v).max() < 1e-6 and np.abs(found - s).max() < 1e-6
