"""What this project needs: from `pyproject.toml` beside the package, else from what was installed."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import competition

PROJECT = "maskfold"
DEVELOPMENT = "dev"  # the extra that a user needs not


@dataclass(frozen=True)
class Need:
    """A requirement such as `torch>=2.9`.

    Attributes:
        text: as it is written, without a marker.
        name: of the package.
        extras: of the package itself, e.g. `binary` of `psycopg[binary]`.
    """

    text: str
    name: str
    extras: tuple[str, ...] = ()

    def fits(self, version: str) -> bool:
        """Whether a version is new enough; True where `packaging`, which can tell, is missing."""
        try:
            from packaging.requirements import Requirement
        except ImportError:
            return True
        return Requirement(self.text).specifier.contains(version, prereleases=True)


@dataclass(frozen=True)
class Needs:
    """All of them.

    Attributes:
        python: a specifier such as `>=3.11`.
        packages: what has to be there.
        extras: what may be there, by the name of the extra.
    """

    python: str
    packages: list[Need]
    extras: dict[str, list[Need]] = field(default_factory=dict)


def read_needs() -> Needs | None:
    """The project's needs; None if neither file nor installation tells them."""
    file = Path(competition.__file__).resolve().parents[1] / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        if project["name"] == PROJECT:  # an installation in place keeps the list of the day it was made
            extras = {
                name: [parse(one) for one in several]
                for name, several in project["optional-dependencies"].items()
                if name != DEVELOPMENT
            }
            return Needs(project["requires-python"], [parse(one) for one in project["dependencies"]], extras)
    except (OSError, ValueError, KeyError):
        pass
    return _installed()


def _installed() -> Needs | None:
    """As the wheel's metadata has it: extras are markers."""
    try:
        known = metadata.metadata(PROJECT)
    except metadata.PackageNotFoundError:
        return None
    packages: list[Need] = []
    extras: dict[str, list[Need]] = {}
    for line in known.get_all("Requires-Dist") or []:
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", line)
        if extra is None:
            packages.append(parse(line))
        elif extra.group(1) != DEVELOPMENT:
            extras.setdefault(extra.group(1), []).append(parse(line))
    return Needs(str(known.json.get("requires_python") or ""), packages, extras)


def parse(line: str) -> Need:
    """A requirement from its line.

    Example:
        >>> parse("psycopg[binary]>=3.2; python_version > '3'")
        Need(text='psycopg[binary]>=3.2', name='psycopg', extras=('binary',))
    """
    text = line.partition(";")[0].strip()
    found = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?", text)
    if found is None:
        raise ValueError(f"{line!r} is no requirement")
    extras = tuple(one.strip() for one in (found.group(2) or "").split(",") if one.strip())
    return Need(text, found.group(1), extras)


def normal(name: str) -> str:
    """A package's name as PEP 503 compares it.

    Example:
        >>> normal("Segmentation_Models.Pytorch")
        'segmentation-models-pytorch'
    """
    return re.sub(r"[-_.]+", "-", name).lower()
