"""Unpacking of archives: completely or not at all."""

from __future__ import annotations

import tarfile
import types
import zipfile
from pathlib import Path

import pytest

from competition.datasets.download import unpack_archive
from competition.errors import MaskfoldError
from tests.datasets.archives import FILES, member, silent, tar_of, tree


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../evil.txt", "outside the folder"),
        ("toy/../../evil.txt", "outside the folder"),
        ("/tmp/evil.txt", "outside the folder"),
        ("toy\\..\\..\\evil.txt", "outside the folder"),
        ("C:/evil.txt", "outside the folder"),
    ],
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_outside_the_folder_is_rejected(tmp_path: Path, name: str, problem: str, kind: str) -> None:
    archive, inside = tmp_path / f"bad.{kind}", tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    if kind == "tar":
        archive.write_bytes(tar_of({"toy/good.txt": b"good", name: b"evil"}))
    else:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("toy/good.txt", "good")
            file.writestr(name, "evil")
    with pytest.raises(MaskfoldError, match=f"was not unpacked: its member .* {problem}"):
        unpack_archive(archive, inside / "toy", silent)
    assert list(inside.iterdir()) == []
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (member("toy/link", tarfile.SYMTYPE, "/etc"), "is a link"),
        (member("toy/hard", tarfile.LNKTYPE, "/etc/passwd"), "is a link"),
        (member("toy/pipe", tarfile.FIFOTYPE), "is a device or a pipe"),
        (member("toy/device", tarfile.CHRTYPE), "is a device or a pipe"),
        (member("../outside", tarfile.DIRTYPE), "outside the folder"),
    ],
)
def test_links_and_devices_are_rejected(tmp_path: Path, bad: tarfile.TarInfo, problem: str) -> None:
    (tmp_path / "bad.tar").write_bytes(tar_of({"toy/good.txt": b"good"}, bad))
    with pytest.raises(MaskfoldError, match=problem):
        unpack_archive(tmp_path / "bad.tar", tmp_path / "toy", silent)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"]


def test_a_link_in_a_zip_is_rejected(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("toy/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(MaskfoldError, match="is a link"):
        unpack_archive(tmp_path / "bad.zip", tmp_path / "toy", silent)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "twice", "flipped"])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, damage: str) -> None:
    archive = tmp_path / "bad.archive"
    whole = tar_of(FILES)
    if damage == "flipped":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("toy/a.txt", b"a" * 1000)
        archive.write_bytes(archive.read_bytes().replace(b"aaaaa", b"aabaa", 1))
    else:
        archive.write_bytes(
            {
                "cut": whole[:2_000_000],
                "text": b"<html>no such file</html>" * 50,
                "empty": tar_of({"._x": b"junk"}),
                "twice": tar_of({"toy/a": b"1", "toy/a/b": b"2"}),
            }[damage]
        )
    with pytest.raises(MaskfoldError, match="is damaged|contains no files|contains one path"):
        unpack_archive(archive, tmp_path / "toy", silent)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.archive"]


def test_files_without_a_common_folder_stay_as_they_are(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/a.png", "a")
        file.writestr("sample_submission.csv", "id,rle\n")
    (tmp_path / "c").mkdir()  # an empty folder is replaced
    assert unpack_archive(tmp_path / "c.zip", tmp_path / "c", silent) == 2
    assert tree(tmp_path / "c") == {"train/a.png", "sample_submission.csv"}


def test_an_archive_larger_than_the_free_space_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(5_000_000))
    monkeypatch.setattr(
        "competition.datasets.download.shutil.disk_usage", lambda _: types.SimpleNamespace(free=4_999_999)
    )
    with pytest.raises(MaskfoldError, match="unpacks to 5,000,000 bytes, but .* has only 4,999,999 "):
        unpack_archive(tmp_path / "bomb.zip", tmp_path / "toy", silent)
