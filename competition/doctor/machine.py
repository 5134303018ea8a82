"""Processor, memory, shared memory, open files."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from competition.doctor.finding import Finding

GIB = 2**30
LITTLE = 4 * GIB  # a volume of 512×512×400 with five outputs takes 4.1 GiB
TOO_LITTLE = GIB  # torch and MLflow alone take most of it
SHARED = GIB  # loader processes hand over batches through it; Docker gives 64 MiB
FILES = 1024


def look() -> list[Finding]:
    """A row for each."""
    rows = [cores(), memory()]
    return [*rows, *shared_memory(), *open_files()]


def cores() -> Finding:
    """Cores that this process may use, and what limits threads."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{usable} cores" if usable == os.cpu_count() else f"{usable} of {os.cpu_count()} cores"
    share = quota()
    if share is not None and share < usable:
        return Finding(
            "CPU",
            "warning",
            f"{found}, of which a container's limit leaves the time of {share:g}",
            f"Set run.threads={max(1, int(share))}: more threads than that wait for each other.",
        )
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > usable:
        return Finding(
            "CPU", "warning", f"{found}, and OMP_NUM_THREADS={threads}", "Unset OMP_NUM_THREADS; folds set it."
        )
    return Finding(
        "CPU",
        "ok",
        f"{found}; a fold takes them all, divided by run.parallel_folds"
        + (f" (OMP_NUM_THREADS={threads} outside of folds)" if threads else ""),
    )


def quota(group: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that a container may use; None without a limit."""
    try:
        limit, period = (group / "cpu.max").read_text().split()
        return int(limit) / int(period)
    except (OSError, ValueError):
        return None


def memory() -> Finding:
    """Free main memory, a container's limit included."""
    there = available()
    if there is None:
        return Finding("memory", "warning", "how much is free could not be found out", "Install psutil.")
    free, total = there
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f} GiB"
    if free < TOO_LITTLE:
        return Finding("memory", "unusable", found, "End other programs, or use a larger machine.")
    if free < LITTLE:
        return Finding(
            "memory", "warning", found, "Keep to pictures or small volumes, run.parallel_folds=1 and run.workers=0."
        )
    return Finding("memory", "ok", found)


def available(info: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """Bytes (free, in all)."""
    try:
        import psutil

        now = psutil.virtual_memory()
        free, total = int(now.available), int(now.total)
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


def shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """Where loader processes hand over batches; Linux only."""
    if not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free at {folder}" if free >= GIB else f"{free / 2**20:.0f} MiB free at {folder}"
    if free < SHARED:
        return [
            Finding(
                "shared memory",
                "warning",
                f"{found}; loader processes die when it is full",
                "Keep run.workers=0, or start the container with --shm-size=2g.",
            )
        ]
    return [Finding("shared memory", "ok", found)]


def open_files() -> list[Finding]:
    """How many files a process may have open."""
    if sys.platform == "win32":
        return []
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return [Finding("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft} a process")]
    can = hard == resource.RLIM_INFINITY or hard >= FILES
    return [
        Finding(
            "open files",
            "warning",
            f"{soft} a process; memory maps and loader processes may run out of them",
            "Type `ulimit -n 4096` first." if can else f"Have the system's limit of {hard} raised to 4096.",
        )
    ]
