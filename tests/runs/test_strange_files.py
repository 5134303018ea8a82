"""Small files of a stranger's run that ask for much memory: refused by their headers, before it is allocated."""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from competition.errors import MaskfoldError
from competition.runs.checkpoint import load_checkpoint, load_weights, read_weights, save_checkpoint, save_weights
from competition.runs.oof import OofPredictions, OofStore, stored_shapes

HUGE = 1 << 16  # 3 × HUGE × HUGE float16 values are 24 GiB
SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _limited_memory() -> Iterator[None]:
    """Half a GiB more than now: an allocation of 24 GiB fails as a MemoryError, not as a MaskfoldError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def _much_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 1 TiB, so that the shape must be refused and not the lack of memory."""
    memory = psutil.virtual_memory()._replace(available=2**40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def prediction(
    folder: Path, change: Callable[[dict[str, Any]], None] | None = None, chunk: bytes | None = None
) -> Path:
    """Write the prediction of case `a`, of `SHAPE`, with changed metadata or chunks."""
    store = OofStore(folder)
    store.write("a", np.full(SHAPE, 0.5, np.float16))
    path = store.path("a")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(members.pop("zarr.json"))
    if change is not None:
        change(metadata)
    if metadata["shape"] != list(SHAPE):
        members = {}  # no chunk is needed: what is missing is 0
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zarr.json", json.dumps(metadata))
        for name, content in members.items():
            archive.writestr(name, content if chunk is None else chunk)
    return path


def with_shape(metadata: dict[str, Any]) -> None:
    metadata["shape"] = [3, HUGE, HUGE]


def with_chunks(metadata: dict[str, Any]) -> None:
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [1, HUGE, HUGE]


def frame(size: int | None) -> bytes:
    """Return the start of a Zstandard frame that declares `size` bytes: a few bytes that repeat."""
    header = b"\x28\xb5\x2f\xfd" + (b"\x00\x58" if size is None else b"\xe0" + struct.pack("<Q", size))
    block = struct.pack("<I", (100_000 << 3) | 2)[:3] + b"\x00"  # 100,000 zeros, and another block follows
    return header + block * 40


@pytest.mark.parametrize(
    ("change", "chunk", "reason"),
    [
        (with_shape, None, rf"found the shape \(3, {HUGE}, {HUGE}\), expected \(3, 8, 8\)"),
        (with_chunks, None, "found chunks of"),
        (None, frame(24 << 30), "has 25769803776 bytes, expected 128"),
        (None, frame(None), "has None bytes, expected 128"),
        (None, b"", "has None bytes"),
    ],
)
def test_a_prediction_that_declares_more_than_the_case_has(
    tmp_path: Path, change: Any, chunk: bytes | None, reason: str
) -> None:
    path = prediction(tmp_path, change, chunk)
    assert path.stat().st_size < 2000
    store = OofStore(tmp_path, "float16", {"a": SHAPE})
    for read in (store.read, store.presence):
        with pytest.raises(MaskfoldError, match=rf"a\.zarr\.zip is damaged: .*{reason}"):
            read("a")


def test_a_prediction_as_it_was_written_is_read(tmp_path: Path) -> None:
    prediction(tmp_path)
    assert (OofStore(tmp_path, "float16", {"a": SHAPE}).read("a") == 0.5).all()
    for dtype in ("float16", "uint8"):  # several chunks of other lengths, and one of 0 that is not stored
        store = OofStore(tmp_path / dtype, dtype, {"b": (2, 700, 600)})  # type: ignore[arg-type]
        values = np.random.default_rng(0).random((2, 700, 600)).astype(np.float16)
        values[1] = 0
        store.write("b", values)
        assert store.read("b").shape == values.shape and (store.read("b")[1] == 0).all()


def test_a_compressed_member_of_a_prediction(tmp_path: Path) -> None:
    path = prediction(tmp_path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", b" " * 2**24)
    with pytest.raises(MaskfoldError, match="is compressed, but"):
        OofStore(tmp_path).read("a")


def test_without_a_table_the_free_memory_is_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = psutil.virtual_memory()._replace(available=2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    prediction(tmp_path, with_shape)
    for shapes in (None, {"a": (3, HUGE, HUGE)}):  # the stranger changed the table as well
        with pytest.raises(MaskfoldError, match=r"needs 24\.0 GiB .* 1\.0 GiB are free"):
            OofStore(tmp_path, "float16", shapes).read("a")


def test_the_predictions_of_a_run_are_compared_with_its_table(
    finished: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    run = finished(tiny(2))
    oof = OofPredictions(run)
    case = next(iter(oof.fold_of))
    assert oof.read(case).shape == stored_shapes(run.exp, run.cases)[case]
    store = oof.stores[oof.fold_of[case]][0]
    prediction(tmp_path, with_shape).replace(store.path(case))
    with pytest.raises(MaskfoldError, match="found the shape"):
        oof.read(case)
    table = run.cases.copy()
    table.loc[0, "shape"] = '["a", 3]'
    with pytest.raises(MaskfoldError, match="expected positive whole numbers"):
        stored_shapes(run.exp, table)


# Weights and checkpoints


def sparse_weights(path: Path, shape: list[int], dtype: str = "F32") -> None:
    """Write a .safetensors file whose values are a hole: it takes no space on the disk."""
    size = int(np.prod(shape)) * {"F32": 4, "F64": 8}[dtype]
    header = {
        "bias": {"dtype": dtype, "shape": [1], "data_offsets": [size, size + size // int(np.prod(shape))]},
        "weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]},
    }
    content = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + header["bias"]["data_offsets"][1])


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ([1, 1 << 28], "F32", r"shape of weight: found \(1, 268435456\), expected \(1, 2\)"),
        ([1, 2], "F64", "bytes per value of (bias|weight): found 8, expected at most 4"),
    ],
)
def test_weights_are_compared_with_the_network_by_their_header(
    tmp_path: Path, shape: list[int], dtype: str, reason: str
) -> None:
    path = tmp_path / "weights.safetensors"
    sparse_weights(path, shape, dtype)
    with pytest.raises(MaskfoldError, match=reason):
        load_weights(nn.Linear(2, 1), path)


def test_weights_larger_than_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    sparse_weights(path, [1, 1 << 28])
    memory = psutil.virtual_memory()._replace(available=2**29)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(MaskfoldError, match=r"has 1\.0 GiB.* 0\.5 GiB .* free"):
        read_weights(path)


def test_all_types_of_values_are_read_back(tmp_path: Path) -> None:
    network = nn.Module()
    for index, dtype in enumerate((torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)):
        network.register_buffer(f"b{index}", torch.ones(3, dtype=dtype))
    save_weights(tmp_path / "weights.safetensors", network.state_dict())
    load_weights(network, tmp_path / "weights.safetensors")


class LongBytes:
    def __reduce__(self) -> Any:
        return bytearray, (24 << 30,)


def checkpoint_with(content: bytes) -> bytes:
    """Return a checkpoint whose pickle is replaced."""
    memory, result = io.BytesIO(), io.BytesIO()
    torch.save({"version": 1}, memory)
    with zipfile.ZipFile(memory) as archive, zipfile.ZipFile(result, "w") as changed:
        for name in archive.namelist():
            changed.writestr(name, content if name.endswith("data.pkl") else archive.read(name))
    return result.getvalue()


def test_a_checkpoint_cannot_ask_for_memory(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(checkpoint_with(pickle.dumps({"version": 1, "x": LongBytes()}, 2)))
    with pytest.raises(MaskfoldError, match="it contains a bytearray"):
        load_checkpoint(path)
    for tensor in (
        torch.zeros(1).expand(6 << 30),
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (6 << 30,)),
        torch.zeros(6 << 30, device="meta"),
    ):
        save_checkpoint(path, {"optimizer": {"state": {0: [{"exp_avg": tensor}]}}})
        assert path.stat().st_size < 5000
        with pytest.raises(MaskfoldError, match="the file has fewer values"):
            load_checkpoint(path)


def test_a_checkpoint_as_it_was_written_is_read(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "line": "bytearray"})
    assert load_checkpoint(path)["line"] == "bytearray"
