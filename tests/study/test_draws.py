"""Records of trials: no duplicates, reasons of failures, constraints, and pruning."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

from competition.errors import MaskfoldError
from competition.study.study import best_trials, read_trials, run_study, write_trials
from tests.study.quick import YAML, QuickExecutor, by_rate

RATE = "    optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
FEW = "    optimizer.args.lr: {choices: [1.0e-3, 2.0e-3, 3.0e-3, 4.0e-3]}\n"


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_small_space_is_drawn_without_repeats_until_it_is_used_up(quick, sampler):
    said: list[str] = []
    search = quick(YAML.replace(RATE, FEW).replace("sampler: random", f"sampler: {sampler}\n  startup_trials: 2"))
    run_study(search, 4, said.append)
    assert sorted(float(trial.params["optimizer.args.lr"]) for trial in search.trials) == [0.001, 0.002, 0.003, 0.004]
    assert [trial.state.name for trial in search.trials] == ["COMPLETE"] * 4
    run_study(search, 6, said.append)
    assert len(search.trials) == 4 and "4 of 6 trials" in said[-1]
    record = read_trials(search.folder)
    assert len(record["trials"]) == 4 and len({trial["run"] for trial in record["trials"]}) == 4


def test_what_failed_once_is_not_trained_again_and_the_reason_names_an_absurd_loss(quick, monkeypatch):
    tried: list[float] = []
    real = QuickExecutor.run

    def fails(self, jobs, say, alive=lambda: None):
        from competition.runs.run import load_run

        rate = load_run(jobs[0].run).exp.optimizer.args["lr"]
        tried.append(rate)
        if rate > 2.5e-3:
            jobs[0].folder.mkdir(parents=True)
            lines = [
                {"epoch": 1, "step": 1, "time": 0, "metrics": {"train/loss": 3.5e12 if rate > 3.5e-3 else 0.7}},
                {"epoch": 1, "step": 1, "time": 0, "metrics": {"val/score": 0.0}},
            ]
            (jobs[0].folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            raise MaskfoldError("The network gives values that are not finite.", "Lower the rate.")
        real(self, jobs, say, alive)

    monkeypatch.setattr(QuickExecutor, "run", fails)
    search = quick(YAML.replace(RATE, FEW))
    run_study(search, 6, lambda line: None)
    assert sorted(tried) == [0.001, 0.002, 0.003, 0.004]
    rows = {float(row["params"]["optimizer.args.lr"]): row for row in read_trials(search.folder)["trials"]}
    assert rows[0.004]["reason"].endswith("Lower the rate. The last training loss was 3.5e+12.")
    assert rows[0.003]["reason"].endswith("Lower the rate.")
    summary = json.loads((Path(rows[0.003]["run"]) / "summary.json").read_text())
    assert summary["stopped"] == "failed: The network gives values that are not finite. Lower the rate."
    assert summary["metric"] == "dice"


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_constraints_are_kept_by_the_best_without_a_warning(quick, sampler):
    # the score rises with the rate up to 0.003, which needs 0.3 GiB: only below 0.2 is allowed
    text = YAML.replace("pruner: none", "pruner: none\n  constraints: {peak_gib: 0.2}").replace(
        "sampler: random", f"sampler: {sampler}\n  startup_trials: 2"
    )
    search = quick(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        run_study(search, 8, lambda line: None)
    rates = {trial.number: trial.params["optimizer.args.lr"] for trial in search.trials}
    assert any(rate > 0.002 for rate in rates.values())
    scores = {trial.number: trial.value for trial in search.trials}
    top = max((number for number in rates if rates[number] * 100 <= 0.2), key=lambda number: scores[number])
    assert best_trials(search)[0].number == top and read_trials(search.folder)["best"] == [top]
    for row in write_trials(search):
        gib = 100 * rates[row["number"]]
        assert row["reason"] == (f"peak_gib is {gib:.4g}, above 0.2" if gib > 0.2 else None)


def test_the_smallest_is_the_best_where_small_is_good(quick):
    search = quick(YAML.replace("pruner: none", "pruner: none\n  objectives: [peak_gib]"))
    run_study(search, 5, lambda line: None)
    rates = {trial.number: trial.params["optimizer.args.lr"] for trial in search.trials}
    smallest = min(rates, key=lambda number: rates[number])
    assert best_trials(search)[0].number == smallest and read_trials(search.folder)["best"] == [smallest]


def test_of_a_front_as_many_as_were_asked_for_by_the_first_objective(quick):
    search = quick(YAML.replace("pruner: none", "pruner: none\n  objectives: [score, peak_gib]"))
    run_study(search, 12, lambda line: None)
    values = {trial.number: trial.values for trial in search.trials}
    front = [
        number
        for number, (score, gib) in values.items()
        if not any(other[0] >= score and other[1] <= gib and other != [score, gib] for other in values.values())
    ]
    assert len(front) > 2
    front.sort(key=lambda number: -values[number][0])
    assert [trial.number for trial in best_trials(search, None)] == front == read_trials(search.folder)["best"]
    assert [trial.number for trial in best_trials(search, 2)] == front[:2]


FIVE_FOLDS = YAML.replace("pruner: none", "pruner: wilcoxon\n  p_value: 0.05").replace("folds: {k: 2}", "folds: {k: 5}")


def worse_than_the_first(exp, fold, place):
    return by_rate(exp, fold, place) if exp.optimizer.args["lr"] == 1e-3 else 0.3


def poll_after(monkeypatch, fold):
    """Look at the folder only when a fold is done."""
    from competition.study.trial import PruningCallback

    real = PruningCallback.poll
    monkeypatch.setattr(
        PruningCallback,
        "poll",
        lambda self: real(self) if (self.run.folder / f"fold_{fold}" / "result.json").exists() else None,
    )
    monkeypatch.setattr(
        "competition.study.study.make_pruner",
        lambda study: __import__("optuna").pruners.WilcoxonPruner(p_threshold=0.05, n_startup_steps=5),
    )


def test_a_pruned_trial_counts_the_cases_that_were_compared(quick, monkeypatch):
    """Four folds are done when the folder is looked at: eight cases, whatever else is written in between."""
    poll_after(monkeypatch, 3)
    search = quick(FIVE_FOLDS, score=worse_than_the_first)
    run_study(search, 2, lambda line: None)
    assert (
        search.trials[1].user_attrs["reason"]
        == "pruned after fold 0, 1, 2, 3: the trial is worse than the best trial on 8 cases (p < 0.05)"
    )


@pytest.mark.parametrize("pruner", ["wilcoxon", "median"])
def test_a_trial_that_has_run_all_folds_is_not_pruned(quick, monkeypatch, pruner):
    """Its score is known, and stopping it saves nothing."""
    poll_after(monkeypatch, 4)
    if pruner == "median":
        median = __import__("optuna").pruners.MedianPruner(n_startup_trials=1)
        monkeypatch.setattr("competition.study.study.make_pruner", lambda study: median)
    search = quick(FIVE_FOLDS.replace("wilcoxon", pruner), score=worse_than_the_first)
    run_study(search, 2, lambda line: None)
    assert [trial.state.name for trial in search.trials] == ["COMPLETE"] * 2
    assert search.trials[1].value == pytest.approx(0.3)
    assert len(search.trials[1].intermediate_values) == 10


def test_a_pruned_trial_names_the_folds_of_its_cases_only(quick, monkeypatch):
    """A fold that ends between the look at its cases and the verdict is not named."""
    from competition.study.trial import PruningCallback

    real = PruningCallback._case_scores

    def late(self):
        return [pair for pair in real(self) if self.fold_of[pair[0]] < 3]

    monkeypatch.setattr(PruningCallback, "_case_scores", late)
    poll_after(monkeypatch, 3)
    search = quick(FIVE_FOLDS, score=worse_than_the_first)
    run_study(search, 2, lambda line: None)
    assert re.match("pruned after fold 0, 1, 2: .* 6 cases", search.trials[1].user_attrs["reason"])
