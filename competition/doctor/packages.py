"""Python and the packages: there, new enough, agreeing with each other, and really importable."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata

from competition.doctor.child import ask
from competition.doctor.finding import Finding, State, first_line
from competition.doctor.requirements import Need, Needs, normal, parse, read_needs

MODULES = {  # where a package's module is called otherwise than the package
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
SPARED = {"nvidia-ml-py"}  # training goes on without
PURPOSES = {
    "ray": "folds on a cluster",
    "postgres": "studies on several machines",
    "kaggle": "maskfold fetch kaggle:…",
    "dashboard": "make dashboard",
    "pretrained": "encoders without a network",
    "dicom": "DICOM of every syntax",
}
LAST_TRIES = 5  # crashes after which no further import is tried


def look() -> list[Finding]:
    """Rows for Python, for the packages that are well, and for each that is not."""
    needs = read_needs()
    if needs is None:
        return [
            Finding(
                "packages",
                "warning",
                "the project's list of packages was not found",
                "Install the project: python -m pip install -e .",
            )
        ]
    bad: dict[str, Finding] = {}
    versions: dict[str, str] = {}
    for need in needs.packages:
        finding, version = _present(need)
        if finding is not None:
            bad[need.name] = finding
        if version is not None:
            versions[need.name] = version
    quarrels = conflicts(needs.packages)
    for name, error in broken(name for name in versions if name not in bad).items():
        bad[name] = _not_importable(name, versions[name], error, quarrels.pop(normal(name), []))
    for name, several in quarrels.items():
        if name not in bad:
            bad[name] = Finding(name, "warning", "; ".join(several), _reinstall(name))
    well = {name: version for name, version in versions.items() if name not in bad}
    rows = [_python(needs), *_no_packaging()]
    if well:
        rows.append(Finding("packages", "ok", f"{len(well)} import: {_named(well)}"))
    return rows + list(bad.values())


def look_extras() -> list[Finding]:
    """A row for each optional extra."""
    needs = read_needs()
    rows = []
    for name, several in (needs.extras if needs is not None else {}).items():
        what, purpose = f"extra [{name}]", PURPOSES.get(name, "optional")
        there = {need.name: version_of(need.name) for need in several}
        cure = f'python -m pip install "maskfold[{name}]"'
        missing = [package for package, version in there.items() if version is None]
        old = [need for need in several if (version := there[need.name]) is not None and not need.fits(version)]
        if missing:
            rows.append(Finding(what, "ok", f"not installed; for {purpose}: {cure}"))
        elif old:
            rows.append(
                Finding(
                    what,
                    "warning",
                    f"{old[0].name} {there[old[0].name]} is there, and {old[0].text} is needed",
                    f"For {purpose}: {cure}.",
                )
            )
        else:
            rows.append(Finding(what, "ok", f"{_named(there)}: {purpose}"))
    return rows


def version_of(package: str) -> str | None:
    """The installed version; None if it is not installed."""
    try:
        return metadata.version(package) or None
    except metadata.PackageNotFoundError:
        return None


def broken(packages: Iterable[str]) -> dict[str, str]:
    """Packages that cannot be imported, and why; each is imported in another process."""
    modules = {module_of(package): package for package in packages}
    errors: dict[str, str] = {}
    left = list(modules)
    for _ in range(LAST_TRIES):
        if not left:
            break
        answer = ask("imports", *left, seconds=300.0)
        ended = {line["end"]: line["error"] for line in answer.lines if "end" in line}
        errors.update({modules[module]: error for module, error in ended.items() if error})
        left = [module for module in left if module not in ended]
        if answer.trouble is None:
            break
        guilty = next((line["begin"] for line in answer.lines if line.get("begin") in left), left[0] if left else None)
        if guilty is not None:
            errors[modules[guilty]] = answer.trouble
            left.remove(guilty)
    return errors


def conflicts(needs: list[Need]) -> dict[str, list[str]]:
    """What installed packages ask of each other in vain, by the package that asks, as `pip check` finds it."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    left = [(need.name, need.extras) for need in needs]
    found: dict[str, list[str]] = {}
    while left:
        name, extras = left.pop()
        if (key := (normal(name), extras)) in seen:
            continue
        seen.add(key)
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for line in asked:
            one = Requirement(line)
            if one.marker is not None and not any(one.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                continue
            version = version_of(one.name)
            if version is None:
                _add(found, name, f"needs {one.name}{one.specifier}, which is not installed")
            elif not one.specifier.contains(version, prereleases=True):
                _add(found, name, f"needs {one.name}{one.specifier}, and {one.name} {version} is installed")
            else:
                left.append((one.name, tuple(sorted(one.extras))))
    return found


def module_of(package: str) -> str:
    """The module to import for a package."""
    return MODULES.get(normal(package), normal(package).replace("-", "_"))


def _present(need: Need) -> tuple[Finding | None, str | None]:
    """What is wrong with a package by its version, or with where it should be; and its version."""
    state: State = "warning" if normal(need.name) in SPARED else "unusable"
    version = version_of(need.name)
    cure = f'python -m pip install "{need.text}"'
    if version is None or not _has_module(module_of(need.name)):
        return Finding(need.name, state, f"is not installed ({need.text} is needed)", f"Install it: {cure}."), None
    if not need.fits(version):
        return Finding(
            need.name, state, f"{version} is installed, and {need.text} is needed", f"Install another: {cure}."
        ), version
    return None, version


def _has_module(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _not_importable(name: str, version: str, error: str, quarrels: list[str]) -> Finding:
    state: State = "warning" if normal(name) in SPARED else "unusable"
    why = f"; it {quarrels[0]}" if quarrels else ""
    return Finding(name, state, f"{version} cannot be imported: {first_line(error)}{why}", _reinstall(name))


def _reinstall(name: str) -> str:
    """How to get versions that fit: torch's family comes together."""
    together = "torch torchvision" if normal(name) in ("torch", "torchvision") else name
    vision = version_of("torchvision") if together != name else None
    pinned = [parse(line) for line in metadata.requires("torchvision") or []] if vision is not None else []
    for need in pinned:
        if normal(need.name) == "torch":
            return f'Install a pair that fits: python -m pip install --force-reinstall "{need.text}" torchvision=={vision}.'
    return f"Install it again: python -m pip install --upgrade --force-reinstall {together}."


def _python(needs: Needs) -> Finding:
    version = platform.python_version()
    found = f"{version} ({platform.python_implementation()}, {platform.system()} {platform.machine()})"
    if needs.python and not Need(f"python{needs.python}", "python").fits(version):
        return Finding(
            "python", "unusable", f"{found}; {needs.python} is needed", "Make the environment with a newer Python."
        )
    return Finding("python", "ok", found)


def _no_packaging() -> list[Finding]:
    if _has_module("packaging"):
        return []
    return [
        Finding(
            "packaging",
            "warning",
            "is not installed, so versions are not compared",
            "Install it: python -m pip install packaging.",
        )
    ]


def _named(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _add(found: dict[str, list[str]], name: str, what: str) -> None:
    found.setdefault(normal(name), []).append(what)
