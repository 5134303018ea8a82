"""Batch statistics of averaged weights: gathered anew from training batches, since the mean of statistics is not theirs.

Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", https://arxiv.org/abs/1803.05407.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from competition.data.randomness import child_seed
from competition.training.loop import Training

BATCHES = 100  # at most; an epoch where that is shorter


def settle(network: nn.Module, training: Training) -> bool:
    """Gather a network's batch statistics from the training batches that would come next, drawn as in training.

    Means over the batches, in training mode (so with dropout), as in `torch.optim.swa_utils.update_bn`. The batches and
    dropout are counted randomness: the same weights get the same statistics in whichever process.

    Args:
        network: with the averaged weights, on the training's device; it is in evaluation mode afterwards.
        training: of the fold; it has ended.

    Returns:
        False where the network has no batch normalisation with statistics: nothing was done.
    """
    if any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        for module in network.modules()
    ):
        torch.manual_seed(child_seed(training.seed, training.fold, 0, 1, "soup"))
        with torch.no_grad(), training.fabric.autocast():
            update_bn(_images(training), network)
        network.eval()
        return True
    network.eval()
    return False


def _images(training: Training) -> Iterator[Tensor]:
    """Augmented images (B, C, *patch) on the device."""
    count = min(BATCHES, training.steps_per_epoch * training.exp.training.accumulate)
    for batch in itertools.islice(training.loader(), count):
        if training.judge is not None:
            training.judge.alive()
        image, mask = training.fabric.to_device((batch["image"], batch["mask"]))
        if training.augment is not None:
            image, _ = training.augment(image, mask, batch["seed"].tolist())
        yield image
