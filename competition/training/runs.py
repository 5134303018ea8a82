"""A run has a name that follows from what it is: the resolved YAML and the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.config import Experiment, MaskfoldError, load_experiment, resolved
from competition.config.load import write_yaml

if TYPE_CHECKING:
    import pandas as pd

RUNS = Path("mlruns") / "runs"
CACHE = Path("mlruns") / "prepared"
# Keys that came after the first runs: where they are off, a run keeps its name. Those of `prepare` are in data/cache.py too.
LATER = (("prepare", "boundary"), ("prepare", "stretch"), ("prepare", "long_side"))
# How a run survives, not what it computes: a run that stopped for one of these goes on with another value.
SURVIVAL = (("training", "on_nan"), ("training", "on_oom"), ("prepare", "cache_gib"))


@dataclass(frozen=True)
class CvRun:
    """One cross-validation run: its folder, what it does and on which cases."""

    folder: Path
    exp: Experiment
    cases: pd.DataFrame
    folds: pd.DataFrame
    name: str

    def numbers(self) -> list[int]:
        """The folds that validate something."""
        return sorted(int(number) for number in self.folds["fold"].unique() if number >= 0)

    def members(self) -> list[tuple[int, int]]:
        """The (fold, seed) pairs to train; fold -1 is a fit on all cases."""
        wanted = self.exp.folds.run
        numbers = self.numbers()
        if wanted == "full":
            numbers = [-1]
        elif wanted is not None:
            missing = [number for number in wanted if number not in numbers]
            if missing:
                raise MaskfoldError(f"folds.run names fold {missing[0]}, but the folds are {numbers[0]} to {numbers[-1]}.",
                                    "Name folds that exist.", status=2)
            numbers = list(wanted)
        return [(number, seed) for number in numbers for seed in range(len(self.exp.seeds))]

    def write(self) -> None:
        """Make the run's folder with `experiment.yaml`, `cases.csv` and `folds.csv`."""
        from competition.data.folds import write_folds
        from competition.training.checkpoint import write_table

        self.folder.mkdir(parents=True, exist_ok=True)
        write_yaml(resolved(self.exp), self.folder / "experiment.yaml")
        write_table(self.cases, self.folder / "cases.csv")
        write_folds(self.folds, self.folder / "folds.csv")

    def member_folder(self, fold: int, seed: int) -> Path:
        """Where a fold's member lives: `fold_0`, `fold_0_seed_1`, `full`."""
        return self.folder / (("full" if fold < 0 else f"fold_{fold}") + (f"_seed_{seed}" if seed else ""))


def run_hash(exp: Experiment, data_hash: str) -> str:
    """Twelve hexadecimal digits of what determines a result: the YAML without `run:`, `study:` and
    `postprocess:`, and the data.

    Left out too are which of the folds are run and where the data lie, so that a run can be widened and moved, and what
    is done when numbers or memory fail, so that it can go on.
    """
    plain: dict[str, Any] = resolved(exp)
    for key in ("run", "study", "postprocess"):
        plain.pop(key, None)
    plain["folds"].pop("run", None)
    for section, key in LATER:
        if not plain[section][key]:
            del plain[section][key]
    for section, key in SURVIVAL:
        del plain[section][key]
    plain["competition"].pop("root", None)
    text = json.dumps([plain, data_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_run(exp: Experiment, name: str, *, new: bool = False, root: Path = RUNS) -> CvRun:
    """Find the run of an experiment, or the name of a new one.

    Args:
        exp: the experiment.
        name: its name, e.g. `hippocampus-unet3d`.
        new: start another run although one with this name exists.
        root: the folder of all runs.

    Returns:
        The run; nothing is written yet.

    Raises:
        MaskfoldError: the host's folder or the folds are wrong.
    """
    from competition.data.folds import check_leaks, split
    from competition.data.table import case_table, data_hash

    cases = case_table(exp.competition, "train")
    folds = split(cases, exp.competition, exp.folds, exp.seeds[0])
    check_leaks(cases, folds)
    base = root / name / run_hash(exp, data_hash(cases))
    folder = base
    number = 1
    while folder.exists() and (new or _numbered(base, number + 1).exists()):
        number += 1
        folder = _numbered(base, number)
    return CvRun(folder, exp, cases, folds, name)


def load_run(folder: Path, trust: tuple[str, ...] = (), overrides: Sequence[str] = ()) -> CvRun:
    """Read a run from its folder.

    Args:
        folder: of the run.
        trust: packages besides the known ones that `target` may name.
        overrides: `key=value` words, e.g. `competition.root=/elsewhere`.

    Raises:
        MaskfoldError: the folder is not a run.
    """
    import pandas as pd

    from competition.data.folds import read_folds

    if not (folder / "experiment.yaml").exists():
        raise MaskfoldError(f"{folder} is not a run: it has no experiment.yaml.", "Name a folder under mlruns/runs.")
    exp = load_experiment(folder / "experiment.yaml", overrides, trust)
    cases = pd.read_csv(folder / "cases.csv", dtype={"id": str, "group": str, "stratum": str}, keep_default_na=False)
    return CvRun(folder, exp, cases, read_folds(folder / "folds.csv"), folder.parent.name)


def write_resolved(exp: Experiment, plan: list[list[int]] | None, folder: Path) -> None:
    """Write the YAML that repeats a fold by itself: a budget's plan in place of the clock."""
    plain = resolved(exp)
    if plan is not None:
        plain["training"]["plan"] = plan
    write_yaml(plain, folder / "experiment.yaml")


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


