"""What the machine does while a run lasts: processor, memory, disk, network and NVIDIA GPUs, for MLflow's system page."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from competition.data.records import journal_lines

FILE = "metrics.jsonl"  # of the run's own folder; the folds' lie in theirs

logger = logging.getLogger(__name__)


class Sampler:
    """Appends a line to a run's journal every so often while the body of the `with` runs.

    The numbers are those of the machine that this process runs on, under MLflow's own names. Being lines of a journal,
    they wait on disk while MLflow cannot be reached.

    Args:
        run_folder: of the run.
        idle: whether there is nothing to say now: samples would open a run again that is finished.
        pause: seconds between two samples.
    """

    def __init__(self, run_folder: Path, idle: Callable[[], bool] = lambda: False, pause: float = 10.0) -> None:
        self.path, self.idle, self.pause = run_folder / FILE, idle, pause
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._leaving.set()
        self._thread.join(5.0)

    def _work(self) -> None:
        try:
            monitors: list[Any] = []
            step = _last_step(self.path)
            while not self._leaving.wait(self.pause):
                if self.idle():
                    continue
                if not monitors:
                    monitors = _monitors()
                    continue  # loads are means since the last look
                step += 1
                line = json.dumps({"step": step, "epoch": step, "time": time.time(), "metrics": _sample(monitors)})
                with open(self.path, "ab") as file:
                    file.write(line.encode() + b"\n")
        except Exception as error:  # noqa: BLE001 - a library that fails, or a full disk, must not reach the training
            logger.warning("No more system metrics of this run: %s: %s", type(error).__name__, error)


def _monitors() -> list[Any]:
    """MLflow's own monitors; the one for GPUs where NVIDIA's driver is."""
    from competition.tracking.store import quieten

    quieten()
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    psutil.cpu_percent()  # from now on
    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):
        monitors.append(GPUMonitor())
    return monitors


def _sample(monitors: list[Any]) -> dict[str, float]:
    """One number each, by MLflow's names: `system/cpu_utilization_percentage` and so on."""
    found: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found.update({f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()})
        monitor.clear_metrics()
    return found


def _last_step(path: Path) -> int:
    """The step of the last whole line; a line that a kill cut short is dropped."""
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(sum(map(len, lines[:-1])))
    return max((line.step for line in journal_lines(path)), default=0)
