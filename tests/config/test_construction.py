"""The guard of constructors: no files, connections, processes or pickles, but imports and requested downloads."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import os
import pickle
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition.config.arguments import ALLOW_VARIABLE
from competition.config.construction import ConstructionGuard
from competition.errors import MaskfoldError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("old", "temporary/old"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    return tmp_path


def construct(action: Callable[[], Any], **options: Any) -> Any:
    """Construct a class whose constructor does `action`."""

    class Network:
        def __init__(self) -> None:
            self.result = action()

    with ConstructionGuard(Network, {}, "model.args", **options):
        return Network().result


def write(path: str) -> None:
    with open(path, "w") as file:
        file.write("x")


FILE_ACTIONS: dict[str, Callable[[], Any]] = {
    "write": lambda: write("evil"),
    "append": lambda: open("old", "a").close(),
    "update": lambda: open("old", "r+b").close(),
    "descriptor": lambda: os.open("evil", os.O_CREAT | os.O_WRONLY),
    "pathlib": lambda: Path("evil").write_bytes(b"x"),
    "folder": lambda: os.makedirs("evil/a"),
    "rename": lambda: os.replace("old", "evil"),
    "remove": lambda: os.remove("old"),
    "link": lambda: os.symlink("old", "evil"),
    "mode": lambda: os.chmod("old", 0o777),
    "truncate": lambda: os.truncate("old", 1),
    "database": lambda: sqlite3.connect("evil"),
    "temporary": tempfile.mkdtemp,
    "a bytecode cache by name": lambda: os.makedirs("__pycache__"),
}
OTHER_ACTIONS: dict[str, Callable[[], Any]] = {
    "connect": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "address": lambda: socket.getaddrinfo("localhost", 80),
    "listen": lambda: socket.socket().bind(("127.0.0.1", 0)),
    "process": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "shell": lambda: os.system("touch evil"),
    "signal": lambda: os.kill(os.getpid(), 0),
    "working folder": lambda: os.chdir("temporary"),
    "library": lambda: ctypes.CDLL("libc.so.6"),
    "spawn": lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ),
    "unpickle": lambda: pickle.loads(b"cos\nmkdir\n(S'evil'\ntR."),
}


@pytest.mark.parametrize("name", FILE_ACTIONS | OTHER_ACTIONS)
def test_a_constructor_cannot(here: Path, name: str) -> None:
    before = {path: path.stat().st_mode for path in here.rglob("*")}
    with pytest.raises(MaskfoldError, match=r"^model\.args: Network tried to ") as caught:
        construct((FILE_ACTIONS | OTHER_ACTIONS)[name])
    assert caught.value.status == 2 and "--" in caught.value.hint
    assert {path: path.stat().st_mode for path in here.rglob("*")} == before
    assert (here / "old").read_text() == "content"


@pytest.mark.parametrize("name", FILE_ACTIONS | OTHER_ACTIONS)
def test_an_attempt_that_the_library_catches_is_reported(name: str) -> None:
    def swallow() -> None:
        with contextlib.suppress(Exception):  # as libraries do
            (FILE_ACTIONS | OTHER_ACTIONS)[name]()

    with pytest.raises(MaskfoldError, match=r"^model\.args: Network tried to "):
        construct(swallow)


def test_reading_and_computing_is_allowed(here: Path) -> None:
    assert construct(lambda: (here / "old").read_text()) == "content"
    assert construct(lambda: [path.name for path in here.iterdir() if path.is_file()]) == ["old"]
    construct(lambda: write(os.devnull))
    construct(lambda: sqlite3.connect(":memory:").close())


class DeletesFile:
    """An object in a reference cycle whose finalizer deletes a file, like that of a temporary folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.cycle = path, self

    def __del__(self) -> None:
        os.remove(self.path)


def test_the_garbage_of_other_code_is_not_collected_while_a_constructor_runs(here: Path) -> None:
    thresholds = gc.get_threshold()

    def make_garbage() -> int:
        DeletesFile(here / "old")
        gc.set_threshold(1, 1, 1)
        return len([[] for _ in range(1000)])  # the collector would run

    try:
        assert construct(make_garbage) == 1000 and gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert not (here / "old").exists()


