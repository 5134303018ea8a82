"""Load initial weights from a file (`init_from: weights.safetensors`): all tensors that fit the network.

The file may belong to another network with the same encoder, e.g. to a network that was pretrained on other data.
The tensors of the file are matched with those of the network by name. If few tensors match by name, the layers are
also matched by order, and the way that matches more tensors is used.

- By name: two tensors match if their shapes are equal, and their names are equal after a prefix such as `module.`,
  `network.` or `encoder.` is removed from each. The pair of prefixes that matches the most tensors is used first.
- By order: the convolutions of both networks are paired from the input on, until their shapes differ. The
  normalisation layers are paired in the same way. For example, the encoders of nnU-Net and MONAI match by order.

The head keeps its random values, because the channels of the file's head are the classes of other data. If the number
of input channels differs, the weights of the first layer are adapted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from competition.config.experiment import Experiment
from competition.context import Context
from competition.errors import MaskfoldError
from competition.models.build import build_network
from competition.models.pretrained import Shapes, adapt_input_channels, find_weights_file, read_tensors
from competition.text import format_count, join_names

KEY = "init_from"
HEAD = re.compile(
    r"(?:^|\.)(?:segmentation_head|seg_layers|seg_outputs|output_block|classifier|heads?|out|outc|out_conv|conv_final|"
    r"final_conv|final|logits|superhead|deep_supervision_heads|out_layers?)(?:\.|$)"
)
# nnU-Net's networks and MONAI's DynUNet store the same tensors under several names.
REPEATED = re.compile(r"\.all_modules\.|(?:^|\.)decoder\.encoder\.|(?:^|\.)skip_layers\.")
MAX_PREFIX = 3  # maximum number of parts in a prefix; dots separate the parts
FURTHER_PREFIX = 4  # minimum number of tensors that the second and each further pair of prefixes must match
FEW = 0.2  # if at most this share of the network's tensors match by name, tensors are matched by order
MIN_BY_ORDER = 2  # minimum number of convolutions that must match by order


@dataclass
class InitialMatch:
    """Describe which tensor of a file is loaded into which tensor of a network.

    Attributes:
        source: the file's path, as in the YAML.
        pairs: name of the tensor in the network -> name of the tensor in the file.
        adapted: names of the network's tensors whose number of input channels differs from that of the file's tensor,
            so that the file's tensor is adapted.
        missing: names of the network's tensors that keep their random values, grouped by reason. The reasons are
            `head`, `other shape` and `not in the file`.
        unused: names of the file's tensors that are not loaded.
        by_order: whether the tensors were matched by their order.
    """

    source: str
    pairs: dict[str, str] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    by_order: bool = False

    def lines(self) -> list[str]:
        """Return two lines for the user: the numbers of loaded and missing tensors, in total and then by module."""
        count = len(self.pairs) + sum(map(len, self.missing.values()))
        parts = [f"{len(self.pairs)} of {format_count(count, 'tensor')} loaded from {self.source}"]
        parts += ["layers were paired by their order"] if self.by_order else []
        parts += [f"{join_names(self.adapted)} adapted to the number of input channels"] if self.adapted else []
        parts += [f"{len(names)} not loaded ({reason})" for reason, names in self.missing.items() if names]
        parts += [f"not used: {format_count(len(self.unused), 'other tensor')} of the file"] if self.unused else []
        names = f"number of tensors loaded into each module: {_modules(self.pairs)}"
        missing = [name for names_of_reason in self.missing.values() for name in names_of_reason]
        names += f"; number of tensors that keep random values: {_modules(missing)}" if missing else ""
        names += f"; number of tensors of the file that are not used: {_modules(self.unused)}" if self.unused else ""
        return [f"{KEY}: {', '.join(parts)}", f"{KEY}: {names}"]


def load_initial_weights(network: nn.Module, exp: Experiment, channels: int) -> InitialMatch:
    """Load all tensors of the file in `init_from` that fit the network.

    Args:
        network: network of the experiment, on the CPU.
        exp: experiment whose `init_from` names a file.
        channels: number of channels of the network's input.

    Returns:
        The assignment of the file's tensors to the network's tensors.

    Raises:
        MaskfoldError (exit status 2): the file is missing, cannot be read without executing code, contains values that
            are not finite, or fits no tensor of the network.
    """
    name = str(exp.initial_weights)
    path = find_weights_file(name, KEY)
    if path is None:
        raise MaskfoldError(f"{KEY}: {name} does not exist.", f"Set {KEY} to an existing run or file.", status=2)
    tensors = {key: value for key, value in read_tensors(path, KEY).items() if not REPEATED.search(key)}
    match = match_tensors(network, tensors, name, channels, exp.network_channels)
    state = network.state_dict()
    for target, source in match.pairs.items():
        tensor = tensors[source]
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise MaskfoldError(
                f"{KEY}: the tensor {source} in {path} contains NaN or infinite values.",
                f"Set {KEY} to a file that contains only finite values.",
                status=2,
            )
        with torch.no_grad():
            state[target].copy_(adapt_input_channels(tensor, channels) if target in match.adapted else tensor)
    return match


def check_initial_file(exp: Experiment, channels: int, context: Context) -> None:
    """Check that the file in `init_from` fits the network, and print which tensors are loaded.

    Args:
        exp: the experiment. If `init_from` names no file, the function does nothing.
        channels: number of channels of the network's input (in 2.5D: channels times slices).
        context: context, which contains the trusted packages and the log.

    Raises:
        MaskfoldError: see `load_initial_weights`.
    """
    if exp.initial_weights is None:
        return
    with torch.random.fork_rng(devices=[]):
        network = build_network(exp, channels, context, pretrained=False)
    for line in load_initial_weights(network, exp, channels).lines():
        context.say(line)


def match_tensors(
    network: nn.Module, tensors: Mapping[str, Tensor], source: str, channels: int, outputs: int
) -> InitialMatch:
    """Match the tensors of a network with the tensors of a file.

    Args:
        network: the network.
        tensors: the file's tensors by name, in the order from the network's input to its output.
        source: the file's name, for messages.
        channels: number of channels of the network's input.
        outputs: number of channels of the network's output.

    Raises:
        MaskfoldError (exit status 2): no tensor matches.
    """
    heads = _heads(network, outputs)
    stored = network.state_dict().keys()
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}  # each tensor once
    all_targets, sources = _shapes({name: own[name] for name in own if name in stored}), _shapes(tensors)
    targets = {name: shape for name, shape in all_targets.items() if name.rpartition(".")[0] not in heads}
    pairs = _by_name(targets, sources, channels)
    by_order = {} if len(pairs) > FEW * len(targets) else _by_order(targets, sources, channels)
    match = InitialMatch(source, max(pairs, by_order, key=len), by_order=len(by_order) > len(pairs))
    if not match.pairs:
        found, expected = (", ".join(list(names)[:3]) for names in (sources, targets))
        raise MaskfoldError(
            f"{KEY}: no tensor of {source} fits {type(network).__name__}: found the tensors {found}, …, "
            f"expected {expected}, ….",
            f"Use a file of the same network or encoder, or remove {KEY}.",
            status=2,
        )
    match.adapted = [name for name, found in match.pairs.items() if sources[found] != targets[name]]
    ends = {_end(name) for name in sources}
    match.missing = {"head": [], "other shape": [], "not in the file": []}
    for name in all_targets:
        if name not in match.pairs:
            reason = "head" if name not in targets else "other shape" if _end(name) in ends else "not in the file"
            match.missing[reason].append(name)
    used = set(match.pairs.values())
    match.unused = [name for name in sources if name not in used]
    return match


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor by name, without batch normalisation's `num_batches_tracked`."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _heads(network: nn.Module, outputs: int) -> set[str]:
    """Return the names of the modules whose outputs are the classes.

    Such a module has `outputs` outputs. In addition, its name is a usual name of a head, or it is the last module with
    a weight matrix or kernel.
    """
    heads: set[str] = set()
    last: str | None = None
    for name, module in network.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.ndim < 2:
            continue
        # The weight of a transposed convolution begins with its input channels.
        if outputs in tuple(weight.shape[:2]):
            last = name
            if HEAD.search(name):
                heads.add(name)
        elif last is not None:
            last = None
    return heads | ({last} if last is not None else set())


def _end(name: str) -> str:
    """Return the last three parts of a tensor's name, where dots separate the parts."""
    return ".".join(name.split(".")[-3:])


