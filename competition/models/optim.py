"""Build the optimiser, apply the learning-rate schedule, and average the weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from competition.config.construction import ConstructionGuard
from competition.config.experiment import SCHEDULES, Experiment, ScheduleConfig
from competition.config.instantiate import check_arguments, resolve_target
from competition.config.metric import Direction
from competition.context import Context
from competition.errors import MaskfoldError
from competition.models.interface import error_in_one_line
from competition.models.pretrained import find_encoder

Tensors = tuple[Tensor, ...] | list[Tensor]


def build_optimizer(
    exp: Experiment, network: nn.Module, context: Context = Context(), *, fused: bool = False
) -> torch.optim.Optimizer:
    """Build the optimiser that `optimizer.target` names, over all trainable parameters of the network.

    If `optimizer.encoder_rate` is set, the encoder's parameters form a second group with a learning rate of their own.

    Args:
        exp: the experiment.
        network: the network.
        context: context, which contains the packages that the user trusts.
        fused: whether one kernel updates all weights. This changes the last bits of the results; see
            `competition.runs.kept_settings`.

    Raises:
        MaskfoldError (exit status 2): one of these problems.

            - The target or its arguments are wrong, or `lr` is missing.
            - The optimiser does not work with one dense gradient per step: LBFGS needs several gradients, SparseAdam a
              sparse one.
            - `training.fused` is on, but the optimiser has no fused kernel.

    Example:
        >>> build_optimizer(exp, network)  # doctest: +SKIP
    """
    target, args = exp.optimizer.target, dict(exp.optimizer.args)
    cls = resolve_target(target, torch.optim.Optimizer, "optimizer.target", context.trust)
    if issubclass(cls, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise MaskfoldError(
            f"optimizer.target: found {cls.__name__}, expected an optimiser that takes one dense gradient per step.",
            "Set optimizer.target to torch.optim.AdamW or torch.optim.SGD.",
            status=2,
        )
    check_arguments(cls, args, "optimizer.args", partial=True)
    rate = args.get("lr")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
        raise MaskfoldError(
            f"optimizer.args.lr: found {'nothing' if rate is None else rate}, expected a positive number.",
            "Set optimizer.args.lr, for example to 1.0e-3. The schedule multiplies this rate by a factor.",
            status=2,
        )
    if exp.training.fused == "on" and "fused" not in inspect.signature(cls).parameters:
        raise MaskfoldError(
            f"training.fused: found on, but {cls.__name__} has no fused kernel.", "Set training.fused=off.", status=2
        )
    if fused:
        args["fused"] = True
    if "betas" in args:
        args["betas"] = tuple(args["betas"])
    groups = _parameter_groups(exp, network, float(rate))
    with ConstructionGuard(cls, exp.optimizer.args, "optimizer.args", context.trust):
        try:
            optimizer: torch.optim.Optimizer = cls(groups, **args)
        except Exception as error:
            raise MaskfoldError(
                f"optimizer.args: {target} rejects these arguments: {error_in_one_line(error)}.",
                "Change optimizer.args.",
                status=2,
            ) from error
    return optimizer


def _parameter_groups(exp: Experiment, network: nn.Module, rate: float) -> list[Any]:
    """Return the trainable parameters for the constructor of the optimiser.

    Returns:
        A list of parameters. If `optimizer.encoder_rate` is set, the result is a list of two parameter groups: all
        parameters outside of the encoder, then the parameters of the encoder.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if exp.optimizer.encoder_rate is None:
        return trainable
    encoder = {id(parameter) for parameter in find_encoder(network, "optimizer.encoder_rate").parameters()}
    return [
        {"params": [parameter for parameter in trainable if id(parameter) not in encoder]},
        {
            "params": [parameter for parameter in trainable if id(parameter) in encoder],
            "lr": rate * exp.optimizer.encoder_rate,
        },
    ]


# Learning-rate schedules

# The schedulers of torch and timm need the number of steps when they are created. With `training.budget_minutes`, this
# number is estimated again during training, so our rate depends on the completed share of training.


