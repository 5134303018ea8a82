"""Average the weights of several checkpoints of a fold.

There are two ways. `CheckpointAverager` averages the weights of the last or the best epochs. `UniformSoup` averages the
k checkpoints with the best validation scores, and also estimates the score of this average (the soup) without bias
(Wortsman et al. 2022, "Model soups", https://arxiv.org/abs/2203.05482).

For the estimate, the validation cases are split into two halves. The checkpoints are ranked on all cases and on each
half. The cases of one half are then scored with the average of the checkpoints that are best on the other half.
"""

# This module does not use torch's AveragedModel (the moving average of the weights does), because that class averages
# networks in memory. Here, the networks are files, of which only two are in memory at a time. Which files are averaged
# depends on the ranking, and must be the same after a resume.

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from competition.config.experiment import Experiment
from competition.config.metric import Direction
from competition.errors import MaskfoldError
from competition.metrics.bootstrap import cv_score
from competition.runs.checkpoint import read_weights, save_weights
from competition.runs.run import Run
from competition.seeding import rng

if TYPE_CHECKING:
    import pandas as pd

# Numbers of the three rankings of checkpoints: on all validation cases, and on each half of them. Each number is also
# the position of the ranking's score in the name of a checkpoint file.
ALL_CASES, HALVES = 0, (1, 2)


class CheckpointAverager:
    """Store the weights of the last or best `k` epochs in files, and average them.

    The name of a file, e.g. `epoch_000012_0.831200000.safetensors`, contains the epoch and its validation score.

    Args:
        folder: folder of the files; it is created when the first file is written.
        k: number of epochs whose weights are stored and averaged.
        by_score: whether to select the epochs with the best validation scores instead of the last epochs. The score nan
            is worse than every number.
        direction: whether higher or lower scores are better.
    """

    def __init__(self, folder: Path, k: int, by_score: bool, direction: Direction = Direction.HIGHER) -> None:
        self.folder, self.k, self.by_score, self.direction = folder, k, by_score, direction

    def add(self, epoch: int, score: float | None, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Save the weights of an epoch if it is one of the last or best `k`; keep only the files of these `k` epochs.

        If only the last epoch counts (`k` is 1 and `by_score` is False), nothing is saved, because the checkpoint of
        the fold contains the weights of that epoch.

        Args:
            epoch: number of the epoch.
            score: validation score of the epoch; None if the epoch was not validated.
            weights: function that returns the weights by name.
        """
        if self.k == 1 and not self.by_score:
            return  # the checkpoint contains these weights
        self.folder.mkdir(exist_ok=True)
        name = f"epoch_{epoch:06d}_{score if score is not None else 0.0:.9f}.safetensors"
        for stale in self.folder.glob(f"epoch_{epoch:06d}_*.safetensors"):
            stale.unlink()  # left by a process that was killed between writing this file and its checkpoint
        ranked = sorted([*self._files(), self.folder / name], key=self._rank, reverse=True)
        if self.folder / name in ranked[: self.k]:
            save_weights(self.folder / name, weights())
        for path in ranked[self.k :]:
            path.unlink(missing_ok=True)

    def average(self) -> dict[str, Tensor] | None:
        """Return the mean of the stored weights, tensor by tensor; None if no weights are stored.

        Raises:
            MaskfoldError: a file is damaged.
        """
        files = self._files()
        return average_weights(files) if files else None

    def remove_files(self) -> None:
        """Remove the files of all epochs; call this after the average has been saved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("epoch_*.safetensors"))

    def _rank(self, path: Path) -> tuple[float, int]:
        epoch, score = re.fullmatch(r"epoch_(\d+)_(nan|-?inf|-?[\d.]+)\.safetensors", path.name).groups()  # type: ignore[union-attr]
        return (self.direction.rank(float(score)) if self.by_score else 0.0, int(epoch))


