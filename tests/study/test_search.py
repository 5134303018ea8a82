"""A study counts its trials, begins with the unchanged YAML, prunes, and continues after failures."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest

from competition.context import Context
from competition.errors import MaskfoldError
from competition.records import is_unedited
from competition.study.promote import promote_best_trials
from competition.study.space import ExperimentSource
from competition.study.storage import PROCESS_ATTRIBUTE, current_process, is_process_dead
from competition.study.study import best_trials, open_study, requeue_stale_trials, run_study, write_trials
from competition.study.trial import inference_seconds, make_pruner
from tests.study.quick import BEST, YAML, by_rate, write_experiment
from tests.warm import WarmProcess, WarmProcesses


def states(search) -> list[str]:
    return [trial.state.name for trial in search.trials]


def test_trial_0_is_the_yaml_and_the_count_is_of_all_that_are_finished(quick):
    search = quick()
    run_study(search, 4, lambda line: None)
    assert states(search) == ["COMPLETE"] * 4
    assert search.trials[0].params == {"optimizer.args.lr": 1e-3}
    assert search.trials[0].value == pytest.approx(by_score(1e-3), abs=1e-9)
    assert len({trial.params["optimizer.args.lr"] for trial in search.trials}) == 4
    again = open_study(search.source)
    run_study(again, 4, lambda line: pytest.fail(line))
    run_study(again, 6, lambda line: None)
    assert states(again) == ["COMPLETE"] * 6
    assert len({trial.params["optimizer.args.lr"] for trial in again.trials}) == 6  # a resumed sampler repeats nothing
    found = best_trials(again)[0]
    assert found.value == max(trial.value for trial in again.trials)
    record = json.loads((again.folder / "trials.json").read_text())
    assert "trials.json" in record["digests"] and is_unedited(record, "trials.json")
    rows = record["trials"]
    assert [row["number"] for row in rows] == list(range(6)) and all(Path(row["run"]).is_dir() for row in rows)


def by_score(rate: float) -> float:
    """Independent of the files: the mean over the ten images of two folds."""
    import numpy as np

    return float(
        np.mean(
            [
                0.9 - 0.2 * abs(np.log10(rate / BEST)) + 0.01 * ((7 * place + fold) % 5)
                for fold in (0, 1)
                for place in range(5)
            ]
        )
    )


def test_a_trial_that_is_surely_worse_stops_after_its_first_fold(quick):
    search = quick(
        YAML.replace("pruner: none", "pruner: wilcoxon\n  p_value: 0.05").replace("folds: {k: 2}", "folds: {k: 2}"),
        score=lambda exp, fold, place: (
            by_rate(exp, fold, place) if exp.optimizer.args["lr"] == 1e-3 else 0.3 + 0.01 * place
        ),
    )

    assert isinstance(make_pruner(search.config), optuna.pruners.WilcoxonPruner)
    search.optuna_study.pruner = optuna.pruners.WilcoxonPruner(
        p_threshold=0.05, n_startup_steps=5
    )  # five cases a fold here
    run_study(search, 3, lambda line: None)
    assert states(search) == ["COMPLETE", "PRUNED", "PRUNED"]
    pruned = search.trials[1]
    assert len(pruned.intermediate_values) == 5 and "after fold 0" in pruned.user_attrs["reason"]
    folder = Path(pruned.user_attrs["run"])
    assert (folder / "fold_0" / "result.json").exists() and not (folder / "fold_1").exists()
    assert "pruned" in json.loads((folder / "summary.json").read_text())["stopped"]
    assert len(search.trials[0].intermediate_values) == 10


def test_median_stops_within_a_fold(quick):
    calls = {"n": 0}

    def worse_and_worse(exp, fold, place):
        calls["n"] += 1
        return 0.9 - 0.001 * calls["n"]

    search = quick(YAML.replace("pruner: none", "pruner: median\n  startup_trials: 1"), score=worse_and_worse)
    run_study(search, 4, lambda line: None)
    assert states(search)[0] == "COMPLETE" and "PRUNED" in states(search)
    pruned = next(trial for trial in search.trials if trial.state.name == "PRUNED")
    assert "fold_0, epoch 1" in pruned.user_attrs["reason"] and len(pruned.intermediate_values) == 1


@pytest.mark.parametrize(("sampler", "pruner"), [("gp", "none"), ("tpe", "hyperband")])
def test_other_samplers_and_pruners(quick, sampler, pruner):
    text = YAML.replace("sampler: random", f"sampler: {sampler}\n  startup_trials: 2").replace(
        "pruner: none", f"pruner: {pruner}"
    )
    search = quick(text)
    run_study(search, 5, lambda line: None)
    assert len(search.finished) == 5 and set(states(search)) <= {"COMPLETE", "PRUNED"}
    rates = [trial.params["optimizer.args.lr"] for trial in search.trials]
    assert rates[0] == 1e-3 and len(set(rates)) == 5


def test_failed_trials_say_why_and_the_study_goes_on(quick):
    def fails_above(exp, fold, place):
        if exp.optimizer.args["lr"] > 2e-3:
            raise MaskfoldError("The loss is nan at step 3.", "Lower optimizer.args.lr.")
        return by_rate(exp, fold, place)

    search = quick(score=fails_above)
    run_study(search, 10, lambda line: None)
    failed = [trial for trial in search.trials if trial.state.name == "FAIL"]
    assert len(search.trials) == 10 and 1 <= len(failed) < 9
    assert all("loss is nan" in trial.user_attrs["reason"] for trial in failed)
    assert all(trial.params["optimizer.args.lr"] <= 2e-3 for trial in search.trials if trial.state.name == "COMPLETE")


def test_a_study_whose_yaml_fails_says_so_at_once(quick):
    def fails(exp, fold, place):
        raise MaskfoldError("The mask of case 3 is empty.", "Look at it.")

    search = quick(score=fails)
    with pytest.raises(MaskfoldError, match="Trial 0.*The mask of case 3"):
        run_study(search, 4, lambda line: None)
    assert len(search.trials) == 1


def test_several_objectives_have_a_front_and_constraints_hold(quick):
    text = YAML.replace("pruner: none", "pruner: none\n  objectives: [score, peak_gib]\n  constraints: {peak_gib: 0.5}")
    search = quick(text)
    run_study(search, 8, lambda line: None)
    front = best_trials(search, None)
    values = [trial.values for trial in front]
    assert all(gib <= 0.5 for _, gib in values)
    for score, gib in values:
        assert not any(other[0] > score and other[1] < gib for other in values)
    with pytest.raises(MaskfoldError, match=r"study\.pruner: .*none.*found median"):
        quick(text.replace("pruner: none", "pruner: median"))
    with pytest.raises(MaskfoldError, match=r"study\.objectives: found speed"):
        quick(text.replace("[score, peak_gib]", "[score, speed]"))


@pytest.mark.parametrize(
    ("objective", "metric"), [("minutes", "dice"), ("inference_seconds", "hd95"), ("dice_ring", "hd95")]
)
def test_a_pruner_needs_an_objective_that_improves_with_the_score(quick, objective, metric):
    """With other objectives, a trial with better scores than the best trial would be pruned."""
    text = YAML.replace("pruner: none", f"objectives: [{objective}]")
    overrides = (f"competition.metric={{name: {metric}}}",)
    with pytest.raises(MaskfoldError, match=rf"study\.pruner: found wilcoxon, .* {objective}\.") as refusal:
        quick(text, overrides=overrides)
    assert refusal.value.status == 2
    assert quick(text, overrides=(*overrides, "study.pruner=none")).trials


@pytest.mark.parametrize(("objective", "metric"), [("score", "hd95"), ("dice_ring", "dice")])
def test_a_pruner_is_possible_with_scores_and_dice(quick, objective, metric):
    text = YAML.replace("pruner: none", f"objectives: [{objective}]")
    assert quick(text, overrides=(f"competition.metric={{name: {metric}}}",)).trials


def test_an_interrupted_trial_is_taken_up_again(quick, monkeypatch):
    search = quick()
    from tests.study.quick import QuickExecutor

    real = QuickExecutor.run
    calls = {"n": 0}

    def stops(self, jobs, say, alive=lambda: None):
        calls["n"] += 1
        if calls["n"] == 3:
            raise KeyboardInterrupt("SIGTERM")
        real(self, jobs, say, alive)

    monkeypatch.setattr(QuickExecutor, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        run_study(search, 5, lambda line: None)
    assert states(search).count("WAITING") == 1
    params = search.trials[-1].params
    run_study(search, 5, lambda line: None)
    assert states(search) == ["COMPLETE"] * 5 and params in [trial.params for trial in search.trials]


def test_the_best_are_trained_on_all_folds_and_judged_on_those_the_study_did_not_use(quick):
    search = quick(YAML.replace("folds: {k: 2}", "folds: {k: 2, run: [0]}"))
    run_study(search, 5, lambda line: None)
    found = promote_best_trials(search, 2, lambda line: None)
    assert found[0].number == 0 and found[0].gain is None and len(found) in (2, 3)
    top = found[1]
    assert (Path(top.run_folder) / "fold_1" / "result.json").exists()
    own, winner = (search.trials[n].params["optimizer.args.lr"] for n in (0, top.number))
    assert top.gain.value == pytest.approx(by_rate_mean(winner, 1) - by_rate_mean(own, 1), abs=1e-9)
    assert top.unseen_score == pytest.approx(by_rate_mean(winner, 1), abs=1e-9)
    assert write_trials(search)[0]["number"] == 0


def by_rate_mean(rate: float, fold: int) -> float:
    import numpy as np

    return float(
        np.mean([0.9 - 0.2 * abs(np.log10(rate / BEST)) + 0.01 * ((7 * place + fold) % 5) for place in range(5)])
    )


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────


def start(warm: WarmProcesses, file: Path, storage: str, count: int, delay: float) -> WarmProcess:
    return warm.start("tests.study.quick:main", file, storage, count, delay, cwd=file.parent.parent)


def test_a_trial_of_a_killed_process_is_queued_again_at_once(place, warm):
    file = write_experiment(place)
    process = start(warm, file, "", 4, 60.0)
    for line in process.stdout:
        if line.startswith("trial 0"):
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    search = open_study(ExperimentSource(file))
    assert states(search) == ["RUNNING"]
    said: list[str] = []
    requeue_stale_trials(search, Context(say=said.append))
    assert states(search) == ["WAITING"] and search.trials[0].params == {"optimizer.args.lr": 1e-3}
    assert "trial 0 was killed" in said[0]
    requeue_stale_trials(search, Context(say=lambda line: pytest.fail(line)))


def kill_trial(search) -> list[str]:
    """Start a trial whose process is dead, let the study notice it, and return the study's messages."""
    said: list[str] = []
    trial = search.optuna_study.ask()
    trial.suggest_float("optimizer.args.lr", 1e-4, 1e-2, log=True)
    trial.set_user_attr(PROCESS_ATTRIBUTE, {**current_process(), "started": 1.0})
    requeue_stale_trials(search, Context(say=said.append))
    return said


