"""Define a cross-validation run on disk: its experiment, cases and folds, and the files of its members.

A member of a run is the training of one fold with one seed. Its key is the pair (fold, seed): the number of the fold,
or -1 for the training on all cases, and the index of the seed in the experiment's list of seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from competition import __version__
from competition.config.experiment import Experiment
from competition.config.loading import load_experiment, resolve_config, write_yaml
from competition.config.yaml import read_yaml
from competition.context import Context
from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.records import write_json
from competition.runs.fold import PLAIN_WEIGHTS, FoldResult, exchanged_error, member_folder_name
from competition.runs.identity.contents import RunRecord, table_digest
from competition.runs.identity.hashing import run_hash
from competition.runs.imported import is_imported, refuse_imported
from competition.tables import read_csv, write_table
from competition.text import format_count

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

    from competition.runs.oof import OofPredictions

RUNS_FOLDER = Path("mlruns") / "runs"
CACHE_FOLDER = Path("mlruns") / "prepared"
CASES_FILE, FOLDS_FILE = "cases.csv", "folds.csv"  # in a run's folder
SKIPPED_FILE = "skipped.csv"  # file with the skipped cases and the reasons in a run's folder
VERSION_FILE = "version.json"  # in a run's folder
FORMAT_VERSION = 1  # format of a run's folder; increased if this version can no longer read older folders
# Name of a run's folder. `maskfold cv --new` adds a number if the hash is taken.
RUN_NAME = re.compile(r"(?P<hash>[0-9a-f]{12})(?:-\d+)?")


@dataclass(frozen=True)
class Checkpoint:
    """Describe the weight file with which a finished member of a run (one fold and seed) predicts.

    Attributes:
        path: path of the file.
        fold: number of the fold; -1 for the training on all cases.
        seed: index of the seed in the experiment's list of seeds.
        sha256: SHA-256 of the file, hexadecimal.
        size: size of the file in bytes.
    """

    path: Path
    fold: int
    seed: int
    sha256: str
    size: int


@dataclass(frozen=True)
class Run:
    """Hold a cross-validation run: its folder, experiment, cases and folds.

    Attributes:
        folder: folder of the run; it may not exist yet.
        exp: the experiment.
        cases: the case table, see `competition.data.cases.case_table`.
        folds: table with the columns id, fold and group, see `competition.data.splits.split`.
        name: name of the competition and the experiment, e.g. `hippocampus-unet3d`.
        extra_tables: case tables of the additional training data by name, see `competition.runs.extra_cases`.
        record: the inputs of the run's hash; None if an older version, which wrote no record, made the run.
    """

    folder: Path
    exp: Experiment
    cases: pd.DataFrame
    folds: pd.DataFrame
    name: str
    extra_tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    record: RunRecord | None = None

    @property
    def full_name(self) -> str:
        """The run's name with its hash, e.g. `hippocampus-unet3d/2cb50ff146c0`; `find_run` accepts it."""
        return f"{self.name}/{self.folder.name}"

    # Cases

    def groups(self) -> dict[str, str] | None:
        """Return the group of each case by id; None if there are no groups. A group must be in a single fold."""
        if not self.exp.competition.group:
            return None
        return dict(zip(self.cases["id"], self.cases["group"], strict=True))

    def rows(self, ids: Iterable[str] | None = None) -> dict[str, SimpleNamespace]:
        """Return rows of the case table by id, in the table's order, as objects with an attribute for each column.

        Args:
            ids: ids of the cases to return; None for all cases. Ids that are not in the table are ignored.
        """
        from competition.data.cases import case_rows

        table = self.cases if ids is None else self.cases[self.cases["id"].isin(list(ids))]
        return {row.id: row for row in case_rows(table)}

    def fold_of(self) -> dict[str, int]:
        """Return the number of the fold that validates each case, by id, in the order of the table `folds`.

        Cases that no fold validates have -1 if all folds train on them, or -2 if they are held out as the test share.
        """
        return dict(zip(self.folds["id"], self.folds["fold"], strict=True))

    def training_ids(self, fold: int) -> list[str]:
        """Return the ids of the labelled cases that a fold trains on, in the order of the table `folds`.

        Args:
            fold: number of the fold; -1 for the training on all cases, which includes the test share.
        """
        from competition.data.splits import HELD_OUT

        return [case for case, number in self.fold_of().items() if fold < 0 or number not in (fold, HELD_OUT)]

    def validation_cases(self, fold: int) -> pd.DataFrame:
        """Return the rows of the case table that a fold validates; no rows for fold -1, the training on all cases."""
        return self._cases_of_fold(fold) if fold >= 0 else self.cases.iloc[:0]

    def test_share(self) -> pd.DataFrame:
        """Return the rows of the case table that are held out as the test share, which no fold trains on or validates.

        A run has a test share if `folds.scheme` is `holdout` with three `folds.shares`, or if its fold file contains
        the fold -2. Otherwise, the result has no rows.
        """
        from competition.data.splits import HELD_OUT

        return self._cases_of_fold(HELD_OUT)

    def _cases_of_fold(self, number: int) -> pd.DataFrame:
        return self.cases[self.cases["id"].isin(self.folds.loc[self.folds["fold"] == number, "id"])]

    # Members

    def fold_numbers(self) -> list[int]:
        """Return the sorted numbers of the folds that validate cases."""
        return sorted(int(number) for number in self.folds["fold"].unique() if number >= 0)

    def members(self) -> list[tuple[int, int]]:
        """Return the (fold, seed) pairs that `folds.run` selects for training; fold -1 means training on all cases.

        Raises:
            MaskfoldError: `folds.run` names a fold that does not exist (status 2).
        """
        selected_folds = self.exp.folds.run
        folds = self.fold_numbers()
        if selected_folds == "full":
            folds = [-1]
        elif selected_folds is not None:
            missing = [fold for fold in selected_folds if fold not in folds]
            if missing:
                raise MaskfoldError(
                    f"folds.run: found fold {missing[0]}, expected folds from {folds[0]} to {folds[-1]}.",
                    "Set folds.run to folds that exist.",
                    status=2,
                )
            folds = list(dict.fromkeys(selected_folds))  # two processes must not train the same fold
        return [(fold, seed) for fold in folds for seed in range(len(self.exp.seeds))]

    def possible_members(self) -> list[tuple[int, int]]:
        """Return the (fold, seed) pairs of all folds and of the training on all cases (fold -1).

        Unlike `members`, this includes pairs that `folds.run` does not select.
        """
        return [(fold, seed) for fold in (*self.fold_numbers(), -1) for seed in range(len(self.exp.seeds))]

    def count_members(self, count: int) -> str:
        """Return a number of networks as text: `5 folds` or, if the experiment has several seeds, `10 networks`."""
        return format_count(count, "fold" if len(self.exp.seeds) == 1 else "network")

    def finished_members(self) -> list[tuple[int, int]]:
        """Return the (fold, seed) pairs whose training is finished, also if `folds.run` does not select them now.

        Raises:
            MaskfoldError: a result is damaged.
        """
        return [member for member in self.possible_members() if self.result(*member) is not None]

    def member_folder(self, fold: int, seed: int) -> Path:
        """Return the folder for one fold and seed, whose name is e.g. `fold_0`, `fold_0_seed_1` or `full` (fold -1)."""
        return self.folder / member_folder_name(fold, seed)

    def result(self, fold: int, seed: int) -> FoldResult | None:
        """Read the result of one fold and seed; return None if it is not finished.

        Raises:
            MaskfoldError: the file is damaged.
        """
        return FoldResult.read(self.member_folder(fold, seed))

    def results(self) -> list[FoldResult]:
        """Read the results of all finished (fold, seed) pairs, in the order of `finished_members`.

        Raises:
            MaskfoldError: a result is damaged.
        """
        results = [self.result(*member) for member in self.possible_members()]
        return [result for result in results if result is not None]

    # Weights and predictions

    def weights(self, fold: int, seed: int) -> Path:
        """Return the path of the weight file with which one fold and seed predicts.

        Its `result.json` names the file. If the training is not finished, the path is that of `PLAIN_WEIGHTS`.

        Raises:
            MaskfoldError: the result is damaged.
        """
        result = self.result(fold, seed)
        return self.member_folder(fold, seed) / (result.weights if result is not None else PLAIN_WEIGHTS)

    def weights_digest(self, fold: int, seed: int) -> str | None:
        """Return the SHA-256 that the weight file of one fold and seed had at the end of its training.

        If the training is not finished, or version 0.1 made the result, return None.
        """
        result = self.result(fold, seed)
        return result.digests.get(result.weights) if result is not None else None

    def checkpoints(self) -> list[Checkpoint]:
        """Return the weight files of all finished (fold, seed) pairs, after comparing them with their SHA-256.

        An imported run has no weights, so the list is empty.

        Raises:
            MaskfoldError: a file is missing or was changed after its fold finished, or a result is damaged.
        """

        checkpoints = []
        for fold, seed in [] if is_imported(self.exp) else self.finished_members():
            path, expected = self.weights(fold, seed), self.weights_digest(fold, seed)
            try:
                digest = sha256_of_file(path)
            except OSError as error:
                raise MaskfoldError(
                    f"Cannot read the weights {path}: {error.strerror}.",
                    f"Copy the file back. Or delete {path.parent}, and train the fold again with `maskfold cv`.",
                ) from error
            if expected is not None and digest != expected:
                raise exchanged_error(path)
            checkpoints.append(Checkpoint(path, fold, seed, digest, path.stat().st_size))
        return checkpoints

    def networks(
        self,
        channels: int,
        device: torch.device | str = "cpu",
        context: Context = Context(),
        members: Iterable[tuple[int, int]] | None = None,
        *,
        reuse: bool = False,
    ) -> Iterator[nn.Module]:
        """Yield the trained networks of the run, in evaluation mode: one for each (fold, seed) pair.

        Args:
            channels: number of channels of a preprocessed case.
            device: device of the networks.
            context: context with the trusted packages.
            members: the (fold, seed) pairs; None for all finished pairs.
            reuse: whether to yield the same network object each time, with other weights, to save memory.

        Raises:
            MaskfoldError: the run was imported, or a weight file is missing or damaged, does not match the network, or
                was changed after its fold finished.
        """
        from competition.models.build import build_network
        from competition.runs.checkpoint import load_weights

        refuse_imported([self], "predict images")
        network = None
        for member in self.finished_members() if members is None else members:
            if network is None or not reuse:
                network = build_network(self.exp, channels * (self.exp.patch.slices or 1), context, pretrained=False)
            load_weights(network, self.weights(*member), self.weights_digest(*member))
            network = network.to(device).eval()
            yield network

    def oof(self, folds: tuple[int, ...] | None = None, weights: str | None = None) -> OofPredictions:
        """Return an object that reads the out-of-fold predictions of the finished folds.

        Args:
            folds: numbers of the folds to read; None for all finished folds.
            weights: name of the weight file whose predictions to read: `PLAIN_WEIGHTS` or `SOUP_WEIGHTS`. None reads,
                for each fold and seed, the predictions of the weight file that its `result.json` names.

        Raises:
            MaskfoldError: a result is damaged; or weights were changed after their fold finished, so that the
                predictions do not belong to them.
        """
        from competition.runs.oof import OofPredictions

        self._check_weights_unchanged(folds, weights)
        return OofPredictions(self, folds, weights)

    def _check_weights_unchanged(self, folds: tuple[int, ...] | None, weights: str | None) -> None:
        """Check that the weight files have not changed since their folds finished; see `oof` for the arguments.

        Weight files that were deleted, and results without a SHA-256, are accepted. A process computes the SHA-256 of
        an unchanged file only once.
        """
        from competition.data.content.digests import remembered_digest

        for result in self.results():
            if folds is not None and result.fold not in folds:
                continue
            name = weights or result.weights
            path, expected = self.member_folder(result.fold, result.seed) / name, result.digests.get(name)
            if expected is not None and path.exists() and remembered_digest(path).hex() != expected:
                raise exchanged_error(path)

    # Files

    def write(self) -> None:
        """Write the files of the run's folder: `experiment.yaml`, `cases.csv`, `folds.csv`, `contents.json` and others.

        The others are `version.json`, the tables of additional training data, and `skipped.csv` if cases were skipped.
        """
        import pandas as pd

        from competition.data.splits import write_folds

        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / VERSION_FILE, {"form": FORMAT_VERSION, "maskfold": __version__})
        tables = {CASES_FILE: self.cases, **{f"{name}.csv": table for name, table in self.extra_tables.items()}}
        if self.skipped:
            tables[SKIPPED_FILE] = pd.DataFrame(self.skipped, columns=["id", "reason"])
        if self.record is not None:
            # The digests are written after the tables. In the other order, a kill in between would make the tables look
            # edited.
            replace(self.record, tables={}).write(self.folder)
        write_yaml(resolve_config(self.exp), self.folder / "experiment.yaml")
        for name, table in tables.items():
            write_table(table, self.folder / name)
        write_folds(self.folds, self.folder / FOLDS_FILE)
        if not self.skipped:
            (self.folder / SKIPPED_FILE).unlink(missing_ok=True)
        if self.record is not None:
            digests = {name: str(table_digest(self.folder / name)) for name in (*tables, FOLDS_FILE)}
            replace(self.record, tables=digests).write(self.folder)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The cases that were skipped because they could not be used, as (id, reason)."""
        return list(self.cases.attrs.get("skipped", []))

    def without_cases(self, reasons: Mapping[str, str]) -> Run:
        """Return the run without some cases, which become skipped cases.

        Args:
            reasons: the reason for skipping, by id of each case to remove.

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
                f"All cases of fold {empty[0]} are skipped, so the fold is empty. The first reason is: "
                f"{next(iter(reasons.values()))}",
                "Correct the files of these cases, or set a smaller folds.k.",
            )
        return replace(self, cases=cases, folds=folds)


