"""`maskfold fetch`: a toy archive on a server of our own, and everything that goes wrong with one."""

from __future__ import annotations

import hashlib
import io
import socket
import sys
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from competition.config import MaskfoldError
from competition.data.fetch import place
from competition.data.fetch.decathlon import TASKS, find_task
from competition.data.fetch.download import Source, download
from competition.data.fetch.next_command import next_lines
from competition.data.fetch.place import fetch_archive
from tests.data.archives import FILES, silent, tar_of, tree


class Host(ThreadingHTTPServer):
    """A server of one file.

    Attributes:
        content: the file.
        cut: after how many bytes each connection breaks off; None: never.
        ranges: whether it knows them.
        status: what it answers instead, if not None; for the first `refusals` requests.
        asked: the `Range` of each request.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cut, self.ranges, self.status, self.refusals = content, 10**12, True, 0, 10**6
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/Task04_Toy.tar"

    def source(self) -> Source:
        return Source(self.url, len(self.content), hashlib.md5(self.content).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host, wanted = self.server, self.headers.get("Range")
        host.asked.append(wanted)
        if host.status and len(host.asked) <= host.refusals:
            self.send_error(host.status)
            return
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and host.ranges else 0
        if begin and begin >= len(host.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(host.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = host.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(host.content) - 1}/{len(host.content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[:host.cut])

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Host(tar_of(FILES))
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(source: Source, folder: Path) -> tuple[int, list[str]]:
    """Fetch without waiting between tries; how many files, and what was said."""
    said: list[str] = []
    return fetch_archive(source, folder, lambda _: silent, said.append, pause=0.0), said


def test_an_archive_becomes_a_folder_without_junk(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "toy"
    count, _ = fetched(host.source(), folder)
    assert count == 4
    assert tree(folder) == {"imagesTr/toy_001.nii.gz", "labelsTr/toy_001.nii.gz", "imagesTs/toy_002.nii.gz", "dataset.json"}
    assert (folder / "imagesTs" / "toy_002.nii.gz").read_bytes() == FILES["Task04_Toy/imagesTs/toy_002.nii.gz"]
    assert [path.name for path in folder.parent.iterdir()] == ["toy"], "nothing else is left"


def test_a_connection_that_breaks_is_taken_up_where_it_stopped(host: Host, tmp_path: Path) -> None:
    host.cut = 1_500_000
    fetched(host.source(), tmp_path / "toy")
    assert len(host.content) > 3_000_000
    assert host.asked == [None, "bytes=1500000-", "bytes=3000000-"]


def test_a_killed_download_is_gone_on_with(host: Host, tmp_path: Path) -> None:
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(host.content[:2_000_000])
    _, said = fetched(host.source(), tmp_path / "toy")
    assert host.asked == ["bytes=2000000-"]
    assert "going on after 2 MB" in said[0]


@pytest.mark.parametrize("begun", ["other", "other and longer"])
def test_a_beginning_of_another_file_is_thrown_away(host: Host, tmp_path: Path, begun: str) -> None:
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(b"?" * (1000 if begun == "other" else len(host.content) + 5))
    fetched(host.source(), tmp_path / "toy")
    assert host.asked[-1] is None
    assert (tmp_path / "toy" / "dataset.json").read_bytes() == b"{}"


def test_a_whole_part_needs_no_byte(host: Host, tmp_path: Path) -> None:
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(host.content)
    assert fetched(host.source(), tmp_path / "toy")[0] == 4
    assert host.asked == [f"bytes={len(host.content)}-"]


def test_a_server_without_ranges_sends_all_again(host: Host, tmp_path: Path) -> None:
    host.ranges = False
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(host.content[:5000])
    assert fetched(host.source(), tmp_path / "toy")[0] == 4


def test_a_busy_server_is_asked_again(host: Host, tmp_path: Path) -> None:
    host.status, host.refusals = 503, 2
    assert fetched(host.source(), tmp_path / "toy")[0] == 4
    assert len(host.asked) == 3


def test_a_wrong_checksum_leaves_nothing(host: Host, tmp_path: Path) -> None:
    source = Source(host.url, len(host.content), "0" * 32)
    with pytest.raises(MaskfoldError, match=f"MD5 {host.source().md5}, and 0000.* Type the same command again"):
        fetched(source, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 4)])
def test_a_refusal_is_one_sentence(host: Host, tmp_path: Path, status: int, tries: int) -> None:
    host.status = status
    with pytest.raises(MaskfoldError, match=f"{host.url} cannot be fetched: it answers {status}") as error:
        fetched(host.source(), tmp_path / "toy")
    assert len(host.asked) == tries
    assert "put Task04_Toy.tar from elsewhere" in error.value.cure
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_leaves_no_folder(host: Host, tmp_path: Path) -> None:
    """Neither the folder nor those above it that were made for it; one that was there stays."""
    host.status = 404
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "data" / "deep" / "toy", tmp_path / "mine" / "toy"):
        with pytest.raises(MaskfoldError, match="cannot be fetched"):
            fetched(host.source(), folder)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["mine"]


def test_a_beginning_keeps_its_folder(host: Host, tmp_path: Path) -> None:
    def broken(rows: Iterator[Any], _count: int) -> Iterator[Any]:
        yield next(rows)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_archive(host.source(), tmp_path / "data" / "toy", lambda _: broken, print, pause=0.0)
    (part,) = (tmp_path / "data").iterdir()
    assert part.name == ".Task04_Toy.tar.part" and part.stat().st_size > 0


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # a port at which nobody listens
        source = Source(f"http://127.0.0.1:{taken.getsockname()[1]}/Task04_Toy.tar", 1000, "0" * 32)
        with pytest.raises(MaskfoldError, match="cannot be fetched: .*Connection refused.* Check the network"):
            fetched(source, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_dies_keeps_what_came(host: Host, tmp_path: Path) -> None:
    host.cut = 0  # connections that bring no byte
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(host.content[:4000])
    with pytest.raises(MaskfoldError, match="the connection broke off"):
        fetched(host.source(), tmp_path / "toy")
    assert (tmp_path / ".Task04_Toy.tar.part").read_bytes() == host.content[:4000]
    assert not (tmp_path / "toy").exists()


def test_an_archive_put_there_by_hand_needs_no_network_and_stays(host: Host, tmp_path: Path) -> None:
    (tmp_path / "Task04_Toy.tar").write_bytes(host.content)
    assert fetched(host.source(), tmp_path / "toy")[0] == 4
    assert host.asked == []
    assert (tmp_path / "Task04_Toy.tar").exists()
    (tmp_path / "Task04_Toy.tar").write_bytes(host.content[:-1])
    with pytest.raises(MaskfoldError, match="Task04_Toy.tar has the MD5"):
        fetched(host.source(), tmp_path / "other")


def test_one_process_at_a_time(host: Host, tmp_path: Path) -> None:
    part = tmp_path / ".Task04_Toy.tar.part"

    def second(rows: Iterator[Any], _count: int) -> Iterator[Any]:
        with pytest.raises(MaskfoldError, match="Another process is downloading"):
            download(host.source(), part, silent)
        yield from rows

    download(host.source(), part, second, pause=0.0)
    assert part.read_bytes() == host.content


def test_too_little_room_is_said_before_anything_is_asked_for(host: Host, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2 * len(host.content) - 1))
    with pytest.raises(MaskfoldError, match="are needed below"):
        fetched(host.source(), tmp_path / "toy")
    assert host.asked == []


def test_names_of_tasks() -> None:
    assert find_task("hippocampus") == find_task("Task04_Hippocampus") == find_task("TASK04")
    assert len({task.folder for task in TASKS}) == 10
    with pytest.raises(MaskfoldError, match=r"No data set is called spleeen; did you mean spleen\? ") as error:
        find_task("spleeen")
    assert error.value.status == 2


@pytest.mark.slow  # imports MONAI
def test_monai_knows_every_task() -> None:
    from competition.data.fetch.decathlon import source_of

    for task in TASKS:
        source = source_of(task)
        assert source.url.startswith("https://")
        assert source.url.endswith(f"/{task.folder}.tar")
        assert len(source.md5) == 32


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def command(host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """`maskfold fetch`, with the toy in place of MONAI's archive; its status and what it said."""
    from competition.cli import fetch as module
    from competition.cli.main import main

    monkeypatch.setattr(module, "source_of", lambda task: host.source())
    monkeypatch.setattr(sys, "argv", ["maskfold", "fetch", *words])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out + captured.err


