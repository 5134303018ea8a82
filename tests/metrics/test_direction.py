"""With a distance as metric, every selection prefers the lower score. Each test fails if the direction is ignored."""

from __future__ import annotations

import dataclasses
import json
from math import inf, nan
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from competition.config.competition import MetricConfig
from competition.config.experiment import ScheduleConfig
from competition.config.metric import Direction
from competition.ensembling.compare import compare_two_runs
from competition.ensembling.expected import estimate_score
from competition.ensembling.weights import fit_weights
from competition.leaderboard.noise import selection_advice
from competition.leaderboard.upload import _check_score
from competition.metrics.bootstrap import paired_difference, paired_gain
from competition.models.schedules import LRSchedule
from competition.postprocessing.ranking import best_run
from competition.report.compare import measure_label
from competition.report.learning import rank_cases
from competition.report.results import RunResults
from competition.report.run import experiment_section, find_previous_best
from competition.runs.blend import Ensemble
from competition.runs.summary import write_summary
from competition.study.promote import promote_best_trials
from competition.study.study import best_trials, run_study
from competition.training.averaging import ALL_CASES, HALVES, CheckpointAverager, UniformSoup
from competition.training.cross_validate import make_jobs, open_run, prepare_run
from competition.training.evaluator import Evaluator
from competition.training.fold import run_fold
from competition.training.soup_selection import compare_soup
from competition.training.state import TrainerState
from competition.viz.curves import plot_fold_curves
from tests.distance import DISTANCE, distance  # noqa: F401 (a fixture)
from tests.leaderboard.test_noise import record
from tests.postprocessing.test_tuning import islands
from tests.study.conftest import place, quick  # noqa: F401 (fixtures)
from tests.study.quick import BEST, YAML

pytestmark = pytest.mark.usefixtures("distance")
LOWER = Direction.LOWER


def distance_config() -> MetricConfig:
    return MetricConfig(name="border_distance")


def table(values: list[float], fold: int = 0) -> pd.DataFrame:
    """Score rows of one class; Dice is a constant, so that only the score can decide."""
    ids = [f"c{number}" for number in range(len(values))]
    return pd.DataFrame({"id": ids, "fold": fold, "class": "ring", "score": values, "dice": 0.5})


# The rule


def test_an_undefined_score_is_worst_in_both_directions():
    for direction, better, worse in ((Direction.HIGHER, 0.9, 0.1), (LOWER, 0.1, 0.9)):
        assert direction.is_better(better, worse) and not direction.is_better(worse, better)
        assert not direction.is_better(better, better)
        assert max([worse, nan, better], key=direction.rank) == better
        for undefined in (nan, direction.worst):
            assert direction.is_better(worse, undefined)
            assert not direction.is_better(undefined, worse) and not direction.is_better(undefined, nan)
        assert not direction.is_better(better, worse, margin=0.9) and direction.is_better(better, worse, margin=0.7)
    assert (Direction.HIGHER.worst, LOWER.worst) == (-inf, inf)


def test_a_gain_is_positive_for_an_improvement():
    before, after = table([5.0, 6.0, 7.0, 9.0]), table([4.0, 5.5, 5.0, 8.5])
    gain = paired_gain(before, after, distance_config())
    assert gain.value == pytest.approx(1.0) and 0 < gain.low < 1 < gain.high
    share = paired_gain(before, after, MetricConfig())
    assert share.value == pytest.approx(-1.0) and (share.low, share.high) == pytest.approx((-gain.high, -gain.low))
    assert gain.as_difference(LOWER) == pytest.approx(share) and share.as_difference(Direction.HIGHER) is share


def test_a_paired_difference_is_b_minus_a_and_counts_lower_cases_as_better():
    found = paired_difference(table([5.0, 6.0, 7.0, 9.0]), table([4.0, 5.5, 7.0, 9.5]), "score", distance_config())
    assert found.value == pytest.approx(-0.25) and found.low < found.value < found.high
    assert (found.better, found.worse) == (2, 1)


# The training loop


