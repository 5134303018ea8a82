"""The steps on one class's mask, compared with scipy or a slow reference implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from competition.postprocessing import mask_operations

shapes = hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=7)
masks = hnp.arrays(np.bool_, shapes) | hnp.arrays(np.bool_, shapes, elements=st.booleans(), fill=st.just(True))
objects = hnp.arrays(np.int32, shapes, elements=st.integers(0, 3), fill=st.nothing())
many = settings(max_examples=150, deadline=None)


def numbered(mask: np.ndarray, corners: bool = True) -> tuple[np.ndarray, int]:
    """scipy's components."""
    return ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim if corners else 1))


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def picture(*rows: str) -> np.ndarray:
    """Digits from characters, 0 for a dot."""
    return np.array([[0 if one == "." else int(one) for one in row] for row in rows], np.int32)


def parts_well(labels: np.ndarray, mask: np.ndarray) -> bool:
    """Check for int32, 1…N exactly on the mask, each object connected."""
    numbers = np.unique(labels[labels != 0])
    pieces = [numbered(labels == number)[1] for number in numbers]
    return bool(
        labels.dtype == np.int32
        and np.array_equal(labels != 0, mask)
        and numbers.tolist() == list(range(1, len(numbers) + 1))
        and set(pieces) <= {1}
    )


# Sizes


@many
@given(masks, st.integers(0, 9))
def test_small_components_go(mask, pixels):
    labels, count = numbered(mask)
    expected = np.zeros_like(mask)
    for number in range(1, count + 1):
        expected |= (labels == number) & ((labels == number).sum() >= pixels)
    np.testing.assert_array_equal(mask_operations.remove_small(mask, pixels), expected)


@many
@given(objects, st.integers(0, 9))
def test_small_objects_go_and_the_others_are_numbered_anew(labels, pixels):
    stay = [number for number in (1, 2, 3) if (labels == number).sum() >= max(1, pixels)]
    expected = sum(((labels == old) * new for new, old in enumerate(stay, 1)), np.zeros_like(labels))
    found = mask_operations.remove_small_objects(labels, pixels)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


@many
@given(objects, st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_objects_with_a_low_mean_probability_go(labels, level, seed):
    probability = np.random.default_rng(seed).integers(0, 11, labels.shape).astype(np.float16) / 16
    expected = labels.copy()
    for number in (1, 2, 3):
        inside = labels == number
        if inside.any() and probability[inside].astype(np.float64).mean() < level / 32:
            expected[inside] = 0
    found = mask_operations.remove_uncertain(labels, probability, level / 32)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


@many
@given(masks, st.integers(0, 4), st.sampled_from("CF"))
def test_the_largest_components_stay(mask, k, order):
    labels, count = numbered(mask)  # scipy numbers in C order, and `sorted` keeps it among equals
    largest = sorted(range(1, count + 1), key=lambda number: -(labels == number).sum())[:k]
    np.testing.assert_array_equal(
        mask_operations.keep_largest(np.array(mask, order=order), k), np.isin(labels, largest)
    )


def test_of_equal_components_the_first_in_scan_order_stays():
    mask = picture("..1", "...", "1..").astype(bool)
    for laid in (mask, np.asfortranarray(mask)):
        assert np.argwhere(mask_operations.keep_largest(laid, 1)).tolist() == [[0, 2]]
    dots = np.zeros((40, 40), bool)
    dots[::2, ::2] = True
    assert np.argwhere(mask_operations.keep_largest(dots, 3)).tolist() == [[0, 0], [0, 2], [0, 4]]


# Holes


@many
@given(masks)
def test_holes_are_those_of_scipy(mask):
    np.testing.assert_array_equal(mask_operations.fill_holes(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(60, 70), (17, 18, 19)])
def test_holes_of_noise_are_those_of_scipy(seed, shape):
    mask = np.random.default_rng(seed).random(shape) > 0.35
    filled = mask_operations.fill_holes(mask)
    assert (filled > mask).any()
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(mask))


def test_background_on_the_edge_of_a_volume_stays():
    """fill_voids 2.1.2 fills (0, 0, 1), though every pixel of this volume is on the border."""
    volume = np.array([[[1, 0, 1, 1], [0, 1, 1, 0]], [[0, 1, 1, 1], [1, 1, 1, 0]]], bool)
    np.testing.assert_array_equal(mask_operations.fill_holes(volume), volume)


@many
@given(objects)
def test_object_holes_are_filled_where_one_object_is_around(labels):
    expected = labels.copy()
    background, count = numbered(labels == 0, corners=False)
    sides = ndimage.generate_binary_structure(labels.ndim, 1)
    for number in range(1, count + 1):
        hole = background == number
        around = np.unique(labels[ndimage.binary_dilation(hole, sides) & ~hole])
        if np.array_equal(ndimage.binary_fill_holes(~hole), np.ones_like(hole)) and len(around) == 1:
            expected[hole] = around[0]
    found = mask_operations.fill_object_holes(labels)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


