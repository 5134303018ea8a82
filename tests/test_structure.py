"""The package's structure: no import cycles, lazy public names, light imports, and import paths that moved."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import competition
from competition.moved import MOVED

ROOT = Path(competition.__file__).parent


def module_name(path: Path) -> str:
    parts = ("competition", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(node: ast.AST) -> Iterator[str]:
    """Return what a file imports, also inside functions, but not under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported_names(child)


def import_graph() -> dict[str, set[str]]:
    sources = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, tree in sources.items():
        targets = set()
        for full in imported_names(tree):
            module = full if full in sources else full.rpartition(".")[0]
            if module in sources and module != name:
                targets.add(module)
        graph[name] = targets
    return graph


def test_no_file_imports_itself_through_others() -> None:
    try:
        list(TopologicalSorter(import_graph()).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_a_folder_has_at_most_16_files() -> None:
    counts = {folder: len(list(folder.glob("*.py"))) for folder in [ROOT, *ROOT.rglob("*")] if folder.is_dir()}
    assert max(counts.values()) <= 16, max(counts, key=lambda folder: counts[folder])


@pytest.mark.parametrize("name", competition.__all__)
def test_each_public_name_exists(name: str) -> None:
    assert getattr(competition, name) is not None


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_import_path_gives_the_module_at_its_new_place(old: str, new: str) -> None:
    assert importlib.import_module(old) is importlib.import_module(new)


def loaded_modules(code: str) -> set[str]:
    script = f"import sys; {code}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )


HEAVY = {"torch", "monai", "mlflow", "optuna", "albumentations", "cv2", "scipy", "sklearn", "pandas", "matplotlib"}


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import competition", set()),
        ("import competition.doctor", set()),
        ("import competition.cli.main", set()),
        ("from competition import load_experiment", set()),
        ("from competition import encode, decode", set()),
        ("from competition.config.postprocess import STEPS; STEPS.names()", set()),
        ("from competition.config.experiment import SCHEDULES; SCHEDULES.names()", set()),
        ("import competition.runs.find", {"pandas"}),
        ("import competition.fork_server", set()),
        ("import competition.training.cross_validate", {"pandas"}),
        ("import competition.postprocessing.evaluation, competition.ensembling.weights", set()),  # scoring processes
        ("import competition.data.preprocessing", set()),  # and those that prepare cases
    ],
)
def test_light_imports_stay_light(code: str, allowed: set[str]) -> None:
    """A heavy library is imported by the command that needs it, not by the command line itself."""
    assert loaded_modules(code) & HEAVY <= allowed
