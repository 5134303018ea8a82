"""Compare the time of sliding-window prediction with MONAI's `sliding_window_inference`.

    python benchmarks/inference.py            # about two minutes on two cores
    python benchmarks/inference.py --small    # smaller images, two rounds

Both predict the same image in windows that overlap by half and are blended with the same Gaussian. They return
probabilities as float16. MONAI runs without and with `buffer_steps`, which keeps only a part of the sums in memory.

If the network is one 1×1 convolution, nearly all time is spent on cutting out and blending the windows. A U-Net shows
the time of a realistic network. The script checks only for the convolution that the results are equal, because those of
a U-Net depend on the positions of the windows. Times are processor seconds of all threads; the implementations
alternate.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet
from timing import Ratio, compare, format_ratios
from torch import nn

from competition.config.experiment import Experiment
from competition.inference.sliding_window import predict_image

CLASSES = ["a", "b", "c", "d"]
OUTPUTS, OVERLAP, SIGMA = 1 + len(CLASSES), 0.5, 0.125
FULL = {2: ((768, 768), 256), 3: ((96, 96, 96), 48)}  # image, patch
SMALL = {2: ((96, 96), 64), 3: ((32, 32, 48), 32)}


def make_experiment(dimensions: int, patch: int) -> Experiment:
    """Return an experiment with windows of `patch` pixels or voxels per side, without test-time augmentation."""
    suffix = "png" if dimensions == 2 else "nii.gz"
    competition = {
        "name": "benchmark",
        "root": ".",
        "train": {"images": f"images/{{id}}.{suffix}", "masks": f"masks/{{id}}.{suffix}"},
        "classes": CLASSES,
        "labels": "exclusive",
        "dimensions": dimensions,
        "metric": {"name": "dice"},
    }
    return Experiment.model_validate(
        {
            "competition": competition,
            "patch": {"size": [patch] * dimensions},
            "model": {"target": "monai.networks.nets.UNet"},
            "loss": {"target": "monai.losses.DiceCELoss"},
            "inference": {"overlap": OVERLAP, "tta": [], "batch_size": 1},
        }
    )


def predict_with_monai(
    network: nn.Module, image: np.ndarray, patch: int, buffer_steps: int | None = None
) -> np.ndarray:
    """Predict an image with MONAI's `sliding_window_inference`.

    Args:
        network: network with P output channels.
        image: image (C, *spatial) float32.
        patch: side of a window in pixels or voxels.
        buffer_steps: MONAI's option of this name; None for no buffer.

    Returns:
        Probabilities (P, *spatial) float16.
    """
    dimensions = image.ndim - 1
    buffer: dict[str, Any] = {} if buffer_steps is None else {"buffer_steps": buffer_steps, "buffer_dim": 0}
    with torch.no_grad():
        probabilities = sliding_window_inference(
            torch.from_numpy(image)[None],
            [patch] * dimensions,
            1,
            lambda windows: network(windows).softmax(1),
            OVERLAP,
            "gaussian",
            SIGMA,
            **buffer,
        )
    assert isinstance(probabilities, torch.Tensor)
    return probabilities[0].half().numpy()


def ratios(small: bool) -> list[Ratio]:
    """Return the rows for the table of `all.py`: prediction times of Maskfold and MONAI, and their ratios.

    Args:
        small: whether to use smaller images and fewer rounds.

    Raises:
        AssertionError: the predictions of the convolution differ between the implementations.
    """
    rows = []
    torch.manual_seed(0)
    for dimensions, (shape, patch) in (SMALL if small else FULL).items():
        exp = make_experiment(dimensions, patch)
        image = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        networks: dict[str, nn.Module] = {
            "1×1 convolution": convolution(1, OUTPUTS, 1).eval(),
            "U-Net": BasicUNet(dimensions, 1, OUTPUTS, (8, 8, 16, 32, 32, 8)).eval(),
        }
        for name, network in networks.items():
            functions: dict[str, Callable[[], np.ndarray]] = {
                "Maskfold": partial(predict_image, [network], image, exp),
                "MONAI": partial(predict_with_monai, network, image, patch),
                "MONAI, buffer_steps=1": partial(predict_with_monai, network, image, patch, 1),
            }
            if name != "U-Net":
                own, *others = (function().astype(np.float32) for function in functions.values())
                if any(not np.allclose(own, other, atol=2e-3) for other in others):
                    raise AssertionError("the implementations differ")
            size = "×".join(map(str, shape))
            rows += compare(f"windows of {patch} in {size}, {name}", functions, 2 if small else 3)
    return rows


if __name__ == "__main__":
    print("\n".join(format_ratios(ratios("--small" in sys.argv[1:]))))