def test_the_command_says_size_and_licence_and_what_is_next(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = command(host, monkeypatch, capsys, "hippocampus", "--yes", "-o", str(tmp_path / "data"))
    assert status == 0
    first, *_, last = said.strip().splitlines()
    assert "Task04_Hippocampus" in first
    assert "about 28 MB, licence CC-BY-SA 4.0" in first
    assert "experiments/hippocampus/competition.yaml" in last  # there is no experiment in this folder
    assert len(tree(tmp_path / "data" / "hippocampus")) == 4

    host.asked.clear()
    status, said = command(host, monkeypatch, capsys, "hippocampus", "-o", str(tmp_path / "data"))
    assert (status, host.asked) == (0, [])
    assert "is there already" in said


def test_without_a_terminal_nothing_is_downloaded_unasked(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    status, said = command(host, monkeypatch, capsys, "hippocampus", "-o", str(tmp_path / "data"))
    assert status == 2
    assert "Add --yes" in said
    assert host.asked == []
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("y\n", 0)])
def test_a_person_is_asked(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                           answer: str, status: int) -> None:
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert command(host, monkeypatch, capsys, "hippocampus", "-o", str(tmp_path / "data"))[0] == status
    assert (tmp_path / "data" / "hippocampus").exists() == (status == 0)


