"""Kill runs at every point, before, after and during the call, with every configuration; or at random times.

    python -m tests.faults.matrix                      # all points, from a stage; about an hour on two cores
    python -m tests.faults.matrix --seeds 5            # twenty drawn kills in a row, for five seeds
    python -m tests.faults.matrix --clock 40           # 40 kills after random seconds of `python -m …`, imports and all

The script prints a line for each run. Its exit status is 1 if a run did not end with the same results as an undisturbed
run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import ROOT
from tests.faults.instants import CONFIGURATIONS, attempts, differences, expected, faults
from tests.faults.kills import POINTS
from tests.faults.toy import EXPERIMENT, SMALL, STEPS, Stage

IN_COMMAND = (
    "prepared",
    "array",
    "run written",
    "look",
    "points",
    "state",
    "making a run",
    "files",
    "closing",
    "summary",
)
# Points that a cross-validation with an existing database does not reach.
ELSEWHERE = ("making the database", "tuning", "test case", "csv")


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument(
        "--seeds", type=int, default=0, help="so many seeds of twenty drawn kills, for each configuration"
    )
    words.add_argument("--clock", type=int, default=0, help="so many kills by the clock, for each configuration")
    words.add_argument("--folder", type=Path, help="where; kept. Default: a temporary folder")
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = asked.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        from competition.datasets.demo import make_demo

        make_demo("2d", root / "demo2d", seed=3, cases=6, test_cases=2)
        matrix = Matrix(root)
        if asked.clock:
            wrong = [matrix.by_the_clock(name, asked.clock) for name in CONFIGURATIONS]
        else:
            jobs = list(drawn(asked.seeds)) if asked.seeds else list(every_point())
            with ThreadPoolExecutor(2) as pool:
                wrong = list(pool.map(lambda job: matrix.one(*job), jobs))
        print(f"{len(wrong)} runs, {sum(map(bool, wrong))} of them ended otherwise than an undisturbed one")
        return int(any(wrong))


def every_point() -> Iterator[tuple[str, str, list[list[dict[str, Any]]]]]:
    """Yield runs with one kill each, for all configurations, points and instants: (title, configuration, plan)."""
    for name in CONFIGURATIONS:
        for at in POINTS:
            who = "command" if at in IN_COMMAND else "fold_0"
            for how in ("before", "after", 50, 1000) if at not in ELSEWHERE else ():
                kill = {"who": who, "at": at, "nth": 1, "how": how}
                hold = (
                    [{"who": "fold_0", "at": "step", "nth": STEPS + 1, "how": "hold"}]
                    if at in ("points", "making a run")
                    else []
                )
                if (at, how) == ("fold starts", "after"):
                    continue  # the fold's process ends together with this call
                yield f"{name}, {at}, {how}", name, [[kill, *hold]]


def drawn(seeds: int) -> Iterator[tuple[str, str, list[list[dict[str, Any]]]]]:
    """Yield runs that are killed twenty times, one per configuration and seed: (title, configuration, plan)."""
    for name in CONFIGURATIONS:
        for seed in range(100, 100 + seeds):
            yield f"{name}, seed {seed}", name, attempts(seed, database=False)


class Matrix:
    """Run cross-validations that are killed, and compare them with undisturbed ones.

    Args:
        root: folder for the projects, which contains the demo competition `demo2d`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stage = Stage(
            subprocess.Popen(
                [sys.executable, "-m", "tests.faults.stage"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        )
        assert self.stage.process.stdout is not None and json.loads(self.stage.process.stdout.readline())
        self.empty = self.stage.database(root / "empty.db")
        self.whole = {name: self._project(f"whole {name}") for name in CONFIGURATIONS}
        for name, cwd in self.whole.items():
            self.stage.run(cwd, *self._words(name))

    def one(self, title: str, name: str, plan: list[list[dict[str, Any]]]) -> list[str]:
        """Kill a run as planned, then let it finish; return what is wrong with it.

        Args:
            title: title of the run.
            name: name of its configuration.
            plan: kills of each start.
        """
        cwd, wrong = self._project(title), []
        for kills in plan:
            command = self.stage.start(cwd, *self._words(name), kills=kills)
            if command.wait() != expected(kills)[0]:
                wrong.append(f"status {command.status} after {kills}")
        self.stage.run(cwd, *self._words(name), name="last")
        return self._told(title, name, cwd, wrong)

    def by_the_clock(self, name: str, kills: int) -> list[str]:
        """Run the real command line, and kill its process, those of its folds, or both, after random seconds.

        Args:
            name: name of the configuration.
            kills: maximum number of kills.

        Returns:
            What is wrong with the finished run.
        """
        draw, cwd = random.Random(name), self._project(f"clock {name}")
        command = [sys.executable, "-c", "from competition.cli import main; main()", *map(str, self._words(name))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for number in range(kills):
            with open(cwd / f"{number:03d}.txt", "wb") as output:
                process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=output)
            time.sleep(draw.uniform(1.0, 40.0))
            family = (
                [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]
                if process.poll() is None
                else []
            )
            for pid in draw.choice([family, family[:1], family[1:]]):
                os.kill(pid, signal.SIGKILL)
            process.wait()
            if process.returncode == 0:
                print(f"clock, {name}: finished after {number} kills")
                break
        subprocess.run(command, cwd=cwd, env=environment, check=True, stdout=subprocess.DEVNULL)
        return self._told(f"clock, {name}", name, cwd, [])

    def _told(self, title: str, name: str, cwd: Path, wrong: list[str]) -> list[str]:
        wrong += differences(self.whole[name], cwd) + faults(cwd)
        print(f"{title}: {'; '.join(wrong) or 'the same'}", flush=True)
        if not wrong:
            shutil.rmtree(cwd)
        return wrong

    def _project(self, title: str) -> Path:
        cwd = self.root / title.replace(", ", "-").replace(" ", "_")
        (cwd / "mlruns").mkdir(parents=True)
        shutil.copy(self.empty, cwd / "mlruns" / "mlflow.db")
        return cwd

    def _words(self, name: str) -> list[object]:
        return ["cv", EXPERIMENT, f"competition.root={self.root / 'demo2d'}", *SMALL, *CONFIGURATIONS[name]]


if __name__ == "__main__":
    sys.exit(main())
