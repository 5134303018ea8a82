"""Patches: position, content, and dependence on nothing but the sample key."""

from __future__ import annotations

import collections
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.config.experiment import Experiment
from competition.data.cache import PreprocessedCase
from competition.data.dataset import MAX_OPEN_CASES, BatchSampler, PatchDataset
from competition.errors import MaskfoldError
from competition.inference.sliding_window import stack_neighbour_slices
from competition.seeding import choose_by_seed
from tests.prepared import experiment, prepared_case


def volumes(root: Path, exp: Experiment, shapes: list[tuple[int, ...]]) -> list[Path]:
    """Volumes whose channels hold each voxel's coordinates (normalised), with one voxel of each class."""
    folders = []
    for number, shape in enumerate(shapes):
        image = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
        mask = np.zeros((1, *shape), np.uint8)
        mask[(0, *(length - 1 for length in shape))] = 1
        mask[(0, *(0 for _ in shape))] = 2
        folders.append(prepared_case(root, f"case{number}", image, mask, exp))
    return folders


def pictures(root: Path, exp: Experiment, shapes: list[tuple[int, int]]) -> list[Path]:
    folders = []
    for number, shape in enumerate(shapes):
        draw = np.random.default_rng(number)
        image = draw.integers(0, 256, (3, *shape), dtype=np.uint8)
        folders.append(
            prepared_case(root, f"case{number}", image, draw.integers(0, 3, (1, *shape), dtype=np.uint8), exp)
        )
    return folders


@pytest.fixture
def exp3() -> Experiment:
    return experiment(3, [8, 6, 4], prepare={"intensity": "none"})


@pytest.fixture
def dataset(tmp_path: Path, exp3: Experiment) -> PatchDataset:
    return PatchDataset(volumes(tmp_path, exp3, [(12, 9, 7), (8, 6, 4), (5, 20, 3)]), exp3, fold=0, seed=1)


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(np.array_equal(first[key], second[key]) for key in first)


# Steps


def test_sampler_resumes_in_mid_epoch() -> None:
    whole = list(BatchSampler(0, 7, 3, 2))
    assert whole[:4] == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4), (0, 5)], [(1, 0), (1, 1)]]
    assert list(BatchSampler(4, 7, 3, 2)) == whole[4:]


def test_sampler_without_end() -> None:
    sampler = iter(BatchSampler(5, None, 2, 1))
    assert [next(sampler) for _ in range(3)] == [[(2, 1)], [(3, 0)], [(3, 1)]]


def test_processes_share_a_step() -> None:
    one = list(BatchSampler(0, 4, 2, 6))
    ranks = [list(BatchSampler(0, 4, 2, 2, rank, 3)) for rank in range(3)]
    assert one == [[*first, *second, *third] for first, second, third in zip(*ranks, strict=True)]


def test_sampler_rejects_invalid_ranks() -> None:
    with pytest.raises(ValueError, match="rank=2, world=2"):
        BatchSampler(0, 1, 1, 1, 2, 2)


# Which case


def test_every_case_once_per_cycle_in_changing_order(dataset: PatchDataset) -> None:
    per_epoch = dataset.positions_per_epoch
    places = [divmod(index, per_epoch) for index in range(30)]
    cycles = [tuple(dataset.case_index(*place) for place in places[first : first + 3]) for first in range(0, 30, 3)]
    assert all(sorted(cycle) == [0, 1, 2] for cycle in cycles)
    assert len(set(cycles)) > 2


def test_positions_per_epoch_follow_the_experiment(tmp_path: Path, exp3: Experiment) -> None:
    folders = volumes(tmp_path, exp3, [(8, 6, 4)] * 5)
    training = {"batch_size": 2, "accumulate": 2}
    for steps, expected in ((None, 8), (10, 40)):
        exp = experiment(3, [8, 6, 4], training={**training, "steps_per_epoch": steps})
        assert PatchDataset(folders, exp, 0, 1).positions_per_epoch == expected


