"""Scores over all cases: averages by hand, absent classes, and the coverage of intervals."""

import numpy as np
import pandas as pd
import pytest

from competition.config.competition import MetricConfig
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import bootstrap_interval, class_scores, cv_score, prediction_interval
from competition.metrics.overlap import dice, iou

CASES = pd.DataFrame(
    #  id  class score  dice    tp  fp  fn
    [
        ("1", "a", 0.5, 0.5, 1, 1, 1),
        ("1", "b", 1.0, np.nan, 0, 0, 0),  # absent; the host scores it as 1
        ("2", "a", 0.8, 0.8, 40, 10, 10),
        ("2", "b", 0.2, 0.2, 1, 4, 4),
        ("3", "a", np.nan, np.nan, 0, 0, 0),  # excluded
        ("3", "b", 0.0, 0.0, 0, 7, 0),
    ],
    columns=["id", "class", "score", "dice", "tp", "fp", "fn"],
).assign(fold=0)
ABSENT = pd.DataFrame(
    [(case, "c", 1.0, np.nan, 0, 0, 0) for case in "123"], columns=["id", "class", "score", "dice", "tp", "fp", "fn"]
)


def table(values, classes=("a",)):
    """One row per case and class; values (cases, classes)."""
    return pd.DataFrame(
        [
            {"id": str(case), "class": name, "score": value, "dice": value, "tp": 0, "fp": 0, "fn": 0}
            for case, line in enumerate(values)
            for name, value in zip(classes, line, strict=True)
        ]
    )


class TestScore:
    def test_mean_over_pairs(self):
        assert cv_score(CASES, MetricConfig(average="case_class")) == pytest.approx((0.5 + 1.0 + 0.8 + 0.2 + 0.0) / 5)

    def test_mean_over_classes(self):
        metric = MetricConfig(average="class")
        assert class_scores(CASES, metric) == pytest.approx({"a": 0.65, "b": 0.4})
        assert cv_score(CASES, metric) == pytest.approx((0.65 + 0.4) / 2)

    def test_global_counts_pixels(self):
        metric = MetricConfig(average="global")
        assert class_scores(CASES, metric) == pytest.approx({"a": 82 / 104, "b": 2 / 17})
        assert cv_score(CASES, metric) == pytest.approx((82 / 104 + 2 / 17) / 2)
        half = MetricConfig(name="fbeta", beta=0.5, average="global")
        assert class_scores(CASES, half)["a"] == pytest.approx(1.25 * 41 / (1.25 * 41 + 0.25 * 11 + 11))
        assert class_scores(CASES, MetricConfig(name="iou", average="global"))["b"] == pytest.approx(1 / 16)

    def test_order_of_rows_does_not_matter(self):
        for average in ("case_class", "class", "global"):
            metric = MetricConfig(average=average)
            assert cv_score(CASES.sample(frac=1, random_state=1), metric) == pytest.approx(cv_score(CASES, metric))

    @pytest.mark.parametrize("average", ["case_class", "class", "global"])
    def test_a_class_without_pixels_is_excluded(self, average):
        metric = MetricConfig(average=average)
        both = pd.concat([CASES, ABSENT], ignore_index=True)
        assert np.isnan(class_scores(both, metric)["c"])
        assert list(class_scores(both, metric)) == ["a", "b", "c"]
        assert cv_score(both, metric) == cv_score(CASES, metric)
        assert bootstrap_interval(both, metric) == bootstrap_interval(CASES, metric)

    def test_nothing_scored(self):
        absent = ABSENT.assign(score=np.nan)  # with `both_empty: null`
        for metric in (MetricConfig(), MetricConfig(average="class"), MetricConfig(average="global")):
            assert np.isnan(cv_score(absent, metric))
            assert np.isnan(bootstrap_interval(absent, metric)).all()

    def test_cases_without_any_class_score_both_empty(self):
        for average in ("case_class", "class", "global"):
            assert cv_score(ABSENT, MetricConfig(average=average)) == 1.0

    def test_a_case_scored_twice(self):
        with pytest.raises(MaskfoldError, match="case '1'.*class 'a'"):
            cv_score(pd.concat([CASES, CASES]), MetricConfig())

    @pytest.mark.parametrize("name", ["mean_ap", "tgs_ap", "f2_iou", "uw_madison", "surface_dice"])
    def test_metrics_without_a_global_form(self, name):
        with pytest.raises(MaskfoldError, match=rf"metric\.average.*{name}") as caught:
            cv_score(CASES, MetricConfig.model_construct(name=name, average="global"))
        assert caught.value.status == 2
        with pytest.raises(ValueError, match=name):
            MetricConfig(name=name, average="global")


