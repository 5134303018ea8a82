"""The machine, its accelerators, and what is around."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from competition.doctor import checks, machine
from competition.doctor.finding import CheckResult
from competition.doctor.probe import ProbeResult

GIB = 2**30
BUILD = {
    "torch": "2.15.0",
    "cuda": "13.0",
    "hip": None,
    "available": True,
    "reason": None,
    "threads": 2,
    "cpu": "bf16",
    "mps": False,
}


def device(**changes: Any) -> dict[str, Any]:
    return {
        "device": 0,
        "name": "NVIDIA H200",
        "total": 139 * GIB,
        "free": 138 * GIB,
        "capability": [9, 0],
        "right": True,
        "precision": "bf16",
        **changes,
    }


def seen(
    monkeypatch: pytest.MonkeyPatch, *lines: dict[str, Any], driver: bool = True, trouble: str | None = None
) -> list[CheckResult]:
    """The rows for what torch says."""
    monkeypatch.setattr(machine, "run_probe", lambda _: ProbeResult(list(lines), trouble))
    monkeypatch.setattr(machine, "has_nvidia_driver", lambda: driver)
    return machine.check_accelerators()


def test_a_gpu_has_memory_capability_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    old = device(device=1, name="Tesla T4", total=15 * GIB, free=14 * GIB, capability=[7, 5], precision="fp16")
    good, emulating = seen(monkeypatch, BUILD, device(), old)
    assert (good.name, good.state) == ("cuda:0", "ok")
    assert "NVIDIA H200, 139.0 GiB, compute capability 9.0, 138.0 GiB free, native bf16" in good.detail
    assert "no native bf16" in emulating.detail


def test_a_gpu_that_cannot_compute_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = seen(
        monkeypatch,
        BUILD,
        device(
            name="Tesla P100",
            capability=[6, 0],
            right=None,
            error="CUDA error: no kernel image is available for execution on the device\nmore",
        ),
    )
    assert row.state == "unusable"
    assert "no kernel image is available" in row.detail
    assert "more" not in row.detail
    (wrong,) = seen(monkeypatch, BUILD, device(right=False))
    assert wrong.state == "unusable"


def test_a_gpu_that_is_taken_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = seen(monkeypatch, BUILD, device(free=2 * GIB))
    assert (row.state, "nvidia-smi" in row.hint) == ("warning", True)


@pytest.mark.parametrize(
    ("build", "hidden", "what"),
    [
        ({"cuda": None}, None, "torch 2.15.0 is built without CUDA"),
        (
            {"reason": "The NVIDIA driver on your system is too old (found version 11040)."},
            None,
            "driver on your system is too old",
        ),
        ({}, "", "CUDA_VISIBLE_DEVICES"),
        ({}, "-1", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_driver_without_a_device_has_a_reason(
    monkeypatch: pytest.MonkeyPatch, build: dict[str, Any], hidden: str | None, what: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (row,) = seen(monkeypatch, {**BUILD, "available": False, **build})
    assert row.state == "warning"
    assert what in row.detail
    assert row.hint


def test_a_machine_without_a_gpu_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = seen(monkeypatch, {**BUILD, "available": False, "cuda": None}, driver=False)
    assert (row.state, row.hint) == ("ok", "")
    assert "CPU" in row.detail


def test_a_driver_that_crashes_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = seen(monkeypatch, BUILD, trouble="it crashed (signal 11)")
    assert (row.state, "signal 11" in row.detail) == ("unusable", True)


@pytest.mark.slow  # imports torch in another process
def test_the_probe_agrees_with_torch() -> None:
    import torch

    rows = machine.check_accelerators()
    assert len([row for row in rows if row.name.startswith("cuda")]) == torch.cuda.device_count()
    assert all(row.state in ("ok", "warning") for row in rows)


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for free in (0.5, 3.0, 16.0):
        monkeypatch.setattr(machine, "available_memory", lambda free=free: (int(free * GIB), 32 * GIB))
        states.append(machine.check_memory().state)
    assert states == ["unusable", "warning", "ok"]


def test_a_containers_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * GIB - 1000}\n")
    there = machine.available_memory(group=tmp_path)
    assert there is not None
    assert there == (1000, 2 * GIB)
    (tmp_path / "memory.max").write_text("max\n")
    without = machine.available_memory(group=tmp_path)
    assert without is not None
    assert without[1] == psutil.virtual_memory().total
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.container_cpu_limit(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.container_cpu_limit(tmp_path) is None
    monkeypatch.setattr(machine, "container_cpu_limit", lambda: 0.5)
    assert machine.check_cores().state == "warning"
    assert "run.threads=1" in machine.check_cores().hint


def test_memory_is_known_without_psutil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\n")
    assert machine.available_memory(tmp_path / "meminfo", tmp_path) == (600 * 1024, 1000 * 1024)
    assert machine.available_memory(tmp_path / "nothing", tmp_path) is None


def test_small_shared_memory_and_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    (row,) = machine.check_shared_memory(tmp_path)
    assert (row.state, "64 MiB" in row.detail, "--shm-size" in row.hint) == ("warning", True, True)
    assert machine.check_shared_memory(tmp_path / "none") == []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    (files,) = machine.check_open_files()
    assert (files.state, "ulimit -n 4096" in files.hint) == ("warning", True)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert machine.check_open_files()[0].state == "ok"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".kaggle").mkdir()
    return tmp_path


SECRET = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "mode", "state", "what"),
    [
        (json.dumps({"username": "me", "key": SECRET}), 0o600, "ok", "mode 600"),
        (json.dumps({"username": "me", "key": SECRET}), 0o644, "warning", "chmod 600"),
        (json.dumps({"username": "me", "key": ""}), 0o600, "warning", "lacks `username` or `key`"),
        (f'{{"username": "me", "key": "{SECRET}"', 0o600, "warning", "lacks `username` or `key`"),
        ("[1]", 0o600, "warning", "lacks `username` or `key`"),
    ],
)
def test_kaggles_file(home: Path, text: str, mode: int, state: str, what: str) -> None:
    path = home / ".kaggle" / "kaggle.json"
    path.write_text(text)
    path.chmod(mode)
    (row,) = machine.check_credentials()
    assert row.state == state
    assert what in row.text
    assert SECRET not in row.text


def test_kaggles_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_credentials()[0].detail.startswith("not set")
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    assert (machine.check_credentials()[0].state, "Set KAGGLE_KEY" in machine.check_credentials()[0].hint) == (
        "warning",
        True,
    )
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    assert machine.check_credentials()[0].detail == "in KAGGLE_USERNAME and KAGGLE_KEY"
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    assert machine.check_credentials()[0].detail == "in KAGGLE_API_TOKEN"


def test_no_git_and_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert machine.check_git().state == "warning"
    monkeypatch.setattr(machine, "run_probe", lambda _: ProbeResult([{"mlflow": False}], None))
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    assert machine.check_telemetry().state == "ok"
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "0")
    assert "albumentations" in machine.check_telemetry().detail
    monkeypatch.setattr(machine, "run_probe", lambda _: ProbeResult([{"mlflow": True}], None))
    assert "MLflow" in machine.check_telemetry().detail


def test_a_look_that_fails_is_a_row_and_the_status_follows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Path) -> list[CheckResult]:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(
        checks, "all_checks", lambda: {"first": fails, "second": lambda _: [CheckResult("b", "ok", "[fine]")]}
    )
    assert checks.print_report() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning   first  the check failed: RuntimeError: a fault of ours.")
    assert lines[1:] == ["ok        b      [fine]", "rows with the state warning: first"]
    monkeypatch.setattr(
        checks, "all_checks", lambda: {"a": lambda _: [CheckResult("a", "unusable", "gone", "Bring it.")]}
    )
    assert checks.print_report() == 1
    assert capsys.readouterr().out.splitlines() == ["unusable  a  gone. Bring it.", "rows with the state unusable: a"]
