"""Choice of the augmentation and its flips; results do not depend on the number of loader workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from competition.augment import build_batch_transform, build_loader_transform, flip_axes
from competition.augment.custom import MonaiTransforms
from competition.augment.images import ImageAugment
from competition.augment.volume_geometry import Flip
from competition.augment.volumes import PlanesAugment, VolumeAugment
from competition.config.experiment import AugmentConfig
from competition.data.dataset import BatchSampler, PatchDataset
from competition.errors import MaskfoldError
from tests.prepared import experiment, prepared_case

FLIP: dict[str, Any] = {"target": "monai.transforms.RandFlipd", "args": {"spatial_axis": 0}}


@pytest.mark.parametrize(
    ("dimensions", "augment", "loader", "device"),
    [
        (2, {}, type(None), type(None)),
        (3, {}, type(None), type(None)),
        (2, {"preset": "light"}, ImageAugment, type(None)),
        (3, {"preset": "light"}, type(None), VolumeAugment),
        (2, {"transforms": [{"target": "albumentations.NoOp"}]}, ImageAugment, type(None)),
        (3, {"transforms": [FLIP]}, MonaiTransforms, type(None)),
        (3, {"transforms": []}, type(None), type(None)),
    ],
)
def test_loader_or_device_augments(dimensions: int, augment: Any, loader: type, device: type) -> None:
    exp = experiment(dimensions, [8] * dimensions, augment=augment)
    assert type(build_loader_transform(exp)) is loader and type(build_batch_transform(exp)) is device


def test_slices_are_augmented_in_their_plane() -> None:
    exp = experiment(3, [8, 8], patch={"slices": 3}, augment={"preset": "light"}, prepare={"spacing": [1.0, 2.0, 5.0]})
    augment = build_batch_transform(exp)
    assert augment is not None and augment.dims == 2 and augment.spacing == (1.0, 2.0)
    flip = augment.transforms[0]
    assert isinstance(flip, Flip) and flip.axes == (0, 1)


@pytest.mark.parametrize(
    ("axis", "spacing", "flips"), [(0, (2.0, 5.0), (0,)), (1, (1.0, 5.0), ()), (2, (1.0, 2.0), (1,))]
)
def test_slices_along_an_axis_have_the_spacing_and_flips_of_their_plane(
    axis: int, spacing: tuple[float, float], flips: tuple[int, ...]
) -> None:
    """`augment.flip` names axis 1 of the volume, which is axis 0 or 1 of a patch, or the axis of the slices."""
    sections: dict[str, Any] = {"augment": {"preset": "light", "flip": [1]}, "prepare": {"spacing": [1.0, 2.0, 5.0]}}
    exp = experiment(3, [8, 8], patch={"slices": 3, "axes": [axis]}, **sections)
    several = build_batch_transform(experiment(3, [8, 8], patch={"slices": 3, "axes": [0, 1, 2]}, **sections))
    assert isinstance(several, PlanesAugment)
    planes = [several.planes[axis]]
    if axis == 1:
        with pytest.raises(MaskfoldError, match=r"augment\.flip"):
            build_batch_transform(exp)
    else:
        one = build_batch_transform(exp)
        assert isinstance(one, VolumeAugment)
        planes.append(one)
    for augment in planes:
        flip = augment.transforms[0]
        assert augment.dims == 2 and augment.spacing == spacing and isinstance(flip, Flip) and flip.axes == flips


def test_each_sample_is_augmented_in_the_plane_of_its_seed() -> None:
    exp = experiment(
        3,
        [8, 8],
        patch={"slices": 1, "axes": [0, 1, 2]},
        augment={"preset": "heavy", "flip": [0, 2]},
        prepare={"spacing": [1.0, 2.0, 5.0]},
    )
    several = build_batch_transform(exp)
    assert isinstance(several, PlanesAugment)
    draw = np.random.default_rng(0)
    image = torch.from_numpy(draw.normal(size=(9, 1, 8, 8)).astype(np.float32))
    mask, seeds = (image > 0).to(torch.uint8), [int(seed) for seed in draw.integers(2**63 - 1, size=9)]
    found = several(image, mask, seeds)
    for number, seed in enumerate(seeds):
        one = slice(number, number + 1)
        for both, alone in zip(found, several.planes[seed % 3](image[one], mask[one], [seed]), strict=True):
            torch.testing.assert_close(both[one], alone)
    assert {seed % 3 for seed in seeds} == {0, 1, 2} and not torch.equal(found[0], image)


def test_preset_and_list() -> None:
    exp = experiment(3, [8, 8, 8], augment={"preset": "light", "transforms": [FLIP]})
    with pytest.raises(MaskfoldError, match="augment sets both"):
        build_loader_transform(exp)


@pytest.mark.parametrize(
    ("augment", "dims", "expected"),
    [
        (AugmentConfig(), 2, ()),
        (AugmentConfig(preset="light"), 2, (0, 1)),
        (AugmentConfig(preset="heavy"), 3, (0, 1, 2)),
        (AugmentConfig(preset="light", flip=False), 3, ()),
        (AugmentConfig(preset="light", flip=[2, 0, 2]), 3, (0, 2)),
        (AugmentConfig(transforms=[FLIP]), 3, (0,)),  # type: ignore[list-item]
        (AugmentConfig(transforms=[{"target": "monai.transforms.RandFlipd"}]), 3, ()),  # type: ignore[list-item]
        (AugmentConfig(transforms=[{"target": "monai.transforms.RandAxisFlipd"}]), 3, (0, 1, 2)),  # type: ignore[list-item]
        (AugmentConfig(transforms=[{"target": "albumentations.VerticalFlip"}]), 2, (0,)),  # type: ignore[list-item]
        (AugmentConfig(transforms=[{"target": "albumentations.HorizontalFlip"}]), 2, (1,)),  # type: ignore[list-item]
    ],
)
def test_flips(augment: AugmentConfig, dims: int, expected: tuple[int, ...]) -> None:
    assert flip_axes(augment, dims) == expected


def test_missing_axis_is_an_error() -> None:
    with pytest.raises(MaskfoldError, match=r"augment\.flip: found axis 2"):
        flip_axes(AugmentConfig(preset="light", flip=[2]), 2)


def test_flips_imports_no_heavy_library() -> None:
    program = (
        "import sys; import competition.augment; from competition.augment import flip_axes; "
        "print(*[name for name in ('torch', 'albumentations', 'cv2', 'monai') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("dimensions", [2, 3])
def test_loader_workers_change_nothing(tmp_path: Path, dimensions: int) -> None:
    transforms = {"transforms": [FLIP, {"target": "monai.transforms.RandGaussianNoised", "args": {"prob": 0.5}}]}
    exp = experiment(dimensions, [8] * dimensions, augment={"preset": "heavy"} if dimensions == 2 else transforms)
    draw, folders = np.random.default_rng(0), []
    for number in range(3):
        image = draw.integers(0, 256, (1, *[12] * dimensions), dtype=np.uint8)
        folders.append(prepared_case(tmp_path, str(number), image, image // 100, exp))
    dataset = PatchDataset(folders, exp, 0, 1, build_loader_transform(exp))

    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(dataset, batch_sampler=BatchSampler(0, 4, 2, 2), num_workers=workers)  # type: ignore[arg-type]
        return list(loader)

    alone = batches(0)
    plain = PatchDataset(folders, exp, 0, 1)
    assert any(not np.array_equal(plain[0, index]["image"], alone[0]["image"][index]) for index in range(2))
    for workers in (1, 2):
        for first, second in zip(alone, batches(workers), strict=True):
            assert all(torch.equal(first[key], second[key]) for key in first)
