"""Check that Python and the packages are installed, new enough, compatible with each other, and importable."""

from __future__ import annotations

import importlib.util
import platform
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import competition
from competition.doctor.finding import CheckResult, CheckState, first_line
from competition.doctor.probe import run_probe

# Requirements of the project

PROJECT = "maskfold"
DEVELOPMENT = "dev"  # extra that only developers need


@dataclass(frozen=True)
class PackageRequirement:
    """Describe a requirement such as `torch>=2.9`.

    Attributes:
        text: the requirement without its marker, which is the condition after a semicolon.
        name: name of the package.
        extras: extras of the package, e.g. `binary` in `psycopg[binary]`.
    """

    text: str
    name: str
    extras: tuple[str, ...] = ()

    def fits(self, version: str) -> bool:
        """Return whether a version satisfies the requirement; True if `packaging` is not installed."""
        try:
            from packaging.requirements import Requirement
        except ImportError:
            return True
        return Requirement(self.text).specifier.contains(version, prereleases=True)


@dataclass(frozen=True)
class ProjectRequirements:
    """Hold all requirements of the project.

    Attributes:
        python: version specifier such as `>=3.11`.
        packages: required packages.
        extras: optional packages, by the name of the extra.
    """

    python: str
    packages: list[PackageRequirement]
    extras: dict[str, list[PackageRequirement]] = field(default_factory=dict)


def read_requirements() -> ProjectRequirements | None:
    """Return the project's requirements from pyproject.toml or, without this file, from the installed package.

    Return None if the project has neither.
    """
    file = Path(competition.__file__).resolve().parents[1] / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        # The file is preferred, because the metadata of an editable installation may be outdated.
        if project["name"] == PROJECT:
            extras = {
                name: [parse_requirement(line) for line in lines]
                for name, lines in project["optional-dependencies"].items()
                if name != DEVELOPMENT
            }
            return ProjectRequirements(
                project["requires-python"], [parse_requirement(line) for line in project["dependencies"]], extras
            )
    except (OSError, ValueError, KeyError):
        pass
    return _read_installed()


def _read_installed() -> ProjectRequirements | None:
    """Read the requirements from the metadata of the installed package; return None if it is not installed.

    In the metadata, the marker of a requirement says to which extra it belongs.
    """
    try:
        project = metadata.metadata(PROJECT)
    except metadata.PackageNotFoundError:
        return None
    packages: list[PackageRequirement] = []
    extras: dict[str, list[PackageRequirement]] = {}
    for line in project.get_all("Requires-Dist") or []:
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", line)
        if extra is None:
            packages.append(parse_requirement(line))
        elif extra.group(1) != DEVELOPMENT:
            extras.setdefault(extra.group(1), []).append(parse_requirement(line))
    return ProjectRequirements(str(project.json.get("requires_python") or ""), packages, extras)


def parse_requirement(line: str) -> PackageRequirement:
    """Parse a requirement line.

    Example:
        >>> parse_requirement("psycopg[binary]>=3.2; python_version > '3'")
        PackageRequirement(text='psycopg[binary]>=3.2', name='psycopg', extras=('binary',))
    """
    text = line.partition(";")[0].strip()
    match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?", text)
    if match is None:
        raise ValueError(f"{line!r} is not a requirement")
    extras = tuple(extra.strip() for extra in (match.group(2) or "").split(",") if extra.strip())
    return PackageRequirement(text, match.group(1), extras)