def test_a_hole_between_two_objects_stays():
    labels = picture("111.333", "1.1.3.2", "111.332", ".......", "11122.1", "1.1.2..", "111222.")
    expected = picture("111.333", "111.3.2", "111.332", ".......", "11122.1", "111.2..", "111222.")
    np.testing.assert_array_equal(mask_operations.fill_object_holes(labels), expected)
    assert mask_operations.fill_object_holes(picture(".1.", "1.1", ".12")).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 2]]


# Opening and closing


def by_scipy(mask: np.ndarray, radius: int, work: Callable[..., Any]) -> np.ndarray:
    """Opening or closing by a ball, far from the end of the repeated border."""
    far = 3 * radius + 1
    ball = sum(axis**2 for axis in np.ogrid[(slice(-radius, radius + 1),) * mask.ndim]) <= radius**2
    return np.asarray(work(np.pad(mask, far, mode="edge"), ball)[(slice(far, -far),) * mask.ndim])


@many
@given(masks.filter(lambda mask: mask.size > 0), st.integers(0, 3))
def test_opening_and_closing_are_those_of_scipy_on_a_wider_picture(mask, radius):
    opened, closed = mask_operations.binary_opening(mask, radius), mask_operations.binary_closing(mask, radius)
    np.testing.assert_array_equal(opened, by_scipy(mask, radius, ndimage.binary_opening))
    np.testing.assert_array_equal(closed, by_scipy(mask, radius, ndimage.binary_closing))
    assert (opened <= mask).all() and (mask <= closed).all()


def test_a_mask_on_the_border_keeps_its_corners_and_a_spur_goes():
    mask = np.zeros((20, 20), bool)
    mask[:, :8] = True
    np.testing.assert_array_equal(mask_operations.binary_opening(mask, 3), mask)
    np.testing.assert_array_equal(mask_operations.binary_closing(mask, 3), mask)
    spur, slit = mask.copy(), mask.copy()
    spur[10, 8:14], slit[10, 3:6] = True, False
    np.testing.assert_array_equal(mask_operations.binary_opening(spur, 2)[:, :8], mask[:, :8])
    assert not mask_operations.binary_opening(spur, 2)[:, 9:].any()  # the disk's tip fits into the spur's first pixel
    np.testing.assert_array_equal(mask_operations.binary_closing(slit, 2), mask)


# Probabilities


def test_triplet_needs_as_many_pixels_above_the_high_threshold():
    probability = np.array([[0.75, 0.5, 0.875], [0.25, 0.0, 0.5]], np.float16)
    assert mask_operations.double_threshold(probability, 0.5, 2, 0.25).tolist() == [
        [True, True, True],
        [False, False, True],
    ]
    assert not mask_operations.double_threshold(probability, 0.5, 3, 0.25).any()  # 0.5 is not above 0.5
    assert not mask_operations.double_threshold(probability, 0.75, 2, 0.25).any()


@many
@given(st.data())
def test_overlaps_go_to_the_most_probable(data):
    several = data.draw(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=4, min_side=0, max_side=4)))
    levels = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    probabilities = data.draw(hnp.arrays(np.float16, several.shape, elements=levels, fill=st.nothing()))
    found = mask_operations.forbid_overlap(several, probabilities)
    expected = np.zeros_like(several)
    for place in np.ndindex(*several.shape[1:]):
        rivals = [k for k in range(len(several)) if several[(k, *place)]]
        if rivals:
            expected[(max(rivals, key=lambda k: probabilities[(k, *place)]), *place)] = True
    np.testing.assert_array_equal(found, expected)


# Splitting


def peaks(height: np.ndarray, mask: np.ndarray, depth: float) -> int:
    """Peaks at least `depth` above their saddles, and the highest of each component; pixel by pixel, from the top."""
    parent: dict[tuple, tuple] = {}
    top: dict[tuple, float] = {}
    clear = 0

    def root(place: tuple) -> tuple:
        while parent[place] != place:
            place = parent[place]
        return place

    for place in sorted(map(tuple, np.argwhere(mask).tolist()), key=lambda place: -height[place]):
        parent[place], top[place] = place, height[place]
        for step in np.ndindex(*(3,) * mask.ndim):
            other = tuple(a + b - 1 for a, b in zip(place, step, strict=True))
            if other in parent and root(other) != root(place):
                high, low = sorted((root(other), root(place)), key=lambda one: -top[one])
                clear += top[low] > height[place] and top[low] - height[place] >= depth
                parent[low] = high
    return clear + numbered(mask)[1]


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("depth", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(30, 25), (14, 15, 16)])
def test_one_object_for_each_clear_peak(shape, depth, smooth):
    noise = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(shape), 1.5)
    mask = noise > np.quantile(noise, 0.3)
    height = ndimage.distance_transform_edt(mask)
    if smooth:
        height = ndimage.gaussian_filter(height, smooth, mode="nearest") * mask
    labels = mask_operations.split_distance(mask, smooth, depth)
    assert labels.max() == peaks(height, mask, depth) > numbered(mask)[1]
    assert parts_well(labels, mask)


