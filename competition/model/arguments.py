"""The arguments of a network's constructor: what the YAML says, completed with what the data say."""

from __future__ import annotations

import inspect
from typing import Any

from competition.config import Experiment, MaskfoldError
from competition.config.nearest import nearest
from competition.config.target import check_args

INPUTS = ("in_channels", "in_chans", "input_channels", "n_channels")
OUTPUTS = ("out_channels", "classes", "num_classes", "n_classes", "out_chans", "output_channels")
AXES = ("spatial_dims", "ndim")
SMP = "segmentation_models_pytorch"


def network_args(exp: Experiment, cls: type, channels: int) -> dict[str, Any]:
    """Complete `model.args` and check them, without building anything.

    The numbers of input channels, output channels and spatial axes are filled in where the constructor has an argument
    for them (`in_channels`, `classes`, `spatial_dims`, …) and the YAML is silent; so is `img_size` where required.
    Nothing is downloaded unless asked for: `encoder_weights` of segmentation_models_pytorch, which is `imagenet` by
    default, becomes None.

    Args:
        exp: the experiment.
        cls: the network's class.
        channels: channels of the network's input (times the slices in 2.5D).

    Returns:
        The keyword arguments.

    Raises:
        MaskfoldError: status 2; an argument is unknown, missing, or contradicts the data.
    """
    parameters = constructor_parameters(cls)
    args = dict(exp.model.args)
    outputs = exp.outputs
    _settle(args, parameters, INPUTS, channels, f"the images give {channels} channel{'s' * (channels != 1)}")
    _settle(args, parameters, OUTPUTS, outputs, f"classes and labels need {outputs}")
    _settle(args, parameters, AXES, exp.network_dimensions, f"patch.size has {exp.network_dimensions} numbers")
    if "img_size" in parameters and parameters["img_size"].default is inspect.Parameter.empty:
        args.setdefault("img_size", list(exp.patch.size))
    if is_smp(cls):
        _check_smp(exp, cls, args)
        args.setdefault("encoder_weights", None)
        if exp.gate is not None and "aux_params" in parameters:
            _settle_gate(exp, args)
    check_args(cls, args, "model.args")
    return args


def is_smp(cls: type) -> bool:
    """Whether a class comes from segmentation_models_pytorch, or is derived from one that does."""
    return any(base.__module__.split(".")[0] == SMP for base in cls.__mro__)


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class's `__init__` (smp's classes also have a `__new__` that takes anything)."""
    parameters = dict(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    parameters.pop("self", None)
    return parameters


def one_line(error: BaseException, limit: int = 240) -> str:
    """What a library said, in one line, without a full stop at its end."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    text = text or type(error).__name__
    return (text if len(text) <= limit else text[:limit] + "…").rstrip(".")


def _settle(args: dict[str, Any], parameters: Any, names: tuple[str, ...], value: int, why: str) -> None:
    """Fill in the first of `names` that the constructor has; refuse another value than the data's."""
    known = [name for name in names if name in parameters]
    for name in known:
        if name in args and args[name] != value:
            raise MaskfoldError(
                f"model.args.{name} is {args[name]}, but {why}.",
                f"Leave model.args.{name} out, or set it to {value}.",
                status=2,
            )
    if known and not any(name in args for name in known):
        args[known[0]] = value


def _settle_gate(exp: Experiment, args: dict[str, Any]) -> None:
    """The head of a network of segmentation_models_pytorch is the gate."""
    assert exp.gate is not None
    if args.get("aux_params") is not None:
        raise MaskfoldError(
            "model.args.aux_params and gate both set the network's second head.",
            "Leave model.args.aux_params out; gate has its pooling and dropout.",
            status=2,
        )
    args["aux_params"] = {
        "classes": len(exp.competition.classes),
        "pooling": exp.gate.pooling,
        "dropout": exp.gate.dropout,
    }


def _check_smp(exp: Experiment, cls: type, args: dict[str, Any]) -> None:
    """What segmentation_models_pytorch would swallow, or would only say in the middle of a run."""
    if exp.network_dimensions == 3:
        raise MaskfoldError(
            f"model.target {cls.__name__} works on pictures, but patch.size has 3 numbers.",
            "Set patch.slices and a patch.size of 2 numbers (2.5D), or name a 3D network such as "
            "monai.networks.nets.DynUNet.",
            status=2,
        )
    if args.get("activation") not in (None, "identity"):
        raise MaskfoldError(
            f"model.args.activation is {args['activation']}, but loss and prediction work on logits.",
            "Leave model.args.activation out.",
            status=2,
        )
    parameters = constructor_parameters(cls)
    encoder = args.get("encoder_name", "")
    if isinstance(encoder, str) and encoder.startswith("tu-"):
        return  # timm receives the rest and refuses what it does not know
    known = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in args:
        if name not in known:
            near = nearest(name, known)
            cure = f"Did you mean {near[0]}?" if near else f"{cls.__name__} takes {', '.join(known)}."
            raise MaskfoldError(f"model.args.{name} is not an argument of {cls.__name__}.", cure, status=2)
