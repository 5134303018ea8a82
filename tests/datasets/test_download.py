"""`maskfold fetch`: a small archive on a local server, and every kind of failure."""

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

from competition.datasets import download as download_module
from competition.datasets.decathlon import TASKS, find_task
from competition.datasets.download import RemoteFile, download, download_and_unpack, suggest_next_command
from competition.errors import MaskfoldError
from tests.datasets.archives import FILES, silent, tar_of, tree


class Host(ThreadingHTTPServer):
    """Server of one file.

    Attributes:
        content: the file.
        max_bytes: bytes after which each connection is closed.
        supports_ranges: whether it supports range requests.
        status: the HTTP error of the first `failures` requests, if not 0.
        requested: the `Range` header of each request.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.max_bytes, self.supports_ranges = content, 10**12, True
        self.status, self.failures = 0, 10**6
        self.requested: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/Task04_Toy.tar"

    def source(self) -> RemoteFile:
        return RemoteFile(self.url, len(self.content), hashlib.md5(self.content).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host, range_header = self.server, self.headers.get("Range")
        host.requested.append(range_header)
        if host.status and len(host.requested) <= host.failures:
            self.send_error(host.status)
            return
        begin = 0
        if range_header and host.supports_ranges:
            begin = int(range_header.removeprefix("bytes=").rstrip("-"))
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
        self.wfile.write(part[: host.max_bytes])

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


def fetched(source: RemoteFile, folder: Path) -> tuple[int, list[str]]:
    """Fetch without pauses between tries; return the number of files and the printed lines."""
    printed: list[str] = []
    return download_and_unpack(source, folder, lambda _: silent, printed.append, pause=0.0), printed


def test_an_archive_becomes_a_folder_without_junk(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "toy"
    count, _ = fetched(host.source(), folder)
    assert count == 4
    assert tree(folder) == {
        "imagesTr/toy_001.nii.gz",
        "labelsTr/toy_001.nii.gz",
        "imagesTs/toy_002.nii.gz",
        "dataset.json",
    }
    assert (folder / "imagesTs" / "toy_002.nii.gz").read_bytes() == FILES["Task04_Toy/imagesTs/toy_002.nii.gz"]
    assert [path.name for path in folder.parent.iterdir()] == ["toy"], "no other file is left"


def test_a_closed_connection_is_resumed(host: Host, tmp_path: Path) -> None:
    host.max_bytes = 1_500_000
    fetched(host.source(), tmp_path / "toy")
    assert len(host.content) > 3_000_000
    assert host.requested == [None, "bytes=1500000-", "bytes=3000000-"]


def test_a_killed_download_is_resumed(host: Host, tmp_path: Path) -> None:
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(host.content[:2_000_000])
    _, printed = fetched(host.source(), tmp_path / "toy")
    assert host.requested == ["bytes=2000000-"]
    assert "resuming the download after 2 MB" in printed[0]


@pytest.mark.parametrize("begun", ["other", "other and longer"])
def test_a_partial_download_of_another_file_is_discarded(host: Host, tmp_path: Path, begun: str) -> None:
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(b"?" * (1000 if begun == "other" else len(host.content) + 5))
    fetched(host.source(), tmp_path / "toy")
    assert host.requested[-1] is None
    assert (tmp_path / "toy" / "dataset.json").read_bytes() == b"{}"


def test_a_complete_partial_file_downloads_nothing(host: Host, tmp_path: Path) -> None:
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(host.content)
    assert fetched(host.source(), tmp_path / "toy")[0] == 4
    assert host.requested == [f"bytes={len(host.content)}-"]


def test_a_server_without_ranges_sends_all_again(host: Host, tmp_path: Path) -> None:
    host.supports_ranges = False
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(host.content[:5000])
    assert fetched(host.source(), tmp_path / "toy")[0] == 4


def test_a_busy_server_is_retried(host: Host, tmp_path: Path) -> None:
    host.status, host.failures = 503, 2
    assert fetched(host.source(), tmp_path / "toy")[0] == 4
    assert len(host.requested) == 3


def test_a_wrong_checksum_leaves_nothing(host: Host, tmp_path: Path) -> None:
    source = RemoteFile(host.url, len(host.content), "0" * 32)
    with pytest.raises(MaskfoldError, match=f"found .*{host.source().expected_md5}, expected 0000"):
        fetched(source, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 4)])
def test_an_http_error_is_one_message(host: Host, tmp_path: Path, status: int, tries: int) -> None:
    host.status = status
    with pytest.raises(MaskfoldError, match=f"{host.url} cannot be downloaded: HTTP status {status}") as error:
        fetched(host.source(), tmp_path / "toy")
    assert len(host.requested) == tries
    assert "copy Task04_Toy.tar" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_http_error_leaves_no_folder(host: Host, tmp_path: Path) -> None:
    """The folder and its created parents are removed; an existing parent stays."""
    host.status = 404
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "data" / "deep" / "toy", tmp_path / "mine" / "toy"):
        with pytest.raises(MaskfoldError, match="cannot be downloaded"):
            fetched(host.source(), folder)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["mine"]


def test_a_partial_download_keeps_its_folder(host: Host, tmp_path: Path) -> None:
    def broken(rows: Iterator[Any], _count: int) -> Iterator[Any]:
        yield next(rows)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_and_unpack(host.source(), tmp_path / "data" / "toy", lambda _: broken, print, pause=0.0)
    (part,) = (tmp_path / "data").iterdir()
    assert part.name == ".Task04_Toy.tar.part" and part.stat().st_size > 0


def test_no_network_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # a port without a server
        source = RemoteFile(f"http://127.0.0.1:{taken.getsockname()[1]}/Task04_Toy.tar", 1000, "0" * 32)
        with pytest.raises(MaskfoldError, match="cannot be downloaded: .*Connection refused"):
            fetched(source, tmp_path / "toy")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_network_keeps_the_partial_download(host: Host, tmp_path: Path) -> None:
    host.max_bytes = 0
    (tmp_path / ".Task04_Toy.tar.part").write_bytes(host.content[:4000])
    with pytest.raises(MaskfoldError, match="the connection was closed early"):
        fetched(host.source(), tmp_path / "toy")
    assert (tmp_path / ".Task04_Toy.tar.part").read_bytes() == host.content[:4000]
    assert not (tmp_path / "toy").exists()


def test_an_archive_of_the_user_needs_no_network_and_stays(host: Host, tmp_path: Path) -> None:
    (tmp_path / "Task04_Toy.tar").write_bytes(host.content)
    assert fetched(host.source(), tmp_path / "toy")[0] == 4
    assert host.requested == []
    assert (tmp_path / "Task04_Toy.tar").exists()
    (tmp_path / "Task04_Toy.tar").write_bytes(host.content[:-1])
    with pytest.raises(MaskfoldError, match="Task04_Toy.tar is damaged: found the MD5"):
        fetched(host.source(), tmp_path / "other")


def test_one_process_at_a_time(host: Host, tmp_path: Path) -> None:
    part = tmp_path / ".Task04_Toy.tar.part"

    def second(rows: Iterator[Any], _count: int) -> Iterator[Any]:
        with pytest.raises(MaskfoldError, match="Another process is downloading"):
            download(host.source(), part, silent)
        yield from rows

    download(host.source(), part, second, pause=0.0)
    assert part.read_bytes() == host.content


def test_too_little_space_is_reported_before_the_first_request(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        download_module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2 * len(host.content) - 1)
    )
    with pytest.raises(MaskfoldError, match="too little disk space"):
        fetched(host.source(), tmp_path / "toy")
    assert host.requested == []


def test_names_of_tasks() -> None:
    assert find_task("hippocampus") == find_task("Task04_Hippocampus") == find_task("TASK04")
    assert len({task.folder for task in TASKS}) == 10
    with pytest.raises(MaskfoldError, match=r"no data set spleeen\. Did you mean spleen\? ") as error:
        find_task("spleeen")
    assert error.value.status == 2


@pytest.mark.slow  # imports MONAI
def test_monai_knows_every_task() -> None:
    from competition.datasets.decathlon import remote_file_of

    for task in TASKS:
        source = remote_file_of(task)
        assert source.url.startswith("https://")
        assert source.url.endswith(f"/{task.folder}.tar")
        assert len(source.expected_md5) == 32


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def command(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    """Run `maskfold fetch` with the small archive; return its status and its output."""
    from competition.cli import data as module
    from competition.cli.main import main

    monkeypatch.setattr(module, "remote_file_of", lambda task: host.source())
    monkeypatch.setattr(sys, "argv", ["maskfold", "fetch", *words])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out + captured.err


def test_the_command_prints_size_licence_and_next_command(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed = command(host, monkeypatch, capsys, "hippocampus", "--yes", "-o", str(tmp_path / "data"))
    assert status == 0
    first, *_, last = printed.strip().splitlines()
    assert "Task04_Hippocampus" in first
    assert "about 28 MB, licence CC-BY-SA 4.0" in first
    assert "experiments/hippocampus/competition.yaml" in last  # this folder has no experiment
    assert len(tree(tmp_path / "data" / "hippocampus")) == 4

    host.requested.clear()
    status, printed = command(host, monkeypatch, capsys, "hippocampus", "-o", str(tmp_path / "data"))
    assert (status, host.requested) == (0, [])
    assert "data/hippocampus exists already" in printed


def test_without_a_terminal_nothing_is_downloaded_without_yes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    status, printed = command(host, monkeypatch, capsys, "hippocampus", "-o", str(tmp_path / "data"))
    assert status == 2
    assert "Add --yes" in printed
    assert host.requested == []
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("y\n", 0)])
def test_the_user_is_asked(
    host: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    status: int,
) -> None:
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert command(host, monkeypatch, capsys, "hippocampus", "-o", str(tmp_path / "data"))[0] == status
    assert (tmp_path / "data" / "hippocampus").exists() == (status == 0)


def test_the_list_has_ten_tasks(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = command(host, monkeypatch, capsys, "list")
    assert status == 0
    assert "CC-BY-SA 4.0" in printed
    title, header, *rows = printed.splitlines()
    assert [row.split()[0] for row in rows] == [task.name for task in TASKS], "one line per task, whatever the width"
    assert all(row.endswith(task.folder) for row, task in zip(rows, TASKS, strict=True))
    assert printed.isascii(), "no box drawing characters"


def test_the_next_command(tmp_path: Path) -> None:
    experiments = tmp_path / "experiments"
    for name in ("aaa_variant", "toy"):
        (experiments / name).mkdir(parents=True)
        (experiments / name / "competition.yaml").write_text(
            f"name: {name}\nroot: {tmp_path}/data/toy\nsubmission: {{sample: sample.csv}}\n"
        )
        (experiments / name / "segresnet.yaml").write_text("competition: competition.yaml\n")
        (experiments / name / "unet3d.yaml").write_text("competition: competition.yaml\n")
    folder = tmp_path / "data" / "toy"
    lines = suggest_next_command("toy", folder, experiments)
    assert lines[0] == f"Next: maskfold cv {experiments}/toy/unet3d.yaml"
    assert "competition.submission.sample=null" in lines[1]
    folder.mkdir(parents=True)
    (folder / "sample.csv").touch()
    assert len(suggest_next_command("toy", folder, experiments)) == 1
    assert suggest_next_command("toy", Path("/elsewhere/toy"), experiments)[0].endswith(
        "toy/unet3d.yaml competition.root=/elsewhere/toy"
    )


def test_macos_files_are_not_cases(tmp_path: Path) -> None:
    """`._case.nii.gz` beside the volumes, as the Decathlon's archives unpack with tar."""
    from competition.config.competition import Competition
    from competition.data.case_files import find_images, find_masks
    from competition.data.selection import SkippedCases

    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "toy_001.nii.gz").touch()
        (tmp_path / name / "._toy_001.nii.gz").touch()
    comp = Competition.model_validate(
        {
            "name": "toy",
            "root": tmp_path,
            "dimensions": 3,
            "classes": ["a"],
            "test": {"images": "imagesTs/{id}.nii.gz"},
            "train": {"images": "imagesTr/{id}.nii.gz", "masks": "labelsTr/{id}.nii.gz"},
        }
    )
    images = find_images(comp, "train", SkippedCases(comp))
    assert list(images) == list(find_masks(comp, images, SkippedCases(comp))) == ["toy_001"]
    assert list(find_images(comp, "test", SkippedCases(comp))) == ["toy_001"]
