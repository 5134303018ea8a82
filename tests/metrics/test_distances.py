"""HD95, ASSD and NSD against MONAI, on masks with anisotropic spacing, at edges and of one pixel; empty masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

from competition.config.competition import MetricConfig
from competition.config.metric import METRICS
from competition.metrics.distances import BorderDistances, assd, hausdorff_percentile
from competition.metrics.surface import hd95, nsd, surface_dice, surface_dices
from tests.metrics.mask_pairs import one_empty, random_pairs, worst_difference

TOLERANCES = (0.0, 0.8, 1.0, 2.5)


def as_batch(mask) -> torch.Tensor:
    return torch.as_tensor(mask)[None, None].float()


def differences() -> dict[str, list[float]]:
    """Return the difference from MONAI of each metric and pair."""
    found: dict[str, list[float]] = {"hd95": [], "hd80": [], "assd": [], "nsd": []}
    for mask, truth, spacing in random_pairs():
        batch = {"y_pred": as_batch(mask), "y": as_batch(truth), "include_background": True, "spacing": spacing}
        distances = BorderDistances(mask, truth, spacing)
        for percentile in (95, 80):
            reference = compute_hausdorff_distance(**batch, percentile=percentile)
            found[f"hd{percentile}"].append(hausdorff_percentile(distances, percentile) - float(reference))
        found["assd"].append(assd(distances) - float(compute_average_surface_distance(**batch, symmetric=True)))
        assert hd95(mask, truth, spacing) == hausdorff_percentile(distances)
        if mask.all() or truth.all():
            continue  # MONAI's surface Dice omits the surface at the edge of the image
        for tolerance, value in zip(TOLERANCES, surface_dices(mask, truth, spacing, TOLERANCES), strict=True):
            reference = compute_surface_dice(**batch, class_thresholds=[tolerance], use_subvoxels=True)
            found["nsd"].append(value - float(reference))
    return found


def test_distances_are_those_of_monai():
    for name, values in differences().items():
        assert len(values) >= 32 and worst_difference(values, 0) < 1e-5, name


def test_nsd_is_the_mean_over_tolerances():
    for mask, truth, spacing in random_pairs(seeds=2):
        each = [surface_dice(mask, truth, spacing, tolerance) for tolerance in TOLERANCES]
        assert surface_dices(mask, truth, spacing, TOLERANCES) == each
        assert nsd(mask, truth, spacing, TOLERANCES) == np.mean(each)


def test_one_search_serves_all_tolerances(monkeypatch):
    import scipy.spatial

    trees: list[int] = []
    tree = scipy.spatial.cKDTree
    monkeypatch.setattr("scipy.spatial.cKDTree", lambda points: trees.append(len(points)) or tree(points))
    mask, truth, spacing = random_pairs(seeds=1)[0]
    surface_dices(mask, truth, spacing, TOLERANCES)
    assert len(trees) == 2
    distances = BorderDistances(mask, truth, spacing)
    hausdorff_percentile(distances), hausdorff_percentile(distances, 50.0), assd(distances)
    assert len(trees) == 4


@pytest.mark.parametrize("name", ["hd95", "assd"])
def test_empty_masks_have_finite_distances(name):
    metric = METRICS.get(name)
    for mask, truth in one_empty():
        assert metric(distances=BorderDistances(mask, truth, (2.0, 0.5))) == pytest.approx(np.hypot(12, 4))
    empty = np.zeros((6, 8), bool)
    assert metric(distances=BorderDistances(empty, empty, (2.0, 0.5))) == 0
    assert MetricConfig(name=name).both_empty == 0


def test_a_percentile_is_a_setting():
    mask, truth, spacing = random_pairs(seeds=1)[0]
    metric = MetricConfig(name="hd95", args={"percentile": 50.0}).resolve()
    distances = BorderDistances(mask, truth, spacing)
    assert metric(distances=distances) == hausdorff_percentile(distances, 50.0) < hausdorff_percentile(distances)
