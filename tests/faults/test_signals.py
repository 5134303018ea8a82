"""Promise 2: SIGTERM and Ctrl-C end a command within seconds, in order, wherever it is; the same command goes on."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from competition.runs.checkpoint import load_checkpoint
from tests.faults.instants import differences, faults
from tests.faults.toy import (
    EXPERIMENT,
    PLAIN,
    SMALL,
    STEPS,
    Command,
    Stage,
    gone,
    leftovers,
    pause,
    the_run,
    tracked,
    words_of,
)

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
WHY = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
both_signals = pytest.mark.parametrize("number", list(STATUS), ids=["SIGTERM", "Ctrl-C"])


def stopped(command: Command, number: signal.Signals, cwd: Path) -> None:
    """Send the signal once the command pauses, let it go on, and look at how it ends."""
    marker = cwd / "paused"
    command.until(marker.exists)
    family = [process.pid for process in command.family()]
    command.signal(number)
    time.sleep(1.0)  # the command forwards the signal to its folds; let it arrive before the step goes on
    marker.unlink()
    assert command.wait() == STATUS[number], command.said
    last = command.said.strip().splitlines()[-1]
    assert last.startswith("stopped") and WHY[number] in last and "Traceback" not in command.said, command.said
    assert gone(family, 20)
    assert leftovers(cwd / "mlruns") == []


@both_signals
def test_while_a_fold_trains(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = words_of(small_demo)
    command = stage.start(
        tmp_path, *words, "training.checkpoint_minutes=1000", kills=pause("fold_0", "step", STEPS + 3)
    )
    stopped(command, number, tmp_path)
    assert "same command" in command.said
    state = load_checkpoint(the_run(tmp_path) / "fold_0" / "last.pt")
    assert state["progress"]["step"] == STEPS + 3  # nothing is lost
    statuses = {place: [one["status"] for one in runs] for place, runs in tracked(tmp_path).items()}
    assert statuses == {".": ["KILLED"], "fold_0": ["KILLED"]}
    said = stage.run(tmp_path, *words, "training.checkpoint_minutes=1000")
    assert f"resumed from step {STEPS + 3}" in said


def test_in_the_midst_of_a_validation_no_step_is_lost_and_none_is_observed_twice(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path
) -> None:
    words = words_of(small_demo)
    # the second case of the second epoch's validation
    stopped(stage.start(tmp_path, *words, kills=pause("fold_0", "case", 3 + 2)), signal.SIGTERM, tmp_path)
    progress = load_checkpoint(the_run(tmp_path) / "fold_0" / "last.pt")["progress"]
    assert progress["step"] == 2 * STEPS and progress["ended"] == STEPS
    stage.run(tmp_path, *words)
    assert differences(whole, tmp_path) == [] and faults(tmp_path) == []


def test_in_the_midst_of_an_epochs_pictures_what_the_validation_moved_is_put_back(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path
) -> None:
    words = [*words_of(small_demo), "training.pictures_every=1"]
    command = stage.start(tmp_path, *words, kills=pause("fold_0", "picture", 3 + 1))  # the second epoch's first picture
    command.until((tmp_path / "paused").exists)
    last = the_run(tmp_path) / "fold_0" / "last.pt"
    before = load_checkpoint(last)  # after the epoch's last step but one
    stopped(command, signal.SIGTERM, tmp_path)
    after = load_checkpoint(last)
    assert (before["progress"]["step"], after["progress"]["step"]) == (2 * STEPS - 1, 2 * STEPS)
    for moves in ("best", "stale", "ended", "stopped"):
        assert after["progress"][moves] == before["progress"][moves], moves
    assert after["schedule"] == before["schedule"]
    stage.run(tmp_path, *words)
    assert differences(whole, tmp_path) == [] and faults(tmp_path) == []


@both_signals
def test_while_cases_are_prepared(stage: Stage, small_demo: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = stage.start(tmp_path, *words_of(small_demo), kills=pause("command", "array", 5))  # the second case's mask
    stopped(command, number, tmp_path)
    assert "same command" in command.said
    assert not (tmp_path / "mlruns" / "runs").exists() and not (tmp_path / "mlruns" / "mlflow.db").exists()
    assert list((tmp_path / "mlruns" / "prepared").iterdir())


@both_signals
def test_while_post_processing_is_searched(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    words = [*words_of(small_demo), "postprocess.tune=true"]
    stopped(stage.start(tmp_path, *words, kills=pause("command", "tuning", 2)), number, tmp_path)
    run = the_run(tmp_path)
    assert not (run / "postprocess.json").exists()
    said = stage.run(tmp_path, *words)
    assert "post-processing" in said and "fold_0 |" not in said and (run / "postprocess.json").exists()
    assert [one["status"] for one in tracked(tmp_path)["."]] == ["FINISHED"]


@both_signals
def test_while_test_cases_are_predicted(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    shutil.copytree(whole / "mlruns", tmp_path / "mlruns")
    words = ["submit", the_run(tmp_path), f"competition.root={small_demo}"]
    command = stage.start(tmp_path, *words, "-o", "mine.csv", kills=pause("command", "test case", 2))
    stopped(command, number, tmp_path)
    assert "nothing was written" in command.said
    assert not list(tmp_path.glob("*.csv*")) and not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.json"))


STUDY = [
    "study={trials: 2, sampler: random, pruner: none, "
    "space: {optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}}"
]


def test_while_a_study_tries(stage: Stage, small_demo: Path, tmp_path: Path) -> None:
    words = [
        "study",
        EXPERIMENT,
        f"competition.root={small_demo}",
        *SMALL,
        *PLAIN,
        *STUDY,
        "training.epochs=2",
        "folds.run=[0]",
    ]
    stopped(stage.start(tmp_path, *words, kills=pause("fold_0", "step", 2)), signal.SIGTERM, tmp_path)
    assert {one["status"] for one in tracked(tmp_path)["."]} == {"KILLED"} and len(
        tracked(tmp_path)["."]
    ) == 2  # study and trial
    said = stage.run(tmp_path, *words, folds=4)
    assert "resumed from step 2" in said and "Best: trial" in said
    assert {one["status"] for one in tracked(tmp_path)["."]} == {"FINISHED"}
    trials = json.loads(next((tmp_path / "mlruns" / "studies").glob("*/trials.json")).read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 2


def test_a_second_signal_kills_folds_that_take_their_time(stage: Stage, small_demo: Path, tmp_path: Path) -> None:
    command = stage.start(tmp_path, *words_of(small_demo), kills=pause("fold_0", "step", 2))
    command.until((tmp_path / "paused").exists)
    family = [process.pid for process in command.family()]
    command.signal(signal.SIGINT)
    command.until((tmp_path / "terminated").exists)  # the fold was asked to end, and does not
    command.signal(signal.SIGINT)
    assert command.wait() == 130 and gone(family, 20)
    assert "stopped" in command.said and "Traceback" not in command.said
