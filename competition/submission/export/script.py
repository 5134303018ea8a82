"""Predicts the test cases of a competition with the networks beside this file, without network.

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


def refuse(wrong: str, cure: str) -> None:
    """Say in two sentences why nothing is done, and leave."""
    print(f"error: {wrong} {cure}", file=sys.stderr)
    sys.exit(1)


def check_files() -> None:
    """Hold every file against the manifest before anything of it is used; also code that the manifest does not know."""
    cure = "Copy the bundle again, whole."
    try:
        known = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        refuse(f"{HERE} has no manifest.json.", cure)
    except (OSError, ValueError, KeyError) as error:
        refuse(f"{HERE / 'manifest.json'} cannot be read: {error}.", cure)
    for name, sha256 in known.items():
        if not (HERE / name).is_file():
            refuse(f"{name} is missing from the bundle.", cure)
        with open(HERE / name, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                refuse(f"{name} is not the file that was exported: its SHA-256 differs from the manifest's.", cure)
    for path in sorted((HERE / "code").rglob("*.py")):
        if path.relative_to(HERE).as_posix() not in known:
            refuse(
                f"{path.relative_to(HERE).as_posix()} is not in the manifest.", "Remove it, or export the bundle again."
            )


def check_packages() -> None:
    """Name what is missing, and what is there in another version."""
    others, gone = [], []
    for one in json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))["requirements"]:
        try:
            there = metadata.version(one["name"]).split("+")[0]
        except metadata.PackageNotFoundError:
            gone.append(f"{one['name']}=={one['version']}")  # or there under another name, as opencv may be
            continue
        if there != one["version"]:
            others.append(f"{one['name']} {there} instead of {one['version']}")
    if gone:
        print(
            f"note: not installed, at least not under these names: {', '.join(gone)}; where one is missed: "
            "pip install --no-index --no-deps --find-links wheels -r requirements.txt, in the bundle's folder",
            flush=True,
        )
    if others:
        print(f"note: other versions than at the export, so last digits may differ: {', '.join(others)}", flush=True)


def terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM as an exception, so that what is open is closed."""
    raise KeyboardInterrupt("SIGTERM")


def main() -> int:
    """Check, hand over to the package in `code`, and end when asked to, also in the seconds that its imports take."""
    signal.signal(signal.SIGTERM, terminate)
    try:
        return checked()
    except KeyboardInterrupt as reason:
        print("stopped: nothing was written", file=sys.stderr)
        return 143 if "SIGTERM" in str(reason) else 130


def checked() -> int:
    """Check, then hand over."""
    if "--shard" not in sys.argv:  # the process that started this one has checked
        check_files()
        check_packages()
    sys.dont_write_bytecode = True  # a bundle stays as it was exported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path.insert(0, str(HERE / "code"))
    try:
        from competition.submission.offline.command import main as run

        return run(HERE)
    except ModuleNotFoundError as error:
        refuse(
            f"The package {error.name} is missing.",
            "Install it: pip install --no-index --no-deps --find-links wheels -r requirements.txt, in the bundle's folder.",
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
