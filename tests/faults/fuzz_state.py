"""Damaged tables, YAML files, checkpoints and weights."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import oracles
from tests.faults.fuzz_targets import BRACKETS, GIB, Target
from tests.faults.mutations import Damage, patched, zeros, zip_bomb

ROOT = Path(__file__).resolve().parents[2]


# Tables and YAML


def _rows(path: Path) -> Any:
    from competition.tables import read_csv

    table = read_csv(path, {"train.columns.id": "id"})
    return [list(table.columns), *(list(row) for row in table.itertuples(index=False))]


def tables() -> dict[str, Target]:
    lines = [f'case_{number},{number} 3 {number + 9} 2,"a, b"' for number in range(60)]
    sound = ("id,rle,words\n" + "\n".join(lines) + "\n").encode()
    tricks: list[Damage] = [
        ("UTF-16", sound.decode().encode("utf-16")),
        ("Latin-1", sound.replace(b"a, b", b"\xe4, b")),
        ("a quote left open", sound + b'x,"1 2'),
        ("NULs", sound.replace(b" ", b"\0")),
        ("a column twice", b"id,id,rle\n1,2,3\n"),
        ("more cells than columns", sound + b"a,b,c,d\n"),
        ("a cell of 8 MB", sound + b'z,"' + b"1 2 " * 2_000_000 + b'",q\n'),
        ("a million columns", b"".join(b"c%d," % n for n in range(10**6)) + b"id\n"),
        ("100,000 lines", b"id\n" + b"1\n" * 10**5),
        ("carriage returns", sound.replace(b"\n", b"\r")),
        ("semicolons", sound.replace(b",", b";")),
        ("no line", b"id,rle,words\n"),
        ("a spreadsheet", b"PK\x03\x04" + bytes(3000)),
    ]
    return {"csv": Target("train.csv", sound, 40, _rows, oracles.table, tricks)}


def _experiment(path: Path) -> Any:
    """Load an experiment, and return the content of its YAML file with every scalar as text."""
    from competition.config.loading import load_experiment
    from competition.config.yaml import read_yaml

    load_experiment(path)
    return read_yaml(path).tree


def yamls() -> dict[str, Target]:
    sound = (ROOT / "experiments/demo2d/unet2d.yaml").read_bytes()
    beside = {"competition.yaml": (ROOT / "experiments/demo2d/competition.yaml").read_bytes()}
    laughs = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 12)
    )
    merges = b"a0: &a0 {k: v}\n" + b"".join(
        b"a%d: &a%d\n  <<: [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)
    )
    tricks: list[Damage] = [
        ("a tag that calls", sound + b'x: !!python/object/apply:os.system ["touch evil"]\n'),
        ("a tag of a name", sound + b"x: !!python/name:os.system\n"),
        ("a tag of bytes", sound + b"x: !!binary aGk=\n"),
        ("aliases of aliases", laughs),
        ("merges of merges", merges),
        ("an endless alias", sound + b"x: &x [*x]\n"),
        ("brackets", b"a: " + BRACKETS),
        ("deep keys", b"\n".join(b" " * n + b"a:" for n in range(3000))),
        ("a number of 100,000 digits", sound.replace(b"12345", b"9" * 100_000)),
        ("1e999999", sound.replace(b"12345", b"1e999999")),
        ("hex", sound.replace(b"12345", b"0x" + b"f" * 90_000)),
        ("a byte order mark", b"\xef\xbb\xbf" + sound),
        ("UTF-16", sound.decode().encode("utf-16")),
        ("NUL", sound.replace(b"seed", b"se\0d")),
        ("two documents", sound + b"---\n" + sound),
        ("a key twice", sound + b"seed: 1\n"),
        ("40,000 keys", b"".join(b"k%d: 1\n" % n for n in range(40_000))),
        ("a key that is a list", b"? [a, b]\n: 1\n"),
        ("a competition that is the file itself", sound.replace(b"competition.yaml", b"unet2d.yaml")),
        ("a competition that is a device", sound.replace(b"competition.yaml", b"/dev/zero")),
        ("a competition that is a folder", sound.replace(b"competition.yaml", b".")),
    ]
    return {
        "yaml": Target(
            "unet2d.yaml",
            sound,
            60,
            _experiment,
            oracles.words,
            tricks,
            beside,
            ("command line", "competition.yaml", "/dev/zero", "work"),
        )
    }


# Checkpoints


def _state(path: Path) -> Any:
    from competition.runs.checkpoint import load_checkpoint

    return _flat(load_checkpoint(path))


def _flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their path, with tensors as arrays."""
    if isinstance(tree, dict):
        return {name: value for part, inner in tree.items() for name, value in _flat(inner, f"{key}/{part}").items()}
    return {key: np.asarray(tree) if hasattr(tree, "detach") else tree}


