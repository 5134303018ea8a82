"""What a fold tells the world while it runs: `metrics.jsonl`, one whole line per epoch."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from competition.data.files import append_whole, write_whole
from competition.data.records import journal_line


class Journal:
    """The metrics of a fold, as lines of JSON.

    Args:
        path: `metrics.jsonl`.
        step: steps that the fold has behind it; later lines of a process that was killed are dropped.
        last: the line of the last epoch, from the checkpoint: it is written after the checkpoint, so that a line that was
            once there, and may be in MLflow, never comes again with another time. A kill in between loses it here.
    """

    def __init__(self, path: Path, step: int, last: str = "") -> None:
        self.path = path
        text = path.read_bytes() if path.exists() else b""
        kept = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n") and _step(line) <= step]
        if last and last.encode() + b"\n" not in kept:
            kept.append(last.encode() + b"\n")
        if b"".join(kept) != text:
            write_whole(path, lambda file: file.writelines(kept))

    @staticmethod
    def line(step: int, epoch: int, metrics: dict[str, float]) -> str:
        """A line; a metric that is not a number is left out."""
        numbers = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        return json.dumps({"step": step, "epoch": epoch, "time": time.time(), "metrics": numbers})

    def add(self, line: str) -> None:
        """Append a line, all of it or nothing."""
        append_whole(self.path, line.encode() + b"\n")

    def write(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Append the line of these metrics."""
        self.add(self.line(step, epoch, metrics))

    def has(self, step: int, name: str) -> bool:
        """Whether a line of this step holds this metric: the end of a fold may be reached twice, around a kill."""
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        return any(
            (found := journal_line(line)) is not None and found.step == step and name in found.metrics for line in lines
        )


def _step(line: bytes) -> float:
    found = journal_line(line)
    return math.inf if found is None else found.step
