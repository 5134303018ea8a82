"""Check that a command does not write into the folder of a run or over the data of a competition."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from competition.config.competition import Competition
from competition.data.patterns import is_in_pattern_folder, patterns_of
from competition.data.splits import FILE_RULE
from competition.errors import MaskfoldError
from competition.runs.run import CASES_FILE, Run


def check_output(paths: Iterable[Path], comps: Iterable[Competition] = (), option: str = "-o") -> None:
    """Check that no output of a command lies in the folder of a run or overwrites data of a competition.

    A folder with an `experiment.yaml` and a `cases.csv` is the folder of a run.

    Usually, the whole data folder of a competition (`root`) is protected. If the working folder is inside `root`, as
    with `root: .`, only the folders of images and masks and the tables that the YAML names are protected.

    Args:
        paths: files or folders that will be written; they need not exist.
        comps: the competitions whose data the command reads.
        option: name of the command-line option with the path, for the message.

    Raises:
        MaskfoldError: a path is in a protected folder, or is a protected file (status 2).
    """
    comps = list(comps)
    for path in paths:
        real = Path(os.path.realpath(path))
        run = next((folder for folder in (real, *real.parents) if _is_run(folder)), None)
        if run is not None:
            problem = f"in the folder of the run {run}"
        else:
            problem = next(filter(None, (_describe_data(real, comp) for comp in comps)), "")
        if problem:
            raise MaskfoldError(
                f"{option}: {path} is {problem}, expected a path elsewhere.",
                f"Give another path, for example {option} outputs/{path.name}.",
                status=2,
            )


def competitions_of(runs: Iterable[Run]) -> list[Competition]:
    """Return all competitions whose data the runs train on: their own competition, and those in their `extra`."""
    return [comp for run in runs for comp in (run.exp.competition, *(one.competition for one in run.exp.extras))]


def _is_run(folder: Path) -> bool:
    return (folder / "experiment.yaml").is_file() and (folder / CASES_FILE).is_file()


def _describe_data(real: Path, comp: Competition) -> str:
    """Describe, for a message, which data of a competition an output would overwrite; an empty text if none.

    Args:
        real: path of the output, with all links resolved.
        comp: the competition.
    """
    root = Path(os.path.realpath(comp.root))
    for name in _tables(comp):
        if real == Path(os.path.realpath(root / name)):
            return f"a table of the competition {comp.name}"
    if not real.is_relative_to(root):
        return _describe_links(real, root, comp)
    if not Path(os.path.realpath(os.curdir)).is_relative_to(root):
        return f"in the folder of the data, {root}"
    below = real.relative_to(root).as_posix()
    if any(is_in_pattern_folder(root, pattern, below) for pattern in patterns_of(comp)):
        return f"in a folder of images or masks of the competition {comp.name}"
    return _describe_links(real, root, comp)


def _describe_links(real: Path, root: Path, comp: Competition) -> str:
    """Describe, for a message, that an output would lie in a folder of images or masks; an empty text if it does not.

    Links in the data folder may lead to folders outside of it. This function also finds these folders.

    Args:
        real: path of the output, with all links resolved.
        root: the data folder of the competition, with all links resolved.
        comp: the competition.
    """
    for pattern in patterns_of(comp):
        fixed = pattern.split("{")[0].split("*")[0].rpartition("/")[0]
        if fixed and real.is_relative_to(os.path.realpath(root / fixed)):
            return f"in a folder of images or masks of the competition {comp.name}"
    return ""


def _tables(comp: Competition) -> list[str]:
    """Return the paths of the tables that a competition's YAML names, relative to its data folder."""
    rules = [FILE_RULE.fullmatch(text) for text in (comp.group, comp.stratum) if text]
    named = [comp.submission.sample, comp.train.rle, comp.train.cases, comp.train.exclude, comp.train.weights]
    named += [rule["file"] for rule in rules if rule]
    return [name for name in named if name and isinstance(name, str)]
