"""The table of `maskfold watch` from made folders: running, killed, stopped, waiting and finished folds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from competition.cli.watch import _draw, read_active_runs, read_member_status, watch_command
from competition.errors import MaskfoldError
from competition.runs.lock import read_owner, run_lock

OUTPUT = """48 cases to train on, fp32 on cpu
step 1 of 50 · epoch 1 · loss 2.0175
0.31 s a step · ends about 21:29, validations not included · 1.1 GiB
step 12 of 50 · epoch 2 · loss 1.5599 · 0.42 s a step · ends about 21:28
"""


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    folder = tmp_path / "mlruns" / "runs" / "toy-unet" / "0123456789ab" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    (folder / "output.txt").write_text(OUTPUT)
    lines = [{"step": 25, "epoch": 1, "time": 1.0, "metrics": {"val/score": 0.8125, "memory/peak_gib": 2.25}}]
    lines.append({"step": 30, "epoch": 2, "time": 2.0, "metrics": {"train/loss": 1.0}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the folder's lock until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from competition.runs.lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_running_fold_has_its_progress(fold: Path) -> None:
    with run_lock(fold), run_lock(fold.parent):
        found = read_member_status(fold)
        (run,) = read_active_runs(fold.parents[4])
    assert (found.state, found.step, found.pace, found.ends) == ("running", "12 of 50", "0.42 s", "21:28")
    assert (found.score, found.memory, found.epoch) == ("0.8125", "2.2 GiB", "2")
    assert run.name == "toy-unet/0123456789ab" and run.state == "running" and f"process {os.getpid()}" in run.owner


def test_validation_is_named_while_it_is_the_latest_line(fold: Path) -> None:
    with open(fold / "output.txt", "a") as file:
        file.write("validating: 3 of 24 cases · after step 50 of 50\n")
    with run_lock(fold):
        found = read_member_status(fold)
    assert (found.epoch, found.step) == ("validating: 3 of 24 cases", "50 of 50")


def test_a_killed_process_is_named_and_a_stopped_one_is_not_shown(fold: Path) -> None:
    process = hold(fold)
    assert read_member_status(fold).state == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_owner(fold) is not None
    (run,) = read_active_runs(fold.parents[4])
    assert run.state == "killed" and run.members[0].state == "killed" and run.members[0].ends == ""
    with run_lock(fold):
        pass  # the next process took over the lock and released it
    assert read_member_status(fold).state == "stopped" and read_active_runs(fold.parents[4]) == []


def test_a_process_that_has_written_nothing_is_starting(fold: Path) -> None:
    """A new process imports its libraries before it locks the fold; the fold was shown as stopped meanwhile."""
    for file in ("output.txt", "metrics.jsonl"):
        (fold / file).write_text("")
    with run_lock(fold.parent):
        (run,) = read_active_runs(fold.parents[4])
    assert [member.state for member in run.members] == ["starting"]


def test_finished_and_waiting_folds_stand_beside_the_running_one(fold: Path) -> None:
    for name in ("fold_10", "fold_2"):
        (fold.parent / name).mkdir()
    (fold.parent / "fold_2" / "result.json").write_text(json.dumps({"score": 0.75, "steps": 50, "peak_gib": 3.0}))
    (fold.parent / "shipped.json").write_text(json.dumps({"folders": {".": {"name": "trial 3 · 0123"}}}))
    with run_lock(fold.parent):
        (run,) = read_active_runs(fold.parents[4])
    assert [(one.name, one.state) for one in run.members] == [
        ("fold_0", "stopped"),
        ("fold_2", "finished"),
        ("fold_10", "waiting"),
    ]
    assert run.name.endswith("(trial 3)") and run.members[1].score == "0.7500"


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe{", b"{}", b'{"metrics": {"val/score": "x"}}\n'])
def test_damaged_files_are_empty_cells(fold: Path, damage: bytes) -> None:
    for name in ("output.txt", "metrics.jsonl", "job.json", "lock"):
        (fold / name).write_bytes(damage)
    (fold.parent / "shipped.json").write_bytes(damage)
    with run_lock(fold.parent):
        (run,) = read_active_runs(fold.parents[4])
        _draw([run])
    assert run.members[0].score == ""


def test_without_a_terminal_the_table_is_printed_once(fold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_lock(fold), run_lock(fold.parent):
        watch_command(once=False, seconds=2.0, root=fold.parents[4])
    printed = capsys.readouterr().out
    assert "toy-unet/0123456789ab" in printed and "12 of 50" in printed and "0.8125" in printed
    watch_command(once=True, seconds=2.0, root=fold.parents[4])
    assert "No fold runs in this project" in capsys.readouterr().out


def test_wrong_folders_and_numbers_are_refused(tmp_path: Path, fold: Path) -> None:
    with pytest.raises(MaskfoldError, match="This folder has no runs"):
        watch_command(once=True, seconds=2.0, root=tmp_path / "elsewhere")
    with pytest.raises(MaskfoldError) as error:
        watch_command(once=True, seconds=0.0, root=fold.parents[4])
    assert error.value.status == 2


def test_ctrl_c_ends_the_live_table_quietly(fold: Path) -> None:
    """On a pseudo-terminal, because only a terminal has the live table."""
    import pty

    leader, follower = pty.openpty()
    code = "from competition.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "watch", "--seconds", "0.5"],
        cwd=fold.parents[4],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )
    os.close(follower)
    shown, interrupted = b"", False
    while True:  # to the end: a terminal that nobody reads holds the process in its last line
        try:
            shown += os.read(leader, 4096)
        except OSError:  # the process has closed its end
            break
        if shown.count(b"No fold runs in this project") > 1 and not interrupted:  # it waits for the next table
            interrupted = True
            process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert interrupted and b"Traceback" not in shown
    os.close(leader)
