"""The k best validated checkpoints of a fold, kept while it trains, to be averaged at its end: a soup.

Wortsman et al. 2022, "Model soups" (https://arxiv.org/abs/2203.05482): the uniform one. Which checkpoints are best is asked
three times: of all validation cases, and of each half of them. The other half then scores an average that it did not choose.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from competition.config import Experiment, MaskfoldError
from competition.data.randomness import rng
from competition.scoring.summary import cv_score
from competition.training.checkpoint import save_weights
from competition.training.runs import CvRun
from competition.training.snapshots import mean_weights

if TYPE_CHECKING:
    import pandas as pd

ALL, HALVES = 0, (1, 2)  # who judges; the place of their score in a file's name


class Kept(NamedTuple):
    """One checkpoint and its validation scores: by all cases, by the first half, by the second."""

    epoch: int
    scores: tuple[float, float, float]
    path: Path


class Soup:
    """Keeps a file of weights for each checkpoint that all cases, or a half of them, count among their k best.

    The scores are in the files' names, so that file and score appear together. Of equal ones the later is better; a score
    that is no number (the half has no such class) is the worst.

    Args:
        folder: of the files, `epoch_000012_0.831_0.842_0.820.safetensors`; made when the first is kept.
        exp: `training.soup` is k, and 1 keeps nothing.
        fold: the fold; -1 is a fit on all cases, which keeps nothing.
        cases: its validation cases, rows of the case table; None: nothing is validated.
    """

    def __init__(self, folder: Path, exp: Experiment, fold: int, cases: pd.DataFrame | None) -> None:
        self.folder, self.metric = folder, exp.competition.metric
        self.k = exp.training.soup if cases is not None else 1
        self.on = self.k > 1
        self.half_of = halves(cases, fold, exp.seeds[0]) if self.on and cases is not None else {}

    def offer(self, epoch: int, scores: pd.DataFrame, network: nn.Module) -> None:
        """Keep a validated network if it is among the k best of anyone; drop what no longer is.

        Args:
            epoch: its number. A process that was killed validates its last epoch again, which then replaces itself.
            scores: score rows of all validation cases.
            network: the weights that were validated.
        """
        if not self.on:
            return
        self.folder.mkdir(exist_ok=True)
        for stale in self.folder.glob(f"epoch_{epoch:06d}_*.safetensors"):
            stale.unlink()
        half = scores["id"].map(self.half_of)
        found = [cv_score(rows, self.metric) for rows in (scores, *(scores[half == number] for number in HALVES))]
        words = "_".join(f"{value:.9f}" for value in found)
        new = _read(
            self.folder / f"epoch_{epoch:06d}_{words}.safetensors"
        )  # ranked by what its name says, as after a kill
        kept = [*self._files(), new]
        wanted = {one.epoch for judge in (ALL, *HALVES) for one in _best(kept, judge, self.k)}
        if epoch in wanted:
            save_weights(new.path, network.state_dict())
        for one in kept:
            if one.epoch not in wanted:
                one.path.unlink(missing_ok=True)

    def epochs(self, judge: int) -> list[int]:
        """The epochs of the k best checkpoints in order: by `ALL` cases, or by one of the `HALVES`."""
        return sorted(one.epoch for one in _best(self._files(), judge, self.k))

    def average(self, judge: int) -> dict[str, Tensor]:
        """The mean of their weights; batch statistics are means too, and not yet the average's own."""
        return mean_weights([one.path for one in sorted(_best(self._files(), judge, self.k))])

    def forget(self) -> None:
        """Remove the checkpoints: the fold is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Kept]:
        return [_read(path) for path in sorted(self.folder.glob("epoch_*.safetensors"))]


def halves(cases: pd.DataFrame, fold: int, seed: int) -> dict[str, int]:
    """The half, 1 or 2, of each of a fold's validation cases; groups stay whole.

    Args:
        cases: rows of the case table; `id` and `group` are read.
        fold: the fold.
        seed: the experiment's first: all seeds of a fold have the same halves.

    Raises:
        MaskfoldError: there is but one case, or one group.
    """
    groups = cases["group"].astype(str)
    names = sorted(set(groups))
    if len(names) < 2:
        raise MaskfoldError(
            f"training.soup: fold {fold} validates {len(cases)} case{'s' * (len(cases) != 1)} of one group, and "
            "the checkpoints are chosen by one half of its groups and scored by the other.",
            "Set training.soup=1, or make folds of two groups or more.",
            status=2,
        )
    order = rng(seed, fold, 0, 0, "soup").permutation(len(names)).tolist()
    half = {name: HALVES[place % 2] for name, place in zip(names, order, strict=True)}
    return {str(case): half[group] for case, group in zip(cases["id"], groups, strict=True)}


def check_soup(run: CvRun) -> None:
    """Refuse a soup before anything starts where a fold cannot be halved, or validates fewer checkpoints than it wants.

    Raises:
        MaskfoldError: see `halves`; status 2.
    """
    cfg = run.exp.training
    if cfg.soup == 1:
        return
    validated = -(-cfg.epochs // cfg.validate_every)  # the last one always is
    if cfg.budget_minutes is None and validated < cfg.soup:
        raise MaskfoldError(
            f"training.soup: {cfg.soup} wants the best {cfg.soup} of the validated epochs, and {validated} of "
            f"{cfg.epochs} {'are' if validated > 1 else 'is'} validated "
            f"(training.validate_every: {cfg.validate_every}).",
            "Set a smaller training.soup or training.validate_every, or more training.epochs.",
            status=2,
        )
    for fold in run.numbers():
        halves(run.cases[run.cases["id"].isin(run.folds.loc[run.folds["fold"] == fold, "id"])], fold, run.exp.seeds[0])


def _read(path: Path) -> Kept:
    """A file by its name."""
    epoch, *scores = path.name.removeprefix("epoch_").removesuffix(".safetensors").split("_")
    one, two, three = map(float, scores)
    return Kept(int(epoch), (one, two, three), path)


def _best(kept: list[Kept], judge: int, k: int) -> list[Kept]:
    """The k best by one judge, the best first."""

    def rank(one: Kept) -> tuple[float, int]:
        return (-math.inf if math.isnan(one.scores[judge]) else one.scores[judge], one.epoch)

    return sorted(kept, key=rank, reverse=True)[:k]
