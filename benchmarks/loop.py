"""What the real loop costs beside the bare arithmetic.

    python benchmarks/loop.py experiments/hippocampus/unet3d.yaml competition.root=../shared/data/hippocampus
    python benchmarks/loop.py experiments/nuclei/unet2d.yaml competition.root=../shared/data/nuclei model.args.encoder_name=resnet18 encoder_weights=null

Real: data, augmentation, transfer, forward, loss, backward, clipping, optimiser, averaged weights: the very method that
training calls. Bare: forward, loss, backward, optimiser on ready-made tensors. Both take turns in one process on the same
network and batch; the ratio of the medians is printed, with the peak memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

STEPS = 40
WARM = 6


def main(file: str, overrides: list[str]) -> None:
    import torch

    from competition.config import load_experiment
    from competition.training.fold import begin
    from competition.training.job import Job
    from competition.training.loop import peak_gib
    from competition.training.runs import CACHE, open_run

    exp = load_experiment(file, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(exp, "benchmark", root=Path(folder))
        run.write()
        job = Job(run.folder, run.folder / "fold_0", 0, 0, CACHE, exp.run.threads or 2)
        job.folder.mkdir()
        torch.set_num_threads(job.threads)
        training = begin(job, run, print, time.monotonic())
        batches = iter(training._loader())
        ready = next(batches)
        image, mask = training.fabric.to_device((ready["image"], ready["mask"]))

        def bare() -> None:
            training.network.train()
            training.fabric.backward(training.loss(training.network(image), mask)[0])
            training.optimizer.step()
            training.optimizer.zero_grad()

        real_seconds, bare_seconds = [], []
        for step in range(STEPS + WARM):
            for work, seconds in ((lambda: training._step(batches), real_seconds), (bare, bare_seconds)):
                began = time.perf_counter()
                work()
                if step >= WARM:
                    seconds.append(time.perf_counter() - began)
        real, base = statistics.median(real_seconds), statistics.median(bare_seconds)
        ratios = sorted(a / b for a, b in zip(real_seconds, bare_seconds, strict=True))
        print(
            f"real loop {1000 * real:.1f} ms a step, bare step {1000 * base:.1f} ms, ratio {real / base:.3f} "
            f"(pairs: quartiles {ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f}), "
            f"peak memory {peak_gib(training.fabric.device):.2f} GiB"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
