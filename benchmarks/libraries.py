"""Compare Maskfold's own code with libraries that could replace it: `python benchmarks/libraries.py [PART …]`.

| part | own code | library |
|---|---|---|
| pool | `competition.process.ProcessPool` | joblib (loky) |
| windows | `competition.inference.sliding_window` | MONAI's SlidingWindowInferer, also with its buffer |
| surface | `competition.metrics.surface` | MONAI's metrics |
| bootstrap | `competition.metrics.bootstrap` | scipy.stats.bootstrap |
| yaml | `competition.config.yaml` | ruamel.yaml (pip install ruamel.yaml) |
| system | `competition.tracking.system_metrics.SystemMetricsSampler` | MLflow's SystemMetricsMonitor (no MLflow) |

Times are processor times, so that other load matters less. Only `pool` measures elapsed time. Each memory figure is the
growth of the peak resident memory in a new process.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

THREADS = "1"

# pool

POOL_SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
from libraries import Sleeper, sleep
if __name__ == "__main__":
    kind, folder, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    if kind == "joblib":
        from joblib import Parallel, delayed
        start = time.monotonic()
        results = Parallel(n_jobs=2, max_nbytes=None, return_as="generator")(
            delayed(sleep)(folder, item, seconds) for item in range(10))
        next(results)
        print(time.monotonic() - start, flush=True)
        list(results)
    else:
        from competition.process import ProcessPool
        start = time.monotonic()
        with ProcessPool(Sleeper(folder, seconds), 2, "worked", "") as pool:
            results = pool.map(Sleeper.work, range(10))
            next(results)
            print(time.monotonic() - start, flush=True)
            list(results)
    print("all results", flush=True)
    time.sleep(60)
"""


def sleep(folder: str, item: int, seconds: float) -> int:
    """Create a file named `item` in the folder, as a sign that work on the item has begun; sleep, and return `item`."""
    (Path(folder) / str(item)).touch()
    time.sleep(seconds)
    return item


class Sleeper:
    """Offer `sleep` as a method, because `ProcessPool` calls a method of an object in its worker processes."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def work(self, item: int) -> int:
        """Call `sleep` for an item."""
        return sleep(self.folder, item, self.seconds)


def measure_pool() -> None:
    """Print the time to the first result, and how many worker processes outlive the last result and their parent.

    The parent process is killed by SIGKILL; the workers are counted 5 s later.
    """
    for kind in ("joblib", "ProcessPool"):
        seconds = []
        for _ in range(3):
            process, folder = _start_pool(kind, 0.0)
            assert process.stdout is not None
            seconds.append(float(process.stdout.readline()))
            process.stdout.readline()
            idle = _workers(process.pid)
            _kill(process, idle)
        process, folder = _start_pool(kind, 600.0)
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.05)
        busy = _workers(process.pid)
        process.kill()
        time.sleep(5)
        alive = [worker for worker in busy if worker.is_running()]
        print(
            f"{kind}: first result after {statistics.median(seconds):.2f} s (of {sorted(seconds)}); after the last one "
            f"{len(idle)} workers; 5 s after a SIGKILL of the parent {len(alive)} workers"
        )
        _kill(process, alive)


def _start_pool(kind: str, seconds: float) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that distributes ten items to a pool with two workers.

    Args:
        kind: "joblib" or "ProcessPool".
        seconds: how long a worker sleeps for each item.

    Returns:
        The process, and the folder in which workers create a file for each item that they begin.
    """
    folder = Path(tempfile.mkdtemp())
    (folder / "script.py").write_text(POOL_SCRIPT.format(folder=str(Path(__file__).parent)))
    work = folder / "work"
    work.mkdir()
    command = [sys.executable, str(folder / "script.py"), kind, str(work), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True), work


def _workers(parent: int) -> list[Any]:
    """Return the worker processes of `parent`, without the resource trackers of multiprocessing."""
    import psutil

    children = psutil.Process(parent).children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


def _kill(process: subprocess.Popen[str], workers: list[Any]) -> None:
    """Kill a process and its workers."""
    process.kill()
    for worker in workers:
        if worker.is_running():
            os.kill(worker.pid, signal.SIGKILL)
    process.communicate()


# windows

