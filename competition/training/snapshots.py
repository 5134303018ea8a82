"""The weights of the last or the best epochs, kept to be averaged at the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from competition.inference.weights import read_weights
from competition.training.checkpoint import save_weights


class Snapshots:
    """Keeps `k` files `epoch_0012_0.8312.safetensors`: the last ones, or the ones with the best validation score.

    Args:
        folder: where the files live; made when the first is kept.
        k: how many to keep and average.
        best: keep the best epochs instead of the last.
    """

    def __init__(self, folder: Path, k: int, best: bool) -> None:
        self.folder, self.k, self.best = folder, k, best

    def offer(self, epoch: int, score: float | None, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Keep these weights if they belong to the k; drop the one that no longer does."""
        if self.k == 1 and not self.best:
            return  # the checkpoint holds them
        self.folder.mkdir(exist_ok=True)
        name = f"epoch_{epoch:06d}_{score if score is not None else 0.0:.9f}.safetensors"
        for stale in self.folder.glob(f"epoch_{epoch:06d}_*.safetensors"):
            stale.unlink()  # of a process that was killed between this file and its checkpoint
        ranked = sorted([*self._files(), self.folder / name], key=self._rank, reverse=True)
        if self.folder / name in ranked[: self.k]:
            save_weights(self.folder / name, weights())
        for path in ranked[self.k :]:
            path.unlink(missing_ok=True)

    def average(self) -> dict[str, Tensor] | None:
        """The mean of the kept weights, entry by entry; None where none were kept.

        Raises:
            MaskfoldError: a file is damaged.
        """
        files = self._files()
        return mean_weights(files) if files else None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("epoch_*.safetensors"))

    def _rank(self, path: Path) -> tuple[float, int]:
        epoch, score = re.fullmatch(r"epoch_(\d+)_(-?[\d.]+)\.safetensors", path.name).groups()  # type: ignore[union-attr]
        return (float(score) if self.best else 0.0, int(epoch))


def mean_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the weights in one file or more, entry by entry; what is not a float is the first file's.

    Raises:
        MaskfoldError: a file is damaged.
    """
    cure = f"Copy it back from elsewhere, or delete {files[0].parent.parent} to train this fold afresh."
    mean = read_weights(files[0], cure)
    for number, path in enumerate(files[1:], start=2):
        for name, tensor in read_weights(path, cure).items():
            if tensor.is_floating_point():
                mean[name].lerp_(tensor, 1.0 / number)
    return mean
