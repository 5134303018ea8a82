"""Within a block, each small file is read once, so decoder and digest see the same content."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from competition.data.content import open_once
from competition.data.content.open_once import file_below, keep_contents, open_file
from competition.data.image_types import file_digest


def test_a_block_sees_the_first_content_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    with keep_contents():
        with open_file(path) as file:
            assert file.read(2) == b"fi"
        path.write_bytes(b"second")
        with keep_contents(), open_file(tmp_path / "a") as file:
            assert file.read() == b"first"
        path.unlink()
        assert open_file(path).read() == b"first"
    with pytest.raises(FileNotFoundError):
        open_file(path)


def test_a_large_file_is_read_from_the_disk_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_once, "MAX_KEPT", 3)
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    with keep_contents():
        with open_file(path) as file:
            assert file.read() == b"1234"
        path.write_bytes(b"5678")
        with open_file(path) as file:
            assert file.read() == b"5678"


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz"])
def test_the_digest_is_that_of_the_file_on_the_disk(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"voxels"))
    before = file_digest(path)
    with keep_contents():
        open_file(path).read()
        assert file_digest(path) == before
        path.write_bytes(b"other")
        assert file_digest(path) == before
    assert file_digest(path) != before


def test_a_path_below_the_root_is_made_once(tmp_path: Path) -> None:
    assert file_below(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"
    assert file_below(tmp_path, "a/b.png") is file_below(tmp_path, "a/b.png")