def test_a_trial_that_is_killed_again_and_again_counts_as_failed(quick):
    """It does not vanish: otherwise, the study would continue without trial 0, and could promote no trial."""
    search = quick()
    assert [("is repeated" in kill_trial(search)[0], states(search)) for _ in range(3)] == [(True, ["WAITING"])] * 3
    assert "counts as failed" in kill_trial(search)[0]
    [trial] = search.finished
    assert (trial.state.name, trial.user_attrs["own"], trial.params) == ("FAIL", True, {"optimizer.args.lr": 1e-3})
    with pytest.raises(MaskfoldError, match=r"Trial 0, .*failed: Its process was killed 4 times\."):
        run_study(search, 3, lambda line: None)


def test_interruptions_by_the_user_do_not_count_as_kills(quick, monkeypatch):
    from tests.study.quick import QuickExecutor

    search, real = quick(), QuickExecutor.run

    def stops(self, jobs, say, alive=lambda: None):
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(QuickExecutor, "run", stops)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run_study(search, 2, lambda line: None)
    assert "is repeated" in kill_trial(search)[0]
    monkeypatch.setattr(QuickExecutor, "run", real)
    run_study(search, 2, lambda line: None)
    assert states(search) == ["COMPLETE"] * 2 and search.trials[0].user_attrs["own"]


