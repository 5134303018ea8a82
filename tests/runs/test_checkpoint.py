"""Checkpoints and weights on disk: in one pass over the tensors, whole, and with the disk's own error."""

from __future__ import annotations

import errno
import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from competition.io import DiskFullError
from competition.runs import checkpoint as checkpoint_module
from competition.runs.checkpoint import load_checkpoint, read_weights, save_checkpoint, save_weights


def state() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=generator)
    return {
        "network": {"weight": image.contiguous(memory_format=torch.channels_last), "bias": torch.arange(3)},
        "optimizer": {"state": {0: {"step": torch.tensor(4.0), "moment": image[0]}}, "groups": [{"lr": 1e-3}]},
        "line": "an epoch",
    }


def test_a_checkpoint_is_read_back_with_values_and_layout_and_has_checksums(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    found = load_checkpoint(path)
    weight = found["network"]["weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert found.pop("line") == "an epoch"
    torch.testing.assert_close(found, {key: state()[key] for key in found}, rtol=0, atol=0)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and all(member.CRC for member in archive.infolist() if member.file_size)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_is_not_collected_in_memory_first(tmp_path, monkeypatch):
    """Its largest tensor reaches the file as it lies in memory."""
    sizes: list[int] = []

    class Spy(checkpoint_module._KeptError):
        def write(self, content: object) -> int:
            sizes.append(len(content))  # type: ignore[arg-type]
            return super().write(content)

    monkeypatch.setattr(checkpoint_module, "_KeptError", Spy)
    tensors = {str(number): torch.randn(100, 100) for number in range(5)}
    save_checkpoint(tmp_path / "last.pt", {"network": tensors})
    assert len(sizes) > 5 and sum(sizes) == (tmp_path / "last.pt").stat().st_size


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_full_disk_leaves_the_old_checkpoint_and_says_how_much_it_needs(tmp_path, monkeypatch, after):
    path = tmp_path / "last.pt"
    tensors = {"network": {"weight": torch.zeros(100, 100)}}
    save_checkpoint(path, tensors)
    before, writes = path.read_bytes(), []

    class Full(checkpoint_module._KeptError):
        def __init__(self, file: object) -> None:
            super().__init__(self)  # type: ignore[arg-type]
            self.file = type("File", (), {"write": staticmethod(self.fail)})()  # type: ignore[assignment]

        def fail(self, content: object) -> None:
            writes.append(content)
            if len(writes) > after:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_KeptError", Full)
    with pytest.raises(DiskFullError, match=rf"The disk is full: .*last.pt needs {len(before):,} bytes"):
        save_checkpoint(path, tensors)
    assert len(writes) == after + 1  # nothing is written after the error
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def shared() -> dict[str, torch.Tensor]:
    weight = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    return {"b.weight": weight, "again": weight, "steps": torch.tensor(7), 'odd "name"': torch.zeros(5).half()}


@pytest.mark.parametrize("tensors", [shared(), {"one": torch.ones(3)}, {"π": torch.zeros(0)}])
def test_weights_are_the_bytes_that_safetensors_writes(tmp_path: Path, tensors: dict[str, torch.Tensor]):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tensors)
    clones = {name: tensor.clone() for name, tensor in tensors.items()}
    plain = save(clones)
    digest = hashlib.sha256(plain[8 + int.from_bytes(plain[:8], "little") :]).hexdigest()
    assert path.read_bytes() == save(clones, {"sha256": digest})
    torch.testing.assert_close(read_weights(path), tensors, rtol=0, atol=0)


def test_weights_in_channels_last_are_the_same_file(tmp_path):
    tensors = shared()
    save_weights(tmp_path / "first", tensors)
    save_weights(
        tmp_path / "last",
        {
            name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
            for name, tensor in tensors.items()
        },
    )
    assert (tmp_path / "first").read_bytes() == (tmp_path / "last").read_bytes()