def normalise_name(name: str) -> str:
    """Normalise a package name (PEP 503).

    Example:
        >>> normalise_name("Segmentation_Models.Pytorch")
        'segmentation-models-pytorch'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


# Checks

MODULES = {  # modules whose names differ from those of their packages
    "connected-components-3d": "cc3d",
    "lightning": "lightning.fabric",
    "nvidia-ml-py": "pynvml",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyjpegls": "jpeg_ls",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "simpleitk": "SimpleITK",
}
OPTIONAL = {"nvidia-ml-py"}  # packages that training does not need
PURPOSES = {
    "ray": "folds on a cluster",
    "postgres": "studies on several machines",
    "kaggle": "maskfold fetch kaggle:…",
    "dashboard": "make dashboard",
    "dicom": "DICOM files packed as JPEG, JPEG-LS or JPEG 2000",
    "itk": "NRRD, MHA and MHD files",
    "onnx": "maskfold export --onnx",
}
MAX_CRASHES = 5  # after this number of crashes, the remaining imports are not tested


def check_packages() -> list[CheckResult]:
    """Return one row for Python, one row for all working packages, and one row for each package with a problem."""
    needs = read_requirements()
    if needs is None:
        return [
            CheckResult(
                "packages",
                "warning",
                "the list of packages that the project requires was not found",
                "Install the project: python -m pip install -e .",
            )
        ]
    problems: dict[str, CheckResult] = {}
    versions: dict[str, str] = {}
    for need in needs.packages:
        finding, version = _check_version(need)
        if finding is not None:
            problems[need.name] = finding
        if version is not None:
            versions[need.name] = version
    conflicting = find_conflicts(needs.packages)
    for name, error in import_errors(name for name in versions if name not in problems).items():
        problems[name] = _import_failure(name, versions[name], error, conflicting.pop(normalise_name(name), []))
    for name, messages in conflicting.items():
        if name not in problems:
            problems[name] = CheckResult(name, "warning", "; ".join(messages), _reinstall_hint(name))
    working = {name: version for name, version in versions.items() if name not in problems}
    rows = [_check_python(needs), *_check_packaging()]
    if working:
        rows.append(CheckResult("packages", "ok", f"{len(working)} importable: {_format_versions(working)}"))
    return rows + list(problems.values())


def check_extras() -> list[CheckResult]:
    """Return a row for each extra, which is a group of optional packages."""
    needs = read_requirements()
    rows = []
    for extra, requirements in (needs.extras if needs is not None else {}).items():
        name, purpose = f"extra [{extra}]", PURPOSES.get(extra, "optional")
        versions = {need.name: installed_version(need.name) for need in requirements}
        command = f'python -m pip install "maskfold[{extra}]"'
        too_old = [
            need for need in requirements if (version := versions[need.name]) is not None and not need.fits(version)
        ]
        if None in versions.values():
            rows.append(CheckResult(name, "ok", f"not installed; needed only for {purpose}: {command}"))
        elif too_old:
            need = too_old[0]
            detail = f"{need.name} {versions[need.name]} is installed, but {need.text} is required"
            rows.append(CheckResult(name, "warning", detail, f"If you need {purpose}, run: {command}."))
        else:
            rows.append(CheckResult(name, "ok", f"{_format_versions(versions)}: {purpose}"))
    return rows


def installed_version(package: str) -> str | None:
    """Return the installed version; None if the package is not installed."""
    try:
        return metadata.version(package) or None
    except metadata.PackageNotFoundError:
        return None


def import_errors(packages: Iterable[str]) -> dict[str, str]:
    """Import packages in a separate process; return the errors of the imports that fail, by package name."""
    modules = {module_name(package): package for package in packages}
    errors: dict[str, str] = {}
    remaining = list(modules)
    for _ in range(MAX_CRASHES):
        if not remaining:
            break
        answer = run_probe("imports", *remaining, seconds=300.0)
        results = {line["end"]: line["error"] for line in answer.lines if "end" in line}
        errors.update({modules[module]: error for module, error in results.items() if error})
        remaining = [module for module in remaining if module not in results]
        if answer.trouble is None:
            break
        started = [line["begin"] for line in answer.lines if line.get("begin") in remaining]
        crashed = next(iter([*started, *remaining]), None)
        if crashed is not None:
            errors[modules[crashed]] = answer.trouble
            remaining.remove(crashed)
    return errors


def find_conflicts(needs: list[PackageRequirement]) -> dict[str, list[str]]:
    """Return the unsatisfied requirements of installed packages, as `pip check` does.

    Args:
        needs: the packages to start from; the packages that they require are checked too.

    Returns:
        Descriptions of the unsatisfied requirements, by the name of the package that has them.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    queue = [(need.name, need.extras) for need in needs]
    unsatisfied: dict[str, list[str]] = {}
    while queue:
        name, extras = queue.pop()
        if (key := (normalise_name(name), extras)) in seen:
            continue
        seen.add(key)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for line in lines:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                continue
            version = installed_version(requirement.name)
            text = f"requires {requirement.name}{requirement.specifier}"
            if version is None:
                unsatisfied.setdefault(normalise_name(name), []).append(f"{text}, which is not installed")
            elif not requirement.specifier.contains(version, prereleases=True):
                unsatisfied.setdefault(normalise_name(name), []).append(
                    f"{text}, but {requirement.name} {version} is installed"
                )
            else:
                queue.append((requirement.name, tuple(sorted(requirement.extras))))
    return unsatisfied


