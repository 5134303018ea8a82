"""Compare the time to augment batches of volumes with MONAI's transforms, and measure the time to augment 2D images.

    python benchmarks/augment.py            # preset medium
    python benchmarks/augment.py heavy 4    # another preset, 4 threads

A batch consists of four volumes of 40 × 56 × 40 voxels with one channel and two classes. MONAI runs the same transforms
with the same probabilities and strengths. The two implementations alternate in one process, so that other load affects
both. Times are milliseconds per volume or image. 2D images are 256 × 256 RGB, uint8.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import torch
from timing import Ratio, alternate, missing

from competition.augment.custom import MonaiTransforms
from competition.augment.images import ImageAugment
from competition.augment.volume_geometry import Warp
from competition.augment.volume_intensity import Blur, Brightness, Contrast, Gamma, Noise
from competition.augment.volumes import VolumeAugment, build_preset
from competition.config.experiment import AugmentConfig
from competition.text import format_count

BATCH, SHAPE, ROUNDS, WARMUP = 4, (40, 56, 40), 60, 5


def monai_list(name: str) -> AugmentConfig:
    """Return an augmentation configuration that lists MONAI's equivalents of the transforms of a preset."""
    warp, blur, noise, brightness, contrast, gamma = build_preset(name)
    assert isinstance(warp, Warp) and isinstance(blur, Blur) and isinstance(noise, Noise)
    assert isinstance(brightness, Brightness) and isinstance(contrast, Contrast) and isinstance(gamma, Gamma)
    angle, zoom = np.radians(warp.degrees), warp.zoom_factor[1] - 1
    flips: list[tuple[str, float, dict[str, object]]] = [
        ("RandFlipd", 0.5, {"spatial_axis": axis}) for axis in range(3)
    ]
    transforms: list[tuple[str, float, dict[str, object]]] = [
        *flips,
        (
            "RandAffined",
            1 - (1 - warp.rotate) * (1 - warp.zoom),
            {"rotate_range": [angle] * 3, "scale_range": [zoom] * 3, "padding_mode": "border"},
        ),
        (
            "Rand3DElasticd",
            warp.elastic,
            {"sigma_range": [3, 5], "magnitude_range": [20, 80], "padding_mode": "border"},
        ),
        ("RandGaussianSmoothd", blur.blur, {}),
        ("RandSimulateLowResolutiond", blur.low_resolution, {"zoom_range": list(blur.low_resolution_factor)}),
        ("RandGaussianNoised", noise.probability, {"std": noise.deviation[1]}),
        ("RandScaleIntensityd", brightness.probability, {"factors": brightness.factor[1] - 1}),
        ("RandScaleIntensityFixedMeand", contrast.probability, {"factors": contrast.factor[1] - 1}),
        ("RandAdjustContrastd", gamma.probability, {"gamma": list(gamma.exponent), "retain_stats": True}),
    ]
    return AugmentConfig.model_validate(
        {
            "transforms": [
                {"target": f"monai.transforms.{target}", "args": {"prob": float(prob), **args}}
                for target, prob, args in transforms
                if prob > 0
            ]
        }
    )


