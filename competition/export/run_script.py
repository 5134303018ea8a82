"""Run a bundle; each bundle contains a copy of this file as `run.py`.

The script first checks the files and packages of the bundle with the standard library alone. It then predicts the test
cases of a competition, without network access:

    python bundle/run.py --input /kaggle/input/x --output submission.csv --hours 9
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent


def fail(message: str, hint: str) -> None:
    """Print an error with a hint to standard error, and exit with status 1."""
    print(f"error: {message} {hint}", file=sys.stderr)
    sys.exit(1)


def check_files() -> None:
    """Check that all files of the bundle are unchanged, and that its folder `code` contains no other Python files.

    The files are compared with their SHA-256 in `manifest.json`. If something is wrong, the script ends with an error.
    """
    hint = "Copy the complete bundle again."
    try:
        manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        fail(f"{HERE} has no manifest.json.", hint)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        fail(f"{HERE / 'manifest.json'} cannot be read: {error}.", hint)
    for name, sha256 in manifest.items():
        if not (HERE / name).is_file():
            fail(f"{name} is missing from the bundle.", hint)
        with open(HERE / name, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                fail(f"{name} was changed after the export: its SHA-256 differs from that in manifest.json.", hint)
    for path in sorted((HERE / "code").rglob("*.py")):
        if path.relative_to(HERE).as_posix() not in manifest:
            fail(
                f"{path.relative_to(HERE).as_posix()} is in the bundle, but manifest.json does not list it.",
                "Remove the file, or export the bundle again.",
            )


def check_packages() -> None:
    """Print notes that list the packages that are missing or have other versions than in requirements.txt."""
    different, missing = [], []
    for package in json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))["requirements"]:
        try:
            installed = metadata.version(package["name"]).split("+")[0]
        except metadata.PackageNotFoundError:
            # This is not an error, because a package such as opencv may be installed under another name.
            missing.append(f"{package['name']}=={package['version']}")
            continue
        if installed != package["version"]:
            different.append(f"{package['name']} {installed} instead of {package['version']}")
    if missing:
        print(
            f"note: these packages are not installed, at least not under these names: {', '.join(missing)}. "
            "If an import fails, run in the bundle's folder: pip install --no-index --no-deps --find-links "
            "wheels -r requirements.txt",
            flush=True,
        )
    if different:
        print(
            "note: these packages have other versions than at the export, so the last digits of results "
            f"may differ: {', '.join(different)}",
            flush=True,
        )


def terminate(_number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt when SIGTERM arrives, so that open files are closed before the process ends."""
    raise KeyboardInterrupt("SIGTERM")


def main() -> int:
    """Call `check_and_run`, and return its exit status.

    Ctrl-C (status 130) and SIGTERM (status 143) stop the script at any time, also during imports.
    """
    signal.signal(signal.SIGTERM, terminate)
    try:
        return check_and_run()
    except KeyboardInterrupt as reason:
        print("stopped: nothing was written", file=sys.stderr)
        return 143 if "SIGTERM" in str(reason) else 130


def check_and_run() -> int:
    """Check the bundle, predict with the code in its folder `code`, and return the exit status."""
    check_files()
    check_packages()
    sys.dont_write_bytecode = True  # Python then writes no files, so the bundle stays unchanged
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # also for the processes of several devices
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path.insert(0, str(HERE / "code"))
    try:
        from competition.export.runtime import main as run

        return run(HERE)
    except ModuleNotFoundError as error:
        fail(
            f"The package {error.name} is not installed, but the bundle requires it.",
            "Run in the bundle's folder: pip install --no-index --no-deps --find-links wheels -r requirements.txt",
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
