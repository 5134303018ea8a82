"""Modified copies are found, and different images are not reported as copies."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from competition.data import duplicates
from competition.data.duplicates import ImagePair, cluster_pairs, find_near_duplicates, is_common_look, make_thumbnail
from competition.explore import Exploration, explore
from tests.conftest import ROOT, SHARED
from tests.explore.planted import picture, write
from tests.host import competition, write_png


def test_thumbnail_pixels_are_means_of_boxes() -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 128, 192), dtype=np.uint8)
    expected = image.astype(float).reshape(3, 64, 2, 64, 3).mean(axis=(0, 2, 4))
    np.testing.assert_allclose(make_thumbnail(image), expected, rtol=1e-5)
    volume = np.random.default_rng(1).normal(size=(1, 32, 16, 48)).astype(np.float32)
    np.testing.assert_allclose(
        make_thumbnail(volume), volume.reshape(16, 2, 16, 1, 16, 3).mean(axis=(1, 3, 5)), rtol=1e-4, atol=1e-6
    )


def test_thumbnails_of_small_and_constant_images() -> None:
    small = make_thumbnail(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    assert small is not None and small.shape == (64, 64) and set(np.unique(small)) == set(range(6))
    assert make_thumbnail(np.full((1, 20, 20), 7, np.uint16)) is None
    assert find_near_duplicates([None, None, small]) == []


def copies() -> dict[str, np.ndarray]:
    """Return one image with typical changes, such as compression, resizing and brightness."""
    import cv2

    image = picture(1, (200, 260))[0]
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])
    return {
        "brighter": np.clip(image * 1.15 + 8, 0, 255).astype(np.uint8),
        "jpeg": cv2.imdecode(data, cv2.IMREAD_GRAYSCALE),
        "half": cv2.resize(image, (130, 100), interpolation=cv2.INTER_AREA),
        "16 bits": image.astype(np.uint16) * 257,
        "inverted contrast kept": (image * 0.6).astype(np.uint8),
    }


@pytest.mark.parametrize("change", copies())
def test_changed_copy_is_found(change: str) -> None:
    pictures = [picture(seed, (200, 260))[0] for seed in range(30)]
    found = find_near_duplicates([make_thumbnail(one[None]) for one in (*pictures, copies()[change])])
    assert [(pair.first, pair.second) for pair in found] == [(1, 30)] and found[0].correlation > 0.97


def test_images_with_the_same_illumination_are_not_copies() -> None:
    """A strong vignette makes all microscopy images correlate; their details do not."""
    rows, columns = np.mgrid[-1:1:200j, -1:1:200j]
    light = 200 * np.exp(-(rows**2 + columns**2))
    made = [light + 12 * (picture(seed, (200, 200))[0] / 255.0) for seed in range(8)]
    small = [make_thumbnail(one[None]) for one in made]
    flat = np.stack([one.ravel() for one in small if one is not None])
    assert np.corrcoef(flat).min() > duplicates.MIN_CORRELATION[2]
    assert find_near_duplicates(small) == []


def test_volumes_of_one_anatomy_are_not_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bright organs at nearly the same places in every volume; one volume is copied, brighter."""
    from scipy.ndimage import gaussian_filter

    made = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        volume = 12 * gaussian_filter(rng.normal(size=(40, 48, 32)), 2)
        for centre in ((12, 14, 16), (28, 30, 14)):
            low = np.array(centre) + rng.integers(-1, 2, 3)
            volume[tuple(slice(at - 5, at + 5) for at in low)] += 40
        made.append(volume.astype(np.float32))
    copy = np.clip(np.round(made[3] * 1.5 + 7), -20, 80).astype(np.int16)
    found = find_near_duplicates([make_thumbnail(one[None]) for one in (*made, copy)])
    assert [(pair.first, pair.second) for pair in found] == [(3, 10)]
    monkeypatch.setattr(duplicates, "MIN_CORRELATION", duplicates.MIN_CORRELATION | {3: 0.9})
    monkeypatch.setattr(duplicates, "MIN_DETAIL_CORRELATION", duplicates.MIN_DETAIL_CORRELATION | {3: 0.8})
    assert len(find_near_duplicates([make_thumbnail(one[None]) for one in (*made, copy)])) > 3  # they do look alike


def test_result_is_independent_of_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    bases = rng.normal(size=(7, 64, 64))
    small = [(bases[number % 7] + rng.normal(0, 0.1, (64, 64))).astype(np.float32) for number in range(20)]
    expected = {(one, other) for one, other in itertools.combinations(range(20), 2) if one % 7 == other % 7}
    for block in (512, 3, 1):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        found = find_near_duplicates(small)
        assert {(pair.first, pair.second) for pair in found} == expected
        for pair in found:
            assert pair.correlation == pytest.approx(
                np.corrcoef(small[pair.first].ravel(), small[pair.second].ravel())[0, 1], abs=1e-5
            )
        assert [pair.correlation for pair in found] == sorted((pair.correlation for pair in found), reverse=True)


def test_video_frames_form_one_cluster() -> None:
    rng = np.random.default_rng(5)
    base = rng.normal(size=(64, 64))
    found = find_near_duplicates([(base + rng.normal(0, 0.05, (64, 64))).astype(np.float32) for _ in range(40)])
    assert len(found) <= 40 * duplicates.MAX_PAIRS_PER_IMAGE and cluster_pairs(found) == [list(range(40))]


def test_pairs_are_joined_to_clusters() -> None:
    assert cluster_pairs([ImagePair(4, 9, 1.0), ImagePair(1, 2, 1.0), ImagePair(2, 7, 0.9), ImagePair(7, 8, 0.9)]) == [
        [1, 2, 7, 8],
        [4, 9],
    ]


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [(7, 7, False), (8, 8, True), (8, 15, True), (8, 16, False), (9, 16, True), (23, 25, True), (40, 1000, False)],
)
def test_a_set_of_most_cases_is_no_set_of_copies(count: int, total: int, expected: bool) -> None:
    assert is_common_look(count, total) == expected


def explore_look_alikes(root: Path, count: int, others: int, test: int, group: str | None = None) -> Exploration:
    """Explore training cases `a_0`, … and test cases with one frame, and training cases that look different."""
    draw = np.random.default_rng(0)
    base, mask = picture(1)

    def alike() -> np.ndarray:
        return np.clip(base + draw.normal(0, 3, base.shape), 0, 255).astype(np.uint8)

    for number in range(count):
        write(root, f"a_{number}", alike(), mask)
    for number in range(others):
        write(root, f"b_{number + 100}", *picture(number + 50))
    for number in range(test):
        write_png(root / "test" / f"t_{number}.png", alike())
    return explore(competition(root, group=group, **({"test": {"images": "test/{id}.png"}} if test else {})))


@pytest.mark.parametrize(
    ("others", "test", "split", "text"),
    [
        (2, 0, "train", "9 of 11 train cases look alike"),
        (2, 3, "", "12 of 14 train and test cases look alike"),
        (8, 0, "train", "9 of 17 train cases look alike"),
    ],
)
def test_most_cases_look_alike(tmp_path: Path, others: int, test: int, split: str, text: str) -> None:
    found = explore_look_alikes(tmp_path, 9, others, test)
    (near,) = [one for one in found.remarks if one.kind == "near-duplicate"]
    assert (near.split, near.message) == (
        split,
        f"{text} at the size of the thumbnails (64×64 pixels), so near-duplicates cannot be found among them.",
    )
    assert found.pairs == [] and "optimistic" not in near.hint and near.hint.startswith("You need not do anything.")


def test_a_burst_and_the_images_of_one_group_remain_copies(tmp_path: Path) -> None:
    burst = explore_look_alikes(tmp_path / "burst", 9, 9, 0)
    (near,) = [one for one in burst.remarks if one.kind == "near-duplicate"]
    assert "a_0 (images/a_0.png), " in near.message and "look the same" in near.message and burst.pairs
    video = explore_look_alikes(tmp_path / "video", 9, 2, 0, group="^([ab])")
    (near,) = [one for one in video.remarks if one.kind == "near-duplicate"]
    assert near.hint == "You need not do anything; they are in one group, which stays in one fold."


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "nuclei").is_dir(), reason="the nuclei are not here")
def test_nuclei_data_have_one_pair() -> None:
    """The pair shows two planes of one nucleus; the other images of the 664 differ."""
    from competition.config.loading import load_competition

    comp = load_competition(ROOT / "experiments" / "nuclei" / "competition.yaml", [f"root={SHARED / 'nuclei'}"])
    found = explore(comp)
    assert {tuple(found.cases[place].id[:6] for place in (pair.first, pair.second)) for pair in found.pairs} == {
        ("20b20a", "cb4df2")
    }
    assert found.faults == []
