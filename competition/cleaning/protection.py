"""Find the runs that must stay because a submission, the ledger, a study, another run or a YAML file refers to them.

In this module, the name of a run is the name of its folder, which is its hash. If two runs have the same name, a
reference to this name keeps both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from competition.config.base import read_experiment_yaml
from competition.config.yaml import read_yaml
from competition.errors import MaskfoldError
from competition.records import read_unedited_record
from competition.runs.find import STUDIES_FOLDER, TRIALS_FILE

SUBMISSIONS_FOLDER, EXPERIMENTS_FOLDER = Path("submissions"), Path("experiments")
LEDGER_FOLDER = "ledger"
WORD = re.compile(r"[\w.\-]+")  # pattern of the words in a text that may be the name of a run
# Files of a run that refer to the runs and weights from which it was trained.
RUN_TEXTS = ("experiment.yaml", "contents.json")
SHORTEST_HASH = 4  # minimum number of digits of a hash with which a YAML may name a run


def find_named_runs(root: Path, runs: Sequence[Path], deleted: Iterable[str] = ()) -> dict[str, str]:
    """Find the runs that must stay, and return a reason for each, by the name of the run.

    Args:
        root: the folder that contains `mlruns`.
        runs: folders of all runs.
        deleted: names of runs whose folders do not exist any more, but whose artifacts MLflow still has.

    Raises:
        MaskfoldError: a file that may refer to runs cannot be read.
    """
    names = {*(run.name for run in runs), *deleted}
    reasons: dict[str, str] = {}
    for found in (
        _in_submissions(root / SUBMISSIONS_FOLDER),
        _in_studies(root / STUDIES_FOLDER),
        _in_runs(runs, names),
        _in_yamls(root, runs, names),
    ):
        for name, reason in found:
            reasons.setdefault(name, reason)
    return reasons


def _in_submissions(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, reason) of each run that a JSON file of a submission or ledger lists under the key `runs`."""
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            plain = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise MaskfoldError(
                f"{path} cannot be read ({' '.join(str(error).split())[:100]}), so it is unknown "
                "to which runs this file refers. These runs must be kept.",
                f"Restore the file from a backup, or move it out of {folder}; then repeat the command.",
            ) from error
        entries = plain.get("runs") if isinstance(plain, Mapping) else None
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, Mapping):
                for name in {str(entry.get("hash", "")), Path(str(entry.get("run", ""))).name} - {""}:
                    yield name, f"the {'ledger' if path.parent.name == LEDGER_FOLDER else 'submission'} {path} names it"


def _in_studies(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, reason) of the run of each best trial of each study."""
    for path in sorted(folder.glob(f"*/{TRIALS_FILE}")):
        record = read_unedited_record(path, TRIALS_FILE)
        try:
            best = set(record["best"])
            runs = [(trial["number"], trial.get("run")) for trial in record["trials"] if trial["number"] in best]
        except (LookupError, TypeError, AttributeError) as error:
            raise MaskfoldError(
                f"{path} has no list of trials, so it is unknown which run of the study is the best and must be kept.",
                "Repeat the `maskfold study` command, which writes the file again.",
            ) from error
        for number, run in runs:
            if run:
                yield (
                    Path(str(run)).name,
                    f"it is the run of trial {number}, a best trial of the study {path.parent.name}",
                )


def _in_runs(runs: Sequence[Path], names: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, reason) of each run whose name is a word in the files `RUN_TEXTS` of another run."""
    for run in runs:
        for path in (run / name for name in RUN_TEXTS):
            if path.exists():
                for name in _words(path) & names - {run.name}:
                    yield name, f"the run {run.parent.name}/{run.name} names it"


def _in_yamls(root: Path, runs: Sequence[Path], names: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, reason) of each run to which a YAML file of a study or of the user refers.

    Such a file may name a run by its hash, by the first digits of the hash, or by the YAML file of its experiment.

    Args:
        root: the folder that contains `mlruns`.
        runs: folders of all runs.
        names: names of all runs.
    """
    folders = (root / EXPERIMENTS_FOLDER).rglob("*.y*ml"), root.glob("*.y*ml"), (root / STUDIES_FOLDER).glob("*/*.yaml")
    for path in sorted(path for found in folders for path in found if path.is_file()):
        words = _words(path)
        named = words & names
        for value in _sources(path):
            stem = Path(value).stem if value.endswith((".yaml", ".yml")) else None
            for run in runs:
                is_of_yaml = stem is not None and run.parent.name.endswith(f"-{stem}")
                is_prefix = len(value) >= SHORTEST_HASH and run.name.startswith(Path(value).name)
                if is_of_yaml or is_prefix:
                    named.add(run.name)
        for name in sorted(named):
            yield name, f"{path} names it"


def _words(path: Path) -> set[str]:
    return set(WORD.findall(path.read_text(encoding="utf-8", errors="replace")))


def _sources(path: Path) -> list[str]:
    """Return the values of `pseudo.from`, `init_from` and `first_stage` in a YAML file, which refer to other runs.

    If the file cannot be read, return an empty list.
    """
    try:
        tree: Any = read_yaml(path).tree
        with suppress(MaskfoldError):  # if the file that it extends cannot be read, use its own keys
            tree = read_experiment_yaml(path).tree
    except (OSError, MaskfoldError):
        return []
    if not isinstance(tree, dict):
        return []
    pseudo = tree.get("pseudo")
    values = [
        tree.get("init_from"),
        tree.get("first_stage"),
        pseudo.get("from") if isinstance(pseudo, dict) else pseudo,
    ]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    # If a hash consists of digits only, YAML reads it as a number.
    return [str(one) for one in flat if isinstance(one, str | int) and str(one)]
