"""Define the job and the result of one member of a run: the training of one fold with one seed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition.errors import MaskfoldError
from competition.io import sha256_of_file
from competition.records import DIGESTS_KEY, damaged_error, is_unedited, parse_json_object, with_own_digest, write_json

if TYPE_CHECKING:
    import pandas as pd

# File with the weights of the last epoch, or of the best epoch with `training.weights: best`. With `training.average`,
# they are averaged over several epochs; with `training.ema`, they are moving averages.
PLAIN_WEIGHTS = "weights.safetensors"
SOUP_WEIGHTS = "soup.safetensors"  # file with the soup: the average of the weights of the best checkpoints
MEMBER_FOLDER = re.compile(r"(?:full|fold_(?P<fold>\d+))(?:_seed_(?P<seed>\d+))?")  # see `member_folder_name`
RESULT_FILE = "result.json"  # file with the `FoldResult` in a member's folder; it is written last
IMPORTED = "imported"  # `FoldResult.stopped` of a member whose predictions were made elsewhere


@dataclass(frozen=True)
class FoldJob:
    """Describe the training and validation of one member of a run: one fold with one seed.

    Attributes:
        run: the run's folder, with `experiment.yaml`, `cases.csv` and `folds.csv`.
        folder: the member's folder; no other process writes into it.
        fold: number of the fold that is validated; -1 means training on all cases, without validation.
        seed: index of the seed in the experiment's list of seeds.
        cache: folder of the preprocessed cases.
        threads: number of CPU threads, for all processes of the job together.
        trust: packages that the `target` keys of the YAML may name, in addition to Maskfold's own list.
        patience: maximum time in seconds to wait for an earlier process to release the lock of the folder.
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
        """Return the job as JSON text; `from_json` reads it."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return json.dumps(plain, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FoldJob:
        """Convert a text that `to_json` returned back to a job.

        Raises:
            ValueError, KeyError, TypeError: the text is not a job in this format.
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
        """Read a job from a file that contains the text of `to_json`.

        Raises:
            MaskfoldError: the file is missing or damaged.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged_error(
                path, error, "Repeat the `maskfold` command of the run, which writes this file."
            ) from error


@dataclass(frozen=True)
class FoldResult:
    """Hold the result of a finished member of a run (one fold with one seed), stored as `result.json` in its folder.

    Attributes:
        fold: number of the validated fold; -1 for the training on all cases.
        seed: index of the seed in the experiment's list of seeds.
        score: the competition's metric on the predicted masks of the validation cases; None for the training on all
            cases.
        dice: mean Dice by class, over the cases that have the class in their labels or their prediction; None for a
            class that no case has.
        epochs: number of epochs.
        steps: number of optimiser steps.
        minutes: wall time in minutes, added over all processes that have worked on the fold, e.g. after a resume.
        peak_gib: peak memory of the CUDA device in GiB; without a CUDA device, peak resident memory of the process.
        threads: number of CPU threads.
        precision: Lightning Fabric's name of the precision of the training: 32-true, bf16-mixed or 16-mixed.
        device: device of the training, e.g. `cuda:0`.
        torch: version of torch.
        stopped: why the training ended: `done` after the last step, otherwise the reason of early stopping. `imported`
            if the predictions were made by other software.
        weights: file name of the weights for prediction: `PLAIN_WEIGHTS`, or `SOUP_WEIGHTS` if the soup is better.
        devices: number of processes that trained together, one per device. In each step, each process took
            `training.batch_size` times `training.accumulate` samples.
        skipped: number of steps that were skipped because of a non-finite loss or gradient.
        restored: number of times that training returned to an earlier checkpoint after a non-finite step. Each time,
            the learning rate is halved.
        halved: number of times that micro-batches were halved because memory ran out.
        lessons: summary of the additional training data (`pseudo` and `extra`), e.g. the number of cases; see
            `competition.training.extra.fold_data`. Empty without additional data.
        soup: scores of the soup (the average of the weights of the best checkpoints) on the validation cases, see
            `competition.training.soup_selection`; None without a soup.
        digests: SHA-256 of the member's score tables, weights and `lineage.json`, by file name. Empty in results of
            version 0.1. The file on the disk also has an entry `result.json`, the digest of its own content; `read`
            removes this entry.
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
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """The prefix of the folders `oof` and `test` and of `scores.csv`: `soup_` if the soup is used, else empty."""
        return self.prefix_of(self.weights)

    @staticmethod
    def prefix_of(weights: str) -> str:
        """Return the prefix of the folders `oof` and `test` and of `scores.csv` that belong to a weight file.

        Args:
            weights: name of the weight file: `PLAIN_WEIGHTS`, whose prefix is empty, or `SOUP_WEIGHTS`, whose prefix is
                `soup_`.
        """
        return "soup_" if weights == SOUP_WEIGHTS else ""

    @classmethod
    def read(cls, folder: Path) -> FoldResult | None:
        """Read `result.json` in the folder of a fold and seed; return None if their training is not finished.

        Raises:
            MaskfoldError: the file is damaged, was changed after the fold finished, or belongs to another fold or seed.
        """
        path = folder / RESULT_FILE
        if not path.exists():
            return None
        try:
            plain = parse_json_object(path.read_bytes())
            is_edited = not is_unedited(plain, RESULT_FILE)
            if isinstance(digests := plain.get(DIGESTS_KEY), dict):
                digests.pop(RESULT_FILE, None)
            result = cls(**plain)
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(path, " ".join(str(error).split())[:160]) from error
        if invalid := result._invalid_field():
            raise _damaged(path, f"it has invalid values: {invalid} is {str(getattr(result, invalid))[:60]!r}")
        if is_edited:
            raise MaskfoldError(
                f"{path} was changed after the fold had finished: its content does not match the checksum in it.",
                "Restore the file, or delete the run's folder and repeat `maskfold import`."
                if result.stopped == IMPORTED
                else "Restore the file. Or delete it, so that `maskfold cv` makes it again from the checkpoint.",
            )
        if (name := MEMBER_FOLDER.fullmatch(folder.name)) is not None:
            fold, seed = int(name["fold"] or -1), int(name["seed"] or 0)
            if (result.fold, result.seed) != (fold, seed):
                raise MaskfoldError(
                    f"{path} is the result of {describe_member(result.fold, result.seed)}, but is in the folder of "
                    f"{describe_member(fold, seed)}.",
                    f"Restore the {RESULT_FILE} of {describe_member(fold, seed)} from a backup. Or delete the file, so "
                    "that `maskfold cv` makes it again from the checkpoint.",
                )
        return result

    def _invalid_field(self) -> str | None:
        """Return the name of the first field whose value has the wrong type; None if there is none."""
        counts = ("steps", "epochs", "devices", "threads", "skipped", "restored", "halved", "seed")
        valid = {
            "fold": _is_integer(self.fold, -1),
            **{name: _is_integer(getattr(self, name)) for name in counts},
            **{name: _is_number(getattr(self, name)) for name in ("minutes", "peak_gib")},
            **{name: isinstance(getattr(self, name), str) for name in ("precision", "device", "torch", "stopped")},
            "score": self.score is None or _is_number(self.score),
            "dice": isinstance(self.dice, dict) and all(one is None or _is_number(one) for one in self.dice.values()),
            "weights": self.weights in (PLAIN_WEIGHTS, SOUP_WEIGHTS),
            "lessons": isinstance(self.lessons, dict),
            "soup": self.soup is None or _is_soup(self.soup),
            "digests": isinstance(self.digests, dict) and all(isinstance(one, str) for one in self.digests.values()),
        }
        return next((name for name, is_valid in valid.items() if not is_valid), None)

    def read_scores(self, folder: Path, name: str) -> pd.DataFrame:
        """Read a table of scores in the folder of this fold and seed; see `competition.metrics.scoring.read_scores`.

        Args:
            folder: folder of the fold and seed.
            name: file name of the table, e.g. `scores.csv`.

        Raises:
            MaskfoldError: the table is damaged, or was changed after the fold finished.
        """
        from competition.metrics.scoring import read_scores

        expected = self.digests.get(name)
        table = read_scores(folder / name)
        if expected is not None and sha256_of_file(folder / name) != expected:
            raise MaskfoldError(
                f"{folder / name} was changed after the fold had finished: its checksum differs from that in "
                f"{RESULT_FILE}.",
                f"Restore the table. Or delete {folder / RESULT_FILE}, so that `maskfold cv` scores the "
                "checkpoint again.",
            )
        return table

    def write(self, folder: Path) -> None:
        """Write `result.json`, with a digest of its content, into the folder of the fold and seed.

        Call this after all other files of the folder are written, because `result.json` marks this training as
        finished.

        Raises:
            DiskFullError: the disk has too little free space.
        """
        write_json(folder / RESULT_FILE, with_own_digest(self.__dict__, RESULT_FILE))


def mixed_environments(results: Sequence[FoldResult]) -> list[str]:
    """Return one remark for each property in which the trainings of folds differ: torch version, device or precision.

    Example:
        `the folds were trained with different versions of torch: 2.7.1 (fold 0, fold 1), 2.8.0 (fold 2)`
    """
    found = {
        "versions of torch": [result.torch for result in results],
        "kinds of device": [result.device.partition(":")[0] for result in results],
        "precisions": [result.precision for result in results],
    }
    remarks = []
    for what, values in found.items():
        members: dict[str, list[str]] = {}
        for result, value in zip(results, values, strict=True):
            members.setdefault(value, []).append(describe_member(result.fold, result.seed))
        if len(members) > 1:
            text = ", ".join(f"{value} ({', '.join(names)})" for value, names in members.items())
            remarks.append(f"the folds were trained with different {what}: {text}")
    return remarks


def member_folder_name(fold: int, seed: int) -> str:
    """Return the name of the folder for one fold and seed: `fold_0`, `fold_0_seed_1`, `full`, `full_seed_1`.

    Args:
        fold: number of the fold; -1 for the training on all cases.
        seed: index of the seed; the first seed, 0, is not part of the name.
    """
    return ("full" if fold < 0 else f"fold_{fold}") + (f"_seed_{seed}" if seed else "")


def describe_member(fold: int, seed: int) -> str:
    """Return the name of one fold and seed in messages: `fold 0`, `fold 0 seed 1`, `all cases` for fold -1."""
    return ("all cases" if fold < 0 else f"fold {fold}") + (f" seed {seed}" if seed else "")


def _is_integer(value: object, lowest: int = 0) -> bool:
    return type(value) is int and value >= lowest  # because True is also an int


def _is_number(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer that is too large for a float
        return False


def _is_soup(value: object) -> bool:
    """Return whether a value from a JSON file has the form of `FoldResult.soup`."""
    if not isinstance(value, dict) or not isinstance(value.get("epochs"), list):
        return False
    return all(
        isinstance(one, dict)
        and isinstance(one.get("dice"), dict)
        and "score" in one
        and (one["score"] is None or _is_number(one["score"]))
        for one in (value, value.get("plain"))
    ) and (value.get("flattered") is None or _is_number(value["flattered"]))


def _damaged(path: Path, why: str) -> MaskfoldError:
    return MaskfoldError(
        f"The result {path} is damaged: {why}.",
        "Restore the file from a backup. Or delete it, so that `maskfold cv` computes it again from the checkpoint.",
    )


def exchanged_error(path: Path) -> MaskfoldError:
    """Return the error for a weight file that was changed or exchanged after its fold finished."""
    return MaskfoldError(
        f"{path} was changed after the fold had finished: its checksum differs from that in {RESULT_FILE}.",
        f"Restore the weights. Or delete {path.parent / RESULT_FILE} and the folders oof and test next "
        "to it, so that `maskfold cv` predicts with the changed weights.",
    )
