"""Folds that are forked from a server, and folds that are started afresh, end in the same ways."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from competition import fork_server
from tests.faults.instants import differences, faults
from tests.faults.toy import STEPS, Command, Stage, gone, pause, the_run, words_of

pytestmark = pytest.mark.skipif(not fork_server.is_supported(), reason="needs Linux")

LONG = ["training.epochs=100000"]
MODES = {"forked": "1", "fresh": "0"}
both_modes = pytest.mark.parametrize("mode", MODES)


def start(stage: Stage, cwd: Path, mode: str, *words: object, **how: object) -> Command:
    return stage.start(cwd, *words, env={fork_server.SWITCH: MODES[mode]}, **how)  # type: ignore[arg-type]


def fold_process(command: Command) -> psutil.Process:
    """The process of the fold that runs: it has the folder's lock."""
    folder = next((Path(command.output).parent / "mlruns" / "runs").glob("*/*/fold_0"))
    return next(
        process for process in command.family() if f'"process": {process.pid},' in (folder / "lock").read_text()
    )


@both_modes
def test_a_signal_to_the_command_stops_the_fold_with_a_checkpoint(
    stage: Stage, small_demo: Path, tmp_path: Path, mode: str
) -> None:
    command = start(stage, tmp_path, mode, *words_of(small_demo), kills=pause("fold_0", "step", STEPS + 3))
    command.until((tmp_path / "paused").exists)
    family, fold = command.family(), fold_process(command)
    assert (fold.ppid() == command.pid) == (mode == "fresh") and os.getsid(fold.pid) == fold.pid
    command.signal(signal.SIGTERM)
    (tmp_path / "paused").unlink()
    assert command.wait() == 143 and gone([process.pid for process in family], 20)
    assert "stopped (SIGTERM)" in (the_run(tmp_path) / "fold_0" / "log.txt").read_text()


@both_modes
def test_a_fold_that_is_killed_or_fails_says_why(stage: Stage, small_demo: Path, tmp_path: Path, mode: str) -> None:
    kills = [{"who": "fold_0", "at": "step", "nth": 2, "how": "before"}]
    killed = start(stage, tmp_path, mode, *words_of(small_demo), kills=kills)
    assert killed.wait() == 1 and "Fold fold_0 was killed (SIGKILL)" in killed.said
    kills = [{"who": "fold_0", "at": "checkpoint", "nth": 1, "how": "ENOSPC"}]
    (tmp_path / "full").touch()
    failed = start(stage, tmp_path, mode, *words_of(small_demo), kills=kills, name="failed")
    assert failed.wait() == 1 and "Fold fold_0: " in failed.said and "disk" in failed.said.lower(), failed.said


@both_modes
def test_a_fold_notices_the_death_of_its_command(stage: Stage, small_demo: Path, tmp_path: Path, mode: str) -> None:
    command = start(stage, tmp_path, mode, *words_of(small_demo), *LONG)
    command.until(lambda: "epoch 2 " in command.said)
    pids = [process.pid for process in command.family()]
    command.signal(signal.SIGKILL)
    assert command.wait() == -9 and gone(pids)
    folder = the_run(tmp_path) / "fold_0"
    assert (folder / "last.pt").exists() and "stopped (the parent process ended)" in (folder / "log.txt").read_text()


def test_both_ways_give_the_same_weights_also_after_the_server_was_killed(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path
) -> None:
    """`whole` was forked; here a server is killed while its fold trains, and the rest is started afresh."""
    command = start(stage, tmp_path, "forked", *words_of(small_demo), kills=pause("fold_0", "step", STEPS + 3))
    command.until((tmp_path / "paused").exists)
    psutil.Process(fold_process(command).ppid()).kill()
    (tmp_path / "paused").unlink()
    assert command.wait() == 1 and "stopped (the parent process ended)" in command.said, command.said
    again = start(stage, tmp_path, "fresh", *words_of(small_demo), name="again")
    assert again.wait() == 0 and "resumed from step " in again.said, again.said
    assert differences(whole, tmp_path) == [] and faults(tmp_path) == []
