"""Calibration and thresholds against a count of every pixel."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from competition.config.competition import Competition
from competition.data.masks import load_mask
from competition.report import calibration
from competition.report.calibration import BINS, THRESHOLDS, CalibrationCounts, count_calibration, sample_evenly
from competition.runs.oof import OofPredictions


def competition(classes, labels="exclusive", instances=False):
    return Competition(
        name="x",
        root="/",
        dimensions=2,
        classes=classes,
        labels=labels,
        instances=instances,
        train={"images": "{id}.png", "masks": "{id}.png"},
    )


def fake_predictions(monkeypatch, comp, cases):
    """Return an `OofPredictions` substitute with (probabilities, truth) by name."""
    monkeypatch.setattr(calibration, "load_unchanged_mask", lambda _, row: cases[row.id][1])
    return SimpleNamespace(
        run=SimpleNamespace(exp=SimpleNamespace(competition=comp)),
        rows=lambda: {name: SimpleNamespace(id=name) for name in cases},
        fold_of=cases,
        read=lambda name: cases[name][0],
    )


def reference_counts(cases, channel, number, layer, plain=lambda p: p):
    """Return bins, ECE, ECE of uncertain pixels, Dice by threshold and share left empty, by simple loops."""
    known = [(plain(p.astype(np.float64))[channel].ravel(), t[layer].ravel()) for p, t in cases.values()]
    known = [(p[t != 255], t[t != 255] == number) for p, t in known]
    probability, truth = (np.concatenate(parts) for parts in zip(*known, strict=True))
    bins = []
    for index in range(BINS):
        inside = (probability > index / BINS) & (probability <= (index + 1) / BINS)
        if index == 0:
            inside |= probability == 0
        bins.append(
            (
                inside.sum(),
                probability[inside].mean() if inside.any() else np.nan,
                truth[inside].mean() if inside.any() else np.nan,
            )
        )
    ece, inner = (
        sum(count * abs(mean - share) for count, mean, share in some if count) / sum(count for count, _, _ in some)
        for some in (bins, bins[1:-1])
    )
    dice = [
        [2 * (t & (p > limit)).sum() / (t.sum() + (p > limit).sum()) for limit in THRESHOLDS]
        for p, t in known
        if t.any()
    ]
    empty = [[not (p > limit).any() for limit in THRESHOLDS] for p, t in known if not t.any()]
    return bins, ece, inner, dice, empty


def assert_counts_equal(found: CalibrationCounts, expected, places=1e-6):
    bins, ece, inner, dice, empty = expected
    counts, mean, share = found.bins()
    assert counts.tolist() == [count for count, _, _ in bins]
    np.testing.assert_allclose(mean, [value for _, value, _ in bins], atol=places)
    np.testing.assert_allclose(share, [value for _, _, value in bins], atol=places)
    assert found.ece() == pytest.approx(ece, abs=places) and found.ece(uncertain_only=True) == pytest.approx(
        inner, abs=places
    )
    np.testing.assert_allclose(found.mean_dice(), np.mean(dice, axis=0), atol=places)
    if empty:
        np.testing.assert_allclose(found.share_left_empty(), np.mean(empty, axis=0))
    else:
        assert found.share_left_empty() is None


def random_probabilities(generator, channels, shape):
    values = generator.gamma(0.4, size=(channels, *shape))
    return (values / values.sum(axis=0)).astype(np.float16)


@pytest.mark.parametrize("chunk", [2**21, 30])
def test_exclusive_classes(monkeypatch, chunk):
    monkeypatch.setattr(calibration, "PIXELS_PER_CHUNK", chunk)
    generator = np.random.default_rng(1)
    comp = competition(["a", "b"])
    cases = {
        str(n): (
            random_probabilities(generator, 3, (9, 11 + n)),
            generator.integers(0, 3, (1, 9, 11 + n)).astype(np.uint8),
        )
        for n in range(4)
    }
    cases["0"][1][0, :3] = 255
    cases["1"][1][cases["1"][1] == 2] = 0
    for index, found in enumerate(count_calibration(fake_predictions(monkeypatch, comp, cases), list(cases))):
        expected = reference_counts(cases, index + 1, index + 1, 0)
        assert len(expected[4]) == index  # one case is without the second class
        assert_counts_equal(found, expected)


def test_overlapping_classes(monkeypatch):
    generator = np.random.default_rng(2)
    comp = competition(["a", "b"], labels="overlapping")
    cases = {
        str(n): (generator.random((2, 8, 9)).astype(np.float16), generator.integers(0, 2, (2, 8, 9)).astype(np.uint8))
        for n in range(3)
    }
    cases["2"][1][1, 4:] = 255
    for index, found in enumerate(count_calibration(fake_predictions(monkeypatch, comp, cases), list(cases))):
        assert_counts_equal(found, reference_counts(cases, index, 1, index))


def test_boundary_class_is_merged_into_the_classes(monkeypatch):
    generator = np.random.default_rng(3)
    comp = competition(["a", "b"], instances=True)
    cases = {
        str(n): (random_probabilities(generator, 4, (8, 9)), generator.integers(0, 3, (1, 8, 9)).astype(np.uint8))
        for n in range(3)
    }

    def plain(p):
        objects = p[1] + p[2]
        return np.stack([p[0], *(p[k] + p[3] * p[k] / objects for k in (1, 2))])

    for index, found in enumerate(count_calibration(fake_predictions(monkeypatch, comp, cases), list(cases))):
        assert_counts_equal(found, reference_counts(cases, index + 1, index + 1, 0, plain), places=2e-3)


def test_edges_of_bins_and_thresholds():
    """0 and 1 are in the first and the last bin; exactly 0.5 is not above the threshold 0.5."""
    comp = competition(["a"], labels="overlapping")
    probability = np.array([[[0.0, 0.5, 1.0, 0.5]]], np.float16)
    truth = np.array([[[0, 1, 1, 0]]], np.uint8)
    found = CalibrationCounts()
    found.add_case(*calibration._histograms(probability, truth, comp)[0])
    assert found.bins()[0].tolist() == [1, *[0] * 6, 2, *[0] * 6, 1]
    assert found.ece() == 0.0
    np.testing.assert_allclose(found.mean_dice()[[8, 9]], [4 / 5, 2 / 3])  # at 0.45 three pixels, at 0.50 one


def test_an_absent_class_has_no_values(monkeypatch):
    generator = np.random.default_rng(4)
    cases = {"a": (random_probabilities(generator, 3, (6, 6)), np.ones((1, 6, 6), np.uint8))}
    present, absent = count_calibration(fake_predictions(monkeypatch, competition(["a", "ghost"]), cases), ["a"])
    assert (
        absent.absent
        and np.isnan(absent.ece())
        and np.isnan(absent.ece(uncertain_only=True))
        and np.isnan(absent.mean_dice()).all()
    )
    assert not present.absent and present.share_left_empty() is None and np.isfinite(present.ece())


def test_cases_are_sampled_evenly():
    names = [f"{n:03}" for n in range(200)]
    chosen = sample_evenly(names)
    assert len(chosen) == len(set(chosen)) == 60 and chosen[0] == "000" and chosen[-1] == "199"
    steps = np.diff([int(name) for name in chosen])
    assert set(steps.tolist()) <= {3, 4}
    assert (
        sample_evenly(names[:60]) == names[:60] and sample_evenly(names[:61])[-1] == "060" and sample_evenly([]) == []
    )


def test_dice_at_threshold_one_half_equals_the_score(made, tiny):
    """For overlapping classes, the curve at 0.5 equals the mean Dice in scores.csv."""
    exp = tiny(2, "competition.labels=overlapping", "competition.metric.both_empty=null")
    run = made(
        exp, predict=lambda truth, row, rng: np.clip(truth + rng.normal(0, 0.4, truth.shape), 0, 1).astype(np.float16)
    )
    oof = OofPredictions(run)
    import pandas as pd

    scores = pd.read_csv(run.folder / "scores.csv")
    for index, found in enumerate(count_calibration(oof, list(oof.fold_of))):
        rows = scores[(scores["class"] == exp.competition.classes[index]) & (scores["tp"] + scores["fn"] > 0)]
        assert 0.3 < rows["dice"].mean() < 0.99
        assert found.mean_dice()[9] == pytest.approx(rows["dice"].mean(), abs=1e-9)
    pixels = sum(load_mask(exp.competition, row)[0].sum() for row in run.cases.itertuples(index=False))
    assert count_calibration(oof, list(oof.fold_of))[0].positives.sum() == pixels
