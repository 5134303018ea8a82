"""What runs in the doctor's other process: `python -m competition.doctor.probe QUESTION WORDS…`, answers as lines of JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

Say = Callable[[dict[str, Any]], None]
TAG = "maskfold.doctor"


def imports(say: Say, *modules: str) -> None:
    """Import modules one after the other; each is announced, so that a crash has a name."""
    for module in modules:
        say({"begin": module})
        error = None
        try:
            importlib.import_module(module)
            if module == "torchvision":
                _use_torchvision()
        except BaseException as raised:  # noqa: BLE001 - whatever it raises, SystemExit too, is the answer
            error = f"{type(raised).__name__}: {raised}"
        say({"end": module, "error": error})


def _use_torchvision() -> None:
    """Calls into its compiled part, which is missing or of another torch where the two do not fit."""
    import torch
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def accelerators(say: Say) -> None:
    """Torch's build, its threads, and each of its devices."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    say(
        {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "available": there,
            "reason": str(caught[0].message) if caught else None,
            "threads": torch.get_num_threads(),
            "cpu": _precision("cpu"),
            "mps": torch.backends.mps.is_available(),
        }
    )
    for index in range(torch.cuda.device_count() if there else 0):
        say({"device": index, **_device(index)})


def _device(index: int) -> dict[str, Any]:
    """A CUDA device, after it has computed something: torch may have been built without its architecture."""
    import torch

    known = torch.cuda.get_device_properties(index)
    row: dict[str, Any] = {"name": known.name, "total": known.total_memory, "capability": [known.major, known.minor]}
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
    """What `precision: auto` means there; None where the module that decides cannot be imported."""
    try:
        from competition.inference.place import native_precision
    except ImportError:
        return None
    return native_precision(accelerator)


def mlflow(say: Say) -> None:
    """Open MLflow's store, and set and remove a tag: a write that leaves nothing behind."""
    from competition.tracking.store import connect, store_of

    client = connect(store_of(Path.cwd()))
    found = client.search_experiments(max_results=1)
    say({"opened": True})
    if not found:
        return
    client.set_experiment_tag(found[0].experiment_id, TAG, "a write that is undone")
    client.delete_experiment_tag(found[0].experiment_id, TAG)
    say({"written": True})


def optuna(say: Say) -> None:
    """Open the storage of studies."""
    from competition.study.storage import open_storage

    say({"studies": len(open_storage(None).get_all_studies())})


def telemetry(say: Say) -> None:
    """Whether MLflow would send anything from one of our processes."""
    from competition.tracking.store import quieten

    quieten()
    from mlflow.telemetry.utils import is_telemetry_disabled

    say({"mlflow": not is_telemetry_disabled()})


QUESTIONS: dict[str, Callable[..., None]] = {
    "imports": imports,
    "accelerators": accelerators,
    "mlflow": mlflow,
    "optuna": optuna,
    "telemetry": telemetry,
}


def main() -> None:
    """Answer on what was standard output; what libraries print there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    QUESTIONS[sys.argv[1]](say, *sys.argv[2:])


if __name__ == "__main__":
    main()