def test_no_case() -> None:
    with pytest.raises(MaskfoldError, match="Fold 0 has 0 training cases"):
        PatchDataset([], experiment(3, [8, 6, 4]), 0, 1)


def test_case_without_mask(tmp_path: Path, exp3: Experiment) -> None:
    folder = volumes(tmp_path, exp3, [(8, 6, 4)])[0]
    (folder / "mask.npy").unlink()
    record = json.loads((folder / "case.json").read_text())
    del record["sizes"]["mask.npy"]  # as of a test case
    (folder / "case.json").write_text(json.dumps(record))
    with pytest.raises(MaskfoldError, match="case0 has no mask"):
        PatchDataset([folder], exp3, 0, 1)[0, 0]


# Which patch


def test_same_place_same_sample_in_any_order(dataset: PatchDataset) -> None:
    places = [(epoch, position) for epoch in range(3) for position in range(4)]
    forward = [dataset[place] for place in places]
    other = pickle.loads(pickle.dumps(dataset))
    backward = [other[place] for place in reversed(places)][::-1]
    assert all(equal(*pair) for pair in zip(forward, backward, strict=True))
    assert len({sample["seed"] for sample in forward}) == len(places)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_change_nothing(dataset: PatchDataset, workers: int) -> None:
    import torch
    from torch.utils.data import DataLoader

    def batches(count: int) -> list[dict[str, torch.Tensor]]:
        loader: Any = DataLoader(dataset, batch_sampler=BatchSampler(1, 6, 2, 2), num_workers=count)  # type: ignore[arg-type]
        return list(loader)

    alone, together = batches(0), batches(workers)
    assert len(alone) == len(together) == 5
    for first, second in zip(alone, together, strict=True):
        assert first["image"].dtype == torch.float32 and first["mask"].dtype == torch.uint8
        assert first["seed"].dtype == torch.int64
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_patch_is_a_window_and_stays_inside(tmp_path: Path, exp3: Experiment) -> None:
    dataset = PatchDataset(volumes(tmp_path, exp3, [(12, 9, 7)]), exp3, 0, 1)
    corners = []
    for position in range(60):
        image = dataset[0, position]["image"]
        corner = image[:, 0, 0, 0]
        corners.append(tuple(int(value) for value in corner))
        expected = np.stack(np.meshgrid(*map(np.arange, (8, 6, 4)), indexing="ij")) + corner[:, None, None, None]
        np.testing.assert_array_equal(image, expected)
    assert {corner[0] for corner in corners} == set(range(5))  # every start that fits
    assert {corner[2] for corner in corners} == set(range(4))


def test_mask_moves_with_its_image(tmp_path: Path, exp3: Experiment) -> None:
    folder = volumes(tmp_path, exp3, [(12, 9, 7)])
    whole = PreprocessedCase.open(folder[0]).mask
    assert whole is not None
    dataset = PatchDataset(folder, exp3, 0, 1)
    for position in range(30):
        sample = dataset[0, position]
        coordinates = tuple(sample["image"].astype(int))
        np.testing.assert_array_equal(sample["mask"][0], whole[0][coordinates])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_foreground(tmp_path: Path, share: float) -> None:
    exp = experiment(3, [3, 3, 3], prepare={"intensity": "none"}, patch={"foreground": share})
    dataset = PatchDataset(volumes(tmp_path, exp, [(40, 40, 40)]), exp, 0, 1)
    classes = collections.Counter(int(dataset[0, position]["mask"].max()) for position in range(200))
    assert abs((classes[1] + classes[2]) / 200 - share) < 0.12
    if share == 1:
        assert 60 < classes[1] < 140  # both classes alike


def test_foreground_is_in_the_centre(tmp_path: Path) -> None:
    exp = experiment(3, [5, 3, 4], prepare={"intensity": "none"}, patch={"foreground": 1.0})
    image, mask = np.zeros((1, 20, 20, 20), np.float32), np.zeros((1, 20, 20, 20), np.uint8)
    mask[0, 9, 8, 7] = 2
    dataset = PatchDataset([prepared_case(tmp_path, "one", image, mask, exp)], exp, 0, 1)
    assert dataset[0, 0]["mask"][0, 2, 1, 2] == 2