def compare(functions: dict[str, Callable[[int], object]], samples: int) -> None:
    """Call the functions in alternation, `ROUNDS` times each, and print their times.

    Args:
        functions: functions to compare, by name; their argument is the number of the call.
        samples: number of images or volumes that a call augments; times are divided by it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    cpu_times = dict.fromkeys(functions, 0.0)
    for number in range(ROUNDS + WARMUP):
        for name, function in functions.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            function(number)
            if number >= WARMUP:
                cpu_times[name] += 1000 * (time.process_time() - cpu_start) / samples / ROUNDS
                seconds[name].append(1000 * (time.perf_counter() - start) / samples)
    for name, values in seconds.items():
        print(
            f"{name:<44} mean {statistics.mean(values):7.2f} ms   median {statistics.median(values):7.2f} ms   "
            f"processor time, all threads {cpu_times[name]:7.2f} ms"
        )


def volume_functions(name: str) -> dict[str, Callable[[int], object]]:
    """Return Maskfold's and MONAI's functions that augment a batch of volumes with a preset, by description.

    The argument of the functions is the number of the batch, which determines the random numbers.
    """
    torch.manual_seed(0)
    image, mask = torch.randn(BATCH, 1, *SHAPE), torch.randint(0, 3, (BATCH, 1, *SHAPE), dtype=torch.uint8)
    batched, listed = (
        VolumeAugment(AugmentConfig.model_validate({"preset": name}), 3),
        MonaiTransforms(monai_list(name)),
    )
    samples = [(volume.numpy(), labels.numpy()) for volume, labels in zip(image, mask, strict=True)]

    def run_batched(number: int) -> None:
        batched(image, mask, [BATCH * number + index for index in range(BATCH)])

    def run_monai(number: int) -> None:
        for index, sample in enumerate(samples):
            listed(*sample, BATCH * number + index)

    return {"volume 40x56x40, batched in torch": run_batched, "volume 40x56x40, MONAI one by one": run_monai}


def ratios(small: bool) -> list[Ratio]:
    """Return the rows for the table of `all.py`: times to augment a batch with the preset medium.

    Args:
        small: whether to measure only two rounds.
    """
    rounds = 2 if small else ROUNDS
    own, monai = (
        partial(lambda function, numbers: function(next(numbers)), function, itertools.count())
        for function in volume_functions("medium").values()
    )
    subject = f"augmenting {BATCH} volumes of {'×'.join(map(str, SHAPE))}"
    # Use the mean, because the time of a batch varies strongly with the transforms that are drawn for it.
    seconds = alternate({"Maskfold": own, "MONAI": monai}, rounds)
    mine, rival = (statistics.mean(values) for values in seconds.values())
    rows = [Ratio(subject, mine, "MONAI, one by one", rival, mine / rival)]
    name = "batchgeneratorsv2, nnU-Net's list, one by one"
    try:
        other = nnunet_function()
    except ImportError:
        return [*rows, *missing(rows, name)]
    seconds = alternate(
        {"Maskfold": own, name: partial(lambda numbers: other(next(numbers)), itertools.count())}, rounds
    )
    mine, rival = (statistics.mean(values) for values in seconds.values())
    return [*rows, Ratio(subject, mine, name, rival, mine / rival)]


def nnunet_function() -> Callable[[int], object]:
    """Return a function that augments a batch of volumes with the transforms of nnU-Net's trainer (batchgeneratorsv2).

    The function ignores its argument, the number of the batch.

    Raises:
        ImportError: batchgeneratorsv2 is not installed.
    """
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    each = {"synchronize_channels": False, "p_per_channel": 1}
    angle = (-np.pi / 6, np.pi / 6)
    spatial = SpatialTransform(
        SHAPE,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=angle,
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
    )
    others = [
        (GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
        (
            GaussianBlurTransform(
                blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5
            ),
            0.2,
        ),
        (MultiplicativeBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)), **each), 0.15),
        (ContrastTransform(contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, **each), 0.15),
        (
            SimulateLowResolutionTransform(
                scale=(0.5, 1),
                synchronize_channels=False,
                synchronize_axes=True,
                ignore_axes=None,
                allowed_channels=None,
                p_per_channel=0.5,
            ),
            0.25,
        ),
        (GammaTransform(gamma=BGContrast((0.7, 1.5)), p_invert_image=1, p_retain_stats=1, **each), 0.1),
        (GammaTransform(gamma=BGContrast((0.7, 1.5)), p_invert_image=0, p_retain_stats=1, **each), 0.3),
    ]
    transform = ComposeTransforms(
        [
            spatial,
            *(RandomTransform(one, apply_probability=share) for one, share in others),
            MirrorTransform(allowed_axes=(0, 1, 2)),
        ]
    )
    torch.manual_seed(0)
    image, mask = torch.randn(BATCH, 1, *SHAPE), torch.randint(0, 3, (BATCH, 1, *SHAPE), dtype=torch.int16)

    def run(number: int) -> None:
        for volume, labels in zip(image, mask, strict=True):
            transform(image=volume.clone(), segmentation=labels.clone())

    return run


def main(name: str = "medium", threads: str = "2") -> None:
    """Print the time to augment volumes with Maskfold and with MONAI, and the time to augment 2D images.

    Args:
        name: preset of augmentation.
        threads: number of threads of torch.
    """
    torch.set_num_threads(int(threads))
    count = format_count(int(threads), "thread")
    print(f"preset {name}, {count}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    compare(volume_functions(name), BATCH)
    image_2d = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    labels = image_2d[..., :1] // 128
    augment = ImageAugment(AugmentConfig.model_validate({"preset": name}))
    compare(
        {
            "image 256x256x3 uint8, albumentations": lambda number: [
                augment(image_2d, labels, BATCH * number + index) for index in range(BATCH)
            ]
        },
        BATCH,
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
