"""Training samples: which case, which patch of it, and how it becomes what a network sees."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.errors import MaskfoldError
from competition.config.experiment import Experiment
from competition.data.prepare import PreparedCase
from competition.data.randomness import child_seed, rng
from competition.data.resident import Resident
from competition.data.turns import Turns

OPEN_CASES = 128  # per process: each holds three mapped files, and a process may have 1024 files open

Array = np.ndarray
Augment = Callable[[Array, Array, int], tuple[Array, Array]]
Place = tuple[int, int]  # epoch, position in the epoch


class StepSampler:
    """Batches of places in order, from any step on: `batch_sampler` of a torch `DataLoader`.

    Args:
        start: the first step.
        total: one past the last step; None goes on for ever.
        steps_per_epoch: steps in an epoch.
        batch: samples that this process takes at a step.
        rank: number of this process.
        world: number of processes. Together they take `batch * world` neighbouring positions at a step.

    Example:
        >>> list(StepSampler(1, 3, 2, 2))
        [[(0, 2), (0, 3)], [(1, 0), (1, 1)]]
    """

    def __init__(self, start: int, total: int | None, steps_per_epoch: int, batch: int, rank: int = 0, world: int = 1) -> None:
        if steps_per_epoch < 1 or batch < 1 or not 0 <= rank < world:
            raise ValueError(f"{steps_per_epoch} steps per epoch, a batch of {batch}, process {rank} of {world}")
        self.start, self.total, self.steps_per_epoch = start, total, steps_per_epoch
        self.batch, self.rank, self.world = batch, rank, world

    def __iter__(self) -> Iterator[list[Place]]:
        step = self.start
        while self.total is None or step < self.total:
            epoch, place = divmod(step, self.steps_per_epoch)
            first = (place * self.world + self.rank) * self.batch
            yield [(epoch, first + index) for index in range(self.batch)]
            step += 1


class PatchDataset:
    """Training samples by (epoch, position), each from its own counted randomness: a map-style dataset of numpy arrays.

    Cases come in cycles: every case once in random order, then again in another order, across epochs' borders. A share
    `patch.foreground` of the patches is centred on a foreground voxel, of a class drawn evenly among those that the case
    has; the others lie anywhere. Patches stay inside of the image as far as it reaches; a smaller image is centred and
    padded as `inference` pads it: volumes with 0, pictures with their edge, masks with 0.

    A sample is a dict of `image` (C', *patch.size) float32, normalised; `mask` (M, *patch.size) uint8; `case`, the index
    into `folders`; `seed`, 63 bits for the augmentation of volumes on the training device. With `patch.slices`, C' is
    C * slices: the neighbouring slices along the last axis, edges repeated.

    Args:
        folders: prepared cases with masks.
        exp: the experiment.
        fold: the fold that is validated; -1 is a fit on all cases.
        seed: of this member.
        augment: called with (image, mask, seed), gives (image, mask). Pictures are passed as (H, W, C) uint8 or float32
            in [0, 1] with (H, W, M), before normalisation; volumes as (C', *patch.size) with (M, *patch.size), normalised.
        positions_per_epoch: samples in an epoch, over all processes; None computes it from the experiment.
        train: False takes the same patch of a case in every epoch, without augmentation.
        turns: how often each case is drawn; None: all equally often.

    Raises:
        MaskfoldError: there is no case.
    """

    def __init__(self, folders: Sequence[Path], exp: Experiment, fold: int, seed: int, augment: Augment | None = None,
                 positions_per_epoch: int | None = None, train: bool = True, turns: Turns | None = None) -> None:
        if not folders:
            raise MaskfoldError(f"Fold {fold} has no case to train on.", "Use fewer folds, or give more cases.")
        self.folders = [Path(folder) for folder in folders]
        self.exp, self.fold, self.seed, self.train = exp, fold, seed, train
        self.augment = augment if train else None
        self.turns = turns or Turns(len(self.folders))
        if self.turns.cases != len(self.folders):
            raise ValueError(f"turns of {self.turns.cases} cases for {len(self.folders)} folders")
        self.positions_per_epoch = positions_per_epoch or _positions_per_epoch(exp, len(self))
        self.resident = Resident.of(exp)
        self._open: OrderedDict[int, _OpenCase] = OrderedDict()

    def __len__(self) -> int:
        """Number of cases, each counted by its weight: samples of one look at every case."""
        return self.turns.cycle

    def __getstate__(self) -> dict[str, Any]:
        # each process maps the files itself
        return {**self.__dict__, "_open": OrderedDict(), "resident": Resident.of(self.exp)}

    def __getitem__(self, place: Place) -> dict[str, Any]:
        epoch, position = place
        index = self.case_at(epoch, position)
        if not self.train:
            epoch, position = 0, index
        case = self._case(index)
        with self.resident.reading(case.prepared):
            image, mask = case.patch(self._centre(case, rng(self.seed, self.fold, epoch, position, "patch")), self.exp)
        seed = child_seed(self.seed, self.fold, epoch, position, "augment")
        if self.augment is not None:
            image, mask = self._augmented(image, mask, seed)
        if not case.prepared.normalised:
            image = case.prepared.intensity.apply(image)
        return {"image": np.ascontiguousarray(image, np.float32), "mask": np.ascontiguousarray(mask, np.uint8),
                "case": index, "seed": seed}

    def case_at(self, epoch: int, position: int) -> int:
        """Index of the case at a place."""
        if not self.train:
            return position % len(self.folders)
        return self.turns.case_at(epoch * self.positions_per_epoch + position, self.seed, self.fold)

    def case_id(self, index: int) -> str:
        """Id of the case with this index."""
        return self._case(index).prepared.id

    def _case(self, index: int) -> _OpenCase:
        if index not in self._open:
            while len(self._open) >= OPEN_CASES:
                self.resident.drop(self._open.popitem(last=False)[1].prepared)
            self._open[index] = _OpenCase(PreparedCase.open(self.folders[index]))
        self._open.move_to_end(index)
        return self._open[index]

    def _centre(self, case: _OpenCase, draw: np.random.Generator) -> Array:
        """Coordinates (as many as the case has axes) of the voxel that the patch shall be centred on."""
        if draw.random() < self.exp.patch.foreground and (found := case.foreground_voxel(draw)) is not None:
            return found
        shape, size = np.array(case.prepared.image.shape[1:]), np.ones(case.prepared.image.ndim - 1, np.int64)
        size[:len(self.exp.patch.size)] = self.exp.patch.size  # 2.5D: one slice of the last axis
        return draw.integers(np.maximum(shape - size, 0) + 1) + size // 2

    def _augmented(self, image: Array, mask: Array, seed: int) -> tuple[Array, Array]:
        assert self.augment is not None
        if self.exp.competition.dimensions == 3:
            return self.augment(image, mask, seed)
        image, mask = (np.ascontiguousarray(np.moveaxis(array, 0, -1)) for array in (image, mask))
        image, mask = self.augment(image, mask, seed)
        return np.moveaxis(image, -1, 0), np.moveaxis(mask, -1, 0)


class _OpenCase:
    """A prepared case with an index of its foreground."""

    def __init__(self, prepared: PreparedCase) -> None:
        if prepared.mask is None:
            raise MaskfoldError(f"Case {prepared.id} has no mask.", "Train on cases of the training split only.")
        self.prepared = prepared
        classes = np.array(prepared.foreground[:, 0])
        rows = np.argsort(classes, kind="stable")
        borders = np.flatnonzero(np.diff(classes[rows])) + 1
        self._rows_of_class = np.split(rows, borders) if len(rows) else []

    def foreground_voxel(self, draw: np.random.Generator) -> Array | None:
        """Coordinates of a voxel of a class drawn evenly among those present; None where there is no foreground."""
        if not self._rows_of_class:
            return None
        rows = self._rows_of_class[draw.integers(len(self._rows_of_class))]
        return np.array(self.prepared.foreground[rows[draw.integers(len(rows))], 1:], np.int64)

    def patch(self, centre: Array, exp: Experiment) -> tuple[Array, Array]:
        """The patch around `centre`: image (C', *size) with its own dtype, mask (M, *size) uint8; copies."""
        image, mask, size = self.prepared.image, self.prepared.mask, exp.patch.size
        assert mask is not None
        inside, margins = _window(centre[:len(size)], image.shape[1:len(size) + 1], size)
        if exp.patch.slices is None:
            image, mask = image[(slice(None), *inside)], mask[(slice(None), *inside)]
        else:
            reach, here = exp.patch.slices // 2, int(centre[-1])
            chosen = np.clip(np.arange(here - reach, here + reach + 1), 0, image.shape[-1] - 1)
            slices = image[(slice(None), *inside, slice(chosen[0], chosen[-1] + 1))][..., chosen - chosen[0]]
            image = np.moveaxis(slices, -1, 1).reshape(-1, *slices.shape[1:-1])
            mask = mask[(slice(None), *inside, slice(here, here + 1))][..., 0]
        image, mask = np.array(image), np.array(mask)
        if not any(map(any, margins)):
            return image, mask
        edge: Any = "edge" if exp.competition.dimensions == 2 else "constant"
        return np.pad(image, [(0, 0), *margins], mode=edge), np.pad(mask, [(0, 0), *margins])


def _window(centre: Array, shape: Sequence[int], size: Sequence[int]) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """What of an image a patch around `centre` covers, and what has to be padded to either side of each axis."""
    inside, margins = [], []
    for middle, length, wanted in zip(centre, shape, size, strict=True):
        if length >= wanted:
            first = min(max(int(middle) - wanted // 2, 0), length - wanted)
            inside.append(slice(first, first + wanted))
            margins.append((0, 0))
        else:
            before = (wanted - length) // 2
            inside.append(slice(0, length))
            margins.append((before, wanted - length - before))
    return tuple(inside), margins


def _positions_per_epoch(exp: Experiment, cases: int) -> int:
    cfg = exp.training
    step = cfg.batch_size * cfg.accumulate * exp.run.devices  # samples
    return (cfg.steps_per_epoch or -(-cases // step)) * step
