"""Build the optimiser of an experiment."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from competition.config.construction import ConstructionGuard
from competition.config.experiment import Experiment
from competition.config.instantiate import check_arguments, resolve_target
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
        fused: whether to use torch's fused kernel, which updates many weights in one call. It changes the last bits of
            the results; see `competition.runs.kept_settings`.

    Raises:
        MaskfoldError (exit status 2): one of these problems.

            - The target or its arguments are wrong, or `lr` is missing.
            - The optimiser does not work with one dense gradient per step: LBFGS needs several gradients per
              step, and SparseAdam needs a sparse gradient.
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
            f"optimizer.args.lr: found {'no value' if rate is None else rate}, expected a positive number.",
            "Set optimizer.args.lr, for example to 1.0e-3. The schedule multiplies this rate by a factor.",
            status=2,
        )
    if exp.training.fused == "on" and "fused" not in inspect.signature(cls).parameters:
        raise MaskfoldError(
            f"training.fused is `on`, but {cls.__name__} has no fused kernel.", "Set training.fused=off.", status=2
        )
    if fused:
        args["fused"] = True
    if isinstance(args.get("betas"), list):
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
