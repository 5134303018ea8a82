"""The out-of-fold store: atomic writes, and no loss but rounding."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from competition.errors import MaskfoldError
from competition.runs.oof import OofStore


def probabilities(*shape: int) -> np.ndarray:
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    return (values / values.sum(0)).astype(np.float16)


def test_float16_comes_back_exactly(tmp_path: Path) -> None:
    store, values = OofStore(tmp_path / "oof"), probabilities(3, 9, 8, 7)
    assert store.ids() == []
    store.write("one", values)
    back = store.read("one")
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, values)
    assert OofStore(tmp_path / "oof").ids() == ["one"] and "one" in store and "two" not in store


def test_uint8_comes_back_to_a_step_and_takes_half_the_space(tmp_path: Path) -> None:
    values = probabilities(3, 40, 30)
    fine, coarse = OofStore(tmp_path / "a"), OofStore(tmp_path / "b", "uint8")
    fine.write("one", values)
    coarse.write("one", values)
    back = OofStore(tmp_path / "b").read("one")  # the file says how it is stored
    assert back.dtype == np.float16
    np.testing.assert_allclose(back, values.astype(np.float32), atol=0.5 / 255 + 5e-4)
    coarse.write("all", np.broadcast_to((np.arange(256) / 255).astype(np.float16), (1, 256)))
    assert len(np.unique(coarse.read("all"))) == 256
    assert coarse.path("one").stat().st_size < 0.7 * fine.path("one").stat().st_size


def test_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition.runs.oof.CHUNK_BYTES", 200)
    store, values = OofStore(tmp_path), probabilities(2, 23, 8, 7)
    store.write("one", values)
    np.testing.assert_array_equal(store.read("one"), values)


@pytest.mark.parametrize(
    "case", ["plain_1", "patient 7/day 0", "../up", ".", "..", "a%2Fb", "a:b*?", "Fälle/日本", "~x"]
)
def test_odd_ids(tmp_path: Path, case: str) -> None:
    store = OofStore(tmp_path / "oof")
    store.write(case, probabilities(2, 4, 4))
    assert store.ids() == [case] and store.read(case).shape == (2, 4, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["oof"]
    assert len(list((tmp_path / "oof").iterdir())) == 1


def test_ids_are_sorted_and_writing_again_replaces(tmp_path: Path) -> None:
    store = OofStore(tmp_path)
    for name in ("b", "a/2", "a/10"):
        store.write(name, probabilities(2, 4, 4))
    store.write("b", np.zeros((3, 2, 2), np.float16))
    assert store.ids() == ["a/10", "a/2", "b"] and store.read("b").shape == (3, 2, 2)


def test_a_missing_case(tmp_path: Path) -> None:
    with pytest.raises(MaskfoldError, match="out-of-fold prediction of the case x"):
        OofStore(tmp_path / "none").read("x")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_case_is_an_error(tmp_path: Path, damage: str) -> None:
    store = OofStore(tmp_path)
    store.write("one", probabilities(3, 20, 20))
    path = store.path("one")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 255
    path.write_bytes({"truncated": data[:-30], "flipped": data, "empty": b"", "text": b"not a zip"}[damage])
    with pytest.raises(MaskfoldError, match=r"one\.zarr\.zip is damaged"):
        store.read("one")


def test_a_failed_write_keeps_the_earlier_prediction(tmp_path: Path) -> None:
    store, values = OofStore(tmp_path), probabilities(2, 4, 4)
    store.write("one", values)
    with pytest.raises(ValueError, match="text"):
        store.write("one", np.array([[["text"]]], dtype=object))
    np.testing.assert_array_equal(store.read("one"), values)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_write_leaves_no_prediction(tmp_path: Path) -> None:
    kill = (
        "import os, signal, sys, numpy as np\n"
        "from competition.runs.oof import OofStore\n"
        "class Deadly(OofStore):\n"
        "    def _encode(self, block):\n"
        "        if block.max() == 1 and any(self.folder.iterdir()): os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super()._encode(block)\n"
        "values = np.zeros((2, 4, 4), np.float16); values[1] = 1\n"
        "Deadly(sys.argv[1]).write('one', values)"
    )
    subprocess.run([sys.executable, "-c", kill, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    store = OofStore(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and store.ids() == []
    store.write("one", probabilities(2, 4, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["one.zarr.zip"]


# Files of other cases, and missing chunks


def without_members(path: Path, drop: tuple[str, ...] = (), forget: tuple[str, ...] = ()) -> None:
    """Write a prediction again without some chunks, and its metadata without some attributes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name not in drop}
    metadata = json.loads(members["zarr.json"])
    for key in forget:
        del metadata["attributes"][key]
    members["zarr.json"] = json.dumps(metadata).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