def test_case_without_foreground(tmp_path: Path) -> None:
    exp = experiment(3, [4, 4, 4], patch={"foreground": 1.0})
    zeros = np.zeros((1, 6, 6, 6))
    dataset = PatchDataset([prepared_case(tmp_path, "empty", zeros, zeros.astype(np.uint8), exp)], exp, 0, 1)
    assert not dataset[0, 0]["mask"].any()


def test_small_volume_is_centred_in_zeros(tmp_path: Path, exp3: Experiment) -> None:
    image = np.full((1, 5, 6, 1), 9, np.float32)
    folder = prepared_case(tmp_path, "small", image, np.ones((1, 5, 6, 1), np.uint8), exp3)
    sample = PatchDataset([folder], exp3, 0, 1)[0, 0]
    expected = np.zeros((1, 8, 6, 4), np.float32)
    expected[:, 1:6, :, 1:2] = 1
    np.testing.assert_array_equal(sample["image"], 9 * expected)
    np.testing.assert_array_equal(sample["mask"], expected.astype(np.uint8))


def test_padding_is_that_of_inference(tmp_path: Path) -> None:
    """Training must see a small case exactly as prediction does."""
    import torch

    from competition.inference.sliding_window import predict_image

    seen: list[torch.Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append(batch.clone())
            return batch.new_zeros(len(batch), 3, *batch.shape[2:])

    exp2, exp3 = experiment(2, [9, 8]), experiment(3, [7, 8, 6])
    folders = [pictures(tmp_path / "2", exp2, [(6, 5)])[0], volumes(tmp_path / "3", exp3, [(4, 5, 6)])[0]]
    for exp, folder in zip((exp2, exp3), folders, strict=True):
        predict_image([Spy()], PreprocessedCase.open(folder).network_input[:], exp)
        np.testing.assert_array_equal(PatchDataset([folder], exp, 0, 1)[0, 0]["image"], seen.pop()[0].numpy())


def test_validation_samples_do_not_change(tmp_path: Path, exp3: Experiment) -> None:
    dataset = PatchDataset(volumes(tmp_path, exp3, [(12, 9, 7)] * 2), exp3, 0, 1, augment=_never, train=False)
    assert equal(dataset[0, 1], dataset[5, 1])
    assert [dataset.case_index(0, position) for position in range(4)] == [0, 1, 0, 1]


def _never(image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("validation samples are not augmented")


# Slices


def test_slices_are_the_neighbours_of_inference(tmp_path: Path) -> None:
    exp = experiment(3, [8, 6], prepare={"intensity": "none"}, patch={"slices": 5, "size": [8, 6]})
    folder = volumes(tmp_path, exp, [(8, 6, 4)])[0]
    case = PreprocessedCase.open(folder)
    assert case.mask is not None
    dataset, seen = PatchDataset([folder], exp, 0, 1), set()
    for position in range(30):
        sample = dataset[0, position]
        assert sample["image"].shape == (15, 8, 6) and sample["mask"].shape == (1, 8, 6)
        middle = int(sample["image"][12, 0, 0])  # coordinates of the third axis, of the middle of five slices
        seen.add(middle)
        np.testing.assert_array_equal(sample["image"], stack_neighbour_slices(case.image, middle, 5))
        np.testing.assert_array_equal(sample["mask"], case.mask[..., middle])
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 1, 2]])
@pytest.mark.parametrize("shape", [(12, 9, 7), (2, 9, 7), (12, 1, 3)])  # also thinner than the slices or the patch
def test_slices_along_an_axis_are_those_of_the_transposed_volume(
    tmp_path: Path, axes: list[int], shape: tuple[int, ...]
) -> None:
    """The image holds coordinates and the mask has a voxel of each class, so a patch says where it lies."""
    patch = {"slices": 5, "size": [8, 6]}
    exp = experiment(3, [8, 6], prepare={"intensity": "none"}, patch={**patch, "axes": axes})
    folder = volumes(tmp_path, exp, [shape])[0]
    case = PreprocessedCase.open(folder)
    assert case.mask is not None
    dataset, seen = PatchDataset([folder], exp, 0, 1), collections.Counter[int]()
    for position in range(60):
        sample = dataset[0, position]
        axis = choose_by_seed(axes, sample["seed"])
        turned = np.moveaxis(case.image, axis + 1, -1)
        middle = int(sample["image"][axis * 5 + 2].max())  # the coordinate along the axis, in the middle of five slices
        stack = stack_neighbour_slices(turned, middle, 5)
        mask = np.moveaxis(case.mask, axis + 1, -1)[..., middle]
        windows = list(_windows(stack, mask, (8, 6)))
        assert any(
            np.array_equal(sample["image"], image) and np.array_equal(sample["mask"], labels)
            for image, labels in windows
        )
        seen[axis] += 1
    assert sorted(seen) == axes and min(seen.values()) >= 60 / len(axes) / 2
    single = experiment(3, [8, 6], prepare={"intensity": "none"}, patch=patch)
    if axes == [2]:
        assert equal(PatchDataset([folder], single, 0, 1)[3, 4], dataset[3, 4])


