"""A run has a name that follows from what it is: the resolved YAML and the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition import __version__
from competition.config import Experiment, MaskfoldError, load_experiment, resolved
from competition.config.load import write_yaml

if TYPE_CHECKING:
    import pandas as pd

RUNS = Path("mlruns") / "runs"
CACHE = Path("mlruns") / "prepared"
SKIPPED = "skipped.csv"  # of a run's folder: cases that were left out, and why
MADE_BY, FORM = (
    "version.json",
    1,
)  # of a run's folder; the form rises when older files can no longer be read as they are
# Keys that came after the first runs: where they are off, a run keeps its name. Those of `prepare` are in data/cache.py too.
LATER = (("prepare", "boundary"), ("prepare", "stretch"), ("prepare", "long_side"))
LATER_SECTIONS = ("gate",)
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
    besides: dict[str, pd.DataFrame] = field(default_factory=dict)  # what else is learnt from; see `training.besides`

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
                raise MaskfoldError(
                    f"folds.run names fold {missing[0]}, but the folds are {numbers[0]} to {numbers[-1]}.",
                    "Name folds that exist.",
                    status=2,
                )
            numbers = list(wanted)
        return [(number, seed) for number in numbers for seed in range(len(self.exp.seeds))]

    def write(self) -> None:
        """Make the run's folder with `experiment.yaml`, `cases.csv` and `folds.csv`."""
        import pandas as pd

        from competition.data.folds import write_folds
        from competition.training.checkpoint import write_json, write_table

        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / MADE_BY, {"form": FORM, "maskfold": __version__})
        write_yaml(resolved(self.exp), self.folder / "experiment.yaml")
        write_table(self.cases, self.folder / "cases.csv")
        write_folds(self.folds, self.folder / "folds.csv")
        rows = pd.DataFrame(self.skipped, columns=["id", "reason"])
        write_table(rows, self.folder / SKIPPED) if len(rows) else (self.folder / SKIPPED).unlink(missing_ok=True)
        for name, table in self.besides.items():
            write_table(table, self.folder / f"{name}.csv")

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The cases that were left out, and why."""
        return list(self.cases.attrs.get("skipped", []))

    def without(self, reasons: Mapping[str, str]) -> CvRun:
        """The run on the other cases.

        Raises:
            MaskfoldError: nothing is left to validate in some fold, or to train on.
        """
        if not reasons:
            return self
        cases, folds = (
            table[~table["id"].isin(list(reasons))].reset_index(drop=True) for table in (self.cases, self.folds)
        )
        cases.attrs = {**self.cases.attrs, "skipped": sorted({**dict(self.skipped), **reasons}.items())}
        folds.attrs = dict(self.folds.attrs)
        if lost := sorted(set(self.folds["fold"]) - set(folds["fold"])):
            raise MaskfoldError(
                f"All cases of fold {lost[0]} are left out; one of them: {next(iter(reasons.values()))}",
                "Correct the files, or ask for fewer folds.",
            )
        return replace(self, cases=cases, folds=folds)

    def member_folder(self, fold: int, seed: int) -> Path:
        """Where a fold's member lives: `fold_0`, `fold_0_seed_1`, `full`."""
        return self.folder / (("full" if fold < 0 else f"fold_{fold}") + (f"_seed_{seed}" if seed else ""))


