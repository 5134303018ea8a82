"""A cross-validation run on disk: its experiment, cases and folds, the jobs of its members, and their results.

A member of a run is the training of one fold with one seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition import __version__
from competition.config.competition import drop_keys_without_effect
from competition.config.experiment import Experiment
from competition.config.loading import load_experiment, resolve_config, write_yaml
from competition.errors import MaskfoldError
from competition.io import damaged_error, parse_json_object, read_csv, write_json, write_table

if TYPE_CHECKING:
    import pandas as pd

RUNS_FOLDER = Path("mlruns") / "runs"
CACHE_FOLDER = Path("mlruns") / "prepared"
PLAIN_WEIGHTS = "weights.safetensors"  # a member's weights: of its last epochs
SOUP_WEIGHTS = "soup.safetensors"  # the average of its best checkpoints
SKIPPED_FILE = "skipped.csv"  # in a run's folder: the skipped cases, with the reason
VERSION_FILE = "version.json"  # in a run's folder
FORMAT_VERSION = 1  # the format of a run's folder; raised when this version can no longer read older folders
# Keys added after the first runs: while off, the hash ignores them. Those of `prepare` are also in data/cache.py.
KEYS_ADDED_LATER = (("prepare", "boundary"), ("prepare", "stretch"), ("prepare", "long_side"))
SECTIONS_ADDED_LATER = ("gate",)
# Keys that do not change the result: a run that stopped can resume with another value of these.
RESUMABLE_KEYS = (("training", "on_nan"), ("training", "on_oom"), ("prepare", "cache_gib"))


@dataclass(frozen=True)
class Run:
    """A cross-validation run: its folder, experiment, cases and folds.

    `extra_tables` has the additional training data, see `competition.runs.extra_cases`.
    """

    folder: Path
    exp: Experiment
    cases: pd.DataFrame
    folds: pd.DataFrame
    name: str
    extra_tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    def fold_numbers(self) -> list[int]:
        """Return the folds that validate cases."""
        return sorted(int(number) for number in self.folds["fold"].unique() if number >= 0)

    def members(self) -> list[tuple[int, int]]:
        """Return the (fold, seed) pairs to train; fold -1 is a fit on all cases."""
        selected_folds = self.exp.folds.run
        folds = self.fold_numbers()
        if selected_folds == "full":
            folds = [-1]
        elif selected_folds is not None:
            missing = [fold for fold in selected_folds if fold not in folds]
            if missing:
                raise MaskfoldError(
                    f"folds.run: found fold {missing[0]}, expected folds from {folds[0]} to {folds[-1]}.",
                    "Set folds.run to existing folds.",
                    status=2,
                )
            folds = list(selected_folds)
        return [(fold, seed) for fold in folds for seed in range(len(self.exp.seeds))]

    def write(self) -> None:
        """Write the run's folder with `experiment.yaml`, `cases.csv` and `folds.csv`."""
        import pandas as pd

        from competition.data.splits import write_folds

        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / VERSION_FILE, {"form": FORMAT_VERSION, "maskfold": __version__})
        write_yaml(resolve_config(self.exp), self.folder / "experiment.yaml")
        write_table(self.cases, self.folder / "cases.csv")
        write_folds(self.folds, self.folder / "folds.csv")
        if self.skipped:
            write_table(pd.DataFrame(self.skipped, columns=["id", "reason"]), self.folder / SKIPPED_FILE)
        else:
            (self.folder / SKIPPED_FILE).unlink(missing_ok=True)
        for name, table in self.extra_tables.items():
            write_table(table, self.folder / f"{name}.csv")

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The skipped cases, each with the reason."""
        return list(self.cases.attrs.get("skipped", []))

    def without_cases(self, reasons: Mapping[str, str]) -> Run:
        """Return the run without some cases; `reasons` has the reason by case id.

        Raises:
            MaskfoldError: a fold would have no cases left.
        """
        if not reasons:
            return self
        cases, folds = (
            table[~table["id"].isin(list(reasons))].reset_index(drop=True) for table in (self.cases, self.folds)
        )
        cases.attrs = {**self.cases.attrs, "skipped": sorted({**dict(self.skipped), **reasons}.items())}
        folds.attrs = dict(self.folds.attrs)
        if empty := sorted(set(self.folds["fold"]) - set(folds["fold"])):
            raise MaskfoldError(
                f"All cases of fold {empty[0]} are skipped; the first reason: {next(iter(reasons.values()))}",
                "Correct the files, or set fewer folds.",
            )
        return replace(self, cases=cases, folds=folds)

    def member_folder(self, fold: int, seed: int) -> Path:
        """Return the folder of a member: `fold_0`, `fold_0_seed_1`, `full`."""
        return self.folder / (("full" if fold < 0 else f"fold_{fold}") + (f"_seed_{seed}" if seed else ""))


@dataclass(frozen=True)
class FoldJob:
    """One member of a cross-validation run.

    Attributes:
        run: the run's folder, with `experiment.yaml`, `cases.csv` and `folds.csv`.
        folder: the member's folder; no other process writes into it.
        fold: the fold to validate; -1 is a fit on all cases.
        seed: index into the experiment's seeds.
        cache: the folder of prepared cases.
        threads: CPU threads of all its processes together.
        trust: additional packages that `target` may name.
        patience: seconds to wait until a former process releases the folder's lock.
    """

    run: Path
    folder: Path
    fold: int
    seed: int
    cache: Path
    threads: int
    trust: tuple[str, ...] = ()
    patience: float = 0.0

    def to_json(self) -> str:
        """Return the job as JSON."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return json.dumps(plain, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FoldJob:
        """Parse the job that `to_json` returned.

        Raises:
            ValueError, KeyError, TypeError: the text is not such a job.
        """
        plain = parse_json_object(text)
        for key in ("run", "folder", "cache"):
            plain[key] = Path(plain[key])
        job = cls(**{**plain, "trust": tuple(plain["trust"])})
        if not all(type(number) is int for number in (job.fold, job.seed, job.threads)):
            raise TypeError("fold, seed and threads must be integers")
        return job

    @classmethod
    def read(cls, path: Path) -> FoldJob:
        """Read a job from a file.

        Raises:
            MaskfoldError: the file is missing or damaged.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged_error(
                path, error, "Repeat the `maskfold` command of the run, which writes the file."
            ) from error


@dataclass(frozen=True)
class FoldResult:
    """The result of a finished member; `result.json` in its folder.

    Attributes:
        score: the competition's metric on the fold's out-of-fold masks; None for a fit on all cases.
        dice: mean Dice per class over cases that have the class in truth or prediction; None if no case has it.
        minutes: wall time of all processes that worked on the fold one after the other.
        devices: processes that trained it; a step took `training.batch_size` samples on each.
        skipped: steps skipped for a non-finite loss or gradient.
        weights: the file name of the weights for prediction: `PLAIN_WEIGHTS`, or `SOUP_WEIGHTS` if the soup is better.
        soup: the out-of-fold scores of the soup, see `competition.training.soup_selection`; None without one.
        restored: times that training restored a checkpoint after such a step; each halves the learning rate.
        halved: times that micro-batches were halved because memory ran out.
        lessons: counts of the additional training data, see `competition.training.extra_data`.
        peak_gib: peak memory of the CUDA device, else the peak resident memory of the process.
    """

    fold: int
    seed: int
    score: float | None
    dice: dict[str, float | None]
    epochs: int
    steps: int
    minutes: float
    peak_gib: float
    threads: int
    precision: str
    device: str
    torch: str
    stopped: str
    weights: str = PLAIN_WEIGHTS
    devices: int = 1
    skipped: int = 0
    restored: int = 0
    halved: int = 0
    lessons: dict[str, Any] = field(default_factory=dict)
    soup: dict[str, Any] | None = None

    @property
    def prefix(self) -> str:
        """The prefix of `oof`, `test`, `scores.csv` and `test_scores.csv` that belong to `weights`."""
        return self.prefix_of(self.weights)

    @staticmethod
    def prefix_of(weights: str) -> str:
        """Return the prefix for `PLAIN_WEIGHTS` or `SOUP_WEIGHTS`."""
        return "soup_" if weights == SOUP_WEIGHTS else ""

    @classmethod
    def read(cls, folder: Path) -> FoldResult | None:
        """Read the result in a member's folder; None while it is not finished.

        Raises:
            MaskfoldError: the file is damaged.
        """
        path = folder / "result.json"
        if not path.exists():
            return None
        try:
            result = cls(**parse_json_object(path.read_bytes()))
            integers = (result.fold, result.seed, result.steps, result.epochs, result.devices)
            valid = (
                all(isinstance(number, int) for number in integers)
                and isinstance(result.score, float | int | None)
                and isinstance(result.dice, dict)
                and Path(result.weights).name == result.weights
            )
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(path, " ".join(str(error).split())[:160]) from error
        if not valid:
            raise _damaged(path, "it has invalid values")
        return result


def _damaged(path: Path, why: str) -> MaskfoldError:
    return MaskfoldError(
        f"The result {path} is damaged: {why}.",
        "Restore it from a backup, or delete it: the same command makes it again from the checkpoint.",
    )


def load_run(folder: Path, trust: tuple[str, ...] = (), overrides: Sequence[str] = ()) -> Run:
    """Read a run from its folder.

    Args:
        folder: of the run.
        trust: additional packages that `target` may name.
        overrides: `key=value` strings, e.g. `competition.root=/elsewhere`.

    Raises:
        MaskfoldError: the folder is not a run.
    """
    import pandas as pd

    from competition.data.cases import COLUMNS
    from competition.data.splits import read_folds

    if not (folder / "experiment.yaml").exists():
        raise MaskfoldError(f"{folder} is not a run: it has no experiment.yaml.", "Name a folder under mlruns/runs.")
    version = read_version(folder)
    try:
        exp = load_experiment(folder / "experiment.yaml", overrides, trust)
    except MaskfoldError as error:
        if version in (None, __version__):
            raise
        raise MaskfoldError(
            f"{folder} was written by Maskfold {version}; Maskfold {__version__} cannot read its YAML: {error.message}",
            f"Use that version: pip install maskfold=={version}. Or: {error.hint}",
            status=error.status,
        ) from error
    names = ["cases", *(path.stem for path in sorted(folder.glob("besides_*.csv")))]
    try:
        cases, *tables = (
            pd.read_csv(folder / f"{name}.csv", dtype={"id": str, "group": str, "stratum": str}, keep_default_na=False)
            for name in names
        )
        folds = read_folds(folder / "folds.csv")
        if missing := [name for name in (*COLUMNS, "fold") if name not in (*cases.columns, *folds.columns)]:
            raise ValueError(f"the column {missing[0]} is missing")
        if unmatched := sorted(set(cases["id"]) ^ set(folds["id"])):
            raise ValueError(f"it and folds.csv do not have the same cases: {unmatched[0][:60]}")
        for table in (cases, *tables):
            for text in (*table["images"], *table["masks"], *table["shape"], *table["spacing"], *table["slices"]):
                json.loads(text)
    except (OSError, ValueError, TypeError, RecursionError) as error:  # pandas' own errors are ValueErrors
        raise MaskfoldError(
            f"{folder / 'cases.csv'} cannot be read ({' '.join(str(error).split())[:160]}).",
            "Copy the run's folder again from where it was made, or start another run with --new.",
        ) from error
    cases.attrs["skipped"] = sorted(read_skipped(folder).items())
    return Run(folder, exp, cases, folds, folder.parent.name, dict(zip(names[1:], tables, strict=True)))


def read_skipped(folder: Path) -> dict[str, str]:
    """Return the skipped cases of a run, with the reason by case id."""
    path = folder / SKIPPED_FILE
    if not path.exists():
        return {}
    table = read_csv(path, {"id": "id", "reason": "reason"})
    return dict(table[["id", "reason"]].values.tolist())


def read_version(folder: Path) -> str | None:
    """Return the version of Maskfold that wrote a run's folder; None if it is not recorded (before 0.1).

    Raises:
        MaskfoldError: a later version wrote it, in a format that this one cannot read.
    """
    path = folder / VERSION_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        form, version = int(plain["form"]), str(plain["maskfold"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MaskfoldError(
            f"{path} is damaged.", f'Restore it, or write {{"form": 1, "maskfold": "{__version__}"}} into it.'
        ) from error
    if form > FORMAT_VERSION:
        raise MaskfoldError(
            f"{folder} was written by Maskfold {version} in format {form}; Maskfold {__version__} reads formats "
            f"up to {FORMAT_VERSION}.",
            f"Use that version: pip install maskfold=={version}.",
        )
    return version


def finished_results(run: Run) -> list[FoldResult]:
    """Return the results of all finished members, including those that another command trained."""
    members = [(fold, seed) for fold in (*run.fold_numbers(), -1) for seed in range(len(run.exp.seeds))]
    return [result for fold, seed in members if (result := FoldResult.read(run.member_folder(fold, seed)))]


def run_hash(exp: Experiment, data_hash: str) -> str:
    """Return twelve hexadecimal digits that identify a result: a hash of the YAML and the data.

    The hash ignores `run:`, `study:`, `postprocess:`, the selection of folds and the data's folder, so that a run can
    be extended and moved. It ignores the reaction to non-finite values and to a lack of memory, so that a run can
    resume with another one.
    """
    plain: dict[str, Any] = resolve_config(exp)
    for key in ("run", "study", "postprocess"):
        plain.pop(key, None)
    _remove_extra_keys(plain)
    plain["folds"].pop("run", None)
    for section, key in KEYS_ADDED_LATER:
        if not plain[section][key]:
            del plain[section][key]
    for key in SECTIONS_ADDED_LATER:
        if not plain[key]:
            del plain[key]
    if plain["training"]["soup"] == 1:  # off
        del plain["training"]["soup"]
    for section, key in RESUMABLE_KEYS:
        del plain[section][key]
    plain["competition"].pop("root", None)
    drop_keys_without_effect(plain["competition"])
    for key in ("kaggle", "public_share"):  # about the leaderboard
        plain["competition"]["submission"].pop(key, None)
    text = json.dumps([plain, data_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _remove_extra_keys(plain: dict[str, Any]) -> None:
    """Remove what the run's hash ignores from the sections of additional data: those that are off, and data folders."""
    plain["competition"]["train"].pop("cases", None)  # the data's hash covers the cases
    for key in ("pseudo", "extra"):
        if plain.get(key) is None:
            plain.pop(key, None)
    if (pseudo := plain.get("pseudo")) is not None:  # the runs by their names, in any folder
        teachers = pseudo["from"] if isinstance(pseudo["from"], list) else [pseudo["from"]]
        pseudo["from"] = ["/".join(Path(teacher).resolve().parts[-2:]) for teacher in teachers]
    extras = plain.get("extra") or []
    for extra in extras if isinstance(extras, list) else [extras]:
        for key in ("root", "test", "submission", "metric"):
            extra["competition"].pop(key, None)
        drop_keys_without_effect(extra["competition"])
        extra["competition"]["train"].pop("cases", None)


def write_replay_yaml(exp: Experiment, estimates: list[list[int]] | None, folder: Path) -> None:
    """Write the YAML that replays a fold: with the estimates of its step budget instead of the clock."""
    plain = resolve_config(exp)
    if estimates is not None:
        plain["training"]["plan"] = estimates
    write_yaml(plain, folder / "experiment.yaml")