class TestIntervals:
    def test_equals_a_plain_loop(self):
        """Global Dice of drawn cases, with percentiles expanded for 50 cases by about 4 %."""
        draw = np.random.default_rng(0)
        counts = draw.integers(1, 50, (50, 3))
        cases = pd.DataFrame(counts, columns=["tp", "fp", "fn"]).assign(
            id=[str(i) for i in range(50)], score=0.0, dice=0.5
        )
        cases["class"] = "a"
        for name, ratio in (("dice", dice), ("iou", iou)):
            low, high = bootstrap_interval(cases, MetricConfig(name=name, average="global"), n=20_000)
            drawn = [ratio(*counts[draw.integers(0, 50, 50)].sum(axis=0)) for _ in range(20_000)]
            plain = np.quantile(drawn, [0.025, 0.975])
            assert low < plain[0] < plain[1] < high
            assert high - low == pytest.approx((plain[1] - plain[0]) * np.sqrt(50 / 49) * 2.010 / 1.960, rel=0.03)

    def test_repeats_with_the_seed(self):
        metric = MetricConfig()
        assert bootstrap_interval(CASES, metric, seed=3) == bootstrap_interval(CASES, metric, seed=3)
        many = table(np.random.default_rng(0).random((40, 1)))
        assert bootstrap_interval(many, metric, seed=3) != bootstrap_interval(many, metric, seed=4)

    def test_equal_scores_give_an_interval_of_width_zero(self):
        same = table(np.full((50, 1), 0.7))
        assert bootstrap_interval(same, MetricConfig()) == pytest.approx((0.7, 0.7))
        assert prediction_interval(same, MetricConfig(), 5) == pytest.approx((0.7, 0.7))

    def test_one_case_has_no_interval(self):
        assert np.isnan(bootstrap_interval(table([[0.5]]), MetricConfig())).all()
        assert np.isnan(prediction_interval(table([[0.5]]), MetricConfig(), 3)).all()
        two = table([[0.5], [0.6]])
        assert np.isnan(bootstrap_interval(two, MetricConfig(), groups={"0": "x", "1": "x"})).all()

    def test_duplicates_in_one_group_do_not_narrow_the_interval(self):
        values = np.random.default_rng(0).random((30, 1))
        copies = table(np.repeat(values, 4, axis=0))
        groups = {str(case): str(case // 4) for case in range(120)}
        alone = np.diff(bootstrap_interval(table(values), MetricConfig()))[0]
        grouped = np.diff(bootstrap_interval(copies, MetricConfig(), groups=groups))[0]
        assert grouped == pytest.approx(alone, rel=0.1)
        assert np.diff(bootstrap_interval(copies, MetricConfig()))[0] < 0.6 * grouped

    def test_a_small_test_set_has_a_wider_interval(self):
        cases = table(np.random.default_rng(0).random((60, 1)))
        widths = [np.diff(prediction_interval(cases, MetricConfig(), size))[0] for size in (5, 50, 5000)]
        assert widths[0] > 1.5 * widths[1] > 1.5 * widths[2]
        assert widths[2] == pytest.approx(np.diff(bootstrap_interval(cases, MetricConfig()))[0], rel=0.1)

    @pytest.mark.parametrize("cases", [8, 60])
    def test_coverage(self, cases):
        """At least 90 % of 95 % intervals over skewed scores contain the mean, and the mean of a test set."""
        draw = np.random.default_rng(1)
        truth, covered, predicted, runs = 6 / (6 + 1.5), 0, 0, 200
        for run in range(runs):
            seen = table(draw.beta(6, 1.5, (cases, 1)))
            low, high = bootstrap_interval(seen, MetricConfig(), n=400, seed=run)
            covered += low <= truth <= high
            low, high = prediction_interval(seen, MetricConfig(), 20, n=400, seed=run)
            predicted += low <= draw.beta(6, 1.5, 20).mean() <= high
        assert 0.9 * runs <= covered and 0.9 * runs <= predicted
        if cases == 60:
            assert covered < runs and predicted < runs

    def test_large_sets_are_drawn_in_chunks(self):
        cases = table(np.random.default_rng(0).random((3000, 1)))
        low, high = bootstrap_interval(cases, MetricConfig(), n=2000)
        assert high - low == pytest.approx(2 * 1.96 * cases["score"].std() / np.sqrt(3000), rel=0.1)
        low, high = prediction_interval(cases, MetricConfig(), 1000, n=2000)
        assert high - low == pytest.approx(2 * 1.96 * cases["score"].std() * np.sqrt(1 / 3000 + 1 / 1000), rel=0.1)


def beta_table(cases: int) -> pd.DataFrame:
    """Rows of two classes, of which one is absent in every seventh case."""
    values = np.random.default_rng(0).beta(6, 1.5, (cases, 2))
    values[::7, 1] = np.nan
    return table(values, ("a", "b")).assign(tp=lambda rows: 100 * rows["id"].astype(int) + 7, fp=3, fn=5)


class TestFewCases:
    def test_numbers_for_50_cases_are_those_of_the_bootstrap(self):
        cases = beta_table(50)
        assert bootstrap_interval(cases, MetricConfig()) == (0.7606792468741091, 0.8218623439046083)
        assert prediction_interval(cases, MetricConfig(), 30) == (0.7422700823132264, 0.8378384544216437)
        by_class = MetricConfig(average="class")
        assert bootstrap_interval(cases, by_class) == (0.7620561201535562, 0.8228875236491853)
        assert prediction_interval(cases, by_class, 30) == (0.7439190640677129, 0.8385198864321516)

    def test_fewer_than_50_groups_count_not_cases(self):
        cases = beta_table(98)
        wide = bootstrap_interval(cases, MetricConfig(), groups={str(case): f"g{case // 2}" for case in range(98)})
        narrow = bootstrap_interval(cases, MetricConfig())
        assert narrow[0] - wide[0] > 0.03, "49 patients may have a patient of 50 that fails"

    @pytest.mark.parametrize(("failed", "cases"), [(0, 8), (1, 8), (3, 20), (20, 40)])
    def test_scores_of_0_and_1_have_the_interval_of_clopper_and_pearson(self, failed, cases):
        from scipy.stats import binomtest

        scores = table(np.r_[np.zeros(failed), np.ones(cases - failed)][:, None])
        exact = binomtest(cases - failed, cases).proportion_ci(0.95, "exact")
        found = bootstrap_interval(scores, MetricConfig(), n=40_000)
        assert found == pytest.approx((exact.low, exact.high), abs=0.01)

    @pytest.mark.parametrize(("cases", "failing"), [(8, 0.1), (12, 0.1), (20, 0.05), (35, 0.05)])
    def test_intervals_hold_although_a_few_cases_fail(self, cases, failing):
        """95 % intervals of the bootstrap cover 60 to 78 % of these."""
        draw = np.random.default_rng(2)
        truth, covered, predicted, runs = (1 - failing) * 0.9, 0, 0, 200

        def scores(count):
            return np.where(draw.random(count) < failing, 0.0, draw.beta(27, 3, count))

        for run in range(runs):
            seen = table(scores(cases)[:, None])
            low, high = bootstrap_interval(seen, MetricConfig(), n=400, seed=run)
            covered += low <= truth <= high
            low, high = prediction_interval(seen, MetricConfig(), 30, n=400, seed=run)
            predicted += low <= scores(30).mean() <= high
        assert covered >= 0.93 * runs and predicted >= 0.93 * runs

    def test_a_test_set_of_one_case_may_be_outside_of_eight(self):
        low, high = prediction_interval(table(np.full((8, 1), 0.9)), MetricConfig(), 1)
        assert (low, high) == (0.0, 1.0), "the ninth case is the worst of all with probability 1/9"

    @pytest.mark.parametrize("average", ["case_class", "class", "global"])
    def test_cases_without_the_class_are_no_evidence(self, average):
        """Eight cases have the class; 30 others, in which neither truth nor prediction has it, change nothing."""
        metric = MetricConfig(average=average, both_empty=None)
        have = table(np.full((8, 1), 0.9)).assign(tp=90, fp=10, fn=10)
        lack = table(np.full((38, 1), np.nan)).iloc[8:]
        assert bootstrap_interval(pd.concat([have, lack]), metric) == bootstrap_interval(have, metric)
        low, high = bootstrap_interval(have, metric)
        assert low == pytest.approx(0.9 * 0.63, abs=0.03) and 0.92 < high < 0.95

    def test_each_class_has_its_own_number_of_cases(self):
        values = np.full((40, 2), 0.9)
        values[5:, 1] = np.nan
        metric = MetricConfig(average="class", both_empty=None)
        low, _ = bootstrap_interval(table(values, ("a", "b")), metric)
        assert low == pytest.approx((0.9 * 0.93 + 0.9 * 0.5) / 2, abs=0.06), "five cases have class b"

    @pytest.mark.parametrize("sign", [1, -1])
    def test_distances_have_no_known_largest_value(self, sign):
        """The imagined case lies as far from the scores as they extend; no distance is below 0."""
        distances = np.linspace(2, 4, 10)[:, None]
        low, high = bootstrap_interval(table(sign * distances).assign(dice=0.5), MetricConfig(target="own.distance"))
        ends = (low, high) if sign == 1 else (-high, -low)
        assert 1.9 < ends[0] < 2.5 and 3.5 < ends[1] < 4.4

    @pytest.mark.parametrize("section", [{"name": "hd95"}, {"sum": [{"name": "hd95"}, {"name": "assd"}]}])
    def test_an_interval_of_distances_does_not_depend_on_their_unit(self, section):
        """Distances below 1 mm are no shares: those of a failure may be longer than 1 mm."""
        metric = MetricConfig(**section)
        short, long = (table(factor * np.linspace(0.2, 0.9, 10)[:, None]).assign(dice=0.5) for factor in (1, 10))
        assert 10 * np.array(bootstrap_interval(short, metric)) == pytest.approx(bootstrap_interval(long, metric))
        assert 10 * np.array(prediction_interval(short, metric, 5)) == pytest.approx(
            prediction_interval(long, metric, 5)
        )
        low, high = bootstrap_interval(table(np.zeros((10, 1))).assign(dice=0.5), metric)
        assert low == 0 and 0.2 < high < 0.5, "no scale is known"

    def test_a_lower_score_may_be_the_better_one(self, monkeypatch):
        """With `average: global`, the counts of a failure give the higher error."""
        cases = table(np.full((10, 1), 0.9)).assign(tp=90, fp=10, fn=10)
        dice = bootstrap_interval(cases, MetricConfig(average="global"))
        monkeypatch.setattr(
            "competition.metrics.resampling.score_from_counts", lambda _, tp, fp, fn: 1 - 2 * tp / (2 * tp + fp + fn)
        )
        error = bootstrap_interval(cases, MetricConfig(average="global"))
        assert error == pytest.approx((1 - dice[1], 1 - dice[0]))


@pytest.mark.parametrize("average", ["case_class", "class"])
def test_an_interval_of_few_cases_is_of_the_whole_score_of_a_pooled_metric(average: str) -> None:
    """If all cases have as many slices, the mean over slices is that over cases, with the same interval."""
    generator, count = np.random.default_rng(0), 20
    dice, rest = generator.uniform(0.85, 0.95, count), 0.6 * generator.uniform(0.9, 0.95, count)
    cases = [f"c{number}" for number in range(count)]
    plain = pd.DataFrame({"id": cases, "fold": 0, "class": "a", "dice": dice, "score": rest + 0.4 * dice})
    pooled = plain.assign(pooled=0.4 * dice, items=10.0)
    metric = MetricConfig(name="uw_madison", average=average)
    assert bootstrap_interval(pooled, metric) == pytest.approx(bootstrap_interval(plain, metric), abs=1e-9)
    assert prediction_interval(pooled, metric, 20) == pytest.approx(prediction_interval(plain, metric, 20), abs=1e-9)
    low, high = bootstrap_interval(pooled, metric)
    assert low < cv_score(pooled, metric) < high
