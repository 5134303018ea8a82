"""Weighted sums of metrics: score, direction, empty masks, `average: global`, own terms, the run's hash."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from competition.config.competition import MetricConfig
from competition.config.loading import load_competition
from competition.config.metric import Direction
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import bootstrap_interval, cv_score
from competition.metrics.scoring import score_case
from competition.runs.identity.contents import own_packages
from competition.runs.identity.hashing import run_hash
from tests.metrics.mask_pairs import one_empty, random_pairs
from tests.metrics.test_lesions import score_table
from tests.metrics.test_registry import demo, own  # noqa: F401 (a fixture)

PAIRS = [(mask, truth) for mask, truth, _ in random_pairs(seeds=3) if mask.ndim == 2] + one_empty()


def test_a_sum_is_the_weighted_sum_of_its_terms():
    terms = [("surface_dice", 0.35), ("voi_score", 0.35), ("dice", 0.3)]
    section = {"sum": [{"name": name, "weight": weight} for name, weight in terms]}
    config = MetricConfig(**section)
    assert (config.name, config.both_empty, config.direction) == (
        "surface_dice + voi_score + dice",
        1,
        Direction.HIGHER,
    )
    total = sum(weight * score_table({"name": name}, PAIRS)["score"] for name, weight in terms)
    table = score_table(section, PAIRS)
    assert table["score"].to_numpy() == pytest.approx(total.to_numpy())
    assert MetricConfig.model_validate(config.model_dump()) == config


def test_settings_belong_to_a_term():
    terms = [{"name": "fbeta", "beta": 2.0}, {"name": "nsd", "args": {"tolerances": [0.5]}, "weight": 2.0}]
    expected = score_table({"name": "fbeta", "beta": 2.0}, PAIRS)["score"]
    expected += 2 * score_table({"name": "nsd", "args": {"tolerances": [0.5]}}, PAIRS)["score"]
    assert score_table({"sum": terms}, PAIRS)["score"].to_numpy() == pytest.approx(expected.to_numpy())


def test_a_distance_has_a_negative_weight_in_a_sum_of_shares():
    section = {"sum": [{"name": "dice"}, {"name": "hd95", "weight": -0.01}]}
    config = MetricConfig(**section)
    assert config.direction is Direction.HIGHER and config.both_empty == 1 and not config.is_share
    distances = MetricConfig(sum=[{"name": "hd95"}, {"name": "assd", "weight": 2.0}])
    assert distances.direction is Direction.LOWER and distances.both_empty == 0
    assert distances.label == "hd95 + assd, lower is better"
    scores = score_table(section, PAIRS)["score"]
    assert np.isfinite(scores).all()


def test_all_terms_share_the_distances_of_a_case(monkeypatch):
    made = []
    init = "competition.metrics.distances.BorderDistances.__init__"
    from competition.metrics.distances import BorderDistances

    original = BorderDistances.__init__
    monkeypatch.setattr(init, lambda self, *args: (made.append(1), original(self, *args))[1])
    score_table({"sum": [{"name": "hd95"}, {"name": "assd"}, {"name": "hd95", "args": {"percentile": 50.0}}]}, PAIRS)
    assert len(made) == len(PAIRS)


def test_empty_masks_have_the_best_score():
    empty = np.zeros((5, 5), bool)
    section = {"sum": [{"name": "dice", "weight": 0.5}, {"name": "mean_ap", "weight": 0.25}]}
    assert score_table(section, [(empty, empty)])["score"].tolist() == [0.75]
    assert np.isnan(score_table({**section, "both_empty": None}, [(empty, empty)])["score"]).all()


def test_the_best_score_of_a_sum_is_no_reason_for_a_warning():
    from competition.metrics.scoring import check_metric
    from tests.metrics.test_scoring import competition

    terms = [{"name": "hd95", "weight": 0.01}, {"name": "dice", "weight": -1}]
    assert competition(sum=terms).metric.both_empty == -1
    assert check_metric(competition(sum=terms)) is None
    warning = check_metric(competition(sum=terms, both_empty=0.0))
    assert "scores 0 instead of -1" in warning and "set competition.metric.both_empty=-1" in warning


def test_the_dice_of_a_threshold_is_a_share_whatever_the_weights_of_a_sum():
    from competition.metrics.baseline import score_threshold_baseline
    from tests.metrics.test_scoring import competition

    square = np.zeros((1, 8, 8), np.uint8)
    square[0, 2:4, 2:4] = 1
    cases = [(square.astype(np.float32), square), (0 * square.astype(np.float32), 0 * square)]
    for weights in ((1, 1), (-0.01, -0.02)):
        names = ("dice", "iou") if weights[0] > 0 else ("hd95", "assd")
        terms = [{"name": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
        assert list(score_threshold_baseline(cases, competition(("a",), sum=terms)).values()) == [1.0, 1.0]


def test_an_object_term_without_objects_counts_as_correct():
    from competition.data.objects import CaseObjects
    from tests.metrics.test_lesions import comp

    nothing = CaseObjects(np.zeros((4, 4), np.int64))
    truth = np.zeros((1, 4, 4), np.uint8)
    truth[0, :2] = 1
    section = comp(sum=[{"name": "dice"}, {"name": "panoptic_quality"}])
    assert score_case(truth == 1, truth, section, None, nothing, nothing)[0]["score"] == 2


def test_a_sum_over_all_cases():
    terms = [{"name": "dice", "weight": 0.5}, {"name": "panoptic_quality", "weight": 0.5}]
    config = MetricConfig(average="global", sum=terms)
    table = score_table({"average": "global", "sum": terms}, PAIRS)
    parts = [
        cv_score(score_table({"name": name, "average": "global"}, PAIRS), MetricConfig(name=name, average="global"))
        for name in ("dice", "panoptic_quality")
    ]
    assert cv_score(table, config) == pytest.approx(sum(parts) / 2)
    low, high = bootstrap_interval(table, config)
    assert low < cv_score(table, config) < high


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{sum: [{name: dice}, {name: hd95}]}", ["a better dice", "a worse hd95", "negative weight"]),
        ("{sum: [{name: dicee}]}", ["metric.sum.0", "nearest: dice"]),
        ("{sum: []}", ["metric.sum", "1 or more"]),
        ("{sum: [{weight: 1.0}]}", ["needs `name` or `target`"]),
        ("{sum: [{name: dice, weight: 0.0}]}", ["`weight` must not be 0"]),
        ("{sum: [{name: dice, weight: .nan}]}", ["weight"]),
        ("{sum: [{name: uw_madison}]}", ["uw_madison", "slices"]),
        ("{sum: [{name: dice}], args: {beta: 1}}", ["`sum` cannot be combined"]),
        ("{sum: [{name: hd95}], average: global}", ["average: global", "hd95"]),
        ("{sum: [{name: dice, wieght: 1.0}]}", ["wieght", "weight"]),
        ("{sum: dice}", ["metric.sum"]),
    ],
)
def test_an_invalid_sum_names_its_key(tmp_path, section, words):
    (tmp_path / "competition.yaml").write_text(
        f"name: x\nroot: .\ndimensions: 2\nclasses: [a]\nmetric: {section}\n"
        "train: {images: 'a{id}', masks: 'b{id}'}\n"
    )
    with pytest.raises(MaskfoldError) as error:
        load_competition(tmp_path / "competition.yaml")
    assert error.value.status == 2
    for word in ("competition.yaml, line 5", *words):
        assert word in str(error.value), str(error.value)


# Own terms


SECTION = "competition.metric={sum: [{name: assd, weight: 1.0}, {target: own_metric.area_error, weight: %s}]}"


def test_a_term_may_be_an_own_metric(own):  # noqa: F811
    with pytest.raises(MaskfoldError, match=r"competition.metric.sum.1.target.*--trust own_metric"):
        demo(SECTION % 0.5)
    exp = demo(SECTION % 0.5, trust=("own_metric",))
    config = exp.competition.metric
    assert "own_metric" not in sys.modules, "reading the YAML does not import the code"
    assert (config.name, config.both_empty, config.direction) == ("assd + area_error", None, Direction.LOWER)
    assert own_packages(exp) == ["own_metric"], "the digest of its code is part of the hash"
    mask, truth, spacing = random_pairs(seeds=1)[0]
    from competition.metrics.distances import BorderDistances, assd

    distances = BorderDistances(mask, truth, spacing)
    found = config.resolve()(mask=mask, truth=truth, spacing=spacing, distances=distances)
    area = abs(int(mask.sum()) - int(truth.sum())) * float(np.prod(spacing))
    assert found == pytest.approx(assd(distances) + 0.5 * area)


def test_weights_are_part_of_the_hash(own):  # noqa: F811
    hashes = {run_hash(demo(SECTION % weight, trust=("own_metric",)), "data") for weight in (0.5, 0.25)}
    assert len(hashes) == 2


def test_an_own_metric_over_all_cases(own):  # noqa: F811
    (own / "own_metric.py").write_text(
        "import numpy as np\nfrom competition.metrics import metric\n"
        "@metric(higher_is_better=False, from_counts=True)\n"
        "def error(tp, fp, fn):\n    return (np.asarray(fp) + fn) / (np.asarray(tp) + fp + fn)\n"
        "@metric(higher_is_better=False)\n"
        "class Volume:\n"
        "    def sums(self, mask, truth):\n        return mask.sum(), truth.sum()\n"
        "    def __call__(self, mask, truth):\n        return np.abs(np.asarray(mask) - truth) / truth\n"
    )
    trust = ("own_metric",)
    for name in ("error", "Volume"):
        comp = demo(f"competition.metric={{target: own_metric.{name}, average: global}}", trust=trust).competition
        comp = comp.model_copy(update={"classes": ["a"]})
        rows = [
            {"id": str(number), **score_case(mask[None], truth[None].astype(np.uint8), comp)[0]}
            for number, (mask, truth) in enumerate(PAIRS[:-2])
        ]
        table = pd.DataFrame(rows)
        tp, fp, fn = (table[key].sum() for key in ("tp", "fp", "fn"))
        expected = {"error": (fp + fn) / (tp + fp + fn), "Volume": abs(fp - fn) / (tp + fn)}[name]
        assert cv_score(table, comp.metric) == pytest.approx(expected)
        low, high = bootstrap_interval(table, comp.metric)
        assert 0 <= low < expected < high


def test_settings_that_no_metric_uses_are_named():
    from competition.metrics.scoring import unused_settings
    from tests.metrics.test_scoring import competition

    assert unused_settings(competition(name="fbeta", beta=2.0).metric) == []
    assert unused_settings(competition(name="surface_dice", tolerance_mm=2.0, beta=2.0).metric) == ["beta"]
    assert unused_settings(competition(name="nsd", tolerance_mm=2.0).metric) == ["tolerance_mm"]
    terms = [{"name": "dice", "beta": 2.0}, {"name": "fbeta", "beta": 0.5}]
    assert unused_settings(competition(sum=terms, beta=3.0).metric) == ["beta", "sum.0.beta"]
