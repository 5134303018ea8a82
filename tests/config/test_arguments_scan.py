"""The arguments of every class that a `target` can name: those that sound like files, addresses or hubs are refused."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import pytest

from competition.config.arguments import refused_arguments
from competition.config.instantiate import NAMED_KINDS, TRUSTED_PACKAGES, _parameters, find_active_part

# Wider than the patterns of the product, so that a new name of a library is noticed here.
SMELLS = re.compile(
    r"path|file|(?<![a-z])dirs?(?![a-z])|directory|url|(?<![a-z])uri|cache|hub|hf_|ckpt|checkpoint(?!ing)|download|repo(?![a-z])"
    r"|pretrain|folder|weights|(?<![a-z])root|resource|reader(?!out)|writer|reference_|read_fn|revision|custom_load|state_dict"
)
PUBLIC_PARTS = re.compile(
    r"torch\.(nn|optim|ao\.nn)(\.|$)|(monai|timm|segmentation_models_pytorch|albumentations|competition)\."
)
ENTRY_POINTS = ("__main__", "testing", "tests", "conda")
# What smp's networks pass their remaining arguments on to, and what those pass them on to.
FACTORIES = (
    "timm.create_model",
    "timm.models.build_model_with_cfg",
    "timm.models.load_pretrained",
    "timm.models.load_checkpoint",
    "timm.models.PretrainedCfg",
    "torch.hub.load_state_dict_from_url",
    "huggingface_hub.hf_hub_download",
)
SAFE_IN_FACTORIES = {"file_name", "check_hash"}  # none is named by smp's or timm's keyword arguments


def import_all() -> None:
    """Import every public module of the trusted packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for root in TRUSTED_PACKAGES:
            package = importlib.import_module(root)
            for module in pkgutil.walk_packages(package.__path__, f"{root}.", onerror=lambda _: None):
                parts = module.name.split(".")
                is_private = any(part.startswith("_") or part in ENTRY_POINTS for part in parts)
                if not is_private and PUBLIC_PARTS.match(module.name) and find_active_part(module.name) is None:
                    try:
                        importlib.import_module(module.name)
                    except Exception:  # noqa: BLE001 - it needs a package that is not installed
                        continue


def reachable_classes() -> set[type]:
    """Return the classes that networks, losses, optimisers and transforms may be."""
    import albumentations as A
    import torch
    from monai.transforms import Compose, MapTransform

    kinds = (torch.nn.Module, torch.optim.Optimizer, A.BasicTransform, A.BaseCompose, MapTransform, Compose)
    found = set()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in TRUSTED_PACKAGES:
            for value in list(vars(module).values()):
                if isinstance(value, type) and issubclass(value, kinds):
                    place = f"{value.__module__}.{value.__qualname__}"
                    if place.split(".")[0] in TRUSTED_PACKAGES and find_active_part(place) is None:
                        found.add(value)
    return found


def passed(names: Iterable[str]) -> list[str]:
    return [name for name in names if SMELLS.search(name) and not list(refused_arguments({name: "x"}, "loss.args"))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_class_that_the_trust_list_reaches() -> None:
    import_all()
    classes = reachable_classes()
    assert len(classes) > 1500
    problems, smelling = {}, set()
    for cls in classes:
        parameters = _parameters(cls) or {}
        names = [name for name, parameter in parameters.items() if parameter.kind in NAMED_KINDS]
        smelling |= {name for name in names if SMELLS.search(name)}
        if found := passed(names):
            problems[f"{cls.__module__}.{cls.__qualname__}"] = found
    assert problems == {}
    assert {"checkpoint", "font_path", "pretrained_url", "path_or_repo_id", "reference_images", "weights"} <= smelling


@pytest.mark.parametrize("path", FACTORIES)
def test_what_further_keyword_arguments_reach(path: str) -> None:
    module, _, name = path.rpartition(".")
    target: Any = getattr(importlib.import_module(module), name)
    if dataclasses.is_dataclass(target):
        names = [field.name for field in dataclasses.fields(target)]
    else:
        names = list(inspect.signature(target).parameters)
    assert len(names) > 3 and passed(name for name in names if name not in SAFE_IN_FACTORIES) == []