def load_run(
    folder: Path, trust: tuple[str, ...] | None = (), overrides: Sequence[str] = (), *, check_edits: bool = True
) -> Run:
    """Read a run from its folder.

    Args:
        folder: folder of the run.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list. None allows all
            packages; it is meant for callers that do not build the classes of the run.
        overrides: `key=value` strings that replace values of the run's YAML, e.g. `competition.root=/elsewhere`.
        check_edits: whether to check that the run's YAML and tables were not edited, see `check_not_edited`.

    Raises:
        MaskfoldError: the folder is not a run, or was edited.
    """
    import pandas as pd

    from competition.data.cases import COLUMNS
    from competition.data.content.unchanged import check_files_belong
    from competition.data.rle.tables import keep_table_format
    from competition.data.splits import read_folds
    from competition.runs.extra_cases import extra_section

    if not (folder / "experiment.yaml").exists():
        raise MaskfoldError(
            f"{folder} is not a run, because it has no experiment.yaml.", "Give a folder below mlruns/runs."
        )
    version = read_version(folder)
    try:
        exp = load_experiment(folder / "experiment.yaml", overrides, trust)
    except MaskfoldError as error:
        if version in (None, __version__):
            raise
        raise MaskfoldError(
            f"{folder} was written by Maskfold {version}, and Maskfold {__version__} cannot read its YAML: "
            f"{error.message}",
            f"Install that version: pip install maskfold=={version}. Or: {error.hint}",
            status=error.status,
        ) from error
    if overrides and exp.competition.train.rle is not None:
        saved = load_experiment(folder / "experiment.yaml", (), trust).competition
        exp = exp.model_copy(update={"competition": keep_table_format(exp.competition, saved)})
    names = ["cases", *(path.stem for path in sorted(folder.glob("besides_*.csv")))]
    try:
        cases, *tables = (
            pd.read_csv(
                folder / f"{name}.csv",
                dtype={"id": str, "group": str, "stratum": str, "weight": str},
                keep_default_na=False,
            )
            for name in names
        )
        folds = read_folds(folder / FOLDS_FILE)
        if missing := [name for name in (*COLUMNS, "fold") if name not in (*cases.columns, *folds.columns)]:
            raise ValueError(f"the column {missing[0]} is missing")
        if unmatched := sorted(set(cases["id"]) ^ set(folds["id"])):
            raise ValueError(
                f"cases.csv and folds.csv do not have the same cases: only one of the two files has {unmatched[0][:60]}"
            )
        for table in (cases, *tables):
            for text in (*table["images"], *table["masks"], *table["shape"], *table["spacing"], *table["slices"]):
                json.loads(text)
        check_files_belong(exp.competition, cases)
        for name, table in zip(names[1:], tables, strict=True):
            if (extra := extra_section(exp, name)) is not None:
                check_files_belong(extra.competition, table)
    # pandas' own errors are ValueErrors
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise MaskfoldError(
            f"{folder}: {', '.join(f'{name}.csv' for name in names)} or {FOLDS_FILE} cannot be read "
            f"({' '.join(str(error).split())[:160]}).",
            "Copy the run's folder again from its origin, or start another run with --new.",
        ) from error
    cases.attrs["skipped"] = sorted(read_skipped(folder).items())
    extra_tables = dict(zip(names[1:], tables, strict=True))
    run = Run(folder, exp, cases, folds, folder.parent.name, extra_tables, RunRecord.read(folder))
    if check_edits:
        check_not_edited(run)
    return run


