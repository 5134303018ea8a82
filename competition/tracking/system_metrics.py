"""Write system metrics (processor, memory, disk, network, GPU) to a file in the run's folder, at regular intervals."""

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

from competition.records import read_metrics_lines
from competition.tracking.store import configure_mlflow

# This module uses MLflow's monitors, but not its `SystemMetricsMonitor`. That class asks MLflow for the run after each
# sample, and its thread ends at the first failure. Measured with MLflow unreachable for 6 s: this module's file has 4
# samples, MLflow's class has none (python benchmarks/libraries.py system).
SYSTEM_METRICS_FILE = "metrics.jsonl"  # in the run's folder; the folds have files of the same name in their folders

logger = logging.getLogger(__name__)


class SystemMetricsSampler:
    """Append system metrics to a run's `metrics.jsonl` at intervals, in a `with` block.

    The metrics describe the machine on which this process runs, and have MLflow's names. They are written to a file, so
    that no value is lost while MLflow cannot be reached.

    Args:
        run_folder: folder of the run.
        is_paused: function that is called at each interval; if it returns True, no sample is taken. This is needed
            because the upload of a sample would set a finished run to RUNNING again.
        interval: seconds between two samples.
    """

    def __init__(self, run_folder: Path, is_paused: Callable[[], bool] = lambda: False, interval: float = 10.0) -> None:
        self.path, self.is_paused, self.interval = run_folder / SYSTEM_METRICS_FILE, is_paused, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _work(self) -> None:
        try:
            monitors: list[Any] = []
            step = _truncate_to_last_step(self.path)
            while not self._stop.wait(self.interval):
                if self.is_paused():
                    continue
                if not monitors:
                    monitors = _monitors()
                    continue  # a sample averages the load since the previous one, so the first needs one more interval
                step += 1
                line = json.dumps({"step": step, "epoch": step, "time": time.time(), "metrics": _sample(monitors)})
                with open(self.path, "ab") as file:
                    file.write(line.encode() + b"\n")
        except Exception as error:  # noqa: BLE001 - a failing library, or a full disk, must not stop training
            logger.warning(
                "The load of the machine is no longer measured for this run: %s: %s", type(error).__name__, error
            )


def _monitors() -> list[Any]:
    """Return MLflow's monitors; the GPU monitor is included only if NVIDIA's driver is installed."""
    configure_mlflow()
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    psutil.cpu_percent()  # this call starts the interval of the first average
    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):
        monitors.append(GPUMonitor())
    return monitors


def _sample(monitors: list[Any]) -> dict[str, float]:
    """Return the current metrics by MLflow's names, e.g. `system/cpu_utilization_percentage`."""
    metrics: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        metrics.update({f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()})
        monitor.clear_metrics()
    return metrics


def _truncate_to_last_step(path: Path) -> int:
    """Remove an incomplete last line, which a killed process left, and return the step of the last complete line."""
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(sum(map(len, lines[:-1])))
    return max((line.step for line in read_metrics_lines(path)), default=0)