def _fits(source: tuple[int, ...], target: tuple[int, ...], channels: int) -> bool:
    """Return whether a tensor of the file can be loaded into a tensor of the network.

    Two tensors of the same shape fit. The kernels of two convolutions also fit if their shapes differ only in the
    number of input channels, and the kernel in the network has `channels` input channels.

    Args:
        source: shape of the tensor in the file.
        target: shape of the tensor in the network.
        channels: number of channels of the network's input.
    """
    if source == target:
        return True
    is_convolution = len(source) == len(target) >= 4
    return is_convolution and target[1] == channels and source[0] == target[0] and source[2:] == target[2:]


# By name


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield all ways to split a tensor's name into a prefix and the rest.

    The prefix may be empty. It contains no digits, because digits distinguish layers, such as `layer1` and `layer2`.
    """
    parts = name.split(".")
    for count in range(min(MAX_PREFIX, len(parts) - 1) + 1):
        prefix = "".join(f"{part}." for part in parts[:count])
        if any(letter.isdigit() for letter in prefix):
            return
        yield prefix, ".".join(parts[count:])


def _by_name(targets: Shapes, sources: Shapes, channels: int) -> dict[str, str]:
    """Pair tensors whose names are equal without their prefixes.

    The pair of prefixes that matches the most tensors is used first. Further pairs of prefixes match the remaining
    tensors.

    Returns:
        Name of the tensor in the network -> name of the tensor in the file.
    """
    behind: dict[str, list[tuple[str, str]]] = {}
    for name in sources:
        for prefix, rest in _splits(name):
            behind.setdefault(rest, []).append((prefix, name))
    candidates: dict[tuple[str, str], dict[str, str]] = {}
    for name, shape in targets.items():
        for prefix, rest in _splits(name):
            for other, source in behind.get(rest, ()):
                if _fits(sources[source], shape, channels):
                    candidates.setdefault((prefix, other), {})[name] = source
    pairs: dict[str, str] = {}
    while candidates:
        used = set(pairs.values())
        free = {
            key: {name: source for name, source in found.items() if name not in pairs and source not in used}
            for key, found in candidates.items()
        }
        # If several prefixes match equally many tensors, take the shortest: `encoder.` and `encoder.layers.` match the
        # same.
        best = max(free, key=lambda key: (len(free[key]), -len(key[0]) - len(key[1])))
        if len(free[best]) < (FURTHER_PREFIX if pairs else 1):
            break
        pairs |= free[best]
        del candidates[best]
    return pairs


# By order


def _by_order(targets: Shapes, sources: Shapes, channels: int) -> dict[str, str]:
    """Pair the convolutions in order, from the input on, until their shapes differ.

    Then the normalisation layers are paired in the same way, at most as many as there are pairs of convolutions.

    Returns:
        Name of the tensor in the network -> name of the tensor in the file. The result is empty if too few
        convolutions match.
    """
    own, other = _layers(targets), _layers(sources)
    pairs: dict[str, str] = {}
    matched = 0
    for (first, first_shapes), (second, second_shapes) in zip(own["convolution"], other["convolution"], strict=False):
        if not _fits(second_shapes["weight"], first_shapes["weight"], channels):
            break
        pairs |= _same_parameters(first, first_shapes, second, second_shapes, channels)
        matched += 1
    if matched < MIN_BY_ORDER:
        return {}
    norms = list(zip(own["norm"], other["norm"], strict=False))[:matched]
    for (first, first_shapes), (second, second_shapes) in norms:
        if first_shapes["weight"] != second_shapes["weight"]:
            break
        pairs |= _same_parameters(first, first_shapes, second, second_shapes, channels)
    return pairs


def _layers(shapes: Shapes) -> dict[str, list[tuple[str, Shapes]]]:
    """Return the convolutions and the normalisation layers, each in the order of `shapes`.

    Returns:
        A dictionary with the keys `convolution` and `norm`. Each value is a list with one pair per layer: the name of
        the layer, and the shapes of its parameters by name.
    """
    layers: dict[str, Shapes] = {}
    for name, shape in shapes.items():
        layer, _, parameter = name.rpartition(".")
        layers.setdefault(layer, {})[parameter] = shape
    kinds: dict[str, list[tuple[str, Shapes]]] = {"convolution": [], "norm": []}
    for layer, found in layers.items():
        dimensions = len(found.get("weight", ()))
        if dimensions in (1, 4, 5):
            kinds["norm" if dimensions == 1 else "convolution"].append((layer, found))
    return kinds


def _same_parameters(first: str, own: Shapes, second: str, other: Shapes, channels: int) -> dict[str, str]:
    return {
        f"{first}.{name}": f"{second}.{name}"
        for name, shape in own.items()
        if name in other and _fits(other[name], shape, channels)
    }


def _modules(names: Iterable[str]) -> str:
    """Format a list of modules with the number of tensors in each, e.g. `encoder.layer1 (12)`.

    The name of a module consists of the first two parts of its tensors' names.
    """
    counts = Counter(".".join(name.split(".")[:-1][:2]) or name for name in names)
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "nothing"
