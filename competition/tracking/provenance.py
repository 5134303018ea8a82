"""Record how a run was started: command, commit, uncommitted changes and installed packages."""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import competition
from competition.redact import redact

ENVIRONMENT_FOLDER = "environment"
MAX_DIFF_LENGTH = 2_000_000  # maximum number of characters of a diff


def record_environment(run_folder: Path) -> None:
    """Write a record of the command, the code and the packages to `environment/` in the run's folder.

    The record has three files: `start.txt` (command, commit, branch, state of the working tree, Python, machine),
    `changes.diff` (against the commit) and `packages.txt` (in the format of `pip freeze`).

    When a run resumes, the newest record is compared with the present state. If they differ, another record is written
    to `environment/resume_2/`, then to `environment/resume_3/`, and so on.
    """
    files = {"start.txt": _start(), "changes.diff": _git("diff", "HEAD")[:MAX_DIFF_LENGTH], "packages.txt": _packages()}
    files = {name: redact(text) for name, text in files.items()}
    folder = newest = run_folder / ENVIRONMENT_FOLDER
    number = 1
    while folder.exists():
        newest, number = folder, number + 1
        folder = run_folder / ENVIRONMENT_FOLDER / f"resume_{number}"
    if newest.exists() and all(
        (newest / name).is_file() and (newest / name).read_text(encoding="utf-8") == text
        for name, text in files.items()
    ):
        return
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def source_tags() -> dict[str, str]:
    """Return the tags in which MLflow stores the user, the command and the git commit of a run."""
    tags = {"mlflow.source.name": _command(), "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # the user in a container may have no name
        tags["mlflow.user"] = getpass.getuser()
    if commit := _git("rev-parse", "HEAD").strip():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _command() -> str:
    return redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def _start() -> str:
    """Return the content of `start.txt`: the command, versions, machine, git commit and changed files."""
    commit = _git("rev-parse", "HEAD").strip()
    branch = _git("rev-parse", "--abbrev-ref", "HEAD").strip()
    lines = [
        f"command {_command()}",
        f"maskfold {competition.__version__}",
        f"python {platform.python_version()}",
        f"machine {platform.platform()}",
        f"commit {commit or 'none: the code is not in a git repository'}",
        f"branch {branch or 'none'}",
        "",
        _git("status", "--short"),
    ]
    return "\n".join(lines)


def _packages() -> str:
    return "\n".join(sorted({_requirement(package) for package in metadata.distributions()}, key=str.lower)) + "\n"


def _requirement(package: metadata.Distribution) -> str:
    """Return the line with which pip can reinstall a package: `name==version`, or `name @ url`.

    If a package was installed from a URL, pip has recorded the URL in `direct_url.json` (PEP 610), and the line
    contains it.
    """
    origin = json.loads(package.read_text("direct_url.json") or "null")
    if origin is None:
        return f"{package.name}=={package.version}"
    vcs = origin.get("vcs_info")
    url = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
    return f"{package.name} @ {url}"


def _git(*arguments: str) -> str:
    """Return the output of a git command in the repository of Maskfold's code.

    Return an empty text if git is not installed or fails, e.g. because the code is not in a repository.
    """
    try:
        process = subprocess.run(
            ["git", "-C", str(Path(competition.__file__).parent), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout
