"""A fold as a unit of work: what a process needs to know to train it, and what it gives back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from competition.config import MaskfoldError
from competition.data.records import damaged, parsed

PLAIN, SOUP = (
    "weights.safetensors",
    "soup.safetensors",
)  # a member's weights: of its last epochs, and its best checkpoints' average


@dataclass(frozen=True)
class Job:
    """One member of a cross-validation run.

    Attributes:
        run: the run's folder, with `experiment.yaml`, `cases.csv` and `folds.csv`.
        folder: the member's own folder; nobody else writes there.
        fold: the fold that is validated; -1 is a fit on all cases.
        seed: which of the experiment's seeds.
        cache: the folder of prepared cases.
        threads: CPU threads, of all its processes together.
        trust: packages besides the known ones that `target` may name.
        patience: seconds that a former process gets to let go of the folder.
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
        """The job as text."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return json.dumps(plain, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job that `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: another text.
        """
        plain = parsed(text)
        for key in ("run", "folder", "cache"):
            plain[key] = Path(plain[key])
        job = cls(**{**plain, "trust": tuple(plain["trust"])})
        if not all(type(number) is int for number in (job.fold, job.seed, job.threads)):
            raise TypeError("its numbers are none")
        return job

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job in a file.

        Raises:
            MaskfoldError: the file is missing or damaged.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(path, error, "Type the `maskfold` command of the run again, which writes it.") from error


@dataclass(frozen=True)
class FoldResult:
    """What a finished member says of itself; `result.json` in its folder.

    Attributes:
        score: the competition's metric on the fold's out-of-fold masks; None for a fit on all cases.
        dice: mean Dice per class over cases that have the class in truth or prediction; None where no case has.
        minutes: wall time, all processes of the fold together.
        devices: processes that trained it; a step took `training.batch_size` samples on each.
        skipped: steps left out for a loss or gradient that was not a number.
        weights: the file, beside `result.json`, of the weights that predict: `PLAIN`, or `SOUP` where `soup_choice` keeps it.
        soup: what the average of the best checkpoints scored out of fold, see `soup_fold`; None without one.
        restored: times that training went back for such a step, at half the rate each time.
        halved: times that micro-batches were halved for want of memory.
        lessons: what it learnt from besides its labelled cases, in numbers; see `training.lessons`.
        peak_gib: the largest resident memory of the process, or the device's peak where there is one.
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
    weights: str = PLAIN
    devices: int = 1
    skipped: int = 0
    restored: int = 0
    halved: int = 0
    lessons: dict[str, Any] = field(default_factory=dict)
    soup: dict[str, Any] | None = None

    @property
    def prefix(self) -> str:
        """What the names `oof`, `test`, `scores.csv` and `test_scores.csv` begin with where they belong to `weights`."""
        return self.prefix_of(self.weights)

    @staticmethod
    def prefix_of(weights: str) -> str:
        """The same for one of the two kinds of weights."""
        return "soup_" if weights == SOUP else ""

    @classmethod
    def read(cls, folder: Path) -> FoldResult | None:
        """The result in a member's folder; None while it is not finished.

        Raises:
            MaskfoldError: the file is damaged.
        """
        path = folder / "result.json"
        if not path.exists():
            return None
        try:
            found = cls(**parsed(path.read_bytes()))
            numbers = (found.fold, found.seed, found.steps, found.epochs, found.devices)
            sound = all(isinstance(one, int) for one in numbers) and isinstance(found.score, float | int | None)
            sound = sound and isinstance(found.dice, dict) and Path(found.weights).name == found.weights
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(path, " ".join(str(error).split())[:160]) from error
        if not sound:
            raise _damaged(path, "its values are none of a result")
        return found


def _damaged(path: Path, why: str) -> MaskfoldError:
    return MaskfoldError(
        f"The result {path} is damaged: {why}.",
        "Copy it back from elsewhere, or delete it: the same command makes it again from the checkpoint.",
    )
