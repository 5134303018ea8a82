"""The packages whose classes a `target` may name: naming a class in a YAML file runs its code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest

TRUSTED = ("torch", "monai", "segmentation_models_pytorch", "timm", "albumentations", "competition")
# Parts of these packages whose classes read, write, fetch or run what their arguments name: `monai.transforms.LoadImaged`
# takes `reader: os.system`. Only whoever trusts the whole package by name may have them.
ACTIVE = (
    "albumentations.core.serialization",
    "monai.apps",
    "monai.auto3dseg",
    "monai.bundle",
    "monai.data",
    "monai.engines",
    "monai.fl",
    "monai.handlers",
    "monai.losses.perceptual",
    "monai.networks.trt_compiler",
    "monai.transforms.io",
    "monai.transforms.post.dictionary.SaveClassificationd",
    "monai.visualize",
    "timm.data",
    "timm.models._helpers",
    "timm.models._hub",
    "timm.task",
    "timm.utils",
    "torch.distributed",
    "torch.export",
    "torch.fx",
    "torch.hub",
    "torch.jit",
    "torch.onnx",
    "torch.package",
    "torch.serialization",
    "torch.utils",
)
SHORT = {"smp": "segmentation_models_pytorch", "A": "albumentations", "nn": "torch.nn", "optim": "torch.optim"}
VARIABLE = "MASKFOLD_TRUST"


def trusted(extra: Sequence[str] = ()) -> frozenset[str]:
    """The names of all trusted packages.

    Args:
        extra: packages that the command line trusts (`--trust`); those of the environment (`MASKFOLD_TRUST=a,b`) are
            added here.

    Raises:
        MaskfoldError: status 2; something else than a package's name is trusted.
    """
    return frozenset(TRUSTED) | _own(extra)


def trusted_by_user(root: str, extra: Sequence[str] = ()) -> bool:
    """Whether it is the command line or the environment that trusts a package."""
    return root not in TRUSTED and root in _own(extra)


def active(name: str, extra: Sequence[str] = ()) -> str | None:
    """The entry of `ACTIVE` that a class falls under; None where it may be used.

    Args:
        name: where the class is defined, module and class.
        extra: as for `trusted`.
    """
    if name.split(".")[0] in _own(extra):
        return None
    return next((part for part in ACTIVE if f"{name}.".startswith(f"{part}.")), None)


def check_path(path: str, key: str, extra: Sequence[str] = ()) -> list[str]:
    """The parts of a class's import path, after a look at its words alone: nothing is imported.

    Raises:
        MaskfoldError: status 2; it is no import path, has a private part, or its package is not trusted.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise MaskfoldError(
            f"{key}: `{path}` is not the import path of a class.", "Write it in full, like torch.optim.AdamW.", status=2
        )
    private = [part for part in parts if part.startswith("_")]
    if private:
        raise MaskfoldError(
            f"{key}: `{path}` goes through `{private[0]}`, which is private.",
            "Name the class where its package shows it.",
            status=2,
        )
    roots = trusted(extra)
    if parts[0] not in roots:
        raise MaskfoldError(
            f"{key}: `{path}` is not in a trusted package ({', '.join(sorted(roots))}).",
            _trust_cure(parts, roots),
            status=2,
        )
    return parts


def _own(extra: Sequence[str]) -> frozenset[str]:
    if isinstance(extra, str):
        extra = [extra]
    words = [word.strip() for text in (*extra, os.environ.get(VARIABLE, "")) for word in text.split(",")]
    for word in words:
        if word and not word.isidentifier():
            raise MaskfoldError(
                f"--trust or {VARIABLE} names `{word}`, which is not the name of a package.",
                "Give the first word of the import path, e.g. my_nets for my_nets.unet.Fancy.",
                status=2,
            )
    return frozenset(word for word in words if word)


def _trust_cure(parts: list[str], roots: frozenset[str]) -> str:
    root = parts[0]
    meant = SHORT.get(root) or next(iter(nearest(root, roots, cutoff=0.75)), None)
    if meant is not None:
        return f"Did you mean {'.'.join([meant, *parts[1:]])}?"
    if root in sys.stdlib_module_names:
        return "Name a class of one of these packages."
    return f"If you trust {root}, say so with --trust {root} or {VARIABLE}={root}."
