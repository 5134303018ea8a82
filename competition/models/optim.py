"""Optimiser, learning-rate schedules and moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from competition.config.experiment import Experiment, ScheduleConfig
from competition.config.instantiate import check_arguments, resolve_target
from competition.errors import MaskfoldError
from competition.models.interface import error_in_one_line

Tensors = tuple[Tensor, ...] | list[Tensor]

WARMUP_START = 0.01  # multiplier at the first step of a warm-up: a step at rate 0 would have no effect
ONECYCLE_PEAK = 0.3  # torch's pct_start
ONECYCLE_START = 1 / 25  # torch's div_factor
ONECYCLE_END = 1 / 25 / 1e4  # torch's final_div_factor


def build_optimizer(
    exp: Experiment, parameters: Iterable[nn.Parameter], trust: Sequence[str] = ()
) -> torch.optim.Optimizer:
    """Build `optimizer.target` over all trainable parameters, in one group.

    Args:
        exp: the experiment.
        parameters: of the network.
        trust: additional trusted packages for `optimizer.target`.

    Raises:
        MaskfoldError: status 2; the target or its arguments are wrong, `lr` is missing, or the optimiser needs more
            than one dense gradient per step (LBFGS).

    Example:
        >>> build_optimizer(exp, network.parameters())  # doctest: +SKIP
    """
    target, args = exp.optimizer.target, dict(exp.optimizer.args)
    cls = resolve_target(target, torch.optim.Optimizer, "optimizer.target", trust)
    if issubclass(cls, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise MaskfoldError(
            f"optimizer.target: found {cls.__name__}, expected an optimiser that needs one dense gradient per step.",
            "Set optimizer.target to torch.optim.AdamW or torch.optim.SGD.",
            status=2,
        )
    check_arguments(cls, args, "optimizer.args", partial=True)
    rate = args.get("lr")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
        raise MaskfoldError(
            f"optimizer.args.lr: found {'nothing' if rate is None else rate}, expected a positive number.",
            "Set optimizer.args.lr, e.g. to 1.0e-3; the schedule scales it.",
            status=2,
        )
    if "betas" in args:
        args["betas"] = tuple(args["betas"])
    try:
        optimizer: torch.optim.Optimizer = cls([p for p in parameters if p.requires_grad], **args)
    except Exception as error:
        raise MaskfoldError(
            f"optimizer.args do not fit {target}: {error_in_one_line(error)}.", "Correct optimizer.args.", status=2
        ) from error
    return optimizer


# Learning-rate schedules

# Not the schedulers of torch or timm: they count steps towards a number that is fixed when they are created. With
# `training.budget_minutes` that number is estimated again during training, so the rate follows from the share done.


class LRSchedule:
    """Learning-rate multiplier as a function of training progress.

    All schedules but `plateau` depend on the completed fraction of training only. They have no state, and work with a
    time budget as well as with a number of steps:

    - `cosine`: half a cosine from 1 to `minimum` (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983);
    - `poly`: minimum + (1 - minimum) (1 - progress) ** power, as in nnU-Net;
    - `onecycle`: torch's OneCycleLR with cosine annealing: from 1/25 to 1 at `warmup` (0.3 if that is 0), then to
      `minimum` (4e-6 if that is 0);
    - `constant`: 1;
    - `plateau`: torch's ReduceLROnPlateau: if the best score has not risen by more than 0.01 % in more than `patience`
      validations, the multiplier is multiplied by `factor`, but never falls below `minimum`.

    `warmup` is a linear rise before each of them (onecycle rises along its cosine).

    Args:
        cfg: the `schedule` section.
        base_lrs: the learning rate of each parameter group.

    Example:
        >>> LRSchedule(ScheduleConfig(name="cosine"), [1e-3]).multiplier(0.5)
        0.5
    """

    def __init__(self, cfg: ScheduleConfig, base_lrs: Sequence[float]) -> None:
        self.cfg = cfg
        self.base_lrs = [float(rate) for rate in base_lrs]
        self._plateau = _Plateau(cfg) if cfg.name == "plateau" else None

    def multiplier(self, progress: float) -> float:
        """Return the factor of all learning rates.

        Args:
            progress: completed fraction of training, in [0, 1].
        """
        cfg = self.cfg
        progress = min(max(progress, 0.0), 1.0)
        if cfg.name == "onecycle":
            return _onecycle(progress, cfg.warmup or ONECYCLE_PEAK, cfg.minimum or ONECYCLE_END)
        if progress < cfg.warmup:
            return (WARMUP_START + (1 - WARMUP_START) * progress / cfg.warmup) * (
                self._plateau.multiplier if self._plateau else 1.0
            )
        rest = (progress - cfg.warmup) / (1 - cfg.warmup) if cfg.warmup < 1 else 0.0
        if self._plateau is not None:
            return self._plateau.multiplier
        if cfg.name == "cosine":
            return cfg.minimum + (1 - cfg.minimum) * (1 + math.cos(math.pi * rest)) / 2
        if cfg.name == "poly":
            return float(cfg.minimum + (1 - cfg.minimum) * (1 - rest) ** cfg.power)
        return 1.0

    def learning_rates(self, progress: float) -> list[float]:
        """Return the learning rate of each parameter group."""
        return [base * self.multiplier(progress) for base in self.base_lrs]

    def observe(self, score: float) -> None:
        """Record a validation score (higher is better); only `plateau` uses it."""
        if self._plateau is not None:
            self._plateau.observe(score)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers; empty for all but `plateau`."""
        return self._plateau.state_dict() if self._plateau is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`."""
        if self._plateau is not None:
            self._plateau.load_state_dict(state)


class _Plateau:
    """torch's ReduceLROnPlateau for a learning rate of 1."""

    def __init__(self, cfg: ScheduleConfig) -> None:
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, mode="max", factor=cfg.factor, patience=cfg.patience, min_lr=cfg.minimum
        )

    @property
    def multiplier(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def observe(self, score: float) -> None:
        self._scheduler.step(score)

    def state_dict(self) -> dict[str, Any]:
        return {
            "multiplier": self.multiplier,
            "best": float(self._scheduler.best),
            "bad": int(self._scheduler.num_bad_epochs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.param_groups[0]["lr"] = float(state["multiplier"])
        self._scheduler.best, self._scheduler.num_bad_epochs = float(state["best"]), int(state["bad"])


def _onecycle(progress: float, peak: float, end: float) -> float:
    """Return the one-cycle multiplier (Smith and Topin 2018, https://arxiv.org/abs/1708.07120), cosine annealing."""
    if progress < peak:
        return _anneal(ONECYCLE_START, 1.0, progress / peak)
    return _anneal(1.0, end, (progress - peak) / (1 - peak) if peak < 1 else 0.0)


def _anneal(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


# Moving average of the weights


class ExponentialMovingAverage:
    """Average of a network's parameters over its training steps; buffers, such as batch statistics, are copied.

    Update n (n = 0, 1, …) moves the average by 1 - d towards the parameters, with d = min(decay, (1 + n) / (10 + n)),
    so that the initial weights lose influence fast (as TensorFlow's ExponentialMovingAverage with `num_updates`).

    Args:
        network: on its device; the average is stored on the same device.
        decay: d in the long run, in [0, 1).

    Example:
        >>> ema = ExponentialMovingAverage(nn.Linear(2, 1), 0.99)
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average = AveragedModel(network, multi_avg_fn=self._move)
        self._average.n_averaged.fill_(1)  # otherwise the first update would copy the parameters

    def update(self, network: nn.Module) -> None:
        """Update the average with the network's weights after an optimiser step."""
        self._average.update_parameters(network)
        self.updates += 1

    def _move(self, averages: Tensors, parameters: Tensors, _: Tensor | int) -> None:
        """Move averages, all of one dtype, towards the parameters; integers are copied."""
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, parameters, 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates)))
        else:
            torch._foreach_copy_(averages, parameters)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged state dictionary for the network's `load_state_dict`; its tensors are not copied."""
        return dict(self._average.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return `updates`, a count, and `weights`, tensors by name."""
        return {"updates": self.updates, "weights": self.weights()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict()`.

        Raises:
            KeyError: the weights are those of another network.
        """
        weights = self.weights()
        if set(state["weights"]) != set(weights):
            raise KeyError("the averaged weights are those of another network")
        self.updates = int(state["updates"])
        for name, tensor in weights.items():
            tensor.copy_(state["weights"][name])