def average_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """Return the mean of the weights in one or more files, tensor by tensor.

    Tensors that are not floating-point, such as counters, are taken from the first file.

    Raises:
        MaskfoldError: a file is damaged.
    """
    hint = f"Restore the file from a backup. To train this fold from the beginning, delete {files[0].parent.parent}."
    mean = read_weights(files[0], hint)
    for number, path in enumerate(files[1:], start=2):
        for name, tensor in read_weights(path, hint).items():
            if tensor.is_floating_point():
                mean[name].lerp_(tensor, 1.0 / number)
    return mean


# Model soups


class SoupCandidate(NamedTuple):
    """Describe a checkpoint that may be part of the soup.

    Attributes:
        epoch: number of the epoch.
        scores: validation score on all cases, on the first half and on the second half of the cases.
        path: file with the weights.
    """

    epoch: int
    scores: tuple[float, float, float]
    path: Path


class UniformSoup:
    """Rank a fold's checkpoints on all validation cases and on each half of them; store the k best of each ranking.

    The soup is the average of the k checkpoints that are best on all validation cases. The scores are part of the file
    names, so that a file never exists without its scores. Of two equal scores, the score of the later epoch ranks
    first. NaN ranks last; a half has the score NaN if its cases contain no class.

    Args:
        folder: folder of the files, which is created when the first file is written. A file name is, for example,
            `epoch_000012_0.831_0.842_0.820.safetensors`.
        exp: the experiment; `training.soup` is k. If k is 1, no checkpoint is stored.
        fold: number of the fold.
        cases: rows of the case table with the fold's validation cases. If None (no validation), no checkpoint is
            stored.
    """

    def __init__(self, folder: Path, exp: Experiment, fold: int, cases: pd.DataFrame | None) -> None:
        self.folder, self.metric = folder, exp.competition.metric
        self.k = exp.training.soup if cases is not None else 1
        self.enabled = self.k > 1
        self.half_of = split_halves(cases, fold, exp.seeds[0]) if self.enabled and cases is not None else {}

    def add(self, epoch: int, scores: pd.DataFrame, network: nn.Module) -> None:
        """Store the weights of a validated network if they are among the k best of at least one ranking.

        Checkpoints that are no longer among the k best of any ranking are removed.

        Args:
            epoch: number of the epoch. A resumed process may validate its last epoch again; the earlier file of this
                epoch is then replaced.
            scores: table with the scores of all validation cases, one row per case and class.
            network: the network with the validated weights.
        """
        if not self.enabled:
            return
        self.folder.mkdir(exist_ok=True)
        for stale in self.folder.glob(f"epoch_{epoch:06d}_*.safetensors"):
            stale.unlink()
        half = scores["id"].map(self.half_of)
        values = [cv_score(rows, self.metric) for rows in (scores, *(scores[half == number] for number in HALVES))]
        name = "_".join(f"{value:.9f}" for value in values)
        # Parse the candidate from its file name, so that its rounded scores are ranked, as in a resumed process.
        new = _parse_file_name(self.folder / f"epoch_{epoch:06d}_{name}.safetensors")
        candidates = [*self._candidates(), new]
        best_epochs = {
            candidate.epoch for ranking in (ALL_CASES, *HALVES) for candidate in self._best(candidates, ranking)
        }
        if epoch in best_epochs:
            save_weights(new.path, network.state_dict())
        for candidate in candidates:
            if candidate.epoch not in best_epochs:
                candidate.path.unlink(missing_ok=True)

    def epochs(self, ranking: int) -> list[int]:
        """Return the epochs of the k best checkpoints of one ranking, in ascending order; k is `training.soup`.

        Args:
            ranking: validation cases on which the checkpoints are ranked: `ALL_CASES` or one of `HALVES`.
        """
        return sorted(candidate.epoch for candidate in self._best(self._candidates(), ranking))

    def average(self, ranking: int) -> dict[str, Tensor]:
        """Return the mean weights of the k best checkpoints of one ranking; k is `training.soup`.

        The caller must estimate the statistics of batch normalisation again, because they do not fit the mean weights.

        Args:
            ranking: validation cases on which the checkpoints are ranked: `ALL_CASES` or one of `HALVES`.

        Raises:
            MaskfoldError: a file is damaged, or the checkpoints were deleted because the fold had already finished.
        """
        files = [candidate.path for candidate in sorted(self._best(self._candidates(), ranking))]
        if not files:
            raise MaskfoldError(
                f"The checkpoints of the soup in {self.folder} were deleted when the fold finished, but the fold's "
                "result.json is missing.",
                f"Restore result.json from a backup, or delete {self.folder.parent}, so that this fold is trained "
                "again from the beginning.",
            )
        return average_weights(files)

    def remove_files(self) -> None:
        """Remove all stored checkpoints; call this after the fold is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _candidates(self) -> list[SoupCandidate]:
        return [_parse_file_name(path) for path in sorted(self.folder.glob("epoch_*.safetensors"))]

    def _best(self, candidates: list[SoupCandidate], ranking: int) -> list[SoupCandidate]:
        """Return the k best candidates of one ranking (`ALL_CASES` or one of `HALVES`), the best one first."""

        def rank(candidate: SoupCandidate) -> tuple[float, int]:
            return self.metric.direction.rank(candidate.scores[ranking]), candidate.epoch

        return sorted(candidates, key=rank, reverse=True)[: self.k]


def split_halves(cases: pd.DataFrame, fold: int, seed: int) -> dict[str, int]:
    """Split the validation cases of a fold into two halves; cases of the same group are in the same half.

    Args:
        cases: rows of the case table; the columns id and group are read.
        fold: number of the fold.
        seed: first seed of the experiment, so that a fold has the same halves for all seeds.

    Returns:
        The number of the half, 1 or 2, of each case, by id.

    Raises:
        MaskfoldError: all cases are in one group.
    """
    groups = cases["group"].astype(str)
    names = sorted(set(groups))
    if len(names) < 2:
        raise MaskfoldError(
            f"training.soup: the validation cases of fold {fold} ({len(cases)} case{'s' * (len(cases) != 1)}) belong "
            "to only one group, expected at least two groups, because one half of the groups selects checkpoints and "
            "the other half scores them.",
            "Set training.soup=1, or use folds with at least two groups.",
            status=2,
        )
    order = rng(seed, fold, 0, 0, "soup").permutation(len(names)).tolist()
    half = {name: HALVES[index % 2] for name, index in zip(names, order, strict=True)}
    return {str(case): half[group] for case, group in zip(cases["id"], groups, strict=True)}


def check_soup(run: Run) -> None:
    """Check that each fold can make a soup; do nothing if `training.soup` is 1.

    Each fold must validate at least `training.soup` epochs, and its validation cases must have at least two groups.
    With a time budget, the number of epochs is not known yet and not checked.

    Raises:
        MaskfoldError: a fold has too few groups, or validates too few epochs (status 2).
    """
    cfg = run.exp.training
    if cfg.soup == 1:
        return
    validated = -(-cfg.epochs // cfg.validate_every)  # the last epoch is always validated
    if cfg.budget_minutes is None and validated < cfg.soup:
        raise MaskfoldError(
            f"training.soup={cfg.soup} requires at least {cfg.soup} validated epochs, but "
            f"training.epochs={cfg.epochs} and training.validate_every={cfg.validate_every} give "
            f"{validated}.",
            "Set a smaller training.soup, a smaller training.validate_every, or more training.epochs.",
            status=2,
        )
    for fold in run.fold_numbers():
        split_halves(run.validation_cases(fold), fold, run.exp.seeds[0])


def _parse_file_name(path: Path) -> SoupCandidate:
    epoch, *scores = path.name.removeprefix("epoch_").removesuffix(".safetensors").split("_")
    all_cases, first_half, second_half = map(float, scores)
    return SoupCandidate(int(epoch), (all_cases, first_half, second_half), path)