def _windows(image: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every window of a slice that is centred and padded with 0 where it is smaller than a window."""
    gaps = [max(0, want - have) for want, have in zip(size, mask.shape[1:], strict=True)]
    padding = [(0, 0), *((gap // 2, gap - gap // 2) for gap in gaps)]
    image, mask = np.pad(image, padding), np.pad(mask, padding)
    for top in range(mask.shape[1] - size[0] + 1):
        for left in range(mask.shape[2] - size[1] + 1):
            place = (slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
            yield image[place], mask[place]


def test_foreground_is_in_patches_along_each_axis(tmp_path: Path) -> None:
    exp = experiment(
        3, [4, 4], prepare={"intensity": "none"}, patch={"slices": 3, "axes": [0, 1, 2], "foreground": 1.0}
    )
    dataset = PatchDataset(volumes(tmp_path, exp, [(12, 9, 7)]), exp, 0, 1)
    assert all(dataset[0, position]["mask"].any() for position in range(30))


# Pictures


def test_pictures_are_augmented_before_normalisation(tmp_path: Path) -> None:
    exp = experiment(2, [16, 16])
    folders = pictures(tmp_path, exp, [(20, 24), (16, 16)])
    seen: list[tuple[Any, ...]] = []

    def negative(image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append((image.shape, image.dtype, mask.shape, seed))
        return 255 - image, mask[::-1]

    plain, changed = PatchDataset(folders, exp, 0, 1)[0, 3], PatchDataset(folders, exp, 0, 1, negative)[0, 3]
    assert seen == [((16, 16, 3), np.dtype(np.uint8), (16, 16, 1), plain["seed"])]
    intensity = PreprocessedCase.open(folders[plain["case"]]).intensity
    raw = plain["image"] / np.reshape(intensity.scale, (3, 1, 1)) + np.reshape(intensity.shift, (3, 1, 1))
    np.testing.assert_allclose(changed["image"], intensity.apply(255 - np.rint(raw)), atol=1e-5)
    np.testing.assert_array_equal(changed["mask"], plain["mask"][:, ::-1])


def test_open_files_stay_bounded(tmp_path: Path) -> None:
    exp = experiment(2, [4, 4], patch={"foreground": 0.0})
    dataset = PatchDataset(pictures(tmp_path, exp, [(4, 4)] * 3) * 60, exp, 0, 1)
    for position in range(180):
        dataset[0, position]
    assert len(dataset._open_cases) == MAX_OPEN_CASES
    assert dataset.case_id(1) == "case1"