def module_name(package: str) -> str:
    """Return the name under which Python imports a package, e.g. `yaml` for PyYAML."""
    return MODULES.get(normalise_name(package), normalise_name(package).replace("-", "_"))


def _check_version(need: PackageRequirement) -> tuple[CheckResult | None, str | None]:
    """Return the problem with a package's version, and the installed version.

    The problem is None if the version is right. The version is None if the package is not installed.
    """
    state = _failure_state(need.name)
    version = installed_version(need.name)
    command = f'python -m pip install "{need.text}"'
    if version is None or not _has_module(module_name(need.name)):
        detail = f"is not installed ({need.text} is required)"
        return CheckResult(need.name, state, detail, f"Install it: {command}."), None
    if not need.fits(version):
        detail = f"{version} is installed, but {need.text} is required"
        return CheckResult(need.name, state, detail, f"Install a matching version: {command}."), version
    return None, version


def _failure_state(name: str) -> CheckState:
    return "warning" if normalise_name(name) in OPTIONAL else "unusable"


def _has_module(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _import_failure(name: str, version: str, error: str, conflicting: list[str]) -> CheckResult:
    reason = f"; the package {conflicting[0]}" if conflicting else ""
    detail = f"{version} cannot be imported: {first_line(error)}{reason}"
    return CheckResult(name, _failure_state(name), detail, _reinstall_hint(name))


def _reinstall_hint(name: str) -> str:
    """Return the command that installs matching versions; torch and torchvision are installed together."""
    is_torch = normalise_name(name) in ("torch", "torchvision")
    vision = installed_version("torchvision") if is_torch else None
    for need in (
        [parse_requirement(line) for line in metadata.requires("torchvision") or []] if vision is not None else []
    ):
        if normalise_name(need.name) == "torch":
            packages = f'"{need.text}" torchvision=={vision}'
            return f"Install a matching pair: python -m pip install --force-reinstall {packages}."
    packages = "torch torchvision" if is_torch else name
    return f"Reinstall it: python -m pip install --upgrade --force-reinstall {packages}."


def _check_python(needs: ProjectRequirements) -> CheckResult:
    version = platform.python_version()
    detail = f"{version} ({platform.python_implementation()}, {platform.system()} {platform.machine()})"
    if needs.python and not PackageRequirement(f"python{needs.python}", "python").fits(version):
        hint = "Create the virtual environment again with a newer Python."
        return CheckResult("python", "unusable", f"{detail}; {needs.python} is required", hint)
    return CheckResult("python", "ok", detail)


def _check_packaging() -> list[CheckResult]:
    if _has_module("packaging"):
        return []
    detail = "is not installed, so versions are not compared"
    return [CheckResult("packaging", "warning", detail, "Install it: python -m pip install packaging.")]


def _format_versions(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