class _Evil:
    """Create a file `evil` in the working folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("evil", "w")


def _checkpoint(folder: Path) -> bytes:
    import torch

    from competition.runs.checkpoint import save_checkpoint

    generator = torch.Generator().manual_seed(0)
    weights = {f"layer.{n}.weight": torch.randn(8, 4, 3, 3, generator=generator) for n in range(6)}
    save_checkpoint(folder / "sound.pt", {"step": 12, "weights": weights, "best": 0.5})
    return (folder / "sound.pt").read_bytes()


def _members(content: bytes, **changes: bytes) -> bytes:
    """Return a checkpoint in which the contents of some archive members are replaced, with correct checksums."""
    memory = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(memory, "w") as new:
        for one in old.infolist():
            short = one.filename.rpartition("/")[2].replace(".", "_")
            new.writestr(zipfile.ZipInfo(one.filename), changes.get(short, old.read(one)))
    return memory.getvalue()


def _weights(path: Path) -> Any:
    from competition.runs.checkpoint import load_weights

    network = _network()
    load_weights(network, path)
    return {name: np.asarray(tensor) for name, tensor in network.state_dict().items()}


def _network() -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))


def _tensors(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def checkpoints(folder: Path) -> dict[str, Target]:
    from competition.runs.checkpoint import save_weights

    state = _checkpoint(folder)
    save_weights(folder / "sound.safetensors", _network().state_dict())
    weights = (folder / "sound.safetensors").read_bytes()
    legacy = io.BytesIO()
    pickle.dump({"version": 1, "step": _Evil()}, legacy)
    bomb = zip_bomb("archive/data/0", b"", 3 * GIB)
    tricks: list[Damage] = [
        ("a pickle in place of the archive", legacy.getvalue()),
        ("a pickle within", _members(state, data_pkl=pickle.dumps(_Evil(), protocol=2))),
        ("another version", _members(state, data_pkl=pickle.dumps({"version": 99}, protocol=2))),
        ("a list", _members(state, data_pkl=pickle.dumps([1, 2], protocol=2))),
        ("no version", _members(state, data_pkl=pickle.dumps({}, protocol=2))),
        ("a pickle that nests", _members(state, data_pkl=b"\x80\x02" + b"](" * 200_000 + b".")),
        ("zeros unpacked", _inflated(state)),
        ("an archive of zeros", bomb),
        ("short storages", _members(state, **{str(n): b"\0" * 8 for n in range(6)})),
    ]
    header = {"0.weight": {"dtype": "F32", "shape": [8, 3, 3, 3], "data_offsets": [0, 864]}}
    import torch
    from safetensors.torch import save

    nan = save({name: torch.full_like(tensor, torch.nan) for name, tensor in _network().state_dict().items()})
    odd: list[Damage] = [
        ("a header of 2^63 bytes", struct.pack("<Q", 2**63) + weights[8:]),
        ("a header of 99 MB", struct.pack("<Q", 99_000_000) + weights[8:]),
        ("offsets outside", _tensors({"0.weight": header["0.weight"] | {"data_offsets": [0, 2**40]}})),
        ("overlapping", _tensors({f"{n}.weight": header["0.weight"] for n in range(2)}, bytes(864))),
        (
            "2^62 values",
            _tensors({"0.weight": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 864]}}, bytes(864)),
        ),
        ("brackets", _tensors(BRACKETS)),
        ("a pickle", legacy.getvalue()),
        ("no tensor", _tensors({})),
        ("another network's", _tensors(header, bytes(864))),
        ("NaN", nan),
    ]
    return {
        "last.pt": Target("last.pt", state, 40, _state, _checked_state(folder), tricks),
        "weights": Target("weights.safetensors", weights, 36, _weights, oracles.safetensors, odd),
    }


def _inflated(state: bytes) -> bytes:
    """Return a checkpoint in which one tensor's data is 3 GiB of zeros, compressed to 3 MB."""
    memory = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(state)) as old, zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as new:
        for one in old.infolist():
            name = zipfile.ZipInfo(one.filename)
            if one.filename.endswith("data/0"):
                name.compress_type = zipfile.ZIP_STORED
                new.writestr(name, _PLACE)
            else:
                new.writestr(zipfile.ZipInfo(one.filename), old.read(one))
    content = memory.getvalue()
    packed = zeros(3 * GIB)
    at, size = content.index(_PLACE), len(_PLACE)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        [info] = [one for one in archive.infolist() if one.filename.endswith("data/0")]
    entry = content.index(b"PK\x01\x02", at) if info.header_offset < at else 0
    while content[entry + 46 : entry + 46 + len(info.filename)] != info.filename.encode():
        entry = content.index(b"PK\x01\x02", entry + 4)
    sizes = struct.pack("<2I", len(packed), 3 * GIB)
    changed = patched(
        content,
        (info.header_offset + 8, b"\x08\0"),
        (info.header_offset + 18, sizes),
        (entry + 10, b"\x08\0"),
        (entry + 20, sizes),
    )
    grown = changed[:at] + packed + changed[at + size :]
    more = len(packed) - size
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for one in archive.infolist():
            if one.header_offset > info.header_offset:  # what follows has moved
                place = grown.rindex(one.filename.encode()) - 46
                grown = patched(grown, (place + 42, struct.pack("<I", one.header_offset + more)))
        end = grown.rindex(b"PK\x05\x06")
        start = struct.unpack("<I", grown[end + 16 : end + 20])[0]
    return patched(grown, (end + 16, struct.pack("<I", start + more)))


_PLACE = b"the bomb is to be put here, in the place of these very words"


def _checked_state(folder: Path) -> Callable[[bytes], Any]:
    """Return an independent decoder of checkpoints: it tests all checksums of the archive, and reads it with torch."""

    def said(content: bytes) -> Any:
        import torch

        oracles.torch_zip(content)
        (folder / "other.pt").write_bytes(content)
        state = torch.load(folder / "other.pt", weights_only=True)
        if state.pop("version") != 1:
            raise oracles.Unsound("version")
        return _flat(state)

    return said
