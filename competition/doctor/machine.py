"""Check the machine: accelerators, Kaggle credentials, CPU, memory, limit of open files, git and telemetry."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from competition.doctor.finding import CheckResult, first_line
from competition.doctor.packages import installed_version
from competition.doctor.probe import run_probe
from competition.text import format_count

GIB = 2**30

# Accelerators

PRECISIONS = {"bf16": "native bf16", "fp16": "no native bf16, so training.precision: auto is fp16", "fp32": "fp32"}


def check_accelerators() -> list[CheckResult]:
    """Return a row for each accelerator, or one row if there is none."""
    if installed_version("torch") is None:
        return [
            CheckResult("accelerators", "warning", "unknown, because torch is not installed", "Install torch first.")
        ]
    answer = run_probe("accelerators")
    if not answer.lines:
        return [
            CheckResult(
                "accelerators",
                "warning",
                f"torch could not be queried: {answer.trouble}",
                "See the row of torch in this table. If there is no such row, reinstall torch.",
            )
        ]
    build, *devices = answer.lines
    rows = [_device_result(row) for row in devices]
    if answer.trouble is not None:
        rows.append(
            CheckResult(
                "accelerators",
                "unusable",
                f"the check failed: {answer.trouble}",
                "Set run.accelerator=cpu, or reinstall the driver.",
            )
        )
    elif build["available"] and not devices:
        rows.append(
            CheckResult(
                "accelerators",
                "warning",
                "torch was built with CUDA, but finds no device",
                "Check that the variable CUDA_VISIBLE_DEVICES names a GPU of this machine.",
            )
        )
    if build["mps"]:
        rows.append(CheckResult("MPS", "ok", "Apple's GPU; fp32"))
    return rows or [_no_device(build)]


def _device_result(row: dict[str, Any]) -> CheckResult:
    name = f"cuda:{row['device']}"
    major, minor = row["capability"]
    detail = f"{row['name']}, {row['total'] / GIB:.1f} GiB, compute capability {major}.{minor}"
    if "error" in row or not row.get("right"):
        reason = first_line(row.get("error", "a test convolution has a wrong result"))
        return CheckResult(
            name,
            "unusable",
            f"{detail}, cannot compute: {reason}",
            "Install a torch build for this GPU (https://pytorch.org), or set run.accelerator=cpu.",
        )
    detail += f", {row['free'] / GIB:.1f} GiB free, {PRECISIONS.get(row['precision'], 'precision unknown')}"
    if row["free"] < row["total"] / 4:
        return CheckResult(
            name, "warning", detail, "Another program uses most of the GPU's memory; nvidia-smi shows which one."
        )
    return CheckResult(name, "ok", detail)


def _no_device(build: dict[str, Any]) -> CheckResult:
    """Return a row that says why torch finds no accelerator.

    Args:
        build: the first line of the probe `accelerators`, which describes torch.
    """
    precision = PRECISIONS.get(build["cpu"], "precision unknown")
    detail = f"no GPU; training on the CPU ({precision}, torch uses {format_count(build['threads'], 'thread')})"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not has_nvidia_driver():
        return CheckResult("accelerators", "ok", detail)
    if build["cuda"] is None and build["hip"] is None:
        return CheckResult(
            "accelerators",
            "warning",
            f"an NVIDIA driver is installed, but torch {build['torch']} is built without CUDA; {detail}",
            "Install a CUDA build of torch and torchvision: see https://pytorch.org.",
        )
    if hidden is not None and hidden.strip() in ("", "-1"):
        return CheckResult(
            "accelerators",
            "warning",
            f"the variable CUDA_VISIBLE_DEVICES={hidden!r} hides the GPUs; {detail}",
            "Unset the variable CUDA_VISIBLE_DEVICES to use the GPUs.",
        )
    reason = f": {first_line(build['reason'])}" if build["reason"] else ""
    return CheckResult(
        "accelerators",
        "warning",
        f"an NVIDIA driver is installed, but CUDA does not start{reason}; {detail}",
        f"Update the driver, or install a torch build for a CUDA version below {build['cuda']}.",
    )


def has_nvidia_driver(version: Path = Path("/proc/driver/nvidia/version")) -> bool:
    """Return whether NVIDIA's driver is installed.

    Args:
        version: file that exists while the driver is loaded.
    """
    return version.exists() or shutil.which("nvidia-smi") is not None


# Kaggle credentials

KAGGLE_CHECK = "kaggle credentials"
TOKEN_PAGE = "https://www.kaggle.com/settings, Create New Token"


def check_credentials() -> list[CheckResult]:
    """Return one row for Kaggle's credentials.

    If a credentials file has no key, or other users can read it, the row is a warning.
    """
    for path in credential_files():
        if path.exists():
            return [check_credential_file(path)]
    name = os.environ.get("KAGGLE_USERNAME")
    if os.environ.get("KAGGLE_API_TOKEN"):
        return [CheckResult(KAGGLE_CHECK, "ok", "in KAGGLE_API_TOKEN")]
    if name and os.environ.get("KAGGLE_KEY"):
        return [CheckResult(KAGGLE_CHECK, "ok", "in KAGGLE_USERNAME and KAGGLE_KEY")]
    if name or os.environ.get("KAGGLE_KEY"):
        missing, present = ("KAGGLE_KEY", "KAGGLE_USERNAME") if name else ("KAGGLE_USERNAME", "KAGGLE_KEY")
        return [
            CheckResult(
                KAGGLE_CHECK,
                "warning",
                f"{missing} is not set, but {present} is set",
                f"Set {missing}, or set only KAGGLE_API_TOKEN.",
            )
        ]
    return [
        CheckResult(
            KAGGLE_CHECK,
            "ok",
            f"not set. Only `maskfold fetch kaggle:…` and `maskfold upload` need credentials. To get them, create a "
            f"token ({TOKEN_PAGE}), and save the file as ~/.kaggle/kaggle.json",
        )
    ]


def credential_files() -> list[Path]:
    """Return the paths at which Kaggle's client looks for a credentials file.

    The client uses the first existing file.
    """
    folders = [Path(folder)] if (folder := os.environ.get("KAGGLE_CONFIG_DIR")) else []
    folders += [Path.home() / ".kaggle", Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"]
    return [folder / "kaggle.json" for folder in folders] + [Path.home() / ".kaggle" / "access_token"]


def check_credential_file(path: Path) -> CheckResult:
    """Return a row for a credentials file of Kaggle."""
    try:
        text = path.read_text(encoding="utf-8")
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as error:
        return CheckResult(
            KAGGLE_CHECK,
            "warning",
            f"{path} cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}",
            f"Create a new token ({TOKEN_PAGE}).",
        )
    if path.suffix == ".json":
        try:
            credentials = json.loads(text)
            complete = bool(credentials["username"] and credentials["key"])
        except (ValueError, KeyError, TypeError):
            complete = False
        if not complete:
            return CheckResult(
                KAGGLE_CHECK, "warning", f"{path} lacks `username` or `key`", f"Create a new token ({TOKEN_PAGE})."
            )
    elif not text.strip():
        return CheckResult(KAGGLE_CHECK, "warning", f"{path} is empty", f"Create a new token ({TOKEN_PAGE}).")
    if mode & 0o077 and os.name != "nt":
        return CheckResult(
            KAGGLE_CHECK,
            "warning",
            f"{path} has the mode {mode:o}, so other users can read it",
            f"Run: chmod 600 {path}.",
        )
    return CheckResult(KAGGLE_CHECK, "ok", f"in {path} (mode {mode:o})")


# CPU, memory and open files

LOW_MEMORY = 4 * GIB  # a volume of 512×512×400 with five outputs takes 4.1 GiB
MIN_MEMORY = GIB  # torch and MLflow alone use most of this
MIN_SHARED_MEMORY = GIB  # loader processes transfer batches through shared memory; Docker's default is 64 MiB
MIN_OPEN_FILES = 1024


def check_machine() -> list[CheckResult]:
    """Return the rows for CPU, memory, shared memory and open files."""
    return [check_cores(), check_memory(), *check_shared_memory(), *check_open_files()]


def check_cores() -> CheckResult:
    """Check that the container's CPU limit and `OMP_NUM_THREADS` fit the number of cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail = format_count(usable, "core") if usable == os.cpu_count() else f"{usable} of {os.cpu_count()} cores"
    limit = container_cpu_limit()
    if limit is not None and limit < usable:
        return CheckResult(
            "CPU",
            "warning",
            f"{detail}, but the CPU limit of the container is {limit:g} core{'s' * (limit != 1)}",
            f"Set run.threads={max(1, int(limit))}, because more threads would wait for each other.",
        )
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > usable:
        return CheckResult(
            "CPU",
            "warning",
            f"{detail}, but OMP_NUM_THREADS={threads}",
            "Unset the variable OMP_NUM_THREADS, because each fold sets its number of threads itself.",
        )
    return CheckResult(
        "CPU",
        "ok",
        f"{detail}; a fold uses all cores divided by run.parallel_folds"
        + (f" (OMP_NUM_THREADS={threads} has no effect on folds)" if threads else ""),
    )