@pytest.mark.parametrize("planned", [(3.0, 1.0, 2.0, 2.5), (1.0, 3.0, 2.0, 1.5), (3.0, 2.0, 1.5, 1.0)])
def test_the_loop_keeps_the_checkpoint_with_the_lower_score(tiny, tmp_path, monkeypatch, planned):
    monkeypatch.chdir(tmp_path)
    run = open_run(tiny(2, DISTANCE, "training.epochs=4", "training.weights=best", "run.threads=1"), "tiny")
    prepare_run(run)
    job = make_jobs(run)[0]
    job.folder.mkdir(parents=True, exist_ok=True)
    seen = []
    validate = Evaluator.validate

    def planned_scores(self, network, fold):
        scores = validate(self, network, fold)
        scores["score"] = planned[len(seen)]
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return scores

    monkeypatch.setattr(Evaluator, "validate", planned_scores)
    result = run_fold(job, lambda _: None)
    assert result.score > 1.0, "the stored score is a distance"
    assert len(seen) == len(planned)
    kept, best = load_file(job.folder / "weights.safetensors"), seen[planned.index(1.0)]
    assert all(torch.equal(tensor, best[key]) for key, tensor in kept.items())


@pytest.mark.parametrize(("planned", "epochs"), [((5.0, 4.0, 3.0), 4), ((3.0, 4.0, 5.0), 2)])
def test_patience_waits_for_a_lower_score(tiny, tmp_path, monkeypatch, planned, epochs):
    monkeypatch.chdir(tmp_path)
    settings = ("training.epochs=4", "early_stopping={patience: 1}", "run.threads=1")
    run = open_run(tiny(2, DISTANCE, *settings), "tiny")
    prepare_run(run)
    job = make_jobs(run)[0]
    job.folder.mkdir(parents=True, exist_ok=True)
    scores = iter(planned)
    validate = Evaluator.validate
    monkeypatch.setattr(
        Evaluator, "validate", lambda self, network, fold: validate(self, network, fold).assign(score=next(scores))
    )
    assert run_fold(job, lambda _: None).epochs == epochs


def test_a_resumed_fold_keeps_its_best_score():
    state = TrainerState(best=LOWER.worst)
    assert TrainerState.from_checkpoint(dataclasses.asdict(state)).best == inf


def test_plateau_lowers_the_rate_if_the_distance_does_not_fall():
    config = ScheduleConfig(name="plateau", patience=1, factor=0.5)
    falls, rises = (LRSchedule(config, [1.0], LOWER) for _ in range(2))
    for step in range(6):
        falls.observe(5.0 - 0.5 * step)
        rises.observe(5.0 + 0.5 * step)
    assert falls.multiplier(0.5) == 1.0 and rises.multiplier(0.5) < 1.0


def test_the_best_epochs_are_averaged(tmp_path):
    kept = CheckpointAverager(tmp_path / "snapshots", 2, by_score=True, direction=LOWER)
    for epoch, score in enumerate((9.0, 1.5, nan, 12.25, 2.5), 1):
        kept.add(epoch, score, lambda epoch=epoch: {"weight": torch.full((1,), float(epoch))})
    assert kept.average()["weight"].item() == pytest.approx((2 + 5) / 2)


# Soups


def test_a_soup_is_of_the_lowest_scores(tiny, tmp_path):
    ids = [f"c{number}" for number in range(4)]
    cases = pd.DataFrame({"id": ids, "group": ids})
    soup = UniformSoup(tmp_path / "soup", tiny(2, DISTANCE, "training.soup=2"), 0, cases)
    history = [[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 9.0, 9.5], [5.1] * 4, [8.0, 9.0, 1.0, 1.5]]
    for epoch, values in enumerate(history, 1):
        soup.add(epoch, table(values), nn.Linear(1, 1))
    for ranking in (ALL_CASES, *HALVES):
        chosen = [at for at, case in enumerate(ids) if ranking in (ALL_CASES, soup.half_of[case])]
        means = np.array(history)[:, chosen].mean(axis=1)
        assert soup.epochs(ranking) == sorted((np.argsort(means, kind="stable")[:2] + 1).tolist())


