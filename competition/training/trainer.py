"""Run the training loop of one fold.

A run that is killed and resumed from its last checkpoint ends with the same weights as an uninterrupted run. For this
purpose, every random choice is computed from the seed and a counter, such as the number of the step (see
`competition.seeding`). So a checkpoint need not contain the state of random generators.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from competition.config.experiment import Experiment
from competition.context import Context
from competition.data.dataset import BatchSampler, PatchDataset
from competition.models.ema import ExponentialMovingAverage
from competition.models.execution import arrange
from competition.models.losses import SegmentationLoss
from competition.models.optim import build_optimizer
from competition.models.pretrained import find_encoder
from competition.models.schedules import LRSchedule
from competition.runs.checkpoint import GOOD_CHECKPOINT, LAST_CHECKPOINT, MetricsLog, load_checkpoint, save_checkpoint
from competition.runs.fold import PLAIN_WEIGHTS
from competition.runs.kept_settings import KEPT_SETTINGS, check_kept_settings, kept_settings
from competition.seeding import child_seed
from competition.text import format_count
from competition.training.averaging import CheckpointAverager, UniformSoup
from competition.training.budget import StepBudget
from competition.training.distributed import DistributedContext
from competition.training.evaluator import Evaluator, summary_metrics
from competition.training.guards import MicroBatchResult, NonFiniteGuard, OutOfMemoryGuard, all_finite, peak_gib
from competition.training.lineage import check_origin, checkpoint_origin
from competition.training.state import TrainerState, check_finished, format_epoch
from competition.training.timing.progress import progress_of
from competition.training.timing.status import FoldStatus
from competition.training.timing.trial import ReplayableBatches, time_steps, undone, wait_for

if TYPE_CHECKING:
    from lightning.fabric import Fabric

FINISH_SECONDS = 2.0  # estimated time for pictures and files after the final prediction
# A validation case is timed a second time if the first time took less than these seconds, or less than this share of
# the time budget.
CASE_PATIENCE, CASE_SHARE = 4.0, 0.02
PACE_STEP = 3  # without a time budget, a process logs its pace after this many steps


@dataclass
class Trainer:
    """Train the network of one fold; `competition.training.fold` creates the trainer and calls `train`.

    Attributes:
        fabric: Lightning Fabric, after its method `launch` was called.
        exp: the experiment.
        folder: the fold's folder.
        fold: number of the fold; -1 for the training on all cases.
        seed: the seed of every random choice.
        model: the network; `__post_init__` wraps it with Fabric.
        dataset: dataset that returns patches of the training cases.
        evaluator: object that scores the validation cases; None for the training on all cases.
        augment: function that augments batches of images and masks on the device, given one seed per sample; None if
            all augmentation is done when a patch is loaded.
        start_time: value of `time.monotonic()` at the start of the process.
        stop_reason: function that returns the reason to stop, or an empty text if there is none.
        context: context with the trusted packages and the log.
        compiled: the network compiled by torch, for the training steps; None if the network is not compiled.
        final_share: total size of the cases that the fold predicts after its training, divided by the total size of its
            validation cases. It is above 1 if there is a test share.
    """

    fabric: Fabric
    exp: Experiment
    folder: Path
    fold: int
    seed: int
    model: Any
    dataset: PatchDataset
    evaluator: Evaluator | None
    augment: Callable[[Tensor, Tensor, list[int]], tuple[Tensor, Tensor]] | None
    start_time: float
    stop_reason: Callable[[], str]
    context: Context
    compiled: nn.Module | None = None
    final_share: float = 1.0

    def __post_init__(self) -> None:
        exp, cfg = self.exp, self.exp.training
        self.progress = progress_of(self.context.say)
        self.context = replace(self.context, say=self.progress)
        self.activity = "validating"  # what the evaluator is doing, for progress lines
        if self.evaluator is not None:
            self.evaluator = replace(self.evaluator, report=self._report_case)
        self.distributed = DistributedContext(self.fabric)
        self.samples_per_step = cfg.batch_size * cfg.accumulate * self.distributed.world_size
        self.steps_per_epoch = cfg.steps_per_epoch or math.ceil(len(self.dataset) / self.samples_per_step)

        self.loss = SegmentationLoss(exp, self.context)
        # The loss scaler of fp16 unscales the gradients before clipping; a fused kernel unscales them only in its step.
        fused = exp.training.fused == "on" and getattr(self.fabric.strategy.precision, "scaler", None) is None
        optimizer = build_optimizer(exp, self.model, self.context, fused=fused)
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.direction = exp.competition.metric.direction
        self.schedule = LRSchedule(exp.schedule, self.base_lrs, self.direction)

        self.unwrapped_model: nn.Module = self.model
        self.model, self.optimizer = self.fabric.setup(self.compiled or self.model, optimizer)
        self.ema = ExponentialMovingAverage(self.unwrapped_model, cfg.ema) if cfg.ema else None
        self.eval_model = copy.deepcopy(self.unwrapped_model).requires_grad_(False).eval()

        self.budget = StepBudget.from_experiment(exp, self.steps_per_epoch, validates=self.evaluator is not None)
        self.state = TrainerState(best=self.direction.worst)
        self.nan_guard = NonFiniteGuard(exp, self.fabric, self.distributed, self.unwrapped_model, self.dataset.case_id)
        self.oom_guard = OutOfMemoryGuard(exp, self.fabric.device, self.context)
        self.averager = CheckpointAverager(
            self.folder / "snapshots", cfg.average, by_score=cfg.weights == "best", direction=self.direction
        )
        cases = self.evaluator.cases if self.evaluator is not None else None
        self.soup = UniformSoup(self.folder / "soup", exp, self.fold, cases)

        self.status = FoldStatus(self)
        self.validation_seconds: float | None = None  # duration of the last epoch's validation, if it had one
        self.metrics_line = ""  # line of the last epoch in `metrics.jsonl`
        if (self.folder / LAST_CHECKPOINT).exists():
            self._load_checkpoint(LAST_CHECKPOINT)
        self.earlier_seconds = self.state.seconds  # seconds of earlier processes of this fold
        self.last_save_time = time.monotonic()
        if self.distributed.rank == 0:
            self._open_metrics_log()
            is_training = not self.state.stopped
            if is_training and cfg.on_nan == "restore" and not (self.folder / GOOD_CHECKPOINT).exists():
                self.save_checkpoint(good=True)

    def train(self) -> None:
        """Take optimiser steps until the last planned step or early stopping.

        Raises:
            KeyboardInterrupt: a stop signal arrived, and a checkpoint was written.
            MaskfoldError: training fails, e.g. because of non-finite values or a lack of memory.
        """
        batches: Iterator[Any] = iter(self.train_loader())
        first_step = self.state.step
        if not self.state.stopped and not self.budget.is_done(first_step):
            if self.budget.seconds is not None:
                batches = self._measure_pace(batches)
            for line in self.status.plan_lines(self.reserved_seconds()):
                self.context.say(line)
        self.progress.set(self.status.of_training)
        while not self.state.stopped:
            step_start = time.monotonic()
            # If the process was stopped during the validation of an epoch, it resumes with that validation.
            if not self._epoch_finished():
                repeat_step = self.training_step(batches)
                if repeat_step:
                    batches = iter(self.train_loader())
                    continue
            # The main process validates, logs and saves. The other processes wait and copy its state.
            self.distributed.run_on_main(partial(self._after_step, step_start), self.state_dict, self.load_state_dict)
            if self.budget.seconds is None and self.state.step == first_step + PACE_STEP and not self.state.stopped:
                self.context.say(self.status.pace_line())
        self.distributed.close()

    def _measure_pace(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Measure the time of trial steps and of a validation case, and estimate the number of training steps from it.

        The trial steps are undone afterwards.

        Returns:
            An iterator over all batches; it starts with the batches that the trial steps have used.
        """
        assert self.budget.seconds is not None
        replayable = ReplayableBatches(batches)
        with undone([self.unwrapped_model, self.loss], self.optimizer, self.ema, self.fabric):
            seconds = time_steps(
                partial(self._trial_step, replayable), self.budget.seconds, self.distributed.agree, time.monotonic
            )
        self.distributed.run_on_main(partial(self._plan_steps, seconds), self.state_dict, self.load_state_dict)
        return replayable.rewind()

    def _trial_step(self, batches: Iterator[Any]) -> None:
        self.progress.set(lambda: ("timing the first steps", 0.0))
        outcome = self._compute_step(batches)
        if outcome is not None and not outcome[1]:
            self._update_weights()
        elif outcome is not None:
            self.nan_guard.rollback(self.optimizer)  # the training step itself reports the problem
        wait_for(self.fabric.device)
        if self.distributed.world_size == 1 and (reason := self.stop_reason()):
            raise KeyboardInterrupt(reason)

    def _plan_steps(self, step_seconds: float) -> None:
        pace, state = self.budget.pace, self.state
        pace.start(step_seconds)
        if self.evaluator is not None:
            self.progress.set(lambda: ("timing a validation case", 0.0))
            patience = max(CASE_PATIENCE, CASE_SHARE * (self.budget.seconds or 0.0))
            pace.set_validation(*self.evaluator.time_cases(self.ema_model(), self.fold, patience, self.folder))
        if reason := self.stop_reason():
            raise KeyboardInterrupt(reason)
        self.budget.start(state.step, self.elapsed_seconds(), self.reserved_seconds(), self._epoch_finished())

    def training_step(self, batches: Iterator[Any]) -> bool:
        """Take one optimiser step.

        Returns:
            True if no step was taken, so that the caller must call this method again with a new `train_loader`. This
            happens if memory runs out, or if an earlier checkpoint is restored after non-finite values.
        """
        state = self.state
        outcome = self._compute_step(batches)
        if outcome is None:  # out of memory: take the step again in smaller micro-batches
            return True
        losses, problem = outcome
        if problem:
            return self._handle_non_finite(problem)
        state.add_losses(losses)
        self._update_weights()
        state.step += 1
        return False

    def _compute_step(self, batches: Iterator[Any]) -> tuple[dict[str, float], str] | None:
        """Compute the clipped gradient of one step.

        Returns:
            The losses, and a message if a value is not finite, as from `NonFiniteGuard.check`. None if memory ran out;
            the step must then be repeated, and will use smaller micro-batches.
        """
        state = self.state
        self._seed_dropout()
        self._set_learning_rate()
        self._freeze_encoder()

        # Forward and backward pass of each micro-batch
        self.model.train()
        self.nan_guard.snapshot()
        micro_batches = self.oom_guard.run(partial(self._backward, batches), state.halved, state.step + 1)
        if micro_batches is None:
            self.nan_guard.rollback(self.optimizer)
            state.halved += 1
            return None

        # Clip the gradient, and check that it and the losses are finite
        grad_norm = self.nan_guard.clip_gradient(self.model, self.optimizer)
        return self.nan_guard.check(micro_batches, grad_norm, f"at step {state.step + 1} of fold {self.fold}")

    def _update_weights(self) -> None:
        """Update the weights with the gradient, then update their moving average."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.unwrapped_model)

    def _seed_dropout(self) -> None:
        """Seed torch's random generator for this step, so that a resumed process draws the same dropout.

        Each process of the fold gets another seed.
        """
        epoch, position = divmod(self.state.step, self.steps_per_epoch)
        sample = position * self.distributed.world_size + self.distributed.rank
        torch.manual_seed(child_seed(self.seed, self.fold, epoch, sample, "torch"))

    def _set_learning_rate(self) -> None:
        """Set the learning rate of this step: the schedule's value, halved for each restored checkpoint."""
        fraction_done = self.budget.fraction_done(self.state.step)
        multiplier = self.schedule.multiplier(fraction_done) * 0.5**self.state.restored
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * multiplier

    def _freeze_encoder(self) -> None:
        """Freeze the encoder's weights in the first `training.freeze_encoder` steps, and train them afterwards."""
        if not self.exp.training.freeze_encoder:
            return
        frozen = self.state.step < self.exp.training.freeze_encoder
        find_encoder(self.unwrapped_model, "training.freeze_encoder").requires_grad_(not frozen)

    def _backward(self, batches: Iterator[Any]) -> list[MicroBatchResult]:
        """Accumulate the gradient of one step over its micro-batches, and return the losses of each micro-batch.

        If memory has run out before, each micro-batch is split into smaller parts.
        """
        cfg, results = self.exp.training, []
        for micro_step in range(cfg.accumulate):
            parts = self.oom_guard.split(next(batches), self.state.halved)
            for part in parts:
                image, mask = self.fabric.to_device((part["image"], part["mask"]))
                if self.augment is not None:
                    image, mask = self.augment(image, mask, part["seed"].tolist())
                share = len(part["case"]) / cfg.batch_size
                is_last = micro_step + 1 == cfg.accumulate and part is parts[-1]
                with self.fabric.no_backward_sync(self.model, enabled=not is_last):
                    loss, terms = self.loss(self.model(arrange(image, self.exp)), mask)
                    self.fabric.backward(loss / (cfg.accumulate / share))
                losses = {"loss": loss.detach(), **(terms if len(terms) > 1 else {})}
                results.append(MicroBatchResult(losses, part["case"], share))
                self.progress.tick()
        return results

    def _handle_non_finite(self, problem: str) -> bool:
        """React to non-finite values as `training.on_nan` says.

        Either the step is skipped, or the last checkpoint with finite weights is restored and the learning rate halved.

        Args:
            problem: message from `NonFiniteGuard.check`.

        Returns:
            Whether a checkpoint was restored.

        Raises:
            MaskfoldError: `training.on_nan` is `stop`, or the maximum number of skipped steps or restores is reached.
        """
        decision = self.nan_guard.decide(problem, self.state.skipped, self.state.restored)
        self.nan_guard.rollback(self.optimizer)
        if decision == "skip":
            self.state.skip_step()
            self.context.say(f"{problem}, so the step is skipped; skipped steps of this fold: {self.state.skipped}")
            return False
        restored = self.state.restored + 1
        first_estimate = self.budget.estimates[0]
        self._load_checkpoint(GOOD_CHECKPOINT)
        self.state.restored = restored
        if self.state.step == 0 and self.budget.seconds is not None:
            self.budget.estimates = [first_estimate]  # the checkpoint was written before this estimate
        self.budget.reset_pace()
        if self.distributed.rank == 0:
            self._open_metrics_log()
            self.save_checkpoint()
        self.context.say(
            f"{problem}, so the fold goes back to step {self.state.step} with {0.5**restored:g} times the original "
            "learning rate"
        )
        return True

    def _after_step(self, step_start: float) -> None:
        """Do the work after a step: update the time budget, end the epoch, write a checkpoint, or stop.

        Only the main process calls this method.

        Args:
            step_start: value of `time.monotonic()` at the start of the step.

        Raises:
            KeyboardInterrupt: there is a reason to stop; a checkpoint was written.
        """
        self.budget.update_from_clock(self.state.step, self.elapsed_seconds(), self.reserved_seconds)
        self.state.epoch_seconds += time.monotonic() - step_start
        if self._epoch_finished():
            before_validation, start = copy.deepcopy(self.state_dict()), time.monotonic()
            try:
                self._end_epoch(last=self.budget.is_done(self.state.step))
            except KeyboardInterrupt:
                self.load_state_dict(before_validation)  # the resumed run repeats the validation
                self.save_checkpoint()
                raise
            self.budget.add_epoch_end(time.monotonic() - start, self.validation_seconds)
            self.progress.set(self.status.of_training)
        elif time.monotonic() - self.last_save_time > 60 * self.exp.training.checkpoint_minutes:
            self.save_checkpoint()
        if reason := self.stop_reason():
            self.save_checkpoint()
            raise KeyboardInterrupt(reason)

    def _epoch_finished(self) -> bool:
        """Return whether an epoch is complete after the last step, and `_end_epoch` has not been called for it yet."""
        step = self.state.step
        return step > self.state.ended and (step % self.steps_per_epoch == 0 or self.budget.is_done(step))

    def _end_epoch(self, last: bool) -> None:
        """End an epoch: validate if a validation is due, log metrics, decide whether to stop, and save a checkpoint.

        Args:
            last: whether this is the last epoch of the training.
        """
        cfg, state = self.exp.training, self.state
        epoch = self.epoch
        steps = state.step - (epoch - 1) * self.steps_per_epoch
        metrics = {
            f"train/{name}": total / (cfg.accumulate * (steps - state.lost)) for name, total in state.sums.items()
        }
        metrics["lr"] = float(self.optimizer.param_groups[0]["lr"])
        metrics["time/epoch_seconds"] = state.epoch_seconds
        metrics["time/samples_per_second"] = steps * self.samples_per_step / max(state.epoch_seconds, 1e-9)
        metrics["memory/peak_gib"] = peak_gib(self.fabric.device)

        # The last epoch usually needs no validation, because the final prediction scores it. It is validated only if
        # its score is compared with the scores of other epochs.
        validate_last = self.averager.by_score or self.soup.enabled
        due = validate_last if last else epoch % cfg.validate_every == 0 and self._has_time_to_validate(epoch)
        self.validation_seconds = None
        score = self._validate(metrics, epoch) if self.evaluator is not None and due else None
        if self.evaluator is not None and epoch % cfg.pictures_every == 0 and not last:
            self.activity = "drawing"
            self.evaluator.save_pictures(self.ema_model(), self.folder / "pictures", epoch)
        if score is not None or not self.averager.by_score or self.evaluator is None:
            self.averager.add(epoch, score, lambda: self.ema_model().state_dict())

        state.stopped = state.stopped or ("done" if last else "")
        metrics |= state.metrics() | self.oom_guard.report(state.halved)
        self.context.say(format_epoch(epoch, state.step, metrics))
        if state.stopped not in ("", "done"):
            self.context.say(f"stopped early: {state.stopped}")
        self.metrics_line = self.metrics_log.format_line(state.step, epoch, metrics)
        state.sums, state.lost, state.epoch_seconds, state.ended = {}, 0, 0.0, state.step
        good = cfg.on_nan == "restore" and all_finite(self.unwrapped_model.state_dict().values())
        self.save_checkpoint(good)
        self.metrics_log.append_line(self.metrics_line)

    def _validate(self, metrics: dict[str, float], epoch: int) -> float:
        """Score the validation cases, and update the schedule, the best score, the soup and early stopping.

        The cases are predicted with the moving average of the weights, if `training.ema` is set.

        Args:
            metrics: metrics of the epoch; the metrics of the validation are added.
            epoch: number of the epoch.

        Returns:
            The competition's metric.
        """
        assert self.evaluator is not None
        state, stopping, start = self.state, self.exp.early_stopping, time.monotonic()
        self.activity = "validating"
        scores = self.evaluator.validate(self.ema_model(), self.fold)
        self.validation_seconds = time.monotonic() - start
        metrics.update(summary_metrics(scores, self.exp))
        score = metrics["val/score"]
        if self.direction.is_better(score, state.best):
            state.best, state.stale = score, 0
        else:
            state.stale += 1
        self.schedule.observe(score)
        self.soup.add(epoch, scores, self.eval_model)
        if stopping is not None:
            dice = [metrics.get(f"val/dice/{name}", -math.inf) for name in self.exp.competition.classes]
            state.stopped = state.early_stop_reason(stopping, dice) or state.stopped
        return score

    def train_loader(self) -> DataLoader[Any]:
        """Return an endless loader of the batches of this process, starting with the batch of the next step."""
        cfg, run = self.exp.training, self.exp.run
        sampler = BatchSampler(
            start=self.state.step * cfg.accumulate,
            total=None,  # endless
            steps_per_epoch=self.steps_per_epoch * cfg.accumulate,
            batch=cfg.batch_size,
            rank=self.distributed.rank,
            world=self.distributed.world_size,
        )
        return DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,
            num_workers=run.loader_processes,
            pin_memory=self.fabric.device.type == "cuda",  # so that copies to the GPU and computation overlap
            prefetch_factor=4 if run.loader_processes else None,
        )

    # Weights

    def ema_model(self) -> nn.Module:
        """Return the network for evaluation, `eval_model`, with the moving average of the weights.

        If `training.ema` is off, `eval_model` gets the present weights.
        """
        weights = self.ema.weights() if self.ema is not None else self.unwrapped_model.state_dict()
        self.eval_model.load_state_dict(weights)
        return self.eval_model

    def final_weights(self) -> dict[str, Tensor]:
        """Return the weights for prediction, by name.

        They are the mean of the weights of the last or the best `training.average` epochs. If only the last epoch
        counts, they are the weights of `ema_model`.
        """
        return self.averager.average() or dict(self.ema_model().state_dict())

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the training state without tensors; the main process sends it to the other processes."""
        return {"progress": asdict(self.state), "plan": self.budget.estimates, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the training state from a result of `state_dict`."""
        self.state = TrainerState.from_checkpoint(state["progress"])
        self.budget.estimates = state["plan"]
        self.schedule.load_state_dict(state["schedule"])

    def save_checkpoint(self, good: bool = False) -> None:
        """Write the checkpoint from which an interrupted training resumes.

        Args:
            good: whether to write also the checkpoint that `training.on_nan: restore` restores.
        """
        self.state.seconds = self.elapsed_seconds()
        for name in (GOOD_CHECKPOINT, LAST_CHECKPOINT) if good else (LAST_CHECKPOINT,):
            save_checkpoint(
                self.folder / name,
                {
                    "network": self.unwrapped_model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "ema": self.ema.state_dict() if self.ema is not None else None,
                    "precision": self.fabric.strategy.precision.state_dict(),
                    **self._plain_state(),
                },
            )
        self.last_save_time = time.monotonic()

    def drop_tensors(self) -> None:
        """Replace the checkpoint by one without tensors, and remove other files that only training needs.

        Call this after the end of training. The network is in `weights.safetensors`, and the state of the optimiser is
        no longer needed. The plain values stay, so that a fold whose result was deleted can be scored again.

        Raises:
            ValueError: `weights.safetensors` does not exist.
        """
        if not (self.folder / PLAIN_WEIGHTS).exists():
            raise ValueError(f"{self.folder} has no {PLAIN_WEIGHTS}")
        save_checkpoint(self.folder / LAST_CHECKPOINT, self._plain_state())
        (self.folder / GOOD_CHECKPOINT).unlink(missing_ok=True)
        self.averager.remove_files()

    def _plain_state(self) -> dict[str, Any]:
        """Return the part of a checkpoint that consists of plain values, without its tensors."""
        return {
            **self.state_dict(),
            "threads": torch.get_num_threads(),
            "kept": kept_settings(self.exp),
            "devices": self.distributed.world_size,
            "line": self.metrics_line,
            "origin": self._origin(),
        }

    def _load_checkpoint(self, name: str) -> None:
        checkpoint = load_checkpoint(self.folder / name)
        check_origin(checkpoint.get("origin"), self._origin(), self.folder / name)
        self.distributed.check_devices(checkpoint.get("devices", 1), self.folder / name)
        check_kept_settings(checkpoint.get("kept", KEPT_SETTINGS), self.exp, self.folder / name)
        self.load_state_dict(checkpoint)
        if "network" in checkpoint:
            self.unwrapped_model.load_state_dict(checkpoint["network"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(checkpoint["ema"])
            self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
        else:
            check_finished(self.state, self.folder, self.folder / name)
        self.metrics_line = checkpoint.get("line", "")
        if checkpoint["threads"] != torch.get_num_threads():
            self.context.say(
                f"note: the checkpoint was written with {format_count(checkpoint['threads'], 'thread')}, but "
                f"this process has {torch.get_num_threads()}, so results may differ in the last digits"
            )
        self.context.say(f"resumed from step {self.state.step}")

    def _origin(self) -> dict[str, Any]:
        return checkpoint_origin(self.folder, self.fold, self.seed)

    def _open_metrics_log(self) -> None:
        self.metrics_log = MetricsLog(self.folder / "metrics.jsonl", self.state.step, self.metrics_line)

    # Time

    @property
    def epoch(self) -> int:
        """The number of the epoch to which the last step belongs, counted from 1; 0 before the first step."""
        return math.ceil(self.state.step / self.steps_per_epoch)

    def elapsed_seconds(self) -> float:
        """Return the seconds of work on the fold so far, including the time of earlier, interrupted processes."""
        return self.earlier_seconds + time.monotonic() - self.start_time

    def reserved_seconds(self) -> float:
        """Estimate the seconds that the fold still needs after its final training step.

        They are spent on the work at the end of the final epoch and on the final prediction.
        """
        pace = self.budget.pace
        # If scores select the weights, the last epoch is validated too. A soup adds two predictions, pictures add 15 %.
        further = max(self.averager.by_score, 3 * self.soup.enabled)
        prediction = pace.final_prediction * self.final_share + further * pace.validation
        return 1.15 * prediction + pace.epoch_end + FINISH_SECONDS

    def _has_time_to_validate(self, epoch: int) -> bool:
        if self.evaluator is None or self.budget.has_time_to_validate(self.elapsed_seconds(), self.reserved_seconds):
            return True
        self.context.say(
            f"epoch {epoch} is not validated, because the time is needed for the last steps and the final prediction"
        )
        return False

    def _report_case(self, done: int, total: int) -> None:
        self.progress.set(lambda: self.status.of_cases(self.activity, done, total))
