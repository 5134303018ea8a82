"""The loop: one fold's network from its first step to its last, in plain sight.

Every random choice is counted (`competition.data.randomness`), so nothing here saves a generator's state, and a process
that was killed goes on from its last checkpoint to the very weights that an undisturbed one reaches.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from competition.config import Experiment, MaskfoldError
from competition.data.patches import PatchDataset, StepSampler
from competition.data.randomness import child_seed
from competition.model.ema import Ema
from competition.model.loss import SegmentationLoss
from competition.model.optimiser import build_optimizer
from competition.model.schedule import Schedule
from competition.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from competition.training.journal import Journal
from competition.training.plan import Plan
from competition.training.ranks import Ranks
from competition.training.snapshots import Snapshots
from competition.training.validation import Judge, summary_metrics


@dataclass
class Progress:
    """Where training stands: plain numbers, so that it goes into a checkpoint as it is."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # since the fold began, earlier processes included
    epoch_seconds: float = 0.0  # of that, in the running epoch
    sums: dict[str, float] = field(default_factory=dict)  # loss and its parts, added up over the running epoch
    best: float = -math.inf  # best validation score
    stale: int = 0  # validations since
    stopped: str = ""  # why training ended


@dataclass
class Training:
    """What the loop works with; made by `begin`, moved forward by `train`."""

    fabric: Fabric
    exp: Experiment
    folder: Path
    fold: int
    seed: int
    network: Any  # an nn.Module, wrapped by Fabric once training began
    dataset: PatchDataset
    judge: Judge | None  # None: a fit on all cases has nothing to validate on
    augment: Callable[[Tensor, Tensor, list[int]], tuple[Tensor, Tensor]] | None
    began: float  # time.monotonic() at the process's start
    interrupted: Callable[[], str]  # why to stop now; empty while there is no reason
    say: Callable[[str], None]
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        exp, cfg = self.exp, self.exp.training
        self.ranks = Ranks(self.fabric)
        self.samples = cfg.batch_size * cfg.accumulate * self.ranks.count  # of a step
        self.steps_per_epoch = cfg.steps_per_epoch or -(-len(self.dataset) // self.samples)
        self.loss = SegmentationLoss(exp, self.trust)
        optimizer = build_optimizer(exp, self.network.parameters(), self.trust)
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.schedule = Schedule(exp.schedule, self.rates)
        self.bare: nn.Module = self.network  # without Fabric's wrapper
        self.network, self.optimizer = self.fabric.setup(self.network, optimizer)
        self.ema = Ema(self.bare, cfg.ema) if cfg.ema else None
        self.candidate = copy.deepcopy(self.bare).requires_grad_(False).eval()  # holds the weights that are judged
        self.plan = Plan.of(exp, self.steps_per_epoch)
        self.progress = Progress()
        self.snapshots = Snapshots(self.folder / "snapshots", cfg.average, best=cfg.weights == "best")
        self.end_seconds = 0.0  # what the last validation took, as an estimate of the final prediction
        if (self.folder / "last.pt").exists():
            self._resume()
        if self.ranks.rank == 0:
            self.journal = Journal(self.folder / "metrics.jsonl", self.progress.step)
        self.earlier = self.progress.seconds
        self.saved = time.monotonic()

    # ── the story ────────────────────────────────────────────────────────────────────────────────────────────────

    def train(self) -> None:
        """Take steps until the plan is done, training stops early, or something interrupts it."""
        batches = iter(self._loader())
        while not self.progress.stopped:
            lap = time.monotonic()
            self._step(batches)
            self.ranks.decide(partial(self._between_steps, lap), self._standing, self._stand)
        self.ranks.part()

    def _between_steps(self, lap: float) -> None:
        """What the fold's first process does for all: the clock, the end of an epoch, checkpoints, reasons to stop."""
        self.plan.look_at_clock(self.progress.step, self.elapsed(), self._reserve)
        done = self.plan.done(self.progress.step)
        self.progress.epoch_seconds += time.monotonic() - lap
        if self.progress.step % self.steps_per_epoch == 0 or done:
            self._end_epoch(done)
        elif time.monotonic() - self.saved > 60 * self.exp.training.checkpoint_minutes:
            self.save()
        if reason := self.interrupted():
            self.save()
            raise KeyboardInterrupt(reason)

    def _step(self, batches: Any) -> None:
        """One optimiser step: forward, loss, backward, clip, step, average."""
        cfg, progress = self.exp.training, self.progress
        epoch, position = divmod(progress.step, self.steps_per_epoch)
        place = position * self.ranks.count + self.ranks.rank
        torch.manual_seed(child_seed(self.seed, self.fold, epoch, place, "torch"))  # dropout
        multiplier = self.schedule.rate(self.plan.share(progress.step))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * multiplier
        self.network.train()
        for micro in range(cfg.accumulate):
            batch = next(batches)
            image, mask = self.fabric.to_device((batch["image"], batch["mask"]))
            if self.augment is not None:
                image, mask = self.augment(image, mask, batch["seed"].tolist())
            with self.fabric.no_backward_sync(self.network, enabled=micro + 1 < cfg.accumulate):
                total, parts = self.loss(self.network(image), mask)
                self.fabric.backward(total / cfg.accumulate)
            self._add({"loss": total, **(parts if len(parts) > 1 else {})}, batch)
        if cfg.clip_gradient is not None:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=cfg.clip_gradient, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.bare)
        progress.step += 1

    def _end_epoch(self, last: bool) -> None:
        """Log the epoch, validate when it is due, decide whether to stop, and keep a checkpoint."""
        cfg, progress = self.exp.training, self.progress
        epoch = -(-progress.step // self.steps_per_epoch)
        steps = progress.step - (epoch - 1) * self.steps_per_epoch
        metrics = {f"train/{name}": value / (steps * cfg.accumulate) for name, value in progress.sums.items()}
        metrics["lr"] = float(self.optimizer.param_groups[0]["lr"])
        metrics["time/epoch_seconds"] = progress.epoch_seconds
        metrics["time/samples_per_second"] = steps * self.samples / max(progress.epoch_seconds, 1e-9)
        metrics["memory/peak_gib"] = peak_gib(self.fabric.device)
        score = None
        due = self.snapshots.best if last else epoch % cfg.validate_every == 0
        if self.judge is not None and due:  # the last epoch may be the best; else its out-of-fold prediction says it all
            score = self._validate(metrics)
        if self.judge is not None and epoch % cfg.pictures_every == 0 and not last:
            self.judge.picture(self._weights(), self.folder / "pictures", epoch)
        if score is not None or not self.snapshots.best or self.judge is None:
            self.snapshots.offer(epoch, score, lambda: self._weights().state_dict())
        if last:
            progress.stopped = progress.stopped or "done"
        self.say(_line(epoch, progress.step, metrics))
        if progress.stopped not in ("", "done"):
            self.say(f"ends here: {progress.stopped}")
        self.journal.write(progress.step, epoch, metrics)
        progress.sums, progress.epoch_seconds = {}, 0.0
        self.save()

    def _validate(self, metrics: dict[str, float]) -> float:
        """Score whole cases with the averaged weights; feed the schedule and early stopping."""
        assert self.judge is not None
        progress, stopping = self.progress, self.exp.early_stopping
        began = time.monotonic()
        scores = self.judge.validate(self._weights(), self.fold)
        self.end_seconds = time.monotonic() - began
        metrics.update(summary_metrics(scores, self.exp))
        score = metrics["val/score"]
        if score > progress.best:
            progress.best, progress.stale = score, 0
            self.keep_best(self.candidate)
        else:
            progress.stale += 1
        self.schedule.observe(score)
        if stopping is not None:
            if stopping.patience is not None and progress.stale >= stopping.patience:
                progress.stopped = f"no better score in {progress.stale} validations"
            least = stopping.all_classes_at_least
            dice = [metrics.get(f"val/dice/{name}", -math.inf) for name in self.exp.competition.classes]
            if least is not None and min(dice) >= least:
                progress.stopped = f"every class reached a Dice of {least}"
        return score

    # ── what the story leans on ──────────────────────────────────────────────────────────────────────────────────

    def elapsed(self) -> float:
        """Seconds since the fold began, earlier processes included."""
        return self.earlier + time.monotonic() - self.began

    def final_weights(self) -> dict[str, Tensor]:
        """The weights that predict: the last or the best, averaged over `training.average` epochs."""
        return self.snapshots.average() or dict(self._weights().state_dict())

    def keep_best(self, network: nn.Module) -> None:
        """Write the weights with the best validation score so far, for whoever asks; they predict nothing by themselves."""
        save_weights(self.folder / "best.safetensors", network.state_dict())

    def save(self) -> None:
        """Write the checkpoint: at most the steps since then are lost."""
        self.progress.seconds = self.elapsed()
        save_checkpoint(self.folder / "last.pt", {
            "network": self.bare.state_dict(), "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(), **self._standing(),
            "threads": torch.get_num_threads(), "devices": self.ranks.count})
        self.saved = time.monotonic()

    def _resume(self) -> None:
        state = load_checkpoint(self.folder / "last.pt")
        if (devices := state.get("devices", 1)) != self.ranks.count:
            raise MaskfoldError(f"The checkpoint {self.folder / 'last.pt'} was made with run.devices={devices}, where a step "
                                f"takes other samples than with {self.ranks.count}.",
                                f"Set run.devices={devices}, or start another run with --new.")
        self.bare.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self._stand(state)
        if state["threads"] != torch.get_num_threads():
            self.say(f"note: the checkpoint was made with {state['threads']} threads, this process has "
                     f"{torch.get_num_threads()}: the last digits may differ from an undisturbed run's")
        self.say(f"going on from step {self.progress.step}")

    def _standing(self) -> dict[str, Any]:
        """Where training stands, in plain values."""
        return {"progress": asdict(self.progress), "plan": self.plan.pairs, "schedule": self.schedule.state_dict()}

    def _stand(self, state: dict[str, Any]) -> None:
        self.progress, self.plan.pairs = Progress(**state["progress"]), state["plan"]
        self.schedule.load_state_dict(state["schedule"])

    def _weights(self) -> nn.Module:
        """A network in eval mode with the averaged weights, or the plain ones without averaging."""
        self.candidate.load_state_dict(self.ema.weights() if self.ema is not None else self.bare.state_dict())
        return self.candidate

    def _reserve(self) -> float:
        """Seconds that the final prediction will take: as the last validation, or a guess from one case."""
        if self.end_seconds == 0.0 and self.judge is not None:
            sizes = [math.prod(json.loads(shape)) for shape in self.judge.cases["shape"]]
            middle = sizes.index(sorted(sizes)[len(sizes) // 2])
            row = next(self.judge.cases.iloc[middle:middle + 1].itertuples(index=False))
            for _ in range(2):  # the first prediction also pays for warming up
                began = time.monotonic()
                self.judge.score(self.judge.probabilities(self._weights(), row), row, self.fold)
                one = time.monotonic() - began
            self.end_seconds = one * sum(sizes) / sizes[middle]
        times = 2 if self.snapshots.best else 1  # the last epoch is validated as well
        return 1.15 * times * self.end_seconds + 2.0  # the store, scores and pictures come on top

    def _loader(self) -> DataLoader[Any]:
        cfg, run = self.exp.training, self.exp.run
        sampler = StepSampler(self.progress.step * cfg.accumulate, None, self.steps_per_epoch * cfg.accumulate,
                              cfg.batch_size, self.ranks.rank, self.ranks.count)
        return DataLoader(self.dataset, batch_sampler=sampler, num_workers=run.workers,  # type: ignore[arg-type]
                          pin_memory=self.fabric.device.type == "cuda", prefetch_factor=4 if run.workers else None)

    def _add(self, values: dict[str, Tensor], batch: dict[str, Any]) -> None:
        for name, number in self.ranks.mean(values).items():
            if not math.isfinite(number):
                ids = ", ".join(self.dataset.case_id(index) for index in self.ranks.all_of(batch["case"]))
                raise MaskfoldError(
                    f"The {name} is {number} at step {self.progress.step + 1} of fold {self.fold} (cases {ids}).",
                    "Lower optimizer.args.lr, set training.precision to fp32, or look at these cases.")
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + number


def peak_gib(device: torch.device) -> float:
    """Peak memory: the device's where it has its own, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def _line(epoch: int, step: int, metrics: dict[str, float]) -> str:
    words = [f"epoch {epoch}", f"step {step}", f"loss {metrics['train/loss']:.4f}", f"lr {metrics['lr']:.2e}"]
    if "val/score" in metrics:
        words += [f"score {metrics['val/score']:.4f}", f"Dice {metrics['val/dice']:.4f}"]
    return " · ".join([*words, f"{metrics['time/epoch_seconds']:.1f} s"])