class LRSchedule:
    """Compute the factor of the learning rate as a function of training progress.

    All schedules except `plateau` depend only on the completed share of training and have no state; see
    `competition.models.schedules`.

    `plateau` is torch's ReduceLROnPlateau. A validation is an improvement if its score is better than the best score
    by more than 0.01 %. After more than `patience` validations in a row without an improvement, the learning rate is
    multiplied by the setting `factor`. It never falls below the share `minimum` of its first value.

    Args:
        cfg: section `schedule` of the experiment.
        base_lrs: learning rate of each parameter group.
        direction: whether higher or lower validation scores are better.

    Example:
        >>> LRSchedule(ScheduleConfig(name="cosine"), [1e-3]).multiplier(0.5)
        0.5
    """

    def __init__(self, cfg: ScheduleConfig, base_lrs: Sequence[float], direction: Direction = Direction.HIGHER) -> None:
        self.cfg = cfg
        self.base_lrs = [float(rate) for rate in base_lrs]
        self._schedule = SCHEDULES.get(cfg.name)
        self._plateau = _Plateau(cfg, direction) if cfg.name == "plateau" else None

    def multiplier(self, progress: float) -> float:
        """Return the factor by which all learning rates are multiplied.

        Args:
            progress: completed share of training, in [0, 1].
        """
        factor = self._schedule(min(max(progress, 0.0), 1.0), self.cfg)
        return factor if self._plateau is None else factor * self._plateau.multiplier

    def learning_rates(self, progress: float) -> list[float]:
        """Return the learning rate of each parameter group.

        Args:
            progress: completed share of training, in [0, 1].
        """
        return [base * self.multiplier(progress) for base in self.base_lrs]

    def observe(self, score: float) -> None:
        """Record a validation score; only `plateau` uses it."""
        if self._plateau is not None:
            self._plateau.observe(score)

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state as plain numbers.

        The state is empty for all schedules except `plateau`.
        """
        return self._plateau.state_dict() if self._plateau is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        if self._plateau is not None:
            self._plateau.load_state_dict(state)


class _Plateau:
    """Compute the factor of the schedule `plateau` with torch's ReduceLROnPlateau.

    The scheduler starts with a learning rate of 1, so its present rate is the factor.
    """

    def __init__(self, cfg: ScheduleConfig, direction: Direction) -> None:
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer,
            mode="max" if direction is Direction.HIGHER else "min",
            factor=cfg.factor,
            patience=cfg.patience,
            min_lr=cfg.minimum,
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


# Moving average of the weights


class ExponentialMovingAverage:
    """Average a network's parameters over the training steps.

    Buffers, such as batch statistics, are copied. Update number n (n = 0, 1, …) sets the average to
    d · average + (1 - d) · parameters. The decay d = min(decay, (1 + n) / (10 + n)) is small at first, so that the
    initial weights lose influence fast. TensorFlow's ExponentialMovingAverage with `num_updates` uses the same decay.

    Args:
        network: the network, on its device. The average is stored on the same device.
        decay: final value of d, in [0, 1).

    Example:
        >>> ema = ExponentialMovingAverage(nn.Linear(2, 1), 0.99)
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average = AveragedModel(network, multi_avg_fn=self._move)
        self._average.n_averaged.fill_(1)  # without this, the first update would copy the parameters

    def update(self, network: nn.Module) -> None:
        """Update the average with the network's weights; call this method after each optimiser step."""
        self._average.update_parameters(network)
        self.updates += 1

    def _move(self, averages: Tensors, parameters: Tensors, _: Tensor | int) -> None:
        """Move the averages towards the parameters; if the tensors are integers, copy the parameters instead.

        All tensors of one call must have the same dtype.
        """
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, parameters, 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates)))
        else:
            torch._foreach_copy_(averages, parameters)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged weights as a state dictionary, which the network's `load_state_dict` accepts.

        The tensors are not copied, so later updates change them.
        """
        return dict(self._average.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return a dictionary with the number of `updates`, and with the averaged `weights` as tensors by name."""
        return {"updates": self.updates, "weights": self.weights()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            KeyError: the weights belong to another network.
        """
        weights = self.weights()
        if set(state["weights"]) != set(weights):
            raise KeyError("the averaged weights are those of another network")
        self.updates = int(state["updates"])
        for name, tensor in weights.items():
            tensor.copy_(state["weights"][name])
