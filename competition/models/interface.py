"""Complete the constructor arguments of networks from the data, and find the logits in a network's outputs."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from competition.config.experiment import Experiment
from competition.config.instantiate import check_arguments
from competition.errors import MaskfoldError
from competition.text import format_count, nearest_names

INPUT_CHANNEL_ARGUMENTS = ("in_channels", "in_chans", "input_channels", "n_channels")
OUTPUT_CHANNEL_ARGUMENTS = ("out_channels", "classes", "num_classes", "n_classes", "out_chans", "output_channels")
SPATIAL_AXES_ARGUMENTS = ("spatial_dims", "ndim")
SMP_PACKAGE = "segmentation_models_pytorch"


# Constructor arguments


def complete_network_args(exp: Experiment, cls: type, channels: int) -> dict[str, Any]:
    """Complete and check `model.args`, without building the network.

    The function sets the arguments for input channels, output channels and spatial axes (`in_channels`, `classes`,
    `spatial_dims`, …) if the YAML does not set them. It also sets `img_size` if the constructor requires this
    argument. For networks of segmentation_models_pytorch, `encoder_weights` becomes None if the YAML does not set it.
    The library's default would download weights.

    Args:
        exp: the experiment.
        cls: the network's class.
        channels: number of channels of the network's input (in 2.5D: channels times slices).

    Returns:
        The keyword arguments for the constructor.

    Raises:
        MaskfoldError (exit status 2): an argument is unknown, missing, or contradicts the data.
    """
    parameters = constructor_parameters(cls)
    args = dict(exp.model.args)
    outputs, dims = exp.network_channels, exp.network_dimensions
    _fill_argument(
        args,
        parameters,
        INPUT_CHANNEL_ARGUMENTS,
        channels,
        f"the images have {channels} channel{'s' * (channels != 1)}",
    )
    _fill_argument(
        args,
        parameters,
        OUTPUT_CHANNEL_ARGUMENTS,
        outputs,
        f"competition.classes and competition.labels require {format_count(outputs, 'output')}",
    )
    _fill_argument(args, parameters, SPATIAL_AXES_ARGUMENTS, dims, f"patch.size has {dims} values")
    if "img_size" in parameters and parameters["img_size"].default is inspect.Parameter.empty:
        args.setdefault("img_size", list(exp.patch.size))
    if is_smp(cls):
        _check_smp(exp, cls, args)
        args.setdefault("encoder_weights", None)
        if exp.gate is not None and "aux_params" in parameters:
            _fill_presence_head(exp, args)
    check_arguments(cls, args, "model.args")
    return args


def is_smp(cls: type) -> bool:
    """Return whether a class or one of its base classes is from segmentation_models_pytorch."""
    return any(base.__module__.split(".")[0] == SMP_PACKAGE for base in cls.__mro__)


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class's `__init__`.

    The signature of the class itself is not enough. If a class defines `__new__`, as in segmentation_models_pytorch,
    the class's signature lacks the parameters of `__init__`.
    """
    parameters = dict(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    parameters.pop("self", None)
    return parameters


def _fill_argument(args: dict[str, Any], parameters: Any, names: tuple[str, ...], value: int, reason: str) -> None:
    """If the YAML sets none of the arguments `names`, set the first of them that the constructor accepts to `value`.

    Raises:
        MaskfoldError (exit status 2): the YAML sets one of these arguments to another value.
    """
    known = [name for name in names if name in parameters]
    for name in known:
        if name in args and args[name] != value:
            raise MaskfoldError(
                f"model.args.{name}: found {args[name]}, expected {value}, because {reason}.",
                f"Remove model.args.{name}, or set it to {value}.",
                status=2,
            )
    if known and not any(name in args for name in known):
        args[known[0]] = value


def _fill_presence_head(exp: Experiment, args: dict[str, Any]) -> None:
    """Set `aux_params`, so that the classification head of segmentation_models_pytorch becomes the presence head."""
    assert exp.gate is not None
    if args.get("aux_params") is not None:
        raise MaskfoldError(
            "model.args.aux_params and gate cannot be combined, because both set the classification head "
            "of the network.",
            "Remove model.args.aux_params; the section gate sets pooling and dropout.",
            status=2,
        )
    args["aux_params"] = {
        "classes": len(exp.competition.classes),
        "pooling": exp.gate.pooling,
        "dropout": exp.gate.dropout,
    }


def _check_smp(exp: Experiment, cls: type, args: dict[str, Any]) -> None:
    """Check the arguments of a network of segmentation_models_pytorch.

    Raises:
        MaskfoldError (exit status 2): the library would ignore a setting, or would reject it only during training.
    """
    if exp.network_dimensions == 3:
        raise MaskfoldError(
            f"patch.size: found 3 values, expected 2, because model.target {cls.__name__} is a 2D network.",
            "For a 2.5D network, set patch.slices and a patch.size of 2 values. For a 3D network, set a "
            "model.target such as monai.networks.nets.DynUNet.",
            status=2,
        )
    if args.get("activation") not in (None, "identity"):
        raise MaskfoldError(
            f"model.args.activation: found {args['activation']}, expected no activation, because the loss and the "
            "prediction need logits.",
            "Remove model.args.activation.",
            status=2,
        )
    parameters = constructor_parameters(cls)
    encoder = args.get("encoder_name", "")
    if isinstance(encoder, str) and encoder.startswith("tu-"):
        return  # timm receives the remaining arguments and rejects unknown ones
    known = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in args:
        if name not in known:
            near = nearest_names(name, known)
            hint = f"Did you mean {near[0]}?" if near else f"The arguments of {cls.__name__} are {', '.join(known)}."
            raise MaskfoldError(f"model.args.{name}: {cls.__name__} has no argument of this name.", hint, status=2)


# Outputs


def segmentation_outputs(outputs: Any, dims: int, channels: int) -> list[tuple[Tensor, float]]:
    """Return the segmentation outputs of a network with their deep-supervision weights.

    A network may return a tensor (B, C, *spatial), a stack (B, n, C, *spatial), or a list, tuple or dictionary of
    tensors. MONAI's DynUNet returns a stack. Tensors of any other shape, such as features, are ignored. An output of a
    presence head is ignored too.

    The weights follow nnU-Net (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z): 1, 1/2, 1/4, …
    divided by their sum. In a stack or dictionary, the first output has the largest weight. In a list or tuple, the
    largest output has the largest weight, and outputs of equal size have equal weights.

    Args:
        outputs: the result of `network(x)`.
        dims: number of spatial axes, 2 or 3.
        channels: number of channels of a segmentation, `Experiment.network_channels`.

    Returns:
        Pairs of logits (B, channels, *spatial) and weight. Prediction uses the first pair.

    Raises:
        ValueError: no output has `channels` channels and `dims` spatial axes.
    """
    tensors, ranks = _segmentations(split_presence(outputs)[0], dims, channels)
    if not tensors:
        raise ValueError(
            f"output of the network: found {format_shapes(outputs)}, expected (batch, {channels}, {dims} spatial axes)"
        )
    weights = [0.5**rank for rank in ranks]
    return [(tensor, weight / sum(weights)) for tensor, weight in zip(tensors, weights, strict=True)]


def main_output(outputs: Any, dims: int, channels: int) -> Tensor:
    """Return the output that prediction uses: logits (B, channels, *spatial).

    See `segmentation_outputs` for the arguments.

    Raises:
        ValueError: no output has `channels` channels and `dims` spatial axes.
    """
    return segmentation_outputs(outputs, dims, channels)[0][0]


def split_presence(outputs: Any) -> tuple[Any, Tensor | None]:
    """Split a network's outputs into the segmentation and the logits of the presence head.

    If a network has two outputs, and the second one has two axes, then the second output is the presence logits. The
    classification head of segmentation_models_pytorch has this form too.

    Returns:
        The segmentation in the form that the network returned, and the presence logits (B, K). The presence logits are
        None if the network has no presence head.
    """
    if isinstance(outputs, list | tuple) and len(outputs) == 2:
        segmentation, presence = outputs
        if isinstance(presence, Tensor) and presence.ndim == 2:
            return segmentation, presence
    return outputs, None


def flatten_tensors(outputs: Any) -> list[Tensor]:
    """Return all tensors of a network's outputs as a flat list, whatever their nesting."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if not isinstance(outputs, list | tuple):
        return []
    return [tensor for value in outputs for tensor in flatten_tensors(value)]


def _segmentations(outputs: Any, dims: int, channels: int) -> tuple[list[Tensor], list[int]]:
    """Return the segmentation outputs of a network with their ranks, the main output first.

    The main output has rank 0. The deep-supervision weight halves with each further rank.
    """
    if isinstance(outputs, Tensor):
        if outputs.ndim == dims + 3 and outputs.shape[2] == channels:
            return list(outputs.unbind(1)), list(range(outputs.shape[1]))
        return ([outputs], [0]) if _is_segmentation(outputs, dims, channels) else ([], [])
    if isinstance(outputs, dict):
        tensors = [value for value in outputs.values() if _is_segmentation(value, dims, channels)]
        return tensors, list(range(len(tensors)))
    if not isinstance(outputs, list | tuple):
        return [], []
    # The main output is the last one of the largest size: U-Net++ lists its outputs from the shallowest to the deepest.
    candidates = [value for value in reversed(outputs) if _is_segmentation(value, dims, channels)]
    tensors = sorted(candidates, key=lambda tensor: -tensor.shape[2:].numel())
    sizes = list(dict.fromkeys(tensor.shape[2:].numel() for tensor in tensors))
    return tensors, [sizes.index(tensor.shape[2:].numel()) for tensor in tensors]


def _is_segmentation(value: Any, dims: int, channels: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == dims + 2 and value.shape[1] == channels


# Text for messages


def format_shapes(outputs: Any) -> str:
    """Format the shapes of a network's outputs for messages."""
    if isinstance(outputs, Tensor):
        return str(tuple(outputs.shape))
    if isinstance(outputs, dict):
        return "{" + ", ".join(f"{name}: {format_shapes(value)}" for name, value in outputs.items()) + "}"
    if isinstance(outputs, list | tuple):
        return "[" + ", ".join(format_shapes(value) for value in outputs) + "]"
    return type(outputs).__name__


def error_in_one_line(error: BaseException, limit: int = 240) -> str:
    """Return an exception's message in one line of at most `limit` characters, without a final full stop."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    text = text or type(error).__name__
    return (text if len(text) <= limit else text[:limit] + "…").rstrip(".")