def test_a_soup_with_a_surely_lower_distance_is_selected():
    generator = np.random.default_rng(0)
    high = (10 + generator.normal(size=40)).tolist()
    low = [value - 3 + 0.1 * value for value in high]
    parts = {f"c{number}": number % 4 for number in range(40)}
    for plain, soup, kept in ((high, low, True), (low, high, False)):
        found = compare_soup(table(plain), table(soup), distance_config(), parts, 0)
        assert found["kept"] is kept and (found["gain"] > 0) is kept
        assert found["nested"] == pytest.approx(min(found["plain"], found["soup"]))
        assert found["chosen"] == ([0, 1, 2, 3] if kept else [])


# Post-processing and ensembles, on finished runs


def test_tuning_lowers_the_distance(finished, tiny):
    run = finished(tiny(2, DISTANCE, "postprocess.tune=true"), noise=0.1, spoil=islands)
    tuned = estimate_score(Ensemble((run,), (1.0,)), 20, workers=1).tuning
    assert tuned.kept and tuned.nested < tuned.before - 1 and tuned.after < tuned.before
    assert tuned.gain.low > 0 and tuned.gain.value == pytest.approx(tuned.before - tuned.nested)


@pytest.mark.parametrize(
    ("terms", "sign"), [("{name: hd95}, {name: assd, weight: 2}", -1), ("{name: dice}, {name: nsd, weight: 0.5}", 1)]
)
def test_tuning_improves_a_weighted_sum_in_its_direction(finished, tiny, terms, sign):
    run = finished(tiny(2, f"competition.metric={{sum: [{terms}]}}", "postprocess.tune=true"), noise=0.1, spoil=islands)
    tuned = estimate_score(Ensemble((run,), (1.0,)), 20, workers=1).tuning
    assert tuned.kept and tuned.gain.low > 0
    assert tuned.gain.value == pytest.approx(sign * (tuned.nested - tuned.before))


def test_a_bad_run_gets_no_weight(finished, tiny):
    good, bad = finished(tiny(2, DISTANCE), noise=0.2), finished(tiny(2, DISTANCE, "seed=2"), noise=3.0, seed=1)
    fitted = fit_weights(Ensemble((good, bad), (0.5, 0.5)), 0, None, workers=1)
    assert fitted.single[0] < fitted.single[1] and fitted.best_weights[0] > 0.7
    assert fitted.best <= min(fitted.equal, *fitted.single)


def test_the_run_with_the_higher_distance_is_worse(finished, tiny):
    good, bad = finished(tiny(2, DISTANCE), noise=0.2), finished(tiny(2, DISTANCE, "seed=2"), noise=3.0, seed=1)
    comparison = compare_two_runs(good, bad)
    line = comparison.differences[0]
    assert line.measure == "score" and line.value > 0 and line.low > 0 and line.p < 0.05
    assert line.worse > line.better and line.worse >= 8
    assert "lower is better" in measure_label(line, comparison)


# Choosing runs


def with_score(run, score: float):
    plain = json.loads((run.folder / "summary.json").read_text())
    write_summary(run.folder, {**plain, "score": score})
    return run


def test_the_best_run_has_the_lowest_distance(finished, tiny, monkeypatch):
    runs = [finished(tiny(2, DISTANCE, f"seed={seed}"), noise=0.2) for seed in (1, 2, 3)]
    for run, score in zip(runs, (5.0, 2.0, 7.0), strict=True):
        with_score(run, score)
    said: list[str] = []
    assert best_run(str(runs[0].folder), say=said.append).folder == runs[1].folder and "2.0000" in said[-1]

    from competition.cli import train
    from competition.tracking import registry

    registered = []

    def register_model(folder, *_):
        registered.append(folder)
        raise InterruptedError

    monkeypatch.setattr(registry, "register_model", register_model)
    with pytest.raises(InterruptedError):
        train.register_command([str(runs[0].folder)], True, ())
    assert registered == [runs[1].folder]


