"""The list of packages, and their wheels."""

from __future__ import annotations

import subprocess
from importlib import metadata
from types import SimpleNamespace

import pytest

from competition.errors import MaskfoldError
from competition.export import requirements
from competition.export.requirements import PinnedPackage, download_wheels, pinned_requirements, required_files


def test_only_what_was_imported_and_is_required_is_listed():
    # pandas requires numpy; typer is neither named nor required by it; scipy is named, but was not imported.
    found = {pin.name: pin for pin in pinned_requirements({"pandas", "numpy", "typer", "json"}, {"pandas", "scipy"})}
    assert set(found) == {"pandas", "numpy"}
    assert found["numpy"].line() == f"numpy=={metadata.version('numpy')}" and "numpy" in found["numpy"].modules


def test_a_module_of_another_name_finds_its_package():
    found = {pin.name: pin.modules for pin in pinned_requirements({"yaml", "cv2"}, {"yaml", "cv2"})}
    assert "yaml" in found["pyyaml"] and found["opencv-python-headless"] == ("cv2",)


def test_the_code_needs_no_training_and_its_readers_come_along():
    files, others = required_files([])
    names = {path.as_posix() for path in files}
    assert {"data/readers.py", "data/formats/raster.py", "export/runtime.py", "inference/sliding_window.py"} <= names
    assert {"models/schedules.py", "postprocessing/steps.py"} <= names  # a YAML finds them by registries
    assert not {"training/trainer.py", "training/fold.py", "training/distributed.py", "export/mlflow_model.py"} & names
    assert "lightning" not in others and "mlflow" not in others
    assert "models/unet.py" not in names and "models/unet.py" in {
        path.as_posix() for path in required_files(["competition.models.unet.X"])[0]
    }


def test_wheels_are_fetched_one_by_one_without_pytorch(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        requirements.subprocess,
        "run",
        lambda words, **_: seen.append(words) or SimpleNamespace(returncode=0, stderr=""),
    )
    names = ["torch", "nvidia-cublas-cu12", "cuda-bindings", "triton", "monai", "pyyaml"]
    download_wheels([PinnedPackage(name, "1.0", ()) for name in names], tmp_path / "wheels")
    assert seen[0][-2:] == ["monai==1.0", "pyyaml==1.0"] and "--no-deps" in seen[0] and "--only-binary=:all:" in seen[0]
    assert not any("torch" in word or "nvidia" in word or "cuda" in word or "triton" in word for word in seen[0])


def test_a_wheel_that_cannot_be_had_is_named(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, stderr="noise\nERROR: No matching distribution found for monai==9\n")
    monkeypatch.setattr(requirements.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(MaskfoldError, match="monai==9"):
        download_wheels([PinnedPackage("monai", "9", ())], tmp_path / "wheels")