WINDOW_SHAPES, PATCH, CHANNELS = {"160 slices": (256, 256, 160), "640 slices": (256, 256, 640)}, 96, 5


def measure_windows() -> None:
    """Print the memory and time of sliding-window prediction with a network that needs almost no memory."""
    for size, shape in WINDOW_SHAPES.items():
        for kind in ("own", "MONAI", "MONAI, buffer_steps=1"):
            seconds, growth = _in_new_process(run_windows, f"{size}, {kind}")
            print(
                f"{size}, {kind}: {growth / 2**20:.0f} MiB above the image, {growth / np.prod(shape):.1f} bytes per "
                f"voxel, {seconds:.1f} s"
            )


def run_windows(kind: str) -> float:
    """Predict a volume with five output channels; return the processor time in seconds.

    Args:
        kind: size of the volume and implementation, e.g. "160 slices, MONAI".
    """
    import torch
    from monai.inferers import sliding_window_inference

    from competition.config.experiment import Experiment
    from competition.inference.sliding_window import predict_image

    size, method = kind.split(", ", 1)
    network = torch.nn.Conv3d(1, CHANNELS, 1)
    comp = {
        "name": "x",
        "root": ".",
        "train": {"images": "{id}.nii.gz", "masks": "{id}.nii.gz"},
        "classes": ["a", "b", "c", "d"],
        "labels": "exclusive",
        "dimensions": 3,
        "metric": {"name": "dice"},
    }
    exp = Experiment.model_validate(
        {
            "competition": comp,
            "patch": {"size": [PATCH] * 3},
            "model": {"target": "monai.networks.nets.UNet"},
            "loss": {"target": "monai.losses.DiceCELoss"},
            "inference": {"overlap": 0.5, "tta": [], "batch_size": 1},
        }
    )
    image = np.random.default_rng(0).standard_normal((1, *WINDOW_SHAPES[size]), np.float32)
    predict_image([network], image[:, :PATCH, :PATCH, :PATCH], exp)  # load everything
    _mark_memory()
    start = time.process_time()
    if method == "own":
        predict_image([network], image, exp)
    else:
        buffer: dict[str, Any] = {"buffer_steps": 1, "buffer_dim": -1} if "buffer" in method else {}
        with torch.no_grad():
            sliding_window_inference(torch.from_numpy(image)[None], [PATCH] * 3, 1, network, 0.5, "gaussian", **buffer)
    return time.process_time() - start


# surface


def measure_surface() -> None:
    """Print the memory and time of surface Dice and of the 95 % Hausdorff distance on two balls."""
    for kind in ("own surface Dice", "MONAI surface Dice", "own HD95", "MONAI HD95"):
        seconds, growth = _in_new_process(run_surface, kind)
        print(f"{kind}: {growth / 200**3:.1f} bytes per voxel, {seconds:.2f} s")


