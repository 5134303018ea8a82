"""The cache: entries are complete or absent, whatever happens to the processes that build them."""

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

from competition.data.cache import PreprocessedCase, cache_key, get_or_build, is_intact
from competition.data.cases import case_table
from competition.errors import MaskfoldError
from competition.io import DiskFullError, make_temporary_path, remove_all_stale_temp, write_array
from tests.data.building import build, race
from tests.data.test_preprocessing import experiment
from tests.host import competition, write_png


def refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("built although it was there")


def test_built_once(tmp_path: Path) -> None:
    folder = get_or_build(tmp_path / "new" / "cache", "key", build(5))
    image = np.load(folder / "image.npy", mmap_mode="r")
    assert image.dtype == np.int16 and image[0].max() == 5 and image[1].min() == 6
    assert get_or_build(tmp_path / "new" / "cache", "key", refuse) == folder


@pytest.mark.parametrize("damage", ["short", "gone", "record", "empty record"])
def test_a_damaged_case_is_rebuilt(tmp_path: Path, damage: str) -> None:
    folder = get_or_build(tmp_path, "key", build(5))
    if damage == "short":
        (folder / "image.npy").write_bytes((folder / "image.npy").read_bytes()[:-1])
    elif damage == "gone":
        (folder / "image.npy").unlink()
    else:
        (folder / "case.json").write_text('{"sizes": {"image' if damage == "record" else "null")
    assert not is_intact(folder)
    with pytest.raises(MaskfoldError, match="missing or damaged"):
        PreprocessedCase.open(folder)
    assert get_or_build(tmp_path, "key", build(9)) == folder
    assert np.load(folder / "image.npy").max() == 10
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "image.npy").write_bytes(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        get_or_build(tmp_path, "key", fail)
    assert not list(tmp_path.iterdir())


def test_the_slower_of_two_builders_discards_its_work(tmp_path: Path) -> None:
    def slow(folder: Path) -> dict[str, Any]:
        get_or_build(tmp_path, "key", build(1))  # another process is done while this one still works
        return build(2)(folder)

    folder = get_or_build(tmp_path, "key", slow)
    assert np.load(folder / "image.npy").min() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    racers = [context.Process(target=race, args=(str(tmp_path), barrier, value)) for value in (1, 2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"key{key}" for key in range(30))
    assert all(is_intact(path) for path in tmp_path.iterdir())


def test_files_of_killed_processes_are_removed_and_of_living_ones_kept(tmp_path: Path) -> None:
    kill = (
        "import os, signal, sys; from pathlib import Path; from competition.data.cache import get_or_build\n"
        "def build(folder):\n"
        "    (folder / 'image.npy').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "get_or_build(Path(sys.argv[1]), 'key', build)"
    )
    subprocess.run([sys.executable, "-c", kill, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert len(list(tmp_path.glob(".key~*.tmp"))) == 1
    living = make_temporary_path(tmp_path / "key")
    living.mkdir()
    other_host = tmp_path / ".key~elsewhere~1~00000000.tmp"
    other_host.mkdir()
    old = tmp_path / ".key~elsewhere~1~11111111.tmp"
    old.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    remove_all_stale_temp(tmp_path)  # as each command does once, before it builds cases
    get_or_build(tmp_path, "key", build(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["key", living.name, other_host.name])
    assert socket.gethostname() in living.name


def test_a_full_disk_is_one_error_with_path_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"disk is full: .*image.npy needs 176 bytes"):
        get_or_build(tmp_path, "key", build(1))
    assert not list(tmp_path.iterdir())


def test_other_disk_errors_are_not_reported_as_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_array(tmp_path / "absent" / "a.npy", (1,), np.uint8, [np.zeros(1)])


def test_parts_must_add_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 24"):
        write_array(tmp_path / "a.npy", (2, 3), np.float32, [np.zeros(3)])


@pytest.mark.parametrize("shape", [(0, 4), (3,), (2, 1, 5)])
def test_arrays_are_read_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random((*reversed(shape),)).T  # not contiguous
    write_array(tmp_path / "a.npy", shape, np.float64, [array])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), array)


def test_cache_key_depends_on_everything_that_changes_the_arrays() -> None:
    row = SimpleNamespace(id="one", split="train", hash="abc")
    keys = {
        cache_key(row, experiment()),
        cache_key(row, experiment(spacing=[1.0, 1.0, 1.0])),
        cache_key(row, experiment(intensity="minmax")),
        cache_key(row, experiment(comp={"classes": ["b", "a"]})),
        cache_key(row, experiment(comp={"label_values": [2, 1]})),
        cache_key(row, experiment(comp={"ignore": 255})),
        cache_key(row, experiment(comp={"labels": "overlapping"})),
        cache_key(SimpleNamespace(id="one", split="train", hash="abd"), experiment()),
        cache_key(SimpleNamespace(id="two", split="train", hash="abc"), experiment()),
        cache_key(SimpleNamespace(id="one", split="test", hash="abc"), experiment()),
    }
    assert len(keys) == 10
    assert cache_key(row, experiment().model_copy(update={"seed": 7})) == cache_key(row, experiment())


def test_exchanged_classes_of_mask_files_are_not_read_from_the_cache(tmp_path: Path) -> None:
    """The hash of the case is the same, because it covers the same files in the same order."""
    write_png(tmp_path / "images/a.png", np.zeros((4, 4), np.uint8))
    for name in ("p", "q"):
        write_png(tmp_path / f"{name}/a.png", np.eye(4, dtype=np.uint8)[:: 1 if name == "p" else -1] * 255)
    keys = set()
    for masks in ({"a": "p/{id}.png", "b": "q/{id}.png"}, {"b": "p/{id}.png", "a": "q/{id}.png"}):
        train = {"images": "images/{id}.png", "masks": masks}
        exp = experiment(2, comp={"root": str(tmp_path), "train": train})
        keys.add(cache_key(case_table(exp.competition).iloc[0], exp))
    assert len(keys) == 2


def test_an_object_file_that_moves_to_another_class_changes_the_hash(tmp_path: Path) -> None:
    write_png(tmp_path / "images/a.png", np.zeros((4, 4), np.uint8))
    for path in ("x/a/1.png", "x/a/2.png", "y/a/3.png"):
        write_png(tmp_path / path, np.full((4, 4), int(path[4]), np.uint8))
    train = {"images": "images/{id}.png", "masks": {"x": "x/{id}/*.png", "y": "y/{id}/*.png"}}
    comp = competition(tmp_path, classes=["x", "y"], instances=True, train=train)
    before = case_table(comp).iloc[0].hash
    (tmp_path / "x/a/2.png").rename(tmp_path / "y/a/2.png")
    assert case_table(comp).iloc[0].hash != before