def test_the_guard_ends_with_the_constructor_and_holds_for_its_thread_only(here: Path) -> None:
    def in_another_thread() -> None:
        thread = threading.Thread(target=write, args=("by_thread",))
        thread.start()
        thread.join()

    construct(in_another_thread)
    assert (here / "by_thread").exists()
    with pytest.raises(ZeroDivisionError):
        construct(lambda: 1 / 0)
    write("after")
    with pytest.raises(MaskfoldError):
        construct(lambda: (construct(lambda: None), write("evil")))  # one inside the other
    assert (here / "after").exists() and not (here / "evil").exists()


def test_a_lazy_import_writes_its_bytecode_and_asks_for_the_machine(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch, triton and matplotlib do when a constructor first needs them."""
    (here / "lazy_for_guard.py").write_text(
        "import subprocess, sys\nfrom pathlib import Path\n"
        "subprocess.run([sys.executable, '-c', ''], check=True)\nPath('cache_of_module').write_text('x')\n"
    )
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    construct(lambda: __import__("lazy_for_guard"))
    assert (here / "cache_of_module").exists() and list((here / "__pycache__").glob("lazy_for_guard*.pyc"))
    sys.modules.pop("lazy_for_guard")


def test_downloads_that_the_user_asked_for_pass(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here / "torch_home"))
    import torch

    assert torch.hub.get_dir().startswith(str(here))
    with pytest.raises(OSError):  # the guard lets it pass; nobody listens
        construct(OTHER_ACTIONS["connect"], downloads=True)
    assert Path(construct(tempfile.mkdtemp, downloads=True)).is_dir()
    construct(lambda: os.makedirs(torch.hub.get_dir()), downloads=True)
    construct(lambda: write(f"{torch.hub.get_dir()}/weights.pth"), downloads=True)
    pickled = pickle.dumps(collections.OrderedDict(a=torch.zeros(2).untyped_storage().tolist(), b=torch.float32))
    assert construct(lambda: pickle.loads(pickled), downloads=True)["a"] == [0] * 8
    for name in ("write", "remove", "process", "shell", "unpickle"):
        with pytest.raises(MaskfoldError, match="tried to"):
            construct((FILE_ACTIONS | OTHER_ACTIONS)[name], downloads=True)
    os.symlink(here, Path(torch.hub.get_dir()) / "out")
    with pytest.raises(MaskfoldError, match="tried to write the file"):
        construct(lambda: write(f"{torch.hub.get_dir()}/out/evil"), downloads=True)


def test_what_the_user_allows_or_trusts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    construct(lambda: write("by_own_package"), trust=["tests"])  # the class is of this module
    monkeypatch.setenv(ALLOW_VARIABLE, "model.args.cache_dir")
    construct(lambda: write("allowed"))
    with ConstructionGuard(
        torch.nn.ReLU, {"file": "a.pkl"}, "model.args", ["torch"]
    ):  # all of a package that is listed anyway
        write("by_whole_package")
    assert (here / "by_own_package").exists() and (here / "allowed").exists()
    with pytest.raises(MaskfoldError, match="start a process"):
        construct(OTHER_ACTIONS["process"])
    monkeypatch.setenv(ALLOW_VARIABLE, "loss.args.cache_dir")
    with pytest.raises(MaskfoldError, match="write the file"):
        construct(lambda: write("evil"))


@pytest.mark.parametrize(
    ("section", "target"),
    [
        ("loss", "{target: monai.networks.nets.EfficientNetBN, args: {model_name: efficientnet-b0}}"),
        ("loss", "{target: segmentation_models_pytorch.Unet, args: {encoder_name: resnet18}}"),
    ],
)
def test_a_network_as_loss_does_not_download_its_default_weights(
    here: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, section: str, target: str
) -> None:
    """`encoder_weights` is for the network; a loss has no key that asks for weights."""
    from competition.models.losses import SegmentationLoss

    monkeypatch.setenv("TORCH_HOME", str(here / "torch_home"))
    with pytest.raises(MaskfoldError, match=rf"^{section}\.args: \w+ tried to "):
        SegmentationLoss(tiny(2, f"{section}={target}"))


def test_networks_losses_and_optimisers_are_built_as_before(tiny: Any) -> None:
    from competition.models.build import build_network, validate_network

    exp = tiny(2, "model={target: segmentation_models_pytorch.Unet, args: {encoder_name: resnet18}}", "gate={}")
    validate_network(exp, 3)
    assert build_network(exp, 3).training
