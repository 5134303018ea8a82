"""What to type after a data set is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def next_lines(name: str, folder: Path, experiments: Path = Path("experiments")) -> list[str]:
    """The command that trains on a data set, where an experiment on it is at hand.

    Args:
        name: of the data set.
        folder: where it is.
        experiments: YAML files, a folder for each competition.
    """
    for file in sorted(experiments.glob("*/competition.yaml"), key=lambda path: path.parent.name != name):
        comp = _read(file)
        root = Path(str(comp.get("root", "")))
        attacks = sorted(path for path in file.parent.glob("*.yaml") if path != file and "competition" in _read(path))
        if not attacks or name not in (file.parent.name, comp.get("name"), root.name):
            continue
        best = next((path for path in attacks if path.stem.startswith("unet")), attacks[0])
        moved = "" if root.absolute() == folder.absolute() else f" competition.root={folder}"
        lines = [f"Next: maskfold cv {best.as_posix()}{moved}"]
        sample = (comp.get("submission") or {}).get("sample")
        if sample and not (folder / sample).exists():
            lines.append(f"note: {sample} is not in this archive; for a CSV without it: maskfold submit {best.as_posix()}{moved} "
                         "competition.submission.sample=null")
        return lines
    return [f"Next: write experiments/{name}/competition.yaml with `root: {folder}`; docs/yaml.md names every key"]


def _read(file: Path) -> dict[str, Any]:
    """A YAML file as it is; empty where it cannot be read, which is for the command that uses it to say."""
    import yaml

    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}
