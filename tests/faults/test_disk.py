"""Promise 3: a disk that is full, read-only or over its quota gives an error, keeps all files, and a rerun resumes.

A small tmpfs in a mount namespace of its own where that is allowed; the error of the system, injected, everywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from competition.io import DiskFullError
from competition.runs.checkpoint import MetricsLog, load_checkpoint
from tests.faults.instants import differences, faults
from tests.faults.toy import EXPERIMENT, PLAIN, SMALL, Command, Stage, leftovers, pause, the_run, tracked, words_of


class SmallDisk:
    """A tmpfs that only processes in its namespace see; for others it lies at `seen`."""

    def __init__(self, place: Path, mebibytes: int) -> None:
        self.place = place
        self.shell = subprocess.Popen(
            ["unshare", "-rm", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.do(f"mount -t tmpfs -o size={mebibytes}m small {place}")
        self.seen = Path(f"/proc/{self.shell.pid}/root{place}")

    def do(self, words: str) -> str:
        """Run a line of shell inside."""
        assert self.shell.stdin is not None and self.shell.stdout is not None
        self.shell.stdin.write(f"{words}; echo; echo end $?\n")
        self.shell.stdin.flush()
        lines = []
        while not (line := self.shell.stdout.readline()).startswith("end "):
            assert line, "".join(lines)
            lines.append(line)
        assert line == "end 0\n", "".join(lines)
        return "".join(lines)

    def fill(self) -> None:
        """Leave no room at all, for good: what SQLite's journal and the like give back a moment later is taken too."""
        quiet = 0
        while quiet < 5:
            quiet = 0 if os.statvfs(self.seen).f_bavail else quiet + 1
            self.do(f"cat /dev/zero >> {self.place}/ballast 2> /dev/null || true")
            time.sleep(0.2)

    def fill_but(self, kibibytes: int) -> None:
        """Leave some room."""
        self.fill()
        self.do(f"truncate -s -{kibibytes}K {self.place}/ballast")

    def empty(self) -> None:
        """Make room again."""
        self.do(f"rm -f {self.place}/ballast")

    def close(self) -> None:
        self.shell.kill()
        self.shell.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 48 MiB at `tmp_path / "disk"`."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespace: unshare -rm")
    (tmp_path / "disk").mkdir()
    made = SmallDisk(tmp_path / "disk", 48)
    yield made
    made.close()