OLD = ("shape", "sha256")  # attributes that files of 0.1 do not have


def test_a_prediction_has_the_id_the_shape_and_the_checksum_of_its_values(tmp_path: Path) -> None:
    import zarr

    for dtype in ("float16", "uint8"):
        store = OofStore(tmp_path / dtype, dtype)  # type: ignore[arg-type]
        store.write("a", probabilities(3, 5, 4))
        with zarr.storage.ZipStore(store.path("a"), mode="r") as zip_store:
            array = zarr.open_array(zip_store, mode="r")
            values = np.asarray(array[:])
            assert dict(array.attrs) == {
                "id": "a",
                "shape": [3, 5, 4],
                "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
            }


@pytest.mark.parametrize("forget", [(), OLD])
def test_the_file_of_another_case_is_refused(tmp_path: Path, forget: tuple[str, ...]) -> None:
    store = OofStore(tmp_path)
    store.write("a", probabilities(3, 5, 4), np.full((2, 1, 1), 0.5))
    without_members(store.path("a"), forget=forget)
    store.path("a").rename(store.path("b"))
    for read in (store.read, store.presence):
        with pytest.raises(
            MaskfoldError, match=r"b\.zarr\.zip is damaged: it is the prediction of the case a, expected b"
        ):
            read("b")


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_a_missing_chunk_is_not_read_as_zeros(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition.runs.oof.CHUNK_BYTES", 40)
    store, values = OofStore(tmp_path, dtype), probabilities(3, 9, 8)  # type: ignore[arg-type]
    store.write("a", values)
    before = store.read("a")
    without_members(store.path("a"), drop=("c/1/1/0",))
    with pytest.raises(MaskfoldError, match="its checksum is wrong; 1 of its .* chunks are missing"):
        store.read("a")
    without_members(store.path("a"), forget=OLD)  # as an old file: found only where the sum is known
    assert (store.read("a") != before).any()
    with pytest.raises(
        MaskfoldError, match=r"probabilities of a pixel do not add up to 1; 1 of its .* chunks are missing"
    ):
        OofStore(tmp_path, dtype, exclusive=True).read("a")  # type: ignore[arg-type]


def test_old_files_are_read_also_with_chunks_of_zeros_that_are_not_stored(tmp_path: Path) -> None:
    store, values = OofStore(tmp_path, exclusive=True), probabilities(3, 5, 4)
    values[0], values[2] = values[0] + values[2], 0
    store.write("a", values)
    with zipfile.ZipFile(store.path("a")) as archive:
        assert "c/2/0/0" not in archive.namelist()
    np.testing.assert_array_equal(store.read("a"), values)
    without_members(store.path("a"), forget=OLD)
    np.testing.assert_array_equal(store.read("a"), values)
    without_members(store.path("a"), forget=("id",))
    np.testing.assert_array_equal(store.read("a"), values)


def test_exchanged_chunks_are_refused(tmp_path: Path) -> None:
    store = OofStore(tmp_path)
    store.write("a", probabilities(3, 5, 4))
    with zipfile.ZipFile(store.path("a")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["c/0/0/0"], members["c/1/0/0"] = members["c/1/0/0"], members["c/0/0/0"]
    with zipfile.ZipFile(store.path("a"), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(MaskfoldError, match="its checksum is wrong\\."):
        store.read("a")