def check_not_edited(run: Run) -> None:
    """Check that `experiment.yaml`, `cases.csv` and `folds.csv` in a run's folder have not been edited.

    The hash is computed again from the files, and compared with the one in the run's record (`contents.json`). Keys of
    the YAML that the hash ignores may be changed.

    A run of an older version has no record. Its hash is compared with the name of its folder, if that is a hash. If
    such a run has skipped cases, nothing is compared, because its hash includes cases that are no longer in the tables.

    Args:
        run: the run as `load_run` read it.

    Raises:
        MaskfoldError: a file was changed.
    """
    from competition.runs.extra_cases import combined_data_hash

    name, record, folder = RUN_NAME.fullmatch(run.folder.resolve().name), run.record, run.folder
    data = combined_data_hash(run.cases, run.extra_tables)
    try:  # read the YAML as it was saved, without overrides and without a search for its files
        exp = Experiment.model_validate(read_yaml(folder / "experiment.yaml").tree)
    except ValidationError:  # an older version wrote the YAML, and it is valid only with the command's overrides
        return
    if record is None:
        changed = name is not None and not run.skipped and run_hash(exp, data) != name["hash"]
        file = "experiment.yaml or cases.csv"
    else:
        names = {"1": run_hash(exp, record.data), "2": run_hash(exp, record.data, 2, record.contents)}
        if all(record.names.get(version) != found for version, found in names.items()):
            changed, file = True, "experiment.yaml"
        elif name is not None and name["hash"] not in record.names.values():
            changed, file = True, "contents.json (or the name of its folder)"
        else:
            has_other_cases = not run.skipped and data != record.data
            file = CASES_FILE if has_other_cases else record.changed_table(folder) or ""
            changed = file != ""
    if changed:
        raise edited_error(folder, file)