def test_the_list_has_ten_tasks(host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = command(host, monkeypatch, capsys, "list")
    assert status == 0
    assert "CC-BY-SA 4.0" in said
    title, header, *rows = said.splitlines()
    assert [row.split()[0] for row in rows] == [task.name for task in TASKS], "a line a task, whatever the width"
    assert all(row.endswith(task.folder) for row, task in zip(rows, TASKS, strict=True))
    assert said.isascii(), "no lines of a box"


def test_the_next_command(tmp_path: Path) -> None:
    experiments = tmp_path / "experiments"
    for name in ("aaa_variant", "toy"):
        (experiments / name).mkdir(parents=True)
        (experiments / name / "competition.yaml").write_text(
            f"name: {name}\nroot: {tmp_path}/data/toy\nsubmission: {{sample: sample.csv}}\n")
        (experiments / name / "segresnet.yaml").write_text("competition: competition.yaml\n")
        (experiments / name / "unet3d.yaml").write_text("competition: competition.yaml\n")
    folder = tmp_path / "data" / "toy"
    lines = next_lines("toy", folder, experiments)
    assert lines[0] == f"Next: maskfold cv {experiments}/toy/unet3d.yaml"
    assert "competition.submission.sample=null" in lines[1]
    folder.mkdir(parents=True)
    (folder / "sample.csv").touch()
    assert len(next_lines("toy", folder, experiments)) == 1
    assert next_lines("toy", Path("/elsewhere/toy"), experiments)[0].endswith("toy/unet3d.yaml competition.root=/elsewhere/toy")


def test_junk_of_macos_is_no_case(tmp_path: Path) -> None:
    """`._case.nii.gz` beside the volumes, as the Decathlon's archives unpack with tar."""
    from competition.config import Competition
    from competition.data.discovery import find_images, find_masks
    from competition.data.skipped import Skipped

    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "toy_001.nii.gz").touch()
        (tmp_path / name / "._toy_001.nii.gz").touch()
    comp = Competition.model_validate({
        "name": "toy", "root": tmp_path, "dimensions": 3, "classes": ["a"], "test": {"images": "imagesTs/{id}.nii.gz"},
        "train": {"images": "imagesTr/{id}.nii.gz", "masks": "labelsTr/{id}.nii.gz"}})
    images = find_images(comp, "train", Skipped(comp))
    assert list(images) == list(find_masks(comp, images, Skipped(comp))) == ["toy_001"]
    assert list(find_images(comp, "test", Skipped(comp))) == ["toy_001"]