def in_words(command: Command, *parts: str) -> None:
    """Ended with status 1 and one error that names the path and the bytes, not the last line of the output."""
    assert command.wait() == 1, command.said
    said = [line for line in command.said.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Traceback" not in command.said, command.said
    assert "ended with status" not in said[0], said
    assert re.search(r"(\d bytes|a few bytes)", said[0]), said
    for part in parts:
        assert part in said[0], said


def test_full_while_cases_are_prepared_and_while_a_checkpoint_is_written(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path, disk: SmallDisk
) -> None:
    words, place = words_of(small_demo), disk.place
    disk.fill_but(96)
    command = stage.start(place, *words, namespace=disk.shell.pid, output=tmp_path / "1.txt")
    in_words(command, "disk is full", "mlruns/prepared/")
    prepared = disk.seen / "mlruns" / "prepared"
    there = {path: path.read_bytes() for path in prepared.rglob("*.npy")}
    assert leftovers(disk.seen / "mlruns") == [] and not (disk.seen / "mlruns" / "runs").exists()
    disk.empty()
    command = stage.start(
        place, *words, namespace=disk.shell.pid, output=tmp_path / "2.txt", kills=pause("fold_0", "checkpoint", 7)
    )
    command.until((disk.seen / "paused").exists)
    assert {path: path.read_bytes() for path in there} == there  # what was prepared before is used
    disk.fill()
    (disk.seen / "paused").unlink()
    in_words(command, "disk is full", "fold_0/last.pt")
    needed = int(re.search(r"last\.pt needs ([\d,]+) bytes", command.said)[1].replace(",", ""))  # type: ignore[index]
    last = the_run(disk.seen) / "fold_0" / "last.pt"
    assert load_checkpoint(last)["progress"]["step"] == 6 and abs(needed - last.stat().st_size) < 4096
    assert leftovers(disk.seen / "mlruns" / "runs") == []
    disk.empty()
    command = stage.start(place, *words, namespace=disk.shell.pid, output=tmp_path / "3.txt")
    assert command.wait() == 0 and "resumed from step 6" in command.said, command.said
    assert differences(whole, disk.seen) == [] and faults(disk.seen) == []


def test_full_while_a_csv_is_written(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path, disk: SmallDisk
) -> None:
    shutil.copytree(whole / "mlruns", disk.seen / "mlruns")
    (disk.seen / "mine.csv").write_text("what was there\n")
    words = ["submit", the_run(disk.seen).relative_to(disk.seen), f"competition.root={small_demo}", "-o", "mine.csv"]
    command = stage.start(
        disk.place, *words, namespace=disk.shell.pid, output=tmp_path / "1.txt", kills=pause("command", "csv")
    )
    command.until((disk.seen / "paused").exists)
    disk.fill()
    (disk.seen / "paused").unlink()
    in_words(command, "disk is full", "mine.csv")
    assert (disk.seen / "mine.csv").read_text() == "what was there\n"
    assert sorted(path.name for path in disk.seen.iterdir()) == ["ballast", "mine.csv", "mlruns", "temporary"]
    disk.empty()
    command = stage.start(disk.place, *words, namespace=disk.shell.pid, output=tmp_path / "2.txt")
    assert command.wait() == 0 and "valid" in command.said, command.said
    assert len((disk.seen / "mine.csv").read_text().splitlines()) == 1 + 2 * 2  # two test pictures, two classes


def test_full_where_mlflow_keeps_its_store(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path, disk: SmallDisk
) -> None:
    words = words_of(small_demo)
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{disk.place}/mlflow.db"}
    (tmp_path / "project").mkdir()
    command = stage.start(
        tmp_path / "project", *words, env=env, namespace=disk.shell.pid, kills=pause("fold_0", "step", 6)
    )
    command.until((tmp_path / "project" / "paused").exists)
    disk.fill()
    (tmp_path / "project" / "paused").unlink()
    assert command.wait() == 0, command.said  # training goes on
    assert (
        "cannot be sent to MLflow" in command.said
        and f"{disk.place}/mlflow.db" in command.said
        and "bytes are free" in command.said
    )
    assert "To upload them, run the same command again" in command.said
    with sqlite3.connect(disk.seen / "mlflow.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    disk.empty()
    stage.run(tmp_path / "project", *words, env=env, namespace=disk.shell.pid)
    shutil.copy(disk.seen / "mlflow.db", tmp_path / "project" / "mlruns" / "mlflow.db")
    assert faults(tmp_path / "project") == [] and differences(whole, tmp_path / "project") == []


def test_a_line_that_does_not_fit_is_taken_back(disk: SmallDisk) -> None:
    path = disk.seen / "metrics.jsonl"
    metrics = {"loss/train": 0.5, **{f"dice/{name}": 0.25 for name in "abcdefgh"}}
    MetricsLog(path, 0).append(1, 1, metrics)
    disk.fill()  # what is left of the file's own block takes some lines more, and a part of one
    for step in range(2, 100):
        before = path.read_bytes()
        try:
            MetricsLog(path, step).append(step, step, metrics)
        except DiskFullError as error:
            assert "metrics.jsonl" in error.message
            break
    assert 2 < step < 99 and path.read_bytes() == before and before.endswith(b"}\n")
    disk.empty()
    MetricsLog(path, step).append(step, step, metrics)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, step + 1))


def test_read_only(stage: Stage, small_demo: Path, tmp_path: Path, disk: SmallDisk) -> None:
    words, place = words_of(small_demo), disk.place
    (disk.seen / "temporary").mkdir()
    disk.do(f"mount -o remount,ro {place}")
    command = stage.start(place, *words, namespace=disk.shell.pid, output=tmp_path / "1.txt")
    in_words(command, "mlruns", "Read-only file system", "write access")
    disk.do(f"mount -o remount,rw {place}")
    command = stage.start(
        place, *words, namespace=disk.shell.pid, output=tmp_path / "2.txt", kills=pause("fold_0", "step", 2)
    )
    command.until((disk.seen / "paused").exists)
    command.signal(signal.SIGTERM)
    (disk.seen / "paused").unlink()
    assert command.wait() == 143


@pytest.mark.parametrize(
    ("error", "words"),
    [("EDQUOT", "disk quota is used up"), ("ENOSPC", "disk is full"), ("EROFS", "Read-only file system")],
)
def test_what_the_system_says_while_a_checkpoint_is_written(
    stage: Stage, small_demo: Path, tmp_path: Path, error: str, words: str
) -> None:
    argv = ["cv", EXPERIMENT, f"competition.root={small_demo}", *SMALL, *PLAIN, "folds.run=[0]", "training.epochs=2"]
    (tmp_path / "full").touch()
    command = stage.start(tmp_path, *argv, kills=[{"who": "fold_0", "at": "file synced", "nth": 11, "how": error}])
    in_words(command, words, "fold_0/last.pt")
    last = the_run(tmp_path) / "fold_0" / "last.pt"
    before = load_checkpoint(last)["progress"]["step"]
    assert before > 0 and leftovers(tmp_path / "mlruns") == []
    assert {one["status"] for runs in tracked(tmp_path).values() for one in runs} == {"FAILED"}
    (tmp_path / "full").unlink()
    assert f"resumed from step {before}" in stage.run(tmp_path, *argv)
