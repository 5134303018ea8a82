"""Which files of this package a bundle needs: whatever its script may import, found in the sources."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

import competition
from competition.config import MaskfoldError

PACKAGE = Path(competition.__file__).parent
START = (
    "competition.submission.offline.command",
    "competition.submission.offline.onnx",
    "competition.submission.offline.trial",
)


def needed(targets: Iterable[str]) -> tuple[list[Path], set[str]]:
    """The package's files that a bundle imports, also inside of functions; and the other packages that these name.

    Args:
        targets: import paths of networks; those in this package count.

    Returns:
        Paths below the package's folder, sorted; names of top-level modules.
    """
    readers = [f"competition.data.{path.stem}" for path in PACKAGE.glob("data/readers_*.py")]  # imported by their names
    todo = [*START, *readers, *(target for target in targets if target.startswith("competition."))]
    found: set[Path] = set()
    others: set[str] = set()
    while todo:
        name = todo.pop()
        if name.split(".")[0] != "competition":
            others.add(name.split(".")[0])
            continue
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            path = _file(parts[:length])
            if path is not None and path not in found:
                found.add(path)
                todo += _imports(path)
    return sorted(path.relative_to(PACKAGE) for path in found), others


def own_package(root: str) -> list[tuple[Path, Path]]:
    """The source files of a user's own package, and where they go below `code`.

    Raises:
        MaskfoldError: it cannot be found.
    """
    spec = importlib.util.find_spec(root)
    if spec is None or spec.origin is None:
        raise MaskfoldError(
            f"The package {root}, which a network comes from, has no source files.",
            "Run from the folder that holds it.",
        )
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return [(origin, Path(origin.name))]
    return [(path, Path(root) / path.relative_to(origin.parent)) for path in sorted(origin.parent.rglob("*.py"))]


def _file(parts: list[str]) -> Path | None:
    path = PACKAGE.joinpath(*parts[1:])
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _imports(path: Path) -> list[str]:
    """Full names of what a file imports, and of what it might: `from a import b` may mean the module a.b."""
    found = []
    for node in _live(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _live(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _live(child)
