"""clDice, Betti numbers and variation of information against second implementations of their definitions."""

from __future__ import annotations

import itertools
from math import log2

import numpy as np
import pytest
from scipy.ndimage import generate_binary_structure, label
from skimage.morphology import skeletonize

from competition.metrics.instances import connected_components
from competition.metrics.topology import betti_error, betti_numbers, cl_dice, variation_of_information, voi_score
from tests.metrics.mask_pairs import SHAPES, one_empty, random_pairs, worst_difference


def brute_cl_dice(mask, truth) -> float:
    """The code of the paper: https://github.com/jocpae/clDice/blob/master/cldice_metric/cldice.py."""

    def score(volume, skeleton):
        return np.sum(volume * skeleton) / np.sum(skeleton)

    skeletons = [skeletonize(array) for array in (mask, truth)]
    skeletons = [found if found.any() else array for found, array in zip(skeletons, (mask, truth), strict=True)]
    precision, sensitivity = score(truth, skeletons[0]), score(mask, skeletons[1])
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0


def brute_betti(mask) -> tuple[int, ...]:
    """Count cells of the cubical complex: the Euler number is vertices − edges + faces − cubes."""
    padded = np.pad(mask, 1)
    components = label(padded, generate_binary_structure(mask.ndim, mask.ndim))[1]
    enclosed = label(~padded)[1] - 1
    cells: list[set[tuple[int, ...]]] = [set() for _ in range(mask.ndim + 1)]
    for voxel in np.argwhere(mask):
        for offset in itertools.product((-1, 0, 1), repeat=mask.ndim):
            cells[offset.count(0)].add(tuple(2 * voxel + offset))
    euler = sum((-1) ** dimension * len(found) for dimension, found in enumerate(cells))
    if mask.ndim == 2:
        assert euler == components - enclosed
        return components, enclosed
    return components, components + enclosed - euler, enclosed


def brute_voi(predicted, true) -> float:
    """2 H(predicted, true) − H(predicted) − H(true)."""

    def entropy(values):
        counts = np.unique(values, return_counts=True)[1]
        return -sum(count / counts.sum() * log2(count / counts.sum()) for count in counts)

    return 2 * entropy(predicted.ravel() * 1000 + true.ravel()) - entropy(predicted) - entropy(true)


def differences() -> dict[str, list[float]]:
    """Return the difference from the second implementation of each metric and pair."""
    found: dict[str, list[float]] = {"cl_dice": [], "betti": [], "voi": []}
    for mask, truth, _ in random_pairs():
        found["cl_dice"].append(cl_dice(mask, truth) - brute_cl_dice(mask, truth))
        own, true = brute_betti(mask), brute_betti(truth)
        found["betti"].append(betti_error(mask, truth) - sum(abs(a - b) for a, b in zip(own, true, strict=True)))
        objects = [connected_components(array).astype(np.int64) for array in (mask, truth)]
        found["voi"].append(variation_of_information(*objects) - brute_voi(*objects))
        either = mask | truth
        inside = brute_voi(objects[0][either], objects[1][either])
        found["voi"].append(variation_of_information(*objects, background=False) - inside)
    return found


def test_topology_equals_the_definitions():
    for name, values in differences().items():
        assert len(values) >= 40 and worst_difference(values, 0) < 1e-9, name


def test_betti_numbers_by_hand():
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert betti_numbers(ring) == (1, 1)
    diagonal = np.eye(2, dtype=bool)
    assert betti_numbers(diagonal) == (1, 0)
    shell = np.ones((5, 5, 5), bool)
    shell[2, 2, 2] = False
    assert betti_numbers(shell) == (1, 0, 1)
    torus = np.ones((5, 5, 3), bool)
    torus[2, 2] = False
    assert betti_numbers(torus) == (1, 1, 0)
    assert betti_error(torus, shell) == 2 and betti_error(ring, np.zeros((5, 5), bool)) == 2


def test_a_broken_vessel_loses_cl_dice_and_a_thinner_one_does_not():
    vessel = np.zeros((30, 9), bool)
    vessel[2:28, 2:7] = True
    thin, broken = vessel.copy(), vessel.copy()
    thin[:, [2, 6]] = False
    broken[12:18] = False
    assert cl_dice(thin, vessel) > 0.98 > 0.95 > cl_dice(broken, vessel)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 7)])
def test_one_empty_mask(shape):
    for mask, truth in one_empty(shape):
        assert cl_dice(mask, truth) == 0 and betti_error(mask, truth) == 1
        objects = [connected_components(array).astype(np.int64) for array in (mask, truth)]
        assert variation_of_information(*objects) == pytest.approx(brute_voi(*objects)) and voi_score(*objects) == 0
        assert variation_of_information(*objects, background=False) == 0, "one part on either side"


def test_both_empty():
    for shape, _ in SHAPES:
        empty = np.zeros(shape, bool)
        objects = empty.astype(np.int64)
        assert np.isnan(cl_dice(empty, empty)) and betti_error(empty, empty) == 0
        assert variation_of_information(objects, objects) == 0 and voi_score(objects, objects) == 1


def test_the_score_of_equal_objects_is_one_and_falls_with_the_information():
    parts = np.repeat([1, 2, 3, 0], 5)
    merged = np.where(parts == 2, 1, parts)
    assert voi_score(parts, parts) == 1
    assert voi_score(merged, parts) == pytest.approx(1 / (1 + 0.3 * brute_voi(merged[:15], parts[:15])))