def test_two_touching_discs_are_parted_at_the_neck_by_both():
    left, right = disc((40, 60), 20, 18, 12), disc((40, 60), 20, 39, 12)
    mask = left | right
    inside = np.maximum(*(1 - np.hypot(*(np.indices(mask.shape) - [[[20]], [[x]]])) / 14 for x in (18, 39)))
    columns = np.broadcast_to(np.arange(60), mask.shape)
    for labels in (
        mask_operations.split_distance(mask, 1, 1),
        mask_operations.split_seeds(mask, inside.astype(np.float16), 0.5, 4),
    ):
        assert labels.max() == 2 and parts_well(labels, mask)
        assert set(labels[mask & (columns < 27)]) == {labels[20, 18]} != set(labels[mask & (columns > 30)])


def test_two_touching_balls_are_parted():
    z, y, x = np.ogrid[:20, :20, :34]
    mask = np.minimum((x - 10) ** 2, (x - 23) ** 2) + (y - 10) ** 2 + (z - 10) ** 2 <= 64
    labels = mask_operations.split_distance(mask, 1, 1)
    assert labels.max() == 2 and labels[10, 10, 10] != labels[10, 10, 23] and parts_well(labels, mask)


def test_one_shape_stays_one_object():
    ring = disc((41, 41), 20, 20, 18) & ~disc((41, 41), 20, 20, 10)
    corner, bar = disc((30, 30), 0, 0, 12), np.pad(np.ones((5, 30), bool), 2)
    for mask in (ring, corner, bar):
        np.testing.assert_array_equal(mask_operations.split_distance(mask, 0, 1), mask)
    np.testing.assert_array_equal(
        mask_operations.split_distance(disc((30, 30), 15, 0, 9), 1, 0.5), disc((30, 30), 15, 0, 9)
    )


def test_the_edge_of_the_picture_is_no_background():
    """Discs with centres on the border: if it counted as background, they would have no peaks."""
    mask = disc((20, 60), 0, 18, 12) | disc((20, 60), 0, 39, 12)
    labels = mask_operations.split_distance(mask, 1, 1)
    assert labels.max() == 2 and labels[0, 18] != labels[0, 39]


def test_seeds_are_of_one_side_and_large_enough():
    mask = picture("1111111", "1111111", ".......", "11.1111").astype(bool)
    inside = picture("9900099", "0099090", "9990099", "9900090") / 10
    parted = mask_operations.split_seeds(mask, inside, 0.5, 2)  # two share a corner, one of 3; below 2 and 1
    assert parts_well(parted, mask) and parted.max() == 5
    assert parted[0, 0] == parted[0, 1] != parted[1, 2] == parted[1, 3] != parted[0, 6]
    assert len(set(parted[3, 3:])) == 1  # its only seed is too small: one object all the same
    assert mask_operations.split_seeds(mask, inside, 0.5, 3).max() == 3


def test_a_weak_neck_and_a_weak_border_add_up() -> None:
    """Two discs: the distance rises by less than the depth, and so does the probability, but their sum does not."""
    left, right = disc((40, 60), 20, 18, 12), disc((40, 60), 20, 30, 12)
    mask = left | right
    inside = np.where(mask, 0.9, 0.1)
    inside[:, 23:26] = np.where(mask[:, 23:26], 0.65, 0.1)
    flat = np.where(mask, 0.9, 0.1)
    depth = 0.3
    assert mask_operations.split_inner_peaks(mask, flat, 0.5, depth, 1.5).max() == 1
    everywhere = np.ones(mask.shape, bool)
    assert mask_operations.split_inner_peaks(everywhere, np.maximum(inside, 0.6), 0.5, depth, 1.5).max() == 1
    parted = mask_operations.split_inner_peaks(mask, inside, 0.5, depth, 1.5)
    columns = np.broadcast_to(np.arange(60), mask.shape)
    assert parted.max() == 2 and parts_well(parted, mask)
    assert set(parted[mask & (columns < 23)]) == {parted[20, 18]} != set(parted[mask & (columns > 25)])
    assert mask_operations.split_inner_peaks(mask, inside, 0.5, 0.9, 1.5).max() == 1


