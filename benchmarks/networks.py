r"""Compare the processor time of channels_last and of a fused optimizer with torch's defaults.

    python benchmarks/networks.py                                        # experiments/demo2d/unet2d.yaml
    python benchmarks/networks.py experiments/nuclei/unet2d.yaml training.batch_size=4 --channels 3
    python benchmarks/networks.py --small                                # a small network, for a test

Two networks with the same weights take turns in one process, on one thread, with noise as input: one has torch's
default memory format, the other has channels_last. The script prints three comparisons:

* a training step (forward pass, loss, backward pass, optimizer) with each memory format;
* the prediction of a batch of windows with each memory format;
* an optimizer step with torch's default implementation, and with the fused one (all weights in one kernel).

Each line has the ratio of the median times, and the range of the ratios in single pairs of calls. A ratio below 1 means
that channels_last, or the fused optimizer, is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

DEMO = Path(__file__).resolve().parents[1] / "experiments" / "demo2d" / "unet2d.yaml"
SMALL = ["patch.size=[32,32]", "training.batch_size=2", "model.args={encoder_name: resnet18, encoder_depth: 3, "
         "decoder_channels: [16, 8, 8]}"]  # fmt: skip


def compare(first: Callable[[], object], second: Callable[[], object], pairs: int) -> tuple[float, float, list[float]]:
    """Call two functions in alternating order, and measure their processor times.

    Returns:
        Median seconds of the first and of the second function, and the sorted ratios second / first of the pairs.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(pairs + 1):
        order = (0, 1) if number % 2 else (1, 0)
        for index in order:
            start = time.process_time()
            (first, second)[index]()
            if number:  # the first pair is a warm-up
                seconds[index].append(time.process_time() - start)
    return (
        statistics.median(seconds[0]),
        statistics.median(seconds[1]),
        sorted(b / max(a, 1e-9) for a, b in zip(*seconds, strict=True)),
    )


def describe(name: str, result: tuple[float, float, list[float]]) -> str:
    """Return a line with the times and ratios of a comparison.

    Args:
        name: what was compared.
        result: the result of `compare`.
    """
    first, second, ratios = result
    return (
        f"{name:<28} {1000 * first:8.1f} ms {1000 * second:8.1f} ms, ratio {second / max(first, 1e-9):.2f} "
        f"(pairs {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main(file: str, overrides: list[str], channels: int, pairs: int) -> list[str]:
    """Print and return a line for each comparison.

    Args:
        file: YAML file of the experiment.
        overrides: changes to the experiment, as "key=value".
        channels: number of channels of the images.
        pairs: number of times that each of the two variants is called.
    """
    import torch

    from competition.config.loading import load_experiment
    from competition.context import Context
    from competition.models.build import build_network
    from competition.models.execution import arrange
    from competition.models.losses import SegmentationLoss
    from competition.models.optim import build_optimizer

    torch.set_num_threads(1)
    exps = [load_experiment(file, [*overrides, f"training.memory_format=channels_{end}"]) for end in ("first", "last")]
    networks, images = [], []
    noise = torch.randn(exps[0].training.batch_size, channels, *exps[0].patch.size)
    for exp in exps:
        torch.manual_seed(0)
        networks.append(build_network(exp, channels, pretrained=False))
        images.append(arrange(noise, exp))
    masks = 1 if exps[0].competition.labels == "exclusive" else len(exps[0].competition.classes)
    mask = torch.zeros(len(noise), masks, *exps[0].patch.size, dtype=torch.uint8)
    mask[..., 5:20, 5:20] = 1
    loss = SegmentationLoss(exps[0], Context())
    optimizers = [build_optimizer(exp, network) for exp, network in zip(exps, networks, strict=True)]

    def step(index: int) -> None:
        networks[index].train()
        loss(networks[index](images[index]), mask)[0].backward()
        optimizers[index].step()
        optimizers[index].zero_grad()

    def predict(index: int) -> None:
        networks[index].eval()
        with torch.no_grad():
            networks[index](images[index][: exps[0].inference.batch_size])

    lines = [
        describe("training step", compare(lambda: step(0), lambda: step(1), pairs)),
        describe("prediction", compare(lambda: predict(0), lambda: predict(1), pairs)),
    ]
    step(0)
    weights = list(networks[0].parameters())
    both = [build_optimizer(exps[0], networks[0], fused=fused) for fused in (False, True)]
    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-6)
    million = sum(weight.numel() for weight in weights) / 1e6
    lines.append(describe(f"optimizer, {million:.1f} M weights", compare(both[0].step, both[1].step, pairs)))
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=str(DEMO))
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="a small network, two pairs")
    options = parser.parse_intermixed_args()
    main(
        options.file,
        [*options.overrides, *(SMALL if options.small else [])],
        options.channels,
        2 if options.small else options.pairs,
    )
