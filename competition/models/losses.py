"""Compute the loss, a weighted sum of terms.

Each term is a loss of a library, and receives its target in the form that this library expects.

| library | exclusive classes | overlapping classes |
|---|---|---|
| monai.losses | (B, 1, *s) class indices, `to_onehot_y`, `softmax` | (B, K, *s) of 0 and 1, `sigmoid` |
| segmentation_models_pytorch.losses | (B, *s) class indices, `mode: multiclass` | (B, K, *s), `mode: multilabel` |
| torch.nn.CrossEntropyLoss | (B, *s) class indices | not supported |
| other torch.nn losses, such as BCEWithLogitsLoss | (B, C, *s) of 0 and 1 | (B, K, *s) of 0 and 1 |
| any other class | (B, 1, *s) class indices, int64 | (B, K, *s) of 0 and 1, float32 |

In the table, s is the spatial shape, K the number of classes, and C the number of network outputs. The names in
backticks are arguments of the loss. Maskfold sets them, and raises an error if the YAML sets other values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from competition.config.construction import ConstructionGuard
from competition.config.experiment import Experiment, LossConfig
from competition.config.instantiate import check_arguments, resolve_target
from competition.context import Context
from competition.errors import MaskfoldError
from competition.models.interface import (
    constructor_parameters,
    error_in_one_line,
    format_shapes,
    segmentation_outputs,
    split_presence,
)
from competition.models.presence_head import presence_loss
from competition.models.targets import LossTarget
from competition.text import format_count, join_names

MONAI, SMP, TORCH, OTHER = "monai", "segmentation_models_pytorch", "torch", "other"
# Losses that take probabilities instead of logits -> losses that take logits, which an error message suggests.
LOGIT_REPLACEMENTS = {
    (TORCH, "BCELoss"): "torch.nn.BCEWithLogitsLoss",
    (TORCH, "NLLLoss"): "torch.nn.CrossEntropyLoss",
    (SMP, "MCCLoss"): "monai.losses.MCCLoss",
    (MONAI, "AsymmetricUnifiedFocalLoss"): "monai.losses.DiceFocalLoss",
}
# Losses with targets of class indices (B, *s), for exclusive classes only.
CLASS_INDEX_LOSSES = {(TORCH, "CrossEntropyLoss"), (SMP, "SoftCrossEntropyLoss"), (MONAI, "NACLLoss")}
# Losses of MONAI that add two losses. Here the two are computed one by one, so that each is logged at no further cost.
COMPOUND_LOSSES = {
    "DiceCELoss": ("dice", "ce"),
    "DiceFocalLoss": ("dice", "focal"),
    "GeneralizedDiceFocalLoss": ("generalized_dice", "focal"),
}


class SegmentationLoss(nn.Module):
    """Compute the loss of an experiment.

    Each term is a loss of MONAI, segmentation_models_pytorch, torch or the user. The module's docstring lists the
    target that each kind of loss receives. The loss is computed in float32, whatever the precision of the network.

    If the network has several outputs (deep supervision), the mask is resized to each output. The losses of the
    outputs are averaged with the weights of `competition.models.interface.segmentation_outputs`. Pixels whose mask is
    255 have no gradient (see `Experiment.has_ignored_pixels` and `competition.models.targets`).

    Args:
        exp: the experiment.
        context: context, which contains the packages that the user trusts.

    Raises:
        MaskfoldError (exit status 2): a term's target or arguments are wrong.

    Example:
        >>> total, parts = SegmentationLoss(exp)(network(image), mask)  # doctest: +SKIP
    """

    def __init__(self, exp: Experiment, context: Context = Context()) -> None:
        super().__init__()
        single = not isinstance(exp.loss, list)
        terms = [
            LossTerm(spec, exp, "loss" if single else f"loss.{index}", context) for index, spec in enumerate(exp.losses)
        ]
        counts: dict[str, int] = {"gate": 1} if exp.gate is not None else {}
        for term in terms:  # a number distinguishes terms of the same name
            counts[term.name] = counts.get(term.name, 0) + 1
            term.name += f"_{counts[term.name]}" if counts[term.name] > 1 else ""
            term.prefix = f"{term.name}/" if len(terms) > 1 else ""
        self.terms = nn.ModuleList(terms)
        self.weights = [spec.weight for spec in exp.losses]
        self.dims = exp.network_dimensions
        self.channels = exp.network_channels
        self.exclusive = exp.competition.labels == "exclusive"
        self.ignore = exp.has_ignored_pixels
        self.gate, self.comp = exp.gate, exp.competition
        self._device = torch.device("cpu")

    def forward(self, outputs: Any, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Args:
            outputs: the network's output in training mode: a tensor (B, C, *spatial), a stack (B, n, C, *spatial), or
                a list, tuple or dictionary of tensors. A network with a presence head returns a tuple of this output
                and the presence logits (B, K).
            mask: (B, M, *spatial) uint8 on the same device.

        Returns:
            The total loss and its parts by name. The total is a float32 scalar with a gradient. The parts are detached
            scalars.

            Each part is a term of the loss, without its factor `loss.weight`, averaged over the network's outputs. A
            compound loss of MONAI has two parts, such as `dice` and `ce`. If there are several terms, the term's name
            precedes the part (`DiceCELoss/dice`). The part `gate` is the loss of the presence head, without the factor
            `gate.weight`.

        Raises:
            ValueError: the outputs contain no segmentation, or lack the presence logits that the experiment needs.
        """
        if mask.device != self._device:  # move class weights to the data's device
            self.to(mask.device)
            self._device = mask.device
        total = torch.zeros((), device=mask.device)
        parts: dict[str, Tensor] = {}
        with torch.autocast(mask.device.type, enabled=False):
            for logits, level_weight in segmentation_outputs(outputs, self.dims, self.channels):
                target = LossTarget(
                    resize_mask(mask, tuple(logits.shape[2:])), self.channels, self.exclusive, self.ignore
                )
                logits = target.mask_ignored(logits.float())
                for term, weight in zip(self.terms, self.weights, strict=True):
                    value, values = term(logits, target)
                    total = total + level_weight * weight * value
                    for name, part in values.items():
                        parts[name] = parts.get(name, 0.0) + level_weight * part.detach()
            if self.gate is not None:
                if (presence_logits := split_presence(outputs)[1]) is None:
                    raise ValueError(
                        f"outputs of the network: found {format_shapes(outputs)}, expected a segmentation and presence "
                        "logits"
                    )
                value = presence_loss(presence_logits, mask, self.comp)
                total, parts["gate"] = total + self.gate.weight * value, value.detach()
        return total, parts