def test_the_report_ranks_cases_and_earlier_runs_by_the_lowest_distance(finished, tiny, monkeypatch):
    runs = [finished(tiny(2, DISTANCE, f"seed={seed}"), noise=0.2 * seed) for seed in (1, 2, 3)]
    for run, score in zip(runs, (5.0, 2.0, 7.0), strict=True):
        with_score(run, score)
    monkeypatch.setattr("competition.report.run.get_end_time", lambda folder: float(Path(folder).name == own))
    own = runs[2].folder.name
    assert find_previous_best(runs[2]).folder == runs[1].folder.resolve()
    results = RunResults.load(runs[2])
    ranked = [score for _, score in rank_cases(results)]
    assert ranked == sorted(ranked) and ranked[0] < ranked[-1]
    page = str(experiment_section(results))
    difference = results.rows()["score"].mean() - RunResults.load(runs[1]).rows()["score"].mean()
    assert f"is {difference:+.4f}" in page and "lower scores are better" in page


def test_the_curves_name_the_lowest_score(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.figure.Figure.suptitle", lambda self, text, **_: titles.append(text))
    lines = [
        {"step": epoch, "epoch": epoch, "time": 0, "metrics": {"val/score": score}}
        for epoch, score in enumerate((4.0, 1.5, 3.0), 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_fold_curves(tmp_path / "curves.png", tmp_path / "metrics.jsonl", LOWER)
    assert "best score 1.5000 at epoch 2" in titles[0]


# Studies


def by_rate_distance(exp, fold: int, position: int) -> float:
    """A distance in mm that is lowest at the learning rate `BEST`."""
    return float(5 + 20 * abs(np.log10(exp.optimizer.args["lr"] / BEST)) + 0.1 * ((7 * position + fold) % 5))


def test_a_study_minimises_the_distance(quick):  # noqa: F811 (the fixture)
    search = quick(YAML.replace("folds: {k: 2}", "folds: {k: 2, run: [0]}"), by_rate_distance, (DISTANCE,))
    assert search.optuna_study.direction == optuna.study.StudyDirection.MINIMIZE
    run_study(search, 6, lambda line: None)
    values = [trial.value for trial in search.trials]
    assert best_trials(search)[0].value == min(values) < max(values)
    assert search.optuna_study.best_value == min(values)
    assert json.loads((search.folder / "trials.json").read_text())["best"] == [best_trials(search)[0].number]
    own, top = promote_best_trials(search, 1, lambda line: None)
    assert top.unseen_score < own.unseen_score
    assert top.gain.value == pytest.approx(own.unseen_score - top.unseen_score) and top.gain.low > 0


@pytest.mark.parametrize(("factor", "states"), [(3.0, ["COMPLETE", "PRUNED"]), (0.3, ["COMPLETE", "COMPLETE"])])
def test_a_trial_with_surely_higher_distances_is_pruned(quick, factor, states):  # noqa: F811
    search = quick(
        YAML.replace("pruner: none", "pruner: wilcoxon\n  p_value: 0.05"),
        lambda exp, fold, position: (10 + 0.1 * position) * (1 if exp.optimizer.args["lr"] == 1e-3 else factor),
        (DISTANCE,),
    )
    search.optuna_study.pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.05, n_startup_steps=5)
    run_study(search, 2, lambda line: None)
    assert [trial.state.name for trial in search.trials] == states


# The leaderboard


def test_the_ledger_prefers_the_lower_board_score():
    metric = distance_config().model_dump()
    same = [record(0, 4.0, 5.0, metric=metric), record(1, 6.0, 7.0, metric=metric)]
    other = [record(0, 4.0, 7.0, metric=metric), record(1, 6.0, 5.0, metric=metric)]
    assert selection_advice(same, {}) is None
    assert "best by CV score: the file of 2026-01-01 10:00 (CV 4.0000, public 7.0000)" in selection_advice(other, {})
    own = {"name": "far", "target": "my_metric.far", "higher_is_better": False}
    assert selection_advice([dataclasses.replace(line, metric=own) for line in same], {}) is None
    assert selection_advice([dataclasses.replace(line, metric=own) for line in other], {}) is not None
    del own["higher_is_better"]
    assert other[0].direction is LOWER and dataclasses.replace(other[0], metric=own).direction is None
    assert selection_advice([dataclasses.replace(line, metric=own) for line in other], {}) is None


def test_a_board_score_of_a_distance_may_exceed_one(tiny):
    _check_score("--public", 12.5, tiny(2, DISTANCE).competition)