def run_hash(exp: Experiment, data_hash: str) -> str:
    """Twelve hexadecimal digits of what determines a result: the YAML without `run:`, `study:` and
    `postprocess:`, and the data.

    Left out too are which of the folds are run and where the data lie, so that a run can be widened and moved, and what
    is done when numbers or memory fail, so that it can go on.
    """
    from competition.training.besides import name_besides

    plain: dict[str, Any] = resolved(exp)
    for key in ("run", "study", "postprocess"):
        plain.pop(key, None)
    name_besides(plain)
    plain["folds"].pop("run", None)
    for section, key in LATER:
        if not plain[section][key]:
            del plain[section][key]
    for key in LATER_SECTIONS:
        if not plain[key]:
            del plain[key]
    if plain["training"]["soup"] == 1:  # off
        del plain["training"]["soup"]
    for section, key in SURVIVAL:
        del plain[section][key]
    plain["competition"].pop("root", None)
    for key in ("kaggle", "public_share"):  # of the host's board
        plain["competition"]["submission"].pop(key, None)
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
    from competition.data.table import case_table
    from competition.training.besides import besides, hash_of, settled

    exp = settled(exp)
    cases = case_table(exp.competition, "train")
    folds = split(cases, exp.competition, exp.folds, exp.seeds[0])
    check_leaks(cases, folds)
    beside = besides(exp, cases)
    base = root / name / run_hash(exp, hash_of(cases, beside))
    folder = base
    number = 1
    while folder.exists() and (new or _numbered(base, number + 1).exists()):
        number += 1
        folder = _numbered(base, number)
    return CvRun(folder, exp, cases, folds, name, beside)


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
    from competition.data.table import COLUMNS

    if not (folder / "experiment.yaml").exists():
        raise MaskfoldError(f"{folder} is not a run: it has no experiment.yaml.", "Name a folder under mlruns/runs.")
    made = made_by(folder)
    try:
        exp = load_experiment(folder / "experiment.yaml", overrides, trust)
    except MaskfoldError as error:
        if made in (None, __version__):
            raise
        raise MaskfoldError(
            f"{folder} was made by Maskfold {made}, whose YAML Maskfold {__version__} does not take: {error.wrong}",
            f"Use that version: pip install maskfold=={made}. Or: {error.cure}",
            status=error.status,
        ) from error
    names = ["cases", *(path.stem for path in sorted(folder.glob("besides_*.csv")))]
    try:
        cases, *tables = (
            pd.read_csv(folder / f"{name}.csv", dtype={"id": str, "group": str, "stratum": str}, keep_default_na=False)
            for name in names
        )
        folds = read_folds(folder / "folds.csv")
        if lost := [name for name in (*COLUMNS, "fold") if name not in (*cases.columns, *folds.columns)]:
            raise ValueError(f"the column {lost[0]} is missing")
        if odd := sorted(set(cases["id"]) ^ set(folds["id"])):
            raise ValueError(f"it and folds.csv do not have the same cases: {odd[0][:60]}")
        for table in (cases, *tables):
            for text in (*table["images"], *table["masks"], *table["shape"], *table["spacing"], *table["slices"]):
                json.loads(text)
    except (OSError, ValueError, TypeError, RecursionError) as error:  # pandas' own errors are ValueErrors
        raise MaskfoldError(
            f"{folder / 'cases.csv'} cannot be read ({' '.join(str(error).split())[:160]}).",
            "Copy the run's folder again from where it was made, or start another run with --new.",
        ) from error
    cases.attrs["skipped"] = sorted(read_skipped(folder).items())
    return CvRun(folder, exp, cases, folds, folder.parent.name, dict(zip(names[1:], tables, strict=True)))


def read_skipped(folder: Path) -> dict[str, str]:
    """The cases that a run left out, and why."""
    from competition.data.csv_table import read_csv

    path = folder / SKIPPED
    return (
        dict(read_csv(path, {"id": "id", "reason": "reason"})[["id", "reason"]].values.tolist())
        if path.exists()
        else {}
    )


def made_by(folder: Path) -> str | None:
    """The version that made a run's folder; None where it does not say (before 0.1 was out).

    Raises:
        MaskfoldError: a later version made it, in a form that this one does not know.
    """
    path = folder / MADE_BY
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        form, version = int(plain["form"]), str(plain["maskfold"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MaskfoldError(
            f"{path} is damaged.", 'Write {"form": 1, "maskfold": "' + __version__ + '"} into it, or copy it back.'
        ) from error
    if form > FORM:
        raise MaskfoldError(
            f"{folder} was made by Maskfold {version} in form {form}; Maskfold {__version__} reads forms up to {FORM}.",
            f"Use that version: pip install maskfold=={version}.",
        )
    return version


def write_resolved(exp: Experiment, plan: list[list[int]] | None, folder: Path) -> None:
    """Write the YAML that repeats a fold by itself: a budget's plan in place of the clock."""
    plain = resolved(exp)
    if plan is not None:
        plain["training"]["plan"] = plan
    write_yaml(plain, folder / "experiment.yaml")


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")
