r"""Measure the overhead of the training loop compared with the bare computation.

    python benchmarks/loop.py experiments/hippocampus/unet3d.yaml competition.root=data/hippocampus
    python benchmarks/loop.py experiments/nuclei/unet2d.yaml competition.root=data/nuclei \
        model.args.encoder_name=resnet18 encoder_weights=null

A training step is a call of `training_step`, which training uses too. It consists of data loading, augmentation,
transfer to the device, forward pass, loss, backward pass, gradient clipping, optimiser step, and update of the averaged
weights. A bare step consists of forward pass, loss, backward pass and optimiser step, with one batch that is already on
the device. The two kinds of steps alternate in one process on the same network. The script prints the ratio of the
median times, and the peak memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

STEPS = 40
WARMUP = 6


def main(file: str, overrides: list[str]) -> None:
    """Print the times of the training step and of the bare step, and their ratio.

    Args:
        file: YAML file of the experiment.
        overrides: changes to the experiment, as "key=value".
    """
    import torch

    from competition.config.loading import load_experiment
    from competition.context import Context
    from competition.models.execution import arrange
    from competition.runs.fold import FoldJob
    from competition.runs.run import CACHE_FOLDER
    from competition.training.cross_validate import open_run, prepare_run
    from competition.training.fold import setup_fold
    from competition.training.guards import peak_gib

    exp = load_experiment(file, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare_run(open_run(exp, "benchmark", root=Path(folder)))
        job = FoldJob(run.folder, run.folder / "fold_0", 0, 0, CACHE_FOLDER, exp.run.threads or 2)
        job.folder.mkdir()
        torch.set_num_threads(job.threads)
        trainer = setup_fold(job, run, Context(say=print), time.monotonic())
        batches = iter(trainer.train_loader())
        batch = next(batches)
        image, mask = trainer.fabric.to_device((batch["image"], batch["mask"]))
        image = arrange(image, trainer.exp)

        def bare_step() -> None:
            trainer.model.train()
            trainer.fabric.backward(trainer.loss(trainer.model(image), mask)[0])
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        def training_step() -> None:
            trainer.training_step(batches)

        training_seconds: list[float] = []
        bare_seconds: list[float] = []
        for step in range(STEPS + WARMUP):
            for function, seconds in ((training_step, training_seconds), (bare_step, bare_seconds)):
                start = time.perf_counter()
                function()
                if step >= WARMUP:
                    seconds.append(time.perf_counter() - start)
        training, bare = statistics.median(training_seconds), statistics.median(bare_seconds)
        ratios = sorted(a / b for a, b in zip(training_seconds, bare_seconds, strict=True))
        print(
            f"training step {1000 * training:.1f} ms, bare step {1000 * bare:.1f} ms, ratio {training / bare:.3f} "
            f"(pairs: quartiles {ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f}), "
            f"peak memory {peak_gib(trainer.fabric.device):.2f} GiB"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