def container_cpu_limit(group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the container's CPU limit in cores; None without a limit.

    Args:
        group: folder of the container's control group.
    """
    try:
        time, period = (group / "cpu.max").read_text().split()
        return int(time) / int(period)
    except (OSError, ValueError):
        return None


def check_memory() -> CheckResult:
    """Check the free main memory, within the container's limit."""
    sizes = available_memory()
    if sizes is None:
        return CheckResult("memory", "warning", "the amount of free memory cannot be read", "Install psutil.")
    free, total = sizes
    detail = f"{free / GIB:.1f} GiB free of {total / GIB:.1f} GiB"
    if free < MIN_MEMORY:
        detail += f", expected at least {MIN_MEMORY / GIB:.0f} GiB free"
        return CheckResult("memory", "unusable", detail, "Close other programs, or use a larger machine.")
    if free < LOW_MEMORY:
        detail += f"; large volumes need more than {LOW_MEMORY / GIB:.0f} GiB"
        return CheckResult(
            "memory", "warning", detail, "Use 2D images or small volumes, run.parallel_folds=1 and run.workers=0."
        )
    return CheckResult("memory", "ok", detail)


def available_memory(
    info: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int] | None:
    """Return the free and total memory in bytes, within the container's limit; None if unknown.

    Args:
        info: file with the memory of the machine, which is read if psutil is not installed.
        group: folder of the container's control group.
    """
    try:
        import psutil

        memory_info = psutil.virtual_memory()
        free, total = int(memory_info.available), int(memory_info.total)
    except ImportError:
        try:
            rows = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
            free, total = (1024 * int(rows[key].split()[0]) for key in ("MemAvailable", "MemTotal"))
        except (OSError, KeyError, ValueError):
            return None
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # `max`: no limit
        return free, total
    return min(free, max(0, limit - used)), min(total, limit)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> list[CheckResult]:
    """Check the shared memory, through which loader processes pass batches (Linux only)."""
    if not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free at {folder}" if free >= GIB else f"{free / 2**20:.0f} MiB free at {folder}"
    if free < MIN_SHARED_MEMORY:
        return [
            CheckResult(
                "shared memory",
                "warning",
                f"{detail}; if it is full, loader processes crash",
                "Set run.workers=0, or start the container with --shm-size=2g.",
            )
        ]
    return [CheckResult("shared memory", "ok", detail)]


def check_open_files() -> list[CheckResult]:
    """Check the limit on the number of files that a process may open."""
    if sys.platform == "win32":
        return []
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES:
        return [
            CheckResult("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft} per process")
        ]
    can_raise = hard == resource.RLIM_INFINITY or hard >= MIN_OPEN_FILES
    return [
        CheckResult(
            "open files",
            "warning",
            f"{soft} per process, expected at least {MIN_OPEN_FILES}; memory maps and loader processes may need more",
            "Before the command, run `ulimit -n 4096` in the same shell."
            if can_raise
            else f"Raise the system's limit of open files ({hard}) to 4096.",
        )
    ]


# Software

FALSE_VALUES = {"0", "false", "no", "off", ""}  # values of an environment variable that mean false


def check_software() -> list[CheckResult]:
    """Return rows for git and for telemetry."""
    return [check_git(), check_telemetry()]


def check_git() -> CheckResult:
    """Check that git works, because runs record the commit and the uncommitted changes."""
    executable = shutil.which("git")
    if executable is None:
        return CheckResult(
            "git", "warning", "is not installed, so runs do not record their commit and changes", "Install git."
        )
    try:
        answer = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return CheckResult("git", "warning", f"{executable} does not run: {type(error).__name__}", "Reinstall git.")
    return CheckResult("git", "ok", answer.stdout.strip().removeprefix("git version "))


def check_telemetry() -> CheckResult:
    """Check that MLflow and albumentations send no telemetry, which Maskfold disables unless the user enables it."""
    enabled = []
    no_update = os.environ.get("NO_ALBUMENTATIONS_UPDATE", "1")
    if no_update.lower() in FALSE_VALUES:
        enabled.append(f"albumentations (NO_ALBUMENTATIONS_UPDATE={no_update})")
    if installed_version("mlflow") is not None:
        answer = run_probe("telemetry")
        if any(line.get("mlflow") for line in answer.lines):
            enabled.append("MLflow")
    if enabled:
        return CheckResult(
            "telemetry",
            "warning",
            f"on: {', '.join(enabled)}",
            "Set the variables NO_ALBUMENTATIONS_UPDATE=1 and DO_NOT_TRACK=true.",
        )
    return CheckResult("telemetry", "ok", "off: MLflow, Ray, albumentations")
