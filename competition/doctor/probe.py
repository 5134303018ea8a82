"""Test libraries in a separate process, because such a test (a probe) may crash or hang.

`run_probe` starts the process, which calls `main`. The command `python -m competition.doctor.probe QUESTION
ARGUMENTS…` prints one JSON object per line.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import competition


@dataclass(frozen=True)
class ProbeResult:
    """Hold the output of a probe's process.

    Attributes:
        lines: one dictionary per line of output.
        trouble: reason why the process failed, e.g. `the process crashed (signal 11)`; None if it succeeded.
    """

    lines: list[dict[str, Any]]
    trouble: str | None


def run_probe(question: str, *words: str, root: Path | None = None, seconds: float = 120.0) -> ProbeResult:
    """Run a probe in a separate process.

    Args:
        question: name of the probe, a key of `PROBES`.
        words: arguments of the probe.
        root: working folder of the process; None means the current one.
        seconds: time after which the process is ended.

    Returns:
        The output of the process. If the process fails, the output so far and the reason.
    """
    package_root = str(Path(competition.__file__).resolve().parents[1])
    paths = [path for path in (os.environ.get("PYTHONPATH"), package_root) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    # -P: do not import a torch.py in the working folder as torch
    command = [sys.executable, "-P", "-m", "competition.doctor.probe", question, *words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=root,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as timeout:
        return ProbeResult(_parse_lines(timeout.stdout or b""), f"no answer after {seconds:.0f} s")
    except OSError as error:
        return ProbeResult([], f"the process could not be started: {error.strerror or error}")
    trouble = None
    if done.returncode < 0:
        trouble = f"the process crashed (signal {-done.returncode})"
    elif done.returncode:
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        trouble = errors[-1][:300] if errors else f"the process ended with status {done.returncode}"
    return ProbeResult(_parse_lines(done.stdout), trouble)


def _parse_lines(output: bytes) -> list[dict[str, Any]]:
    lines = []
    for line in output.decode(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # a killed process may leave a truncated last line
    return lines


# Probes

Report = Callable[[dict[str, Any]], None]
PROBE_TAG = "maskfold.doctor"


def probe_imports(say: Report, *modules: str) -> None:
    """Import modules in order, and report the start and the result of each import.

    Each module is reported before its import, so that a crash can be attributed to the module.
    """
    for module in modules:
        say({"begin": module})
        error = None
        try:
            importlib.import_module(module)
            if module == "torchvision":
                _use_torchvision()
        except BaseException as raised:  # noqa: BLE001 - any error is the result, even SystemExit
            error = f"{type(raised).__name__}: {raised}"
        say({"end": module, "error": error})


def _use_torchvision() -> None:
    """Call the compiled extension of torchvision, which fails if it was built for another version of torch."""
    import torch
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def probe_accelerators(say: Report) -> None:
    """Report torch's build, number of threads, and devices."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    say(
        {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "available": available,
            "reason": str(caught[0].message) if caught else None,
            "threads": torch.get_num_threads(),
            "cpu": _precision("cpu"),
            "mps": torch.backends.mps.is_available(),
        }
    )
    for index in range(torch.cuda.device_count() if available else 0):
        say({"device": index, **_describe_device(index)})


def _describe_device(index: int) -> dict[str, Any]:
    """Describe a CUDA device after a test convolution, which fails if torch does not support the device."""
    import torch

    device = torch.cuda.get_device_properties(index)
    row: dict[str, Any] = {
        "name": device.name,
        "total": device.total_memory,
        "capability": [device.major, device.minor],
    }
    try:
        row["free"] = torch.cuda.mem_get_info(index)[0]
        weights = torch.ones(1, 1, 3, 3, device=f"cuda:{index}")
        row["right"] = float(torch.nn.functional.conv2d(torch.ones_like(weights), weights).item()) == 9.0
        with torch.cuda.device(index):
            row["precision"] = _precision("cuda")
    except RuntimeError as error:
        row["error"] = str(error)
    return row


def _precision(accelerator: str) -> str | None:
    """Return the precision that `precision: auto` selects.

    Return None if the module that selects the precision cannot be imported.
    """
    try:
        from competition.inference.precision import native_precision
    except ImportError:
        return None
    return native_precision(accelerator)


def probe_mlflow(say: Report) -> None:
    """Open MLflow's store, and test whether it can be written: set a tag and delete the tag."""
    from competition.tracking.store import connect_mlflow, find_mlflow_store

    client = connect_mlflow(find_mlflow_store(Path.cwd()))
    experiments = client.search_experiments(max_results=1)
    say({"opened": True})
    if not experiments:
        return
    client.set_experiment_tag(experiments[0].experiment_id, PROBE_TAG, "test write")
    client.delete_experiment_tag(experiments[0].experiment_id, PROBE_TAG)
    say({"written": True})


def probe_optuna(say: Report) -> None:
    """Open the storage of studies and count the studies."""
    from competition.study.storage import open_storage

    say({"studies": len(open_storage(None).get_all_studies())})


def probe_telemetry(say: Report) -> None:
    """Report whether MLflow would send telemetry."""
    from competition.tracking.store import configure_mlflow

    configure_mlflow()
    from mlflow.telemetry.utils import is_telemetry_disabled

    say({"mlflow": not is_telemetry_disabled()})


PROBES: dict[str, Callable[..., None]] = {
    "imports": probe_imports,
    "accelerators": probe_accelerators,
    "mlflow": probe_mlflow,
    "optuna": probe_optuna,
    "telemetry": probe_telemetry,
}


def main() -> None:
    """Run one probe. The probe's answers go to standard output, and output of libraries goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    PROBES[sys.argv[1]](say, *sys.argv[2:])


if __name__ == "__main__":
    main()
