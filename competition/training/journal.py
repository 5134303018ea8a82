"""What a fold tells the world while it runs: `metrics.jsonl`, one whole line per epoch."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from competition.training.checkpoint import write_whole


class Journal:
    """The metrics of a fold, as lines of JSON.

    Args:
        path: `metrics.jsonl`.
        step: steps that the fold has behind it; later lines of a process that was killed are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            text = path.read_bytes()
            kept = [line for line in text.splitlines(keepends=True) if _step(line) <= step]
            if b"".join(kept) != text:
                write_whole(path, lambda file: file.writelines(kept))

    def write(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Append one line; a metric that is not a number is left out."""
        numbers = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        line = json.dumps({"step": step, "epoch": epoch, "time": time.time(), "metrics": numbers})
        with open(self.path, "ab") as file:
            file.write(line.encode() + b"\n")

    def has(self, step: int, name: str) -> bool:
        """Whether a line of this step holds this metric: the end of a fold may be reached twice, around a kill."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        return any(_step(line) == step and name in json.loads(line)["metrics"] for line in lines)


def _step(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line that a kill cut in two
