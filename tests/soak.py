"""Run cross-validations, submissions and studies in one folder for a long time, and kill them at random.

    python -m tests.soak --minutes 45   # prints a line for each command, and figures at the end; not a pytest test

Each command is run with the real command line. It is killed at random times (SIGKILL of the command or of all its
processes; SIGTERM; Ctrl-C), and run again until it ends. Then its exit status, files, MLflow runs and CSV are checked.
Sometimes the weights are compared with those of an undisturbed run in another folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.conftest import ROOT
from tests.faults.toy import EXPERIMENT, SMALL, leftovers, tracked

SIGNALS = {
    "SIGKILL": signal.SIGKILL,
    "SIGKILL of all": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "Ctrl-C": signal.SIGINT,
}
ENDS = {"SIGKILL": -9, "SIGKILL of all": -9, "SIGTERM": 143, "Ctrl-C": 130}  # expected exit status of each kind of kill
LONGEST = 600.0  # maximum seconds that a command may take on a busy machine
PATIENCE = 120.0  # maximum seconds after which a command must have ended because of a signal
MIB = 2**20


@dataclass
class Work:
    """A command and its results.

    Attributes:
        kind: kind of the command: "cv", "submit" or "study".
        argv: its arguments.
        kills: kinds of the kills so far; also "compared" if its weights were compared with those of another run.
        wrong: faults that were found.
        peak: peak resident memory of the command and its descendant processes in bytes.
        seconds: elapsed seconds.
    """

    kind: str
    argv: list[str]
    kills: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    peak: int = 0
    seconds: float = 0.0


class Soak:
    """Run, kill and check commands in one folder.

    Args:
        root: an empty folder.
        seed: seed of the commands and kills.
    """

    def __init__(self, root: Path, seed: int) -> None:
        from competition.datasets.demo import make_demo

        self.root, self.draw = root, random.Random(seed)
        self.data = root / "demo2d"
        make_demo("2d", self.data, seed=3, cases=10, test_cases=3)
        self.cwd = root / "project"
        self.cwd.mkdir()
        self.done: list[Work] = []
        self.disk: list[int] = []
        self.trained: list[str] = []

    def words(self, number: int) -> list[str]:
        """Return the experiment and the overrides of a command; `number` is the seed of the training."""
        return [
            str(EXPERIMENT),
            f"competition.root={self.data}",
            *SMALL,
            "training.precision=fp32",
            "training.ema=0.9",
            f"training.epochs={self.draw.choice([4, 8])}",
            f"seed={number}",
        ]

    def next(self) -> Work:
        """Return the next random command: a cross-validation, a submission of an existing run, or a study."""
        number = len(self.done)
        kind = self.draw.choices(["cv", "submit", "study"], [5, 3, 2])[0] if self.trained else "cv"
        if kind == "cv":
            return Work(kind, ["cv", *self.words(number)])
        if kind == "submit":
            return Work(
                kind, ["submit", self.draw.choice(self.trained), f"competition.root={self.data}", "-o", f"{number}.csv"]
            )
        space = "{optimizer.args.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}"
        study = f"study={{trials: 3, sampler: tpe, pruner: none, space: {space}}}"
        return Work(kind, ["study", *self.words(number), study, "folds.run=[0]"])

    def do(self, work: Work) -> None:
        """Run a command and kill it a random number of times, then let it end, and check it."""
        for _ in range(self.draw.choice([0, 1, 1, 2, 3])):
            how = self.draw.choice(list(SIGNALS))
            if self.run(work, how, self.draw.uniform(0.5, 30.0)):
                break  # the command ended before it was killed
            work.kills.append(how)
        else:
            self.run(work)
        self.look(work)

    def run(self, work: Work, how: str = "", after: float = LONGEST) -> bool:
        """Start a command once, and kill it after some seconds.

        Args:
            work: the command.
            how: kind of the kill, a key of `SIGNALS`; empty if the command must end by itself.
            after: seconds until the kill.

        Returns:
            Whether the command need not be started again.
        """
        began, output = time.monotonic(), self.root / "output.txt"
        with open(output, "wb") as file:
            command = subprocess.Popen(
                [sys.executable, "-P", "-c", "from competition.cli import main; main()", *work.argv],
                cwd=self.cwd,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"},
            )
        family: dict[int, psutil.Process] = {}
        while command.poll() is None and time.monotonic() - began < after:
            work.peak = max(work.peak, self.resident(command.pid, family))
            time.sleep(0.1)
        work.seconds += time.monotonic() - began
        if command.poll() is not None:
            if command.returncode != 0:
                work.wrong.append(f"status {command.returncode}: {output.read_text(errors='replace')[-600:]}")
            return True
        self.resident(command.pid, family)
        command.send_signal(SIGNALS[how] if how else signal.SIGKILL)
        for process in family.values() if how == "SIGKILL of all" else ():
            if process.is_running():
                process.kill()
        try:
            status = command.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            command.kill()
            status = command.wait()
        said = output.read_text(errors="replace")
        if not how:
            work.wrong.append(f"still there after {LONGEST:.0f} s: {said[-600:]}")
        elif status not in (ENDS[how], 0, -SIGNALS[how]):
            # The status may be 0 if the command was just done, and negative if it had not set its signal handlers yet.
            work.wrong.append(f"{how}: status {status}: {said[-600:]}")
        if "Traceback" in said:
            work.wrong.append(f"{how}: {said[-1500:]}")
        deadline = time.monotonic() + 90  # the processes of its folds write a checkpoint and end by themselves
        while alive := [one for one in family.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
            if time.monotonic() > deadline:
                work.wrong.append(f"{how}: {len(alive)} processes outlive it")
                for one in alive:
                    one.kill()
            time.sleep(0.1)
        return not how

    @staticmethod
    def resident(pid: int, family: dict[int, psutil.Process]) -> int:
        """Return the resident memory in bytes of a process and its descendants, and add the descendants to `family`."""
        total = 0
        try:
            every = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return 0
        for process in every:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
            if process.pid != pid:
                family[process.pid] = process
        return total

    def look(self, work: Work) -> None:
        """Check the files and MLflow runs that a finished command has left, and record faults."""
        work.wrong += [f"left behind: {path}" for path in leftovers(self.cwd)]
        states = sorted({one["status"] for runs in tracked(self.cwd).values() for one in runs})
        work.wrong += [f"MLflow: {states}"] if states != ["FINISHED"] else []
        if work.kind == "submit":
            mine, hosts = (
                [row[:-1] for row in csv.reader(path.open())]  # the last cell is the mask
                for path in (self.cwd / work.argv[-1], self.data / "sample_submission.csv")
            )
            work.wrong += [] if mine == hosts else [f"{work.argv[-1]}: not the sample's rows"]
        if work.kind == "cv":
            self.trained.append(
                str(max((self.cwd / "mlruns" / "runs").glob("*/*"), key=lambda path: path.stat().st_mtime))
            )
            if work.kills and self.draw.random() < 0.5:
                self.compare(work)
        self.disk.append(sum(path.stat().st_size for path in self.cwd.rglob("*") if path.is_file()))
        self.done.append(work)

    def compare(self, work: Work) -> None:
        """Run the same command undisturbed in another folder, and record a fault if the weights differ."""
        mine, self.cwd = self.cwd, self.root / "undisturbed"
        self.cwd.mkdir()
        try:
            self.run(whole := Work("cv", work.argv))
            work.wrong += whole.wrong
            for path in (self.cwd / "mlruns" / "runs").rglob("weights.safetensors"):
                other = mine / path.relative_to(self.cwd)
                work.wrong += (
                    [] if other.exists() and other.read_bytes() == path.read_bytes() else [f"not the same: {other}"]
                )
            work.kills.append("compared")
        finally:
            shutil.rmtree(self.cwd)
            self.cwd = mine

    def figures(self) -> dict[str, object]:
        """Return the numbers of commands, kills and failures, and the growth of memory and disk space."""
        kills = [kill for work in self.done for kill in work.kills if kill != "compared"]
        cvs = [work.peak / MIB for work in self.done if work.kind == "cv"]
        third = max(1, len(cvs) // 3)
        per_run = [
            (after - before) / MIB
            for before, after, work in zip(self.disk, self.disk[1:], self.done[1:])
            if work.kind == "cv"
        ]
        return {
            "pieces of work": {
                kind: sum(work.kind == kind for work in self.done) for kind in ("cv", "submit", "study")
            },
            "kills": {how: kills.count(how) for how in SIGNALS},
            "compared with an undisturbed run": sum("compared" in work.kills for work in self.done),
            "failures": sum(bool(work.wrong) for work in self.done),
            "peak MiB of a cross-validation, first and last third": [
                round(sum(part) / len(part)) for part in (cvs[:third], cvs[-third:])
            ],
            "disk MiB at the start and the end": [round(self.disk[0] / MIB, 1), round(self.disk[-1] / MIB, 1)],
            "disk MiB that a cross-validation adds, first and last": [round(per_run[0], 2), round(per_run[-1], 2)]
            if per_run
            else [],
        }


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float, default=45.0)
    words.add_argument("--seed", type=int, default=0)
    asked = words.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell has what it puts into the background ignore Ctrl-C
    with tempfile.TemporaryDirectory() as folder:
        soak, end = Soak(Path(folder), asked.seed), time.monotonic() + 60 * asked.minutes
        while time.monotonic() < end:
            work = soak.next()
            soak.do(work)
            print(
                f"{len(soak.done):3d} {work.kind:6} {work.seconds:5.0f} s {work.peak / MIB:5.0f} MiB  "
                f"killed by {work.kills or 'nobody'}"
                f"{''.join(f'{chr(10)}    WRONG {wrong}' for wrong in work.wrong)}",
                flush=True,
            )
        figures = soak.figures()
    print(json.dumps(figures, indent=1))
    return int(bool(figures["failures"]))


if __name__ == "__main__":
    sys.exit(main())