def edited_error(folder: Path, file: str) -> MaskfoldError:
    """Return the error for a file in a run's folder that was edited.

    Args:
        folder: the run's folder.
        file: name of the file, or a text that names several possible files; the message begins with it.
    """
    return MaskfoldError(
        f"{file} in {folder} was changed after the run was started: it no longer matches the hash that the run "
        "recorded.",
        "Undo the change, or copy the run's folder again from its origin. To train with other settings, change the "
        "experiment's own YAML. To predict with other settings, add key=value to the command.",
    )


def read_skipped(folder: Path) -> dict[str, str]:
    """Return the reason for each skipped case of a run, by case id; empty if no case was skipped."""
    path = folder / SKIPPED_FILE
    if not path.exists():
        return {}
    table = read_csv(path, {"id": "id", "reason": "reason"})
    return dict(table[["id", "reason"]].values.tolist())


def read_version(folder: Path) -> str | None:
    """Return the version of Maskfold that wrote a run's folder; None if a version before 0.1 wrote it.

    Raises:
        MaskfoldError: `version.json` is damaged, or a later version wrote the folder in a format that this version
            cannot read.
    """
    path = folder / VERSION_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        form, version = int(plain["form"]), str(plain["maskfold"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MaskfoldError(
            f"{path} is damaged: it does not name the run's format and the version of Maskfold that wrote the run.",
            f'Restore the file, or write {{"form": 1, "maskfold": "{__version__}"}} into it.',
        ) from error
    if form > FORMAT_VERSION:
        raise MaskfoldError(
            f"{folder} was written by Maskfold {version} in format {form}, but Maskfold {__version__} reads "
            f"only formats up to {FORMAT_VERSION}.",
            f"Install that version: pip install maskfold=={version}.",
        )
    return version


def write_replay_yaml(exp: Experiment, estimates: list[list[int]] | None, folder: Path) -> None:
    """Write an `experiment.yaml` with which the training of a fold can be repeated exactly.

    A time budget gives different numbers of steps each time. The written YAML therefore contains the recorded numbers.

    Args:
        exp: the experiment.
        estimates: the recorded numbers, which become `training.plan`: pairs [step, total], where `total` is the number
            of steps that was planned for the whole training from this step on. None if the fold had no time budget.
        folder: folder of the file.
    """
    plain = resolve_config(exp)
    if estimates is not None:
        plain["training"]["plan"] = estimates
    write_yaml(plain, folder / "experiment.yaml")
