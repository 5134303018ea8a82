"""Promise 4: two commands on one run or one cache at the same time, and one database that both want to make."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from competition.data.cache import RECORD_FILE, get_or_build, is_intact
from competition.io import TEMPORARY_NAME, atomic_write, make_temporary_path, remove_all_stale_temp, write_array
from tests.faults.instants import differences, faults
from tests.faults.toy import Stage, leftovers, pause, the_run, tracked, words_of


def test_the_second_command_on_a_run_says_who_holds_it_and_harms_nothing(
    stage: Stage, small_demo: Path, whole: Path, tmp_path: Path
) -> None:
    words = words_of(small_demo)
    first = stage.start(tmp_path, *words, kills=pause("fold_0", "step", 6), name="first")
    first.until((tmp_path / "paused").exists)
    second = stage.start(tmp_path, *words, name="second")
    assert second.wait() == 1 and "Traceback" not in second.said
    assert (
        f"{the_run(tmp_path).relative_to(tmp_path)} is in use by process {first.pid} on {os.uname().nodename}"
        in second.said
    )
    (tmp_path / "paused").unlink()
    assert first.wait() == 0, first.said
    assert differences(whole, tmp_path) == [] and faults(tmp_path) == []


def test_two_runs_begin_at_the_same_time_in_an_empty_project(stage: Stage, small_demo: Path, tmp_path: Path) -> None:
    """Both prepare the same cases, and both find no database of MLflow's."""
    words = [*words_of(small_demo), "training.epochs=1", "folds.run=[0]"]
    both = [stage.start(tmp_path, *words, f"optimizer.args.lr={rate}", name=str(rate)) for rate in (0.001, 0.002)]
    for command in both:
        assert command.wait() == 0 and "Traceback" not in command.said, command.said
        assert "cannot be sent to MLflow" not in command.said
    held = tracked(tmp_path)
    assert [one["status"] for one in held["."]] == ["FINISHED"] * 2 and [one["status"] for one in held["fold_0"]] == [
        "FINISHED"
    ] * 2
    cases = [path for path in (tmp_path / "mlruns" / "prepared").iterdir() if (path / RECORD_FILE).exists()]
    assert len(cases) == 6 and all(map(is_intact, cases)) and leftovers(tmp_path / "mlruns") == []


# The cache by itself


def build(folder: Path) -> dict[str, object]:
    write_array(
        folder / "image.npy", (4, 1000), np.float32, [np.full((1, 1000), number, np.float32) for number in range(4)]
    )
    return {"id": "case"}


def test_many_that_find_a_damaged_case_leave_a_whole_one(tmp_path: Path) -> None:
    for _ in range(5):
        get_or_build(tmp_path, "key", build)
        (tmp_path / "key" / "image.npy").write_bytes(b"half of it")
        together = threading.Barrier(8)

        def at_once(_: int, together: threading.Barrier = together) -> Path:
            def slow(folder: Path) -> dict[str, object]:
                together.wait(60)
                return build(folder)

            return get_or_build(tmp_path, "key", slow)

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(at_once, range(8))) == {tmp_path / "key"}
        assert is_intact(tmp_path / "key") and [path.name for path in tmp_path.iterdir()] == ["key"]
        assert json.loads((tmp_path / "key" / RECORD_FILE).read_text())["sizes"] == {"image.npy": 128 + 16_000}


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    mine = make_temporary_path(tmp_path / "key")
    mine.mkdir()
    dead = mine.with_name(mine.name.replace(f"~{os.getpid()}~", "~4194304~"))  # no process has a number that large
    dead.mkdir()
    (dead / "image.npy").write_bytes(b"half of it")
    reused = mine.with_name(mine.name.replace(f"~{os.getpid()}~", f"~{os.getppid()}~"))
    reused.mkdir()
    os.utime(reused, (1.0, 1.0))  # written long before the process that has the number now
    parts = [tmp_path / f".experiment.yaml.{number}.part" for number in (os.getpid(), 4194304)]
    for part in parts:
        part.write_text("half of it")
    others = [tmp_path / ".Task04.tar.part", tmp_path / "case.tmp", tmp_path / ".hidden"]
    for path in others:
        path.write_text("not ours")
    remove_all_stale_temp(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, parts[0], *others])
    remove_all_stale_temp(tmp_path, locked=True)
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("before")

    def fail(_: object) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        atomic_write(path, fail)
    assert path.read_text() == "before" and not any(TEMPORARY_NAME.fullmatch(each.name) for each in tmp_path.iterdir())
