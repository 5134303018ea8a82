"""The optimiser: any of torch's, or of a trusted package's, by its import path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from competition.config import Experiment, MaskfoldError
from competition.config.target import check_args, resolve_target
from competition.model.arguments import one_line


def build_optimizer(
    exp: Experiment, parameters: Iterable[nn.Parameter], trust: Sequence[str] = ()
) -> torch.optim.Optimizer:
    """Build `optimizer.target` over all trainable parameters, in one group.

    Args:
        exp: the experiment.
        parameters: the network's.
        trust: packages that a target may come from, besides the trusted ones.

    Raises:
        MaskfoldError: status 2; the target or its arguments are wrong, `lr` is missing, or the optimiser needs more
            than gradients (LBFGS).

    Example:
        >>> build_optimizer(exp, network.parameters())  # doctest: +SKIP
    """
    target, args = exp.optimizer.target, dict(exp.optimizer.args)
    cls = resolve_target(target, torch.optim.Optimizer, "optimizer.target", trust)
    if issubclass(cls, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise MaskfoldError(
            f"optimizer.target {cls.__name__} does not train from one dense gradient per step.",
            "Take torch.optim.AdamW or torch.optim.SGD.",
            status=2,
        )
    check_args(cls, args, "optimizer.args", partial=True)
    rate = args.get("lr")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
        raise MaskfoldError(
            f"optimizer.args.lr is {'missing' if rate is None else rate}, but a schedule scales it.",
            "Set it to a positive number, e.g. 1.0e-3.",
            status=2,
        )
    if "betas" in args:
        args["betas"] = tuple(args["betas"])
    try:
        optimizer: torch.optim.Optimizer = cls([p for p in parameters if p.requires_grad], **args)
    except Exception as error:
        raise MaskfoldError(
            f"optimizer.args do not fit {target}: {one_line(error)}.", "Correct optimizer.args.", status=2
        ) from error
    return optimizer