def test_small_and_large_objects_need_the_same_depth() -> None:
    """Two discs that touch, at once and twice the size: the square root of the distance rises by a similar amount."""
    for scale in (1, 2):
        mask = disc((40 * scale, 60 * scale), 20 * scale, 18 * scale, 9 * scale) | disc(
            (40 * scale, 60 * scale), 20 * scale, 34 * scale, 9 * scale
        )
        inside = np.where(mask, 0.9, 0.1)
        assert mask_operations.split_inner_peaks(mask, inside, 0.5, 0.5, 0).max() == 2
        assert mask_operations.split_inner_peaks(mask, inside, 0.5, 2.5, 0).max() == 1


@many
@given(masks, st.data())
def test_all_splits_cover_the_mask(mask, data):
    levels = st.sampled_from([0.0, 0.5, 1.0])
    inside = data.draw(hnp.arrays(np.float16, mask.shape, elements=levels, fill=st.nothing()))
    seeds, count = numbered((inside > 0.25) & mask, corners=False)
    large = [number for number in range(1, count + 1) if (seeds == number).sum() >= 2]
    whole, components = numbered(mask)
    unseeded = set(range(1, components + 1)) - set(whole[np.isin(seeds, large)])
    labels = mask_operations.split_seeds(mask, inside, 0.25, 2)
    assert parts_well(labels, mask) and len(np.unique(labels[mask])) == len(large) + len(unseeded)
    assert all(len(np.unique(labels[seeds == number])) == 1 for number in large)
    for smooth in (0, 1):
        assert parts_well(mask_operations.split_distance(mask, smooth, 0.5), mask)
        assert parts_well(mask_operations.split_inner_peaks(mask, inside, 0.5, 0.5, smooth), mask)


# All of them

REMOVE_A_PIXEL = ("remove_small", "remove_small_objects", "opened")  # operations of `ALL` that remove a single pixel
ALL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "remove_small": lambda mask: mask_operations.remove_small(mask, 2),
    "remove_small_objects": lambda mask: mask_operations.remove_small_objects(frozen(mask.astype(np.int32)), 2),
    "remove_uncertain": lambda mask: mask_operations.remove_uncertain(
        frozen(mask.astype(np.int32)), frozen(np.full(mask.shape, 0.5, np.float16)), 0.5
    ),
    "keep_largest": lambda mask: mask_operations.keep_largest(mask, 1),
    "fill_holes": mask_operations.fill_holes,
    "fill_object_holes": lambda mask: mask_operations.fill_object_holes(frozen(mask.astype(np.int32))),
    "opened": lambda mask: mask_operations.binary_opening(mask, 2),
    "closed": lambda mask: mask_operations.binary_closing(mask, 2),
    "triplet": lambda mask: mask_operations.double_threshold(frozen(mask.astype(np.float16)), 0.5, 1, 0.25),
    "forbid_overlap": lambda mask: mask_operations.forbid_overlap(
        frozen(np.stack([mask, mask])), frozen(np.zeros((2, *mask.shape), np.float16))
    )[0],
    "split_distance": lambda mask: mask_operations.split_distance(mask, 1, 0.5),
    "split_seeds": lambda mask: mask_operations.split_seeds(mask, frozen(mask.astype(np.float16)), 0.5, 2),
    "split_inner_peaks": lambda mask: mask_operations.split_inner_peaks(
        mask, frozen(mask.astype(np.float16)), 0.5, 0.5, 1
    ),
}


def frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1), (1, 7), (7, 1), (2, 0, 3), (1, 1, 1), (3, 1, 4)])
def test_empty_and_full_pictures_of_any_shape(name, shape):
    for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
        full = mask & (name != "remove_small" or mask.size >= 2) & (name != "remove_small_objects" or mask.size >= 2)
        np.testing.assert_array_equal(ALL[name](frozen(mask)), full)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(30, 31), (9, 10, 11)])
def test_inputs_stay_and_neither_order_nor_chance_matters(name, shape):
    noise = ndimage.gaussian_filter(np.random.default_rng(2).standard_normal(shape), 1.2)
    mask = noise > np.quantile(noise, 0.4)
    mask[-1, ..., -2:] = True  # touches the last pixel
    before = mask.copy()
    results = [
        ALL[name](frozen(laid)) for laid in (mask, np.asfortranarray(mask), np.repeat(mask, 2, -1)[..., ::2], mask)
    ]
    np.testing.assert_array_equal(mask, before)
    assert results[0].any() and not np.shares_memory(results[0], mask)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("place", [(0, 0), (2, 3), (4, 6)])
def test_a_single_pixel(name, place):
    mask = np.zeros((5, 7), bool)
    mask[place] = True
    kept = ALL[name](frozen(mask))
    np.testing.assert_array_equal(kept, mask & (name not in REMOVE_A_PIXEL))