def test_a_trial_of_a_living_process_is_left_alone(quick):
    search = quick()
    trial = search.optuna_study.ask()
    trial.set_user_attr(PROCESS_ATTRIBUTE, current_process())
    requeue_stale_trials(search, Context(say=lambda line: pytest.fail(line)))
    assert states(search) == ["RUNNING"]
    assert not is_process_dead({**current_process(), "host": "elsewhere", "pid": 999_999_999})
    assert is_process_dead({**current_process(), "started": 1.0})


def test_two_processes_share_a_study(place, warm):
    file = write_experiment(place)
    processes = [start(warm, file, "", 8, 0.05) for _ in range(2)]
    outputs = ["".join(process.communicate(timeout=250)) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    search = open_study(ExperimentSource(file))
    assert states(search) == ["COMPLETE"] * 8
    assert sum(output.count(" complete: ") for output in outputs) == 8


def test_the_inference_time_is_measured_with_the_trusted_packages(monkeypatch):
    given = []

    class Predictor:
        def __init__(self, ensemble, row, context):
            given.append(context)
            self.weighted_runs = [(SimpleNamespace(networks=[0, 1]), 1.0)]

        def probabilities(self, row):
            assert len(self.weighted_runs[0][0].networks) == 1

    monkeypatch.setattr("competition.ensembling.ensemble.EnsemblePredictor", Predictor)
    run = SimpleNamespace(cases=pd.DataFrame({"id": ["a", "b"]}))
    assert inference_seconds(run, Context(("mine",))) >= 0
    assert given == [Context(("mine",))]
