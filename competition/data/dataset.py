"""Draw training samples: choose the order of the cases, cut patches from them, and arrange the samples in batches."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from competition.config.experiment import Experiment
from competition.data.cache import MemoryBudget, PreprocessedCase
from competition.errors import MaskfoldError
from competition.seeding import child_seed, choose_by_seed, rng

KEPT_CYCLES = 4  # number of cycles whose case order stays in memory
MAX_OPEN_CASES = 128  # cases that a process keeps open: each maps three files, and a process may have 1024 files open
Array = np.ndarray
Augment = Callable[[Array, Array, int], tuple[Array, Array]]
SampleKey = tuple[int, int]  # epoch, position in the epoch


def no_training_cases_error(fold: int) -> MaskfoldError:
    """Return the error for a fold without training cases, for example because all of them were skipped."""
    return MaskfoldError(
        f"Fold {fold} has 0 training cases, expected at least 1.",
        f"Put some cases into folds other than {fold}, because fold {fold} trains on the cases of all other folds. If "
        "cases were skipped, the output names them; correct the files of these cases.",
    )


class PatchDataset:
    """Return training samples by (epoch, position), as a map-style dataset of torch.

    Each sample has its own random generator. Cases come in cycles: each cycle contains every case once in a new random
    order, and may begin in the middle of an epoch. A share `patch.foreground` of the patches is centred on a foreground
    voxel, whose class is drawn from the classes of the case with equal probability. All other patches are drawn
    uniformly. Patches lie inside the image if it is large enough. A smaller image is centred and padded as in
    inference: volumes and masks with 0, 2D images with their edge pixels.

    A sample is a dict with the following entries:

    - `image`: (C', *patch.size) float32, normalised. C' is C, the number of channels of the case, unless
      `patch.slices` is set.
    - `mask`: (M, *patch.size) uint8. M is 1 for exclusive classes, and the number of classes for overlapping classes.
    - `case`: the index into `folders`.
    - `seed`: 63 bits, for the augmentation of volumes on the training device.

    If `patch.slices` is set, that many neighbouring slices along an axis of `patch.axes` become channels, so C' is
    C * slices. Beyond the volume, edge slices are repeated. If `patch.axes` has several axes, the sample's seed chooses
    one of them (`choose_by_seed`), and the patch lies in the plane of the two other axes.

    Args:
        folders: preprocessed cases with masks.
        exp: the experiment.
        fold: the fold that is validated; -1 trains on all cases.
        seed: seed of the network that is trained (each fold trains one network per seed).
        augment: function (image, mask, seed) -> (image, mask). A volume is normalised before the call: the image is
            (C', *patch.size), and the mask (M, *patch.size). A 2D image is normalised after the call: the image is
            (H, W, C) uint8 or float32 in [0, 1], and the mask (H, W, M). None for no augmentation.
        positions_per_epoch: number of samples per epoch in all processes; None computes it from the experiment.
        train: if False, every epoch contains the same patch of each case, without augmentation.
        sampler: sampler that determines how often each case is drawn; None draws all cases equally often.

    Raises:
        MaskfoldError: `folders` is empty.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        exp: Experiment,
        fold: int,
        seed: int,
        augment: Augment | None = None,
        positions_per_epoch: int | None = None,
        train: bool = True,
        sampler: WeightedCaseSampler | None = None,
    ) -> None:
        if not folders:
            raise no_training_cases_error(fold)
        self.folders = [Path(folder) for folder in folders]
        self.exp, self.fold, self.seed, self.train = exp, fold, seed, train
        self.augment = augment if train else None
        self.sampler = sampler or WeightedCaseSampler(len(self.folders))
        if self.sampler.num_cases != len(self.folders):
            raise ValueError(f"the sampler has {self.sampler.num_cases} cases, expected {len(self.folders)}")
        self.positions_per_epoch = positions_per_epoch or _positions_per_epoch(exp, len(self))
        self.memory_budget = MemoryBudget.from_experiment(exp)
        self._open_cases: OrderedDict[int, _OpenCase] = OrderedDict()

    def __len__(self) -> int:
        """Return the average number of samples per cycle, rounded up; see `WeightedCaseSampler`."""
        return self.sampler.cycle_length

    def __getstate__(self) -> dict[str, Any]:
        # open maps are not pickled, because each process maps the files itself
        return {**self.__dict__, "_open_cases": OrderedDict(), "memory_budget": MemoryBudget.from_experiment(self.exp)}

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        epoch, position = key
        index = self.case_index(epoch, position)
        if not self.train:
            epoch, position = 0, index
        case = self._open_case(index)
        seed = child_seed(self.seed, self.fold, epoch, position, "augment")
        axis = choose_by_seed(self.exp.patch.axes, seed)
        with self.memory_budget.reading(case.prepared):
            centre = self._draw_centre(case, axis, rng(self.seed, self.fold, epoch, position, "patch"))
            image, mask = case.patch(centre, self.exp, axis)
        if self.augment is not None:
            image, mask = self._apply_augment(image, mask, seed)
        if not case.prepared.normalised:
            image = case.prepared.intensity.apply(image)
        return {
            "image": np.ascontiguousarray(image, np.float32),
            "mask": np.ascontiguousarray(mask, np.uint8),
            "case": index,
            "seed": seed,
        }

    def case_index(self, epoch: int, position: int) -> int:
        """Return the index of the case to which a sample belongs."""
        if not self.train:
            return position % len(self.folders)
        return self.sampler.index_at(epoch * self.positions_per_epoch + position, self.seed, self.fold)

    def case_id(self, index: int) -> str:
        """Return the id of the case with this index."""
        return self._open_case(index).prepared.id

    def _open_case(self, index: int) -> _OpenCase:
        if index not in self._open_cases:
            while len(self._open_cases) >= MAX_OPEN_CASES:
                self.memory_budget.release(self._open_cases.popitem(last=False)[1].prepared)
            self._open_cases[index] = _OpenCase(PreprocessedCase.open(self.folders[index]))
        self._open_cases.move_to_end(index)
        return self._open_cases[index]

    def _draw_centre(self, case: _OpenCase, axis: int, generator: np.random.Generator) -> Array:
        """Draw the centre voxel of a patch, and return the voxel's coordinates on the axes of the case.

        If `patch.slices` is set, the slices of the patch lie along `axis`.
        """
        if generator.random() < self.exp.patch.foreground:
            voxel = case.draw_foreground_voxel(generator)
            if voxel is not None:
                return voxel
        shape, size = np.array(case.prepared.image.shape[1:]), np.ones(case.prepared.image.ndim - 1, np.int64)
        patch = self.exp.patch
        size[list(patch.plane(axis)) if patch.slices is not None else slice(None)] = patch.size
        return generator.integers(np.maximum(shape - size, 0) + 1) + size // 2

    def _apply_augment(self, image: Array, mask: Array, seed: int) -> tuple[Array, Array]:
        assert self.augment is not None
        if self.exp.competition.dimensions == 3:
            return self.augment(image, mask, seed)
        image, mask = (np.ascontiguousarray(np.moveaxis(array, 0, -1)) for array in (image, mask))
        image, mask = self.augment(image, mask, seed)
        return np.moveaxis(image, -1, 0), np.moveaxis(mask, -1, 0)


class _OpenCase:
    """Hold a preprocessed case, and the rows of its array `foreground` by class."""

    def __init__(self, prepared: PreprocessedCase) -> None:
        if prepared.mask is None:
            raise MaskfoldError(
                f"Training case {prepared.id} has no mask.", "Train only on cases of the training split."
            )
        self.prepared = prepared
        classes = np.array(prepared.foreground[:, 0])
        rows = np.argsort(classes, kind="stable")
        borders = np.flatnonzero(np.diff(classes[rows])) + 1
        self._rows_of_class = np.split(rows, borders) if len(rows) else []

    def draw_foreground_voxel(self, generator: np.random.Generator) -> Array | None:
        """Draw one of the case's foreground classes, each with the same probability, then a voxel of this class.

        Return the voxel's coordinates; None if the case has no foreground.
        """
        if not self._rows_of_class:
            return None
        rows = self._rows_of_class[generator.integers(len(self._rows_of_class))]
        return np.array(self.prepared.foreground[rows[generator.integers(len(rows))], 1:], np.int64)

    def patch(self, centre: Array, exp: Experiment, axis: int) -> tuple[Array, Array]:
        """Copy the patch around `centre`: image (C', *size) with the case's dtype, mask (M, *size) uint8.

        If `patch.slices` is set, the slices lie along `axis`. See `PatchDataset` for C' and M.
        """
        image, mask, size = self.prepared.image, self.prepared.mask, exp.patch.size
        assert mask is not None
        if exp.patch.slices is not None:
            image, mask = np.moveaxis(image, axis + 1, -1), np.moveaxis(mask, axis + 1, -1)
            centre = centre[[*exp.patch.plane(axis), axis]]
        inside, padding = _window(centre[: len(size)], image.shape[1 : len(size) + 1], size)
        if exp.patch.slices is None:
            image, mask = image[(slice(None), *inside)], mask[(slice(None), *inside)]
        else:
            reach, middle = exp.patch.slices // 2, int(centre[-1])
            slices = np.clip(np.arange(middle - reach, middle + reach + 1), 0, image.shape[-1] - 1)
            block = image[(slice(None), *inside, slice(slices[0], slices[-1] + 1))][..., slices - slices[0]]
            image = np.moveaxis(block, -1, 1).reshape(-1, *block.shape[1:-1])
            mask = mask[(slice(None), *inside, slice(middle, middle + 1))][..., 0]
        image, mask = np.array(image), np.array(mask)
        if not any(map(any, padding)):
            return image, mask
        mode: Any = "edge" if exp.competition.dimensions == 2 else "constant"
        return np.pad(image, [(0, 0), *padding], mode=mode), np.pad(mask, [(0, 0), *padding])


def _window(
    centre: Array, shape: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """Return which part of the image a patch around `centre` covers, and how the patch is padded.

    The part is an index with one `slice` per axis. The padding is (voxels before, voxels after) for each axis.
    """
    inside, padding = [], []
    for middle, length, patch_length in zip(centre, shape, size, strict=True):
        if length >= patch_length:
            first = min(max(int(middle) - patch_length // 2, 0), length - patch_length)
            inside.append(slice(first, first + patch_length))
            padding.append((0, 0))
        else:
            before = (patch_length - length) // 2
            inside.append(slice(0, length))
            padding.append((before, patch_length - length - before))
    return tuple(inside), padding


def _positions_per_epoch(exp: Experiment, cases: int) -> int:
    training = exp.training
    samples_per_step = training.batch_size * training.accumulate * exp.run.devices
    return (training.steps_per_epoch or -(-cases // samples_per_step)) * samples_per_step


# Order of the samples


class BatchSampler:
    """Yield batches of sample keys in order, for the `batch_sampler` of a torch `DataLoader`; start at any step.

    A key is a pair (epoch, position), as `PatchDataset` expects.

    Args:
        start: number of the first step.
        total: number of the step at which the sequence ends (not included); None for an endless sequence.
        steps_per_epoch: steps in an epoch.
        batch: samples per step of this process.
        rank: number of this process.
        world: number of processes. Together they take `batch * world` consecutive positions per step.

    Example:
        >>> list(BatchSampler(1, 3, 2, 2))
        [[(0, 2), (0, 3)], [(1, 0), (1, 1)]]
    """

    def __init__(
        self, start: int, total: int | None, steps_per_epoch: int, batch: int, rank: int = 0, world: int = 1
    ) -> None:
        if steps_per_epoch < 1 or batch < 1 or not 0 <= rank < world:
            raise ValueError(
                f"found {steps_per_epoch=}, {batch=}, {rank=}, {world=}; expected steps_per_epoch and batch above 0, "
                "and a rank from 0 to world - 1"
            )
        self.start, self.total, self.steps_per_epoch = start, total, steps_per_epoch
        self.batch, self.rank, self.world = batch, rank, world

    def __iter__(self) -> Iterator[list[SampleKey]]:
        step = self.start
        while self.total is None or step < self.total:
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            first = (step_in_epoch * self.world + self.rank) * self.batch
            yield [(epoch, first + index) for index in range(self.batch)]
            step += 1


class WeightedCaseSampler:
    """Assign a case to each training sample. Samples are numbered from the first sample of training.

    Labelled cases are the cases of the competition. Extra cases come from other competitions, or have pseudo-labels.
    A cycle contains every labelled case once. A set of n extra cases with the weight w contributes w·n samples per
    cycle. This number is rounded down or up, so that the average over all cycles is exactly w·n. Extra cases are drawn
    in rounds; each round contains every extra case once in random order. So each extra case is drawn w times as often
    as a labelled case. The expected gradient is the same as for a loss in which the extra case has the weight w.
    Without extra cases, a cycle is a permutation of the labelled cases.

    Args:
        labelled: number of labelled cases, whose indices are 0 to `labelled` - 1.
        extra: (number, weight) of each set of extra cases. The indices of the first set follow those of the labelled
            cases, and so on.

    Example:
        >>> sampler = WeightedCaseSampler(4, [(6, 0.5)])
        >>> sorted(sampler.index_at(sample, seed=1, fold=0) for sample in range(7))[:4]
        [0, 1, 2, 3]
    """

    def __init__(self, labelled: int, extra: Sequence[tuple[int, float]] = ()) -> None:
        self.labelled = labelled
        self.extra = [(number, Fraction(str(weight)) * number) for number, weight in extra]  # (n, w·n), exact
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def num_cases(self) -> int:
        """Number of cases, labelled and extra."""
        return self.labelled + sum(number for number, _ in self.extra)

    @property
    def cycle_length(self) -> int:
        """Average number of samples in a cycle, rounded up. A cycle contains every labelled case once."""
        return math.ceil(self._mean_length)

    @property
    def _mean_length(self) -> Fraction:
        return Fraction(self.labelled) + sum((rate for _, rate in self.extra), Fraction(0))

    def index_at(self, sample: int, seed: int, fold: int) -> int:
        """Return the index of the case to which a sample belongs.

        Args:
            sample: number of the sample since training began.
            seed: seed of the network that is trained (each fold trains one network per seed).
            fold: the fold that is validated.
        """
        # Cycle starts are rounded down, so the sample may be in the next cycle.
        cycle = math.floor(sample / self._mean_length)
        while self._start(cycle + 1) <= sample:
            cycle += 1
        if cycle not in self._orders:
            self._orders[cycle] = self._case_order(cycle, seed, fold)
            while len(self._orders) > KEPT_CYCLES:
                self._orders.popitem(last=False)
        return int(self._orders[cycle][sample - self._start(cycle)])

    def _start(self, cycle: int) -> int:
        """Return the index of a cycle's first sample, counted from the start of training."""
        return cycle * self.labelled + sum(math.floor(cycle * rate) for _, rate in self.extra)

    def _case_order(self, cycle: int, seed: int, fold: int) -> np.ndarray:
        """Return the shuffled case indices of a cycle."""
        indices, first = list(range(self.labelled)), self.labelled
        for kind, (number, rate) in enumerate(self.extra, start=1):
            permutations: dict[int, np.ndarray] = {}
            for draw in range(math.floor(cycle * rate), math.floor((cycle + 1) * rate)):
                round_number, position = divmod(draw, number)
                # The generator for position 0 and the purpose "order" shuffles the cycle.
                if round_number not in permutations:
                    permutations[round_number] = rng(seed, fold, round_number, kind, "order").permutation(number)
                indices.append(first + int(permutations[round_number][position]))
            first += number
        return np.array(indices)[rng(seed, fold, cycle, 0, "order").permutation(len(indices))]
