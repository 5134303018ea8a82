"""Fixtures for bundles of toy runs.

The bundles are exported without the smoke test, whose process takes seconds. test_bundle_alone.py includes this test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, serial_scoring: None) -> Callable[..., Path]:
    """`bundled([run], weights=[1.0])`: export a bundle without smoke test, and return its folder."""
    from competition.export import bundle

    monkeypatch.setattr(bundle, "run_smoke_test", lambda *_: {name.split(".")[0] for name in sys.modules})

    def make(runs: list[Any], name: str = "bundle", **how: Any) -> Path:
        bundle.export_runs(runs, tmp_path / name, **how)
        return tmp_path / name

    return make


def run_bundle(folder: Path, root: Path, output: Path, *words: str) -> int:
    """Run the bundle's command in this process, and return its exit status.

    Args:
        folder: folder of the bundle.
        root: folder of the images.
        output: folder for the results.
        *words: further arguments of the command.
    """
    from competition.export.runtime import main

    return main(folder, ["--input", str(root), "--output", str(output), "--devices", "cpu", *words])
