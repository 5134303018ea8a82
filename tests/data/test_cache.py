"""The cache: whole or not at all, whatever happens to whoever builds it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from competition.config.errors import MaskfoldError
from competition.data.cache import PreparedCase, cache_key, fetch, intact
from competition.data.files import FullDisk, temporary, write_array

from .test_prepare import experiment


def build(value: int) -> Any:
    def fill(folder: Path) -> dict[str, Any]:
        write_array(folder / "image.npy", (2, 3, 4), np.int16, (np.full((1, 3, 4), value + i) for i in range(2)))
        return {"value": value}

    return fill


def refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("built although it was there")


def test_built_once(tmp_path: Path) -> None:
    folder = fetch(tmp_path / "new" / "cache", "key", build(5))
    image = np.load(folder / "image.npy", mmap_mode="r")
    assert image.dtype == np.int16 and image[0].max() == 5 and image[1].min() == 6
    assert fetch(tmp_path / "new" / "cache", "key", refuse) == folder


@pytest.mark.parametrize("damage", ["short", "gone", "record", "empty record"])
def test_a_damaged_case_is_rebuilt(tmp_path: Path, damage: str) -> None:
    folder = fetch(tmp_path, "key", build(5))
    if damage == "short":
        (folder / "image.npy").write_bytes((folder / "image.npy").read_bytes()[:-1])
    elif damage == "gone":
        (folder / "image.npy").unlink()
    else:
        (folder / "case.json").write_text('{"sizes": {"image' if damage == "record" else "null")
    assert not intact(folder)
    with pytest.raises(MaskfoldError, match="missing or damaged"):
        PreparedCase.open(folder)
    assert fetch(tmp_path, "key", build(9)) == folder
    assert np.load(folder / "image.npy").max() == 10
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "image.npy").write_bytes(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fetch(tmp_path, "key", fail)
    assert not list(tmp_path.iterdir())


def test_the_loser_of_a_race_throws_its_work_away(tmp_path: Path) -> None:
    def slow(folder: Path) -> dict[str, Any]:
        fetch(tmp_path, "key", build(1))  # another process is done while this one still works
        return build(2)(folder)

    folder = fetch(tmp_path, "key", slow)
    assert np.load(folder / "image.npy").min() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def _race(root: str, barrier: Any, value: int) -> None:
    barrier.wait()
    for key in range(30):
        fetch(Path(root), f"key{key}", build(value))


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    racers = [context.Process(target=_race, args=(str(tmp_path), barrier, value)) for value in (1, 2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"key{key}" for key in range(30))
    assert all(intact(path) for path in tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_the_living_are_spared(tmp_path: Path) -> None:
    kill = ("import os, signal, sys; from pathlib import Path; from competition.data.cache import fetch\n"
            "def build(folder):\n"
            "    (folder / 'image.npy').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
            "fetch(Path(sys.argv[1]), 'key', build)")
    subprocess.run([sys.executable, "-c", kill, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert len(list(tmp_path.glob(".key~*.tmp"))) == 1
    living = temporary(tmp_path / "key")
    living.mkdir()
    other_host = tmp_path / ".key~elsewhere~1~00000000.tmp"
    other_host.mkdir()
    old = tmp_path / ".key~elsewhere~1~11111111.tmp"
    old.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    fetch(tmp_path, "key", build(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["key", living.name, other_host.name])
    assert socket.gethostname() in living.name


def test_a_full_disk_is_one_error_with_path_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FullDisk, match=r"disk is full: .*image.npy needs 48 bytes\. Free some space"):
        fetch(tmp_path, "key", build(1))
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_disk_are_not_taken_for_a_full_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_array(tmp_path / "absent" / "a.npy", (1,), np.uint8, [np.zeros(1)])


def test_parts_must_add_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes of parts"):
        write_array(tmp_path / "a.npy", (2, 3), np.float32, [np.zeros(3)])


@pytest.mark.parametrize("shape", [(0, 4), (3,), (2, 1, 5)])
def test_arrays_are_read_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random((*reversed(shape),)).T  # not contiguous
    write_array(tmp_path / "a.npy", shape, np.float64, [array])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)


def test_the_key_follows_what_the_arrays_depend_on() -> None:
    row = SimpleNamespace(id="one", split="train", hash="abc")
    keys = {
        cache_key(row, experiment()), cache_key(row, experiment(spacing=[1.0, 1.0, 1.0])),
        cache_key(row, experiment(intensity="minmax")), cache_key(row, experiment(comp={"classes": ["b", "a"]})),
        cache_key(row, experiment(comp={"label_values": [2, 1]})), cache_key(row, experiment(comp={"ignore": 255})),
        cache_key(row, experiment(comp={"labels": "overlapping"})),
        cache_key(SimpleNamespace(id="one", split="train", hash="abd"), experiment()),
        cache_key(SimpleNamespace(id="two", split="train", hash="abc"), experiment()),
        cache_key(SimpleNamespace(id="one", split="test", hash="abc"), experiment()),
    }
    assert len(keys) == 10
    assert cache_key(row, experiment().model_copy(update={"seed": 7})) == cache_key(row, experiment())
