"""The loop: one fold's network from its first step to its last, in plain sight.

Every random choice is counted (`competition.data.randomness`), so nothing here saves a generator's state, and a process
that was killed goes on from its last checkpoint to the very weights that an undisturbed one reaches.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from competition.config import Experiment
from competition.data.patches import PatchDataset, StepSampler
from competition.data.randomness import child_seed
from competition.model.ema import Ema
from competition.model.loss import SegmentationLoss
from competition.model.optimiser import build_optimizer
from competition.model.schedule import Schedule
from competition.training.checkpoint import GOOD, LAST, load_checkpoint, save_checkpoint, save_weights
from competition.training.journal import Journal
from competition.training.memory import Memory, peak_gib
from competition.training.nan import Micro, Numbers, are_finite
from competition.training.plan import Plan
from competition.training.progress import Progress, line
from competition.training.ranks import Ranks
from competition.training.snapshots import Snapshots
from competition.training.soup import Soup
from competition.training.validation import Judge, summary_metrics


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
        self.numbers = Numbers(exp, self.fabric, self.ranks, self.bare, self.dataset.case_id)
        self.memory = Memory(exp, self.fabric.device, self.say)
        self.snapshots = Snapshots(self.folder / "snapshots", cfg.average, best=cfg.weights == "best")
        self.soup = Soup(self.folder / "soup", exp, self.fold, self.judge.cases if self.judge is not None else None)
        self.end_seconds = 0.0  # what the last validation took, as an estimate of the final prediction
        self.line = ""  # of the journal, for the last epoch
        if (self.folder / LAST).exists():
            self._resume(LAST)
        self.earlier, self.saved = self.progress.seconds, time.monotonic()
        if self.ranks.rank == 0:
            self.journal = Journal(self.folder / "metrics.jsonl", self.progress.step, self.line)
            if cfg.on_nan == "restore" and not (self.folder / GOOD).exists():
                self.save(good=True)

    # ── the story ────────────────────────────────────────────────────────────────────────────────────────────────

    def train(self) -> None:
        """Take steps until the plan is done, training stops early, or something interrupts it."""
        batches = iter(self.loader())
        while not self.progress.stopped:
            lap = time.monotonic()
            if not self._epoch_is_over() and self._step(
                batches
            ):  # it is over after a stop in the midst of a validation
                batches = iter(self.loader())  # the step was not taken, and comes again
                continue
            self.ranks.decide(partial(self._between_steps, lap), self._standing, self._stand)
        self.ranks.part()

    def _between_steps(self, lap: float) -> None:
        """What the fold's first process does for all: the clock, the end of an epoch, checkpoints, reasons to stop."""
        self.plan.look_at_clock(self.progress.step, self.elapsed(), self._reserve)
        self.progress.epoch_seconds += time.monotonic() - lap
        if self._epoch_is_over():
            standing = copy.deepcopy(self._standing())
            try:
                self._end_epoch(self.plan.done(self.progress.step))
            except KeyboardInterrupt:
                self._stand(standing)  # as before the validation, which is done again
                self.save()
                raise
        elif time.monotonic() - self.saved > 60 * self.exp.training.checkpoint_minutes:
            self.save()
        if reason := self.interrupted():
            self.save()
            raise KeyboardInterrupt(reason)

    def _step(self, batches: Any) -> bool:
        """One optimiser step: forward, loss, backward, clip, step, average. True where it is to be taken again."""
        progress = self.progress
        epoch, position = divmod(progress.step, self.steps_per_epoch)
        torch.manual_seed(
            child_seed(self.seed, self.fold, epoch, position * self.ranks.count + self.ranks.rank, "torch")
        )  # dropout
        multiplier = self.schedule.rate(self.plan.share(progress.step)) * 0.5**progress.restored
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * multiplier
        self.network.train()
        self.numbers.remember()
        micros = self.memory.fits(partial(self._backward, batches), progress.halved, progress.step + 1)
        if micros is None:  # out of memory
            self.numbers.undo(self.optimizer)
            progress.halved += 1
            return True
        norm = self.numbers.clip(self.network, self.optimizer)
        sums, wrong = self.numbers.look(micros, norm, f"at step {progress.step + 1} of fold {self.fold}")
        if wrong:
            return self._bad_step(wrong)
        progress.add(sums)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.bare)
        progress.step += 1
        return False

    def _backward(self, batches: Any) -> list[Micro]:
        """The gradient of a step, added up over its micro-batches, each in as many parts as memory asks for."""
        cfg, micros = self.exp.training, []
        for number in range(cfg.accumulate):
            parts = self.memory.parts(next(batches), self.progress.halved)
            for part in parts:
                image, mask = self.fabric.to_device((part["image"], part["mask"]))
                if self.augment is not None:
                    image, mask = self.augment(image, mask, part["seed"].tolist())
                share = len(part["case"]) / cfg.batch_size
                more = number + 1 < cfg.accumulate or part is not parts[-1]
                with self.fabric.no_backward_sync(self.network, enabled=more):
                    total, terms = self.loss(self.network(image), mask)
                    self.fabric.backward(total / (cfg.accumulate / share))
                micros.append(Micro({"loss": total.detach(), **(terms if len(terms) > 1 else {})}, part["case"], share))
        return micros

    def _bad_step(self, wrong: str) -> bool:
        """A step whose numbers are none is left out, or taken again from a good checkpoint on, at half the rate."""
        answer = self.numbers.answer(wrong, self.progress.skipped, self.progress.restored)
        self.numbers.undo(self.optimizer)
        if answer == "skip":
            self.progress.skip()
            self.say(f"{wrong}: left out, number {self.progress.skipped} of the fold")
            return False
        restored = self.progress.restored + 1
        self._resume(GOOD)
        self.progress.restored = restored
        self.plan.look_again()
        if self.ranks.rank == 0:
            self.journal = Journal(self.folder / "metrics.jsonl", self.progress.step, self.line)
            self.save()
        self.say(f"{wrong}: back to step {self.progress.step}, at {0.5**restored:g} of the rate")
        return True

    def _epoch_is_over(self) -> bool:
        """Whether the steps that are done end an epoch that was not ended yet."""
        step = self.progress.step
        return step > self.progress.ended and (step % self.steps_per_epoch == 0 or self.plan.done(step))

    def _end_epoch(self, last: bool) -> None:
        """Log the epoch, validate when it is due, decide whether to stop, and keep a checkpoint."""
        cfg, progress = self.exp.training, self.progress
        epoch = -(-progress.step // self.steps_per_epoch)
        steps = progress.step - (epoch - 1) * self.steps_per_epoch
        metrics = {
            f"train/{name}": value / (cfg.accumulate * (steps - progress.lost)) for name, value in progress.sums.items()
        }
        metrics["lr"] = float(self.optimizer.param_groups[0]["lr"])
        metrics["time/epoch_seconds"] = progress.epoch_seconds
        metrics["time/samples_per_second"] = steps * self.samples / max(progress.epoch_seconds, 1e-9)
        metrics["memory/peak_gib"] = peak_gib(self.fabric.device)
        best = self.snapshots.best or self.soup.on  # the last epoch may be; else its out-of-fold prediction says it all
        due = best if last else epoch % cfg.validate_every == 0
        score = self._validate(metrics, epoch) if self.judge is not None and due else None
        if self.judge is not None and epoch % cfg.pictures_every == 0 and not last:
            self.judge.picture(self._weights(), self.folder / "pictures", epoch)
        if score is not None or not self.snapshots.best or self.judge is None:
            self.snapshots.offer(epoch, score, lambda: self._weights().state_dict())
        progress.stopped = progress.stopped or ("done" if last else "")
        metrics |= progress.metrics() | self.memory.report(progress.halved)
        self.say(line(epoch, progress.step, metrics))
        if progress.stopped not in ("", "done"):
            self.say(f"ends here: {progress.stopped}")
        self.line = self.journal.line(progress.step, epoch, metrics)
        progress.sums, progress.lost, progress.epoch_seconds, progress.ended = {}, 0, 0.0, progress.step
        self.save(good=cfg.on_nan == "restore" and are_finite(self.bare.state_dict().values()))
        self.journal.add(self.line)

    def _validate(self, metrics: dict[str, float], epoch: int) -> float:
        """Score whole cases with the averaged weights; feed the schedule and early stopping."""
        assert self.judge is not None
        progress, stopping, began = self.progress, self.exp.early_stopping, time.monotonic()
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
        self.soup.offer(epoch, scores, self.candidate)
        if stopping is not None:
            dice = [metrics.get(f"val/dice/{name}", -math.inf) for name in self.exp.competition.classes]
            progress.stopped = progress.enough(stopping, dice) or progress.stopped
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

    def save(self, good: bool = False) -> None:
        """Write the checkpoint: at most the steps since then are lost."""
        self.progress.seconds = self.elapsed()
        for name in (GOOD, LAST) if good else (LAST,):
            save_checkpoint(
                self.folder / name,
                {
                    "network": self.bare.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "ema": self.ema.state_dict() if self.ema is not None else None,
                    "precision": self.fabric.strategy.precision.state_dict(),
                    **self._standing(),
                    "threads": torch.get_num_threads(),
                    "devices": self.ranks.count,
                    "line": self.line,
                },
            )
        self.saved = time.monotonic()

    def _resume(self, name: str) -> None:
        state = load_checkpoint(self.folder / name)
        self.ranks.check(state.get("devices", 1), self.folder / name)
        self.bare.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self._stand(state)
        self.line = state.get("line", "")
        if state["threads"] != torch.get_num_threads():
            self.say(
                f"note: the checkpoint was made with {state['threads']} threads, this process has "
                f"{torch.get_num_threads()}: the last digits may differ from an undisturbed run's"
            )
        self.say(f"going on from step {self.progress.step}")

    def _standing(self) -> dict[str, Any]:
        """Where training stands, in plain values."""
        return {"progress": asdict(self.progress), "plan": self.plan.pairs, "schedule": self.schedule.state_dict()}

    def _stand(self, state: dict[str, Any]) -> None:
        self.progress, self.plan.pairs = Progress.of(state["progress"]), state["plan"]
        self.schedule.load_state_dict(state["schedule"])

    def _weights(self) -> nn.Module:
        """A network in eval mode with the averaged weights, or the plain ones without averaging."""
        self.candidate.load_state_dict(self.ema.weights() if self.ema is not None else self.bare.state_dict())
        return self.candidate

    def _reserve(self) -> float:
        """Seconds that the final prediction will take: as the last validation, or a guess from one case."""
        if self.end_seconds == 0.0 and self.judge is not None:
            self.end_seconds = self.judge.seconds(self._weights(), self.fold)
        # With the best weights the last epoch is validated as well; a soup adds that and two predictions; pictures come on top.
        return 1.15 * (1 + max(self.snapshots.best, 3 * self.soup.on)) * self.end_seconds + 2.0

    def loader(self) -> DataLoader[Any]:
        """This process's share of the batches from the next step on, without end."""
        cfg, run = self.exp.training, self.exp.run
        sampler = StepSampler(
            self.progress.step * cfg.accumulate,
            None,
            self.steps_per_epoch * cfg.accumulate,
            cfg.batch_size,
            self.ranks.rank,
            self.ranks.count,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=run.workers,  # type: ignore[arg-type]
            pin_memory=self.fabric.device.type == "cuda",
            prefetch_factor=4 if run.workers else None,
        )
