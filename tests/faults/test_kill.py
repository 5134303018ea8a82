"""Promise 1: a run that is killed at any instant, and started again, ends as if nothing had happened."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.instants import CONFIGURATIONS, attempts, differences, expected, faults
from tests.faults.toy import EXPERIMENT, SMALL, Stage, gone

KILLS = 20


@pytest.fixture(scope="module")
def ends(
    stage: Stage, small_demo: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future]:
    """For each configuration the folders of an undisturbed project and of one that was killed twenty times."""
    root = tmp_path_factory.mktemp("kill")
    empty = stage.database(root / "empty.db")

    def both(name: str, seed: int) -> tuple[Path, Path]:
        words = ["cv", EXPERIMENT, f"competition.root={small_demo}", *SMALL, *CONFIGURATIONS[name]]
        whole, killed = root / f"{seed}-whole", root / f"{seed}-killed"
        for folder in (whole, killed):
            (folder / "mlruns").mkdir(parents=True)
        shutil.copy(empty, whole / "mlruns" / "mlflow.db")
        if seed:  # the first one makes its database, and is killed at that
            shutil.copy(empty, killed / "mlruns" / "mlflow.db")
        stage.run(whole, *words)
        plan = attempts(seed, database=not seed)
        assert len(plan) == KILLS
        for number, kills in enumerate(plan):
            command = stage.start(killed, *words, kills=kills, name=f"{number:02d}")
            status, word = expected(kills)
            assert command.wait() == status and word in command.said, (number, kills, command.status, command.said)
        stage.run(killed, *words, name="last")
        return whole, killed

    asked = [name for name in CONFIGURATIONS if any(f"[{name}]" in item.name for item in request.session.items)]
    with ThreadPoolExecutor(len(CONFIGURATIONS)) as pool:  # a run is one process at a time, and there are two cores
        return {name: pool.submit(both, name, list(CONFIGURATIONS).index(name)) for name in asked}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_that_was_killed_twenty_times_ends_as_an_undisturbed_one(ends: dict[str, Future], name: str) -> None:
    whole, killed = ends[name].result()
    assert differences(whole, killed) == []
    assert faults(killed) == []


def test_a_fold_notices_the_death_of_its_command(stage: Stage, small_demo: Path, tmp_path: Path) -> None:
    words = [
        "cv",
        EXPERIMENT,
        f"competition.root={small_demo}",
        *SMALL,
        "training.epochs=100000",
        "training.precision=fp32",
    ]
    command = stage.start(tmp_path, *words)
    command.until(lambda: "epoch 2 " in command.said)
    pids = [process.pid for process in command.family()]
    assert pids
    command.signal(9)
    assert command.wait() == -9 and gone(pids)
    folder = next((tmp_path / "mlruns" / "runs").glob("*/*/fold_0"))
    assert (folder / "last.pt").exists() and "stopped (the parent process ended)" in (folder / "log.txt").read_text()