def run_surface(kind: str) -> float:
    """Compute a metric between two balls in 200 × 200 × 200 voxels; return the processor time in seconds.

    Args:
        kind: implementation and metric, e.g. "own HD95".
    """
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    from competition.metrics.surface import hd95, surface_dice

    def compute(size: int) -> None:
        grid = np.indices((size,) * 3, np.int16)
        mask, truth = (
            sum((axis - size // 2 - shift) ** 2 for axis in grid.astype(np.int32)) < (0.4 * size) ** 2
            for shift in (0, 2)
        )
        del grid
        _mark_memory()
        if kind == "own surface Dice":
            surface_dice(mask, truth, (1.0, 1.0, 1.0), 1.0)
        elif kind == "own HD95":
            hd95(mask, truth, (1.0, 1.0, 1.0))
        else:
            tensors = [torch.from_numpy(np.stack([~array, array])[None]) for array in (mask, truth)]
            if kind == "MONAI HD95":
                compute_hausdorff_distance(*tensors, percentile=95, spacing=[1.0, 1.0, 1.0])
            else:
                compute_surface_dice(*tensors, class_thresholds=[1.0], spacing=(1.0, 1.0, 1.0), use_subvoxels=True)

    compute(32)  # load everything
    start = time.process_time()
    compute(200)
    return time.process_time() - start


# bootstrap


def measure_bootstrap() -> None:
    """Print the time to bootstrap a 95 % interval of the mean over three classes and 500 cases (2,000 resamples)."""
    import pandas as pd
    from scipy.stats import bootstrap

    from competition.config.competition import MetricConfig
    from competition.metrics.bootstrap import bootstrap_interval

    values = np.random.default_rng(0).random((500, 3))
    values[::7, 2] = np.nan  # cases without the class
    table = pd.DataFrame(
        [
            {"id": f"{case}", "class": name, "score": value, "dice": value}
            for case, row in enumerate(values)
            for name, value in zip("abc", row, strict=True)
        ]
    )
    metric = MetricConfig(name="dice", average="case_class")

    def statistic(*columns: Any, axis: int = -1) -> Any:
        return np.mean([np.nanmean(column, axis=axis) for column in columns], axis=0)

    def library() -> tuple[float, float]:
        result = bootstrap(
            tuple(values.T), statistic, paired=True, vectorized=True, n_resamples=2000, method="percentile"
        )
        return float(result.confidence_interval.low), float(result.confidence_interval.high)

    for name, function in {"own": lambda: bootstrap_interval(table, metric), "scipy": library}.items():
        seconds, interval = [], (0.0, 0.0)
        for _ in range(5):
            start = time.process_time()
            interval = function()
            seconds.append(time.process_time() - start)
        print(f"{name}: {1000 * statistics.median(seconds):.0f} ms, {interval[0]:.4f} to {interval[1]:.4f}")


# yaml


def measure_yaml() -> None:
    """Print the times of both YAML readers for an experiment, and how ruamel reads nested aliases and Python tags."""
    from ruamel.yaml import YAML

    from competition.config.yaml import read_yaml

    file = Path("experiments/nuclei/unet2d.yaml")
    functions: dict[str, Callable[[], Any]] = {"own": lambda: read_yaml(file), "ruamel": lambda: YAML().load(file)}
    for name, function in functions.items():
        seconds = []
        for _ in range(30):
            start = time.process_time()
            function()
            seconds.append(time.process_time() - start)
        print(f"{name}: {1000 * statistics.median(seconds):.1f} ms")
    nested = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
    )
    count = YAML().load(nested)["a8"]
    for _ in range(8):
        assert len(count) == 10
        count = count[0]
    print(f"ruamel: {len(nested)} bytes become 10^9 values")
    print(f"ruamel: a tag of Python becomes {type(YAML().load('a: !!python/name:os.system')['a']).__name__}")


# system


def measure_system() -> None:
    """Print how many samples of system metrics Maskfold and MLflow keep if MLflow cannot be reached for 6 s."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from competition.tracking.system_metrics import SYSTEM_METRICS_FILE, SystemMetricsSampler

    with tempfile.TemporaryDirectory() as folder:
        with SystemMetricsSampler(Path(folder), interval=1.0):
            time.sleep(6)
        lines = (Path(folder) / SYSTEM_METRICS_FILE).read_text().splitlines()
        print(f"own: {len(lines)} samples in a file")
    monitor = SystemMetricsMonitor("0" * 32, sampling_interval=1, tracking_uri="http://127.0.0.1:9")
    monitor.start()
    time.sleep(6)
    alive = monitor._process is not None and monitor._process.is_alive()
    print(f"MLflow: {len(monitor.mlflow_logger.data)} samples in memory; its thread {'runs' if alive else 'has ended'}")


# Measurement in a new process

_marked = 0


def _mark_memory() -> None:
    """Reset the peak memory of this process and store it in `_marked`, to measure the growth from now on."""
    global _marked
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    _marked = _peak()


def _peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measured(function: Callable[[str], float], kind: str) -> tuple[float, int]:
    """Return the result of `function(kind)`, and the growth of the peak memory in bytes since `_mark_memory`."""
    seconds = function(kind)
    return seconds, _peak() - _marked


def _in_new_process(function: Callable[[str], float], kind: str) -> tuple[float, int]:
    """Call `function(kind)` in a new process; return what `_measured` returns there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_measured, function, kind).result()


PARTS = {
    "pool": measure_pool,
    "windows": measure_windows,
    "surface": measure_surface,
    "bootstrap": measure_bootstrap,
    "yaml": measure_yaml,
    "system": measure_system,
}

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = THREADS
    for part in sys.argv[1:] or PARTS:
        print(f"[{part}]", flush=True)
        PARTS[part]()