def validate_loss(exp: Experiment, context: Context = Context()) -> None:
    """Check that the loss of a small random batch and its gradient can be computed.

    Args:
        exp: the experiment.
        context: context, which contains the packages that the user trusts.

    Raises:
        MaskfoldError (exit status 2): a term cannot be built, or fails on the batch.
    """
    comp, dims = exp.competition, exp.network_dimensions
    loss = SegmentationLoss(exp, context)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, exp.network_channels, *[16] * dims, generator=generator).requires_grad_()
    shape = (2, 1 if loss.exclusive else len(comp.classes), *[16] * dims)
    mask = torch.randint(
        0, exp.network_channels if loss.exclusive else 2, shape, generator=generator, dtype=torch.uint8
    )
    try:
        total, _ = loss(logits if exp.gate is None else (logits, logits.new_zeros(2, len(comp.classes))), mask)
        total.backward()
    except Exception as error:
        raise MaskfoldError(
            f"loss: the loss of a test batch with random values cannot be computed: {error_in_one_line(error)}.",
            f"Check `loss` in the experiment, and the arguments of {join_names([spec.target for spec in exp.losses])}.",
            status=2,
        ) from error


def resize_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize a mask of any dtype by nearest neighbour with aligned pixel centres (torch's `nearest-exact`).

    Args:
        mask: (B, M, *spatial) with any number of spatial axes.
        size: spatial size of the result.

    Returns:
        (B, M, *size). If the mask already has this size, the result is the mask itself.
    """
    for axis, (length, new_length) in enumerate(zip(mask.shape[2:], size, strict=True), start=2):
        if length != new_length:
            indices = (torch.arange(new_length, device=mask.device) * 2 + 1) * length // (2 * new_length)
            mask = mask.index_select(axis, indices)
    return mask


# Terms of the loss


class LossTerm(nn.Module):
    """Compute one term of the loss, without the term's weight.

    Args:
        spec: target, arguments and name of the term.
        exp: experiment, which defines the classes and whether they exclude each other.
        key: the term's key in the YAML: `loss`, or `loss.0` for the first of several terms.
        context: context, which contains the packages that the user trusts.

    Raises:
        MaskfoldError (exit status 2): the target or its arguments are wrong, or contradict `competition.labels`.
    """

    def __init__(self, spec: LossConfig, exp: Experiment, key: str, context: Context = Context()) -> None:
        super().__init__()
        cls = resolve_target(spec.target, nn.Module, f"{key}.target", context.trust)
        self.library, self.key = loss_library(cls), key
        self.exclusive, self.channels = exp.competition.labels == "exclusive", exp.network_channels
        self.name, self.prefix = spec.name or cls.__name__, ""
        args = dict(spec.args)
        self._check_supported(cls, args)
        if self.library == MONAI:
            self._fill_monai(cls, args, exp.network_dimensions)
        elif self.library == SMP:
            self._fill_smp(cls, args)
        check_arguments(cls, args, f"{key}.args")
        args_as_tensors = self._weights_to_tensors(cls, args, exp.network_dimensions)
        with ConstructionGuard(cls, spec.args, f"{key}.args", context.trust):
            try:
                self.loss = cls(**args_as_tensors)
            except Exception as error:
                raise MaskfoldError(
                    f"{key}.args: {spec.target} rejects these arguments: {error_in_one_line(error)}.",
                    f"Change {key}.args. The documentation of {spec.target} lists its arguments.",
                    status=2,
                ) from error
        self.select_target = self._target_selector(cls, args)
        self.parts = COMPOUND_LOSSES.get(cls.__name__, ()) if cls.__module__.split(".")[0] == MONAI else ()

    def forward(self, logits: Tensor, truth: LossTarget) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the term's unweighted value and its parts.

        Args:
            logits: (B, C, *spatial) float32.
            truth: target of the same spatial size.

        Returns:
            The term as a scalar, and its parts as scalars by name. A compound loss has two parts, the two losses that
            it adds. Any other loss has one part, the term itself.
        """
        target = self.select_target(truth)
        if not self.parts:
            value: Tensor = self.loss(logits, target)
            return value, {self.name: value}
        loss: Any = self.loss
        first, second = self.parts
        if first == "dice" and second == "focal" and loss.to_onehot_y:
            target = truth.binary_channels  # computed once for both parts, as in the library
        first_loss = getattr(loss, first)
        second_loss = loss.bce if second == "ce" and logits.shape[1] == 1 else getattr(loss, second)
        values = first_loss(logits, target), second_loss(logits, target)
        first_weight = loss.lambda_gdl if first == "generalized_dice" else loss.lambda_dice
        value = first_weight * values[0] + getattr(loss, f"lambda_{second}") * values[1]
        return value, {f"{self.prefix}{part}": value for part, value in zip(self.parts, values, strict=True)}

    def _error(self, message: str, hint: str) -> MaskfoldError:
        return MaskfoldError(f"{self.key}{message}.", hint, status=2)

    def _check_supported(self, cls: type, args: dict[str, Any]) -> None:
        """Raise an error if the loss cannot be used.

        A loss cannot be used if it takes probabilities instead of logits, does not support the competition's kind of
        labels, or does not return a scalar.
        """
        replacement = LOGIT_REPLACEMENTS.get((self.library, cls.__name__))
        if replacement is not None:
            raise self._error(
                f".target: {cls.__name__} expects probabilities, but the network returns logits",
                f"Set {self.key}.target to {replacement}.",
            )
        if (self.library, cls.__name__) in CLASS_INDEX_LOSSES and not self.exclusive:
            raise self._error(
                f".target: {cls.__name__} requires one class per pixel, but competition.labels is overlapping",
                f"Set {self.key}.target to torch.nn.BCEWithLogitsLoss.",
            )
        if cls.__name__ == "DiceCELoss" and not self.exclusive and self.channels > 1:
            raise self._error(
                f".target: {cls.__name__} computes the cross-entropy of exclusive classes, but "
                "competition.labels is overlapping",
                "Set loss to a list of two losses: monai.losses.DiceLoss and torch.nn.BCEWithLogitsLoss.",
            )
        if args.get("reduction") == "none":
            raise self._error(
                ".args.reduction: found 'none', expected mean or sum, because training needs a single number",
                f"Set {self.key}.args.reduction to mean.",
            )
        if args.get("from_logits") is False:
            raise self._error(
                ".args.from_logits: found false, expected true, because the network returns logits",
                f"Remove {self.key}.args.from_logits.",
            )

    def _require(self, args: dict[str, Any], parameters: Any, name: str, value: Any) -> None:
        """Set an argument of the loss that must have a certain value for the competition's kind of labels.

        The function does nothing if the constructor has no such argument.

        Raises:
            MaskfoldError (exit status 2): the YAML sets another value.
        """
        if name not in parameters:
            return
        if args.setdefault(name, value) != value:
            labels = "exclusive" if self.exclusive else "overlapping"
            raise self._error(
                f".args.{name}: found {str(args[name]).lower()}, expected {str(value).lower()}, because "
                f"competition.labels is {labels}",
                f"Set {self.key}.args.{name} to {str(value).lower()}, or remove it.",
            )

    def _fill_monai(self, cls: type, args: dict[str, Any], dims: int) -> None:
        parameters = constructor_parameters(cls)
        if not self.exclusive:
            for name, value in (
                ("to_onehot_y", False),
                ("softmax", False),
                ("sigmoid", True),
                ("use_softmax", False),
                ("include_background", True),  # there is no background channel, so false would remove a class
            ):
                self._require(args, parameters, name, value)
            return
        self._require(args, parameters, "to_onehot_y", True)
        if "softmax" in parameters and "softmax" not in args and "sigmoid" not in args:
            args["softmax"] = True
        if "softmax" in parameters and not (args.get("softmax") or args.get("sigmoid")):
            raise self._error(
                ".args: found neither softmax nor sigmoid, expected one of them, because the network returns logits",
                f"Set {self.key}.args.softmax to true.",
            )
        if "use_softmax" in parameters:
            args.setdefault("use_softmax", True)
        if cls.__name__ == "NACLLoss":
            args.setdefault("classes", self.channels)
            args.setdefault("dim", dims)

    def _fill_smp(self, cls: type, args: dict[str, Any]) -> None:
        if cls.__name__ == "SoftCrossEntropyLoss":
            args.setdefault("smooth_factor", 0.0)  # with the default, None, the computation fails
        if "mode" not in constructor_parameters(cls):
            return
        mode = args.setdefault("mode", "multiclass" if self.exclusive else "multilabel")
        if (mode == "multiclass" and not self.exclusive) or (mode == "binary" and self.exclusive):
            labels, expected = ("exclusive", "multiclass") if self.exclusive else ("overlapping", "multilabel")
            raise self._error(
                f".args.mode: found {mode}, expected {expected}, because competition.labels is {labels}",
                f"Set {self.key}.args.mode to {expected}, or remove it.",
            )

    def _weights_to_tensors(self, cls: type, args: dict[str, Any], dims: int) -> dict[str, Any]:
        """Return the loss's arguments, with class weights as tensors.

        Only the losses that require tensors get tensors. All other losses get lists, as in the YAML.
        """
        converted = dict(args)
        for name in ("weight", "pos_weight"):
            if isinstance(args.get(name), list) and (self.library in (TORCH, SMP) or cls.__name__ == "DiceCELoss"):
                if len(args[name]) != self.channels:
                    raise self._error(
                        f".args.{name}: found {format_count(len(args[name]), 'value')}, expected {self.channels}, "
                        "one for each output channel",
                        f"Change {self.key}.args.{name}. If classes are exclusive, the first value is that of the "
                        "background.",
                    )
                converted[name] = torch.tensor(args[name], dtype=torch.float32)
                if (self.library, cls.__name__) not in CLASS_INDEX_LOSSES and self.library in (TORCH, SMP):
                    # A shape that broadcasts to (B, C, *spatial).
                    converted[name] = converted[name].reshape(-1, *[1] * dims)
        return converted

    def _target_selector(self, cls: type, args: dict[str, Any]) -> Callable[[LossTarget], Tensor]:
        if (self.library, cls.__name__) in CLASS_INDEX_LOSSES or args.get("mode") == "multiclass":
            return lambda truth: truth.class_indices_flat
        if self.library in (TORCH, SMP):
            return lambda truth: truth.binary_channels
        return lambda truth: truth.native


def loss_library(cls: type) -> str:
    """Return the library whose conventions a loss follows.

    The library is found from the package of the loss's class or of one of its base classes.
    """
    for base in cls.__mro__:
        root = base.__module__.split(".")[0]
        if base in (nn.Module, object) or base.__name__ in ("_Loss", "_WeightedLoss"):
            continue
        if root in (MONAI, SMP, TORCH):
            return root
    return OTHER
