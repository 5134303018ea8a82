"""Whether kaggle's client will find who you are. The secret itself is never shown."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from competition.doctor.finding import Finding

WHAT = "kaggle credentials"
WHERE = "https://www.kaggle.com/settings, Create New Token"


def look() -> list[Finding]:
    """One row; files that others can read, or that hold no key, are a warning."""
    for path in files():
        if path.exists():
            return [file_row(path)]
    name = os.environ.get("KAGGLE_USERNAME")
    if os.environ.get("KAGGLE_API_TOKEN"):
        return [Finding(WHAT, "ok", "in KAGGLE_API_TOKEN")]
    if name and os.environ.get("KAGGLE_KEY"):
        return [Finding(WHAT, "ok", "in KAGGLE_USERNAME and KAGGLE_KEY")]
    if name or os.environ.get("KAGGLE_KEY"):
        missing = "KAGGLE_KEY" if name else "KAGGLE_USERNAME"
        return [
            Finding(
                WHAT,
                "warning",
                f"{missing} is not set, its other half is",
                f"Set {missing} too, or KAGGLE_API_TOKEN alone.",
            )
        ]
    return [
        Finding(
            WHAT,
            "ok",
            f"none; only `maskfold fetch kaggle:…` and `maskfold upload` need them ({WHERE}, to ~/.kaggle/kaggle.json)",
        )
    ]


def files() -> list[Path]:
    """Where kaggle's client looks, the first that is there counts."""
    folders = [Path(folder)] if (folder := os.environ.get("KAGGLE_CONFIG_DIR")) else []
    folders += [Path.home() / ".kaggle", Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"]
    return [folder / "kaggle.json" for folder in folders] + [Path.home() / ".kaggle" / "access_token"]


def file_row(path: Path) -> Finding:
    """A row for a file of credentials."""
    try:
        text = path.read_text(encoding="utf-8")
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, UnicodeDecodeError) as error:
        return Finding(
            WHAT,
            "warning",
            f"{path} cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}",
            f"Write it again ({WHERE}).",
        )
    if path.suffix == ".json":
        try:
            known = json.loads(text)
            whole = bool(known["username"] and known["key"])
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            return Finding(WHAT, "warning", f"{path} has no `username` and `key`", f"Write it again ({WHERE}).")
    elif not text.strip():
        return Finding(WHAT, "warning", f"{path} is empty", f"Write it again ({WHERE}).")
    if mode & 0o077 and os.name != "nt":
        return Finding(
            WHAT, "warning", f"{path} has mode {mode:o}: others on this machine can read it", f"Type: chmod 600 {path}."
        )
    return Finding(WHAT, "ok", f"in {path} (mode {mode:o})")
