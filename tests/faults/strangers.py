"""Malicious files: pickles that run code when they are read, and archives that write files outside their folder."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORMULAS = ("=cmd|' /C calc'!A0", '=HYPERLINK("http://evil","x")', "+SUM(1)*cmd|'x'!A0", "@SUM(1+1)", '-2+3+cmd|"x"!A0')


class Evil:
    """Make a folder `evil` in the working folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a working folder, and check at the end that it contains nothing named `evil`; for use in a fixture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MASKFOLD_TRUST", raising=False)
    yield tmp_path
    assert not list(tmp_path.rglob("*evil*")), "a stranger's code has run"


def evil_pickle() -> bytes:
    """Return a pickle of an `Evil` object."""
    return pickle.dumps(Evil(), protocol=2)


def torch_archive() -> bytes:
    """Return an archive as torch.save writes it, with a malicious pickle in it."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in (("data.pkl", evil_pickle()), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)
    return memory.getvalue()


def old_torch() -> bytes:
    """Return a malicious file in the format that torch.save wrote before it wrote archives."""
    return (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + pickle.dumps({"little_endian": True}, 2)
        + evil_pickle()
    )


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], **how: Any) -> bytes:
    """Return a tar archive of members and their contents; `how` are options of `tarfile.open`."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", **how) as tar:
        for one, content in members:
            one.size = len(content)
            tar.addfile(one, io.BytesIO(content))
    return memory.getvalue()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **headers: str) -> tarfile.TarInfo:
    """Return a member of a tar archive.

    Args:
        name: its name.
        kind: its type, e.g. `tarfile.SYMTYPE`.
        target: target of a link.
        **headers: extended (pax) headers.
    """
    one = tarfile.TarInfo(name)
    one.type, one.linkname, one.pax_headers = kind, target, headers
    return one


def zip_bytes(*members: tuple[str, bytes, int]) -> bytes:
    """Return a zip archive of members: name, content, and Unix file mode."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content, mode in members:
            one = zipfile.ZipInfo(name)
            one.external_attr = mode << 16
            archive.writestr(one, content)
    return memory.getvalue()


GOOD_FILE = (tar_member("toy/good.txt"), b"good")
ARCHIVES = {
    "tar, up": tar_bytes(GOOD_FILE, (tar_member("toy/../../evil"), b"x")),
    "tar, absolute": tar_bytes((tar_member("/tmp/evil"), b"x"), GOOD_FILE),
    "tar, through a link": tar_bytes(
        GOOD_FILE, (tar_member("toy/out", tarfile.SYMTYPE, "../.."), b""), (tar_member("toy/out/evil"), b"x")
    ),
    "tar, a link alone": tar_bytes(GOOD_FILE, (tar_member("toy/out", tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "tar, a hard link": tar_bytes(GOOD_FILE, (tar_member("toy/out", tarfile.LNKTYPE, "../../evil"), b"")),
    "tar, renamed by its header": tar_bytes(
        GOOD_FILE, (tar_member("toy/fine", path="../../evil"), b"x"), format=tarfile.PAX_FORMAT
    ),
    "tar, a long name": tar_bytes(
        GOOD_FILE, (tar_member("toy/" + "d/" * 60 + "../" * 64 + "evil"), b"x"), format=tarfile.GNU_FORMAT
    ),
    "tar, a pipe": tar_bytes(GOOD_FILE, (tar_member("toy/evil", tarfile.FIFOTYPE), b"")),
    "tar, a device": tar_bytes(GOOD_FILE, (tar_member("toy/evil", tarfile.CHRTYPE), b"")),
    "zip, up": zip_bytes(("toy/good.txt", b"good", 0), ("../evil", b"x", 0)),
    "zip, absolute": zip_bytes(("/tmp/evil", b"x", 0)),
    "zip, backslashes": zip_bytes(("toy/good.txt", b"good", 0), ("toy\\..\\..\\evil", b"x", 0)),
    "zip, a drive": zip_bytes(("C:evil", b"x", 0), ("toy/good.txt", b"good", 0)),
    "zip, through a link": zip_bytes(
        ("toy/good.txt", b"good", 0), ("toy/out", b"../..", 0o120777), ("toy/out/evil", b"x", 0)
    ),
}
