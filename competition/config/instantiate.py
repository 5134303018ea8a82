"""Import the classes that `target` keys name, only from trusted packages; check their base class and arguments."""

# This module does not use hydra.utils.instantiate: hydra 1.3 calls any importable target that is not on a list of known
# dangerous targets, and its maintainers do not consider this list a complete security boundary
# (github.com/hydra-ecosystem/hydra/issues/3259). Here a target must be in a trusted package and have the base class
# that its key requires, and its arguments are checked before the call.

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from competition.errors import MaskfoldError
from competition.text import join_or, nearest_names

if TYPE_CHECKING:
    from competition.config.experiment import Experiment

Parameter = inspect.Parameter
NAMED_KINDS = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
TRUSTED_PACKAGES = ("torch", "monai", "segmentation_models_pytorch", "timm", "albumentations", "competition")
# Parts of the trusted packages whose classes read, write, download or run what their arguments name: for example,
# `monai.transforms.LoadImaged` accepts `reader: os.system`. They require --trust for the whole package.
ACTIVE_PARTS = (
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
ABBREVIATIONS = {"smp": "segmentation_models_pytorch", "A": "albumentations", "nn": "torch.nn", "optim": "torch.optim"}
TRUST_VARIABLE = "MASKFOLD_TRUST"
# An unknown argument that is more similar than this to a known one counts as misspelt, even if **kwargs accepts it.
MISSPELLING_SIMILARITY = 0.8


def resolve_target(path: str, kind: type | tuple[type, ...] | None, key: str, trust: Sequence[str] = ()) -> Any:
    """Import the class that `target` names; never run code of a package that is not trusted.

    Every module along the path must be in a trusted package (so `torch.os.system` is refused), and so must the class's
    own `__module__`. The class must not be in `ACTIVE_PARTS`: parts of packages whose classes can open files or run
    code that their arguments name. A package that the user trusts is searched in the working folder as well.

    Args:
        path: the import path, e.g. `monai.networks.nets.DynUNet`.
        kind: the required base class or classes; None accepts any callable.
        key: the key in the YAML, for error messages.
        trust: additional trusted packages; see `trusted_packages`.

    Returns:
        The class; if `kind` is None, it may be a function.

    Raises:
        MaskfoldError (exit status 2): the path is invalid, not trusted, or not of the required kind. If a name in it
            is unknown, the message lists the nearest existing names.

    Example:
        >>> import torch
        >>> resolve_target("torch.optim.AdamW", torch.optim.Optimizer, "optimizer.target").__name__
        'AdamW'
    """
    parts = check_import_path(path, key, trust)
    roots = trusted_packages(trust)
    if is_user_trusted(parts[0], trust):
        _add_working_folder(parts[0])
    resolved: Any = _import(parts[0], path, key)
    for part in parts[1:]:
        resolved = _get_member(resolved, part, path, key)
        if isinstance(resolved, ModuleType) and resolved.__name__.split(".")[0] not in roots:
            _raise_invalid(path, key, f"leads out of the package {parts[0]} into the module {resolved.__name__}")
    module = getattr(resolved, "__module__", None)
    if not isinstance(resolved, ModuleType) and (not isinstance(module, str) or module.split(".")[0] not in roots):
        _raise_invalid(path, key, f"comes from {module or 'an unknown module'}, not from a trusted package")
    if (active_part := find_active_part(f"{module}.{getattr(resolved, '__qualname__', '')}", trust)) is not None:
        raise MaskfoldError(
            f"{key}: `{path}` is in {active_part}, whose classes can read or write files or run code that their "
            "arguments name, so this class is refused.",
            f"Name another class. If you trust the YAML, add --trust {parts[0]}, which allows all classes of "
            f"{parts[0]}.",
            status=2,
        )
    _check_kind(resolved, kind, path, key)
    return resolved


def check_arguments(cls: Any, args: Mapping[str, Any], key: str, partial: bool = False) -> None:
    """Check the arguments in the YAML against a constructor's signature.

    If the constructor takes `**kwargs`, an unknown name is accepted unless it resembles a known name. Without this
    rule, the typing error in `smp.Unet(encoder_nmae=…)` would be ignored silently.

    Args:
        cls: the class.
        args: the keyword arguments for its constructor.
        key: the key in the YAML, e.g. `model.args`.
        partial: whether missing arguments are accepted, because the caller adds them later.

    Raises:
        MaskfoldError (exit status 2): an argument is unknown or missing.
    """
    parameters = _parameters(cls)
    if parameters is None:
        return
    known = [name for name, parameter in parameters.items() if parameter.kind in NAMED_KINDS]
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in args:
        if name in known:
            continue
        near = nearest_names(name, known, cutoff=MISSPELLING_SIMILARITY if takes_all else 0.6)
        if near or not takes_all:
            if near:
                hint = f"Did you mean {near[0]}?"
            elif known:
                hint = f"The arguments of {cls.__name__} are {join_or(known).replace(' or ', ' and ')}."
            else:
                hint = f"Remove {key}; {cls.__name__} has no arguments."
            raise MaskfoldError(f"{key}.{name}: {cls.__name__} has no argument of this name.", hint, status=2)
    missing = [name for name in known if parameters[name].default is Parameter.empty and name not in args]
    if missing and not partial:
        raise MaskfoldError(
            f"{key} lacks {join_or(missing).replace(' or ', ' and ')}, which {cls.__name__} requires.",
            f"Add {key}.{missing[0]}.",
            status=2,
        )


def check_targets(exp: Experiment, trust: Sequence[str] = ()) -> None:
    """Check every `target` of an experiment and the names of its `args` before the run starts.

    The values of the arguments are checked later, when the class is instantiated.

    Args:
        exp: the experiment.
        trust: additional trusted packages.

    Raises:
        MaskfoldError (exit status 2): a target or an argument is invalid. The message names its key.
    """
    import torch

    targets: list[tuple[str, Any, type]] = [("model", exp.model, torch.nn.Module)]
    is_list = isinstance(exp.loss, list)
    targets += [
        (f"loss.{number}" if is_list else "loss", loss, torch.nn.Module) for number, loss in enumerate(exp.losses)
    ]
    targets += [("optimizer", exp.optimizer, torch.optim.Optimizer)]
    targets += [
        (f"augment.transforms.{number}", transform, object)
        for number, transform in enumerate(exp.augment.transforms or [])
    ]
    for key, config, kind in targets:
        cls = resolve_target(config.target, kind, f"{key}.target", trust)
        check_arguments(cls, config.args, f"{key}.args", partial=True)
    exp.competition.metric.resolve()


def _add_working_folder(root: str) -> None:
    """Append the working folder to `sys.path`, if this is needed to find a user's own module.

    Modules of installed packages take precedence.
    """
    folder = os.getcwd()
    if root not in sys.modules and folder not in sys.path and importlib.util.find_spec(root) is None:
        sys.path.append(folder)


def _import(name: str, path: str, key: str) -> ModuleType:
    """Import a module of a trusted package."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name and "." not in name:
            raise MaskfoldError(
                f"{key}: `{path}` needs the package {name}, which is not installed.",
                f"Install {name}, or run the command in the folder that contains the package {name}.",
                status=2,
            ) from error
        if error.name == name:
            raise
        raise MaskfoldError(
            f"{key}: `{path}` needs the package {error.name}, which is not installed.",
            f"Install {error.name}.",
            status=2,
        ) from error
    except Exception as error:  # a user's module may raise anything on import
        raise MaskfoldError(
            f"{key}: {name} cannot be imported: {type(error).__name__}: {error}.",
            f"Correct {name} so that `python -c 'import {name}'` works.",
            status=2,
        ) from error


def _get_member(container: Any, part: str, path: str, key: str) -> Any:
    """Return a member of a module or class; if the member is a submodule, import it."""
    try:
        return getattr(container, part)
    except AttributeError:
        pass  # the member may be a submodule that is not imported yet
    except ImportError as error:  # the package imports a member lazily, and this import failed
        raise MaskfoldError(
            f"{key}: `{path}` needs a package that is not installed: {error}.", "Install this package.", status=2
        ) from error
    if isinstance(container, ModuleType) and hasattr(container, "__path__"):
        name = f"{container.__name__}.{part}"
        try:
            return _import(name, path, key)
        except ModuleNotFoundError:
            pass  # the error is raised below, with the nearest existing names
    near = nearest_names(part, [name for name in dir(container) if not name.startswith("_")], count=3)
    owner = getattr(container, "__name__", type(container).__name__)
    raise MaskfoldError(
        f"{key}: `{path}` does not exist: {owner} has no {part}.",
        f"Did you mean {join_or(near)}?" if near else f"The documentation of {owner} lists its classes.",
        status=2,
    )


def _check_kind(resolved: Any, kind: type | tuple[type, ...] | None, path: str, key: str) -> None:
    if kind is None:
        if not callable(resolved):
            _raise_invalid(path, key, f"is a {type(resolved).__name__} and cannot be called")
        return
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = join_or(
        "class" if base is object else f"{base.__module__.split('.')[0]} {base.__name__}" for base in kinds
    )
    if not isinstance(resolved, type):
        actual = "module" if isinstance(resolved, ModuleType) else type(resolved).__name__
        raise MaskfoldError(
            f"{key}: `{path}` is a {actual}, expected a {expected}.",
            "Name a class instead." + _suggest_classes(resolved, kinds),
            status=2,
        )
    if not issubclass(resolved, kinds):
        raise MaskfoldError(
            f"{key}: the class `{path}` is not derived from {expected}.",
            f"Name a class that is derived from {expected}.",
            status=2,
        )


def _suggest_classes(module: Any, kinds: tuple[type, ...]) -> str:
    """Return a hint that lists a module's classes, for a target that names the module instead of a class."""
    if not isinstance(module, ModuleType):
        return ""
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, kinds) and value.__module__ == module.__name__
    ]
    return f" The module contains {', '.join(names)}." if names else ""


def _raise_invalid(path: str, key: str, problem: str) -> NoReturn:
    raise MaskfoldError(f"{key}: `{path}` {problem}.", "Name a class of a trusted package.", status=2)


def _parameters(cls: Any) -> Mapping[str, Parameter] | None:
    """Return the parameters of a constructor; None if they cannot be inspected."""
    init = inspect.getattr_static(cls, "__init__") if isinstance(cls, type) else cls
    has_init = isinstance(cls, type) and init is not object.__init__
    try:  # of __init__, because smp's classes have a `__new__` that accepts any arguments
        parameters = dict(inspect.signature(init if has_init else cls).parameters)
    except (TypeError, ValueError):
        return None
    if has_init:
        parameters.pop(next(iter(parameters), ""), None)
    return parameters


# Trusted packages


def trusted_packages(extra: Sequence[str] = ()) -> frozenset[str]:
    """Return the names of all trusted packages.

    Args:
        extra: packages trusted on the command line (`--trust`). The packages in the environment variable
            `MASKFOLD_TRUST` (such as `a,b`) are added.

    Raises:
        MaskfoldError (exit status 2): an entry is not a package name.
    """
    return frozenset(TRUSTED_PACKAGES) | _user_trusted(extra)


def is_user_trusted(root: str, extra: Sequence[str] = ()) -> bool:
    """Return whether a package is trusted only because the command line or the environment names it."""
    return root not in TRUSTED_PACKAGES and root in _user_trusted(extra)


def is_wholly_trusted(root: str, extra: Sequence[str] = ()) -> bool:
    """Return whether the user trusts a package on the command line or in the environment.

    If so, even the package's classes in `ACTIVE_PARTS` are allowed, which can open files or run code.
    """
    return root in _user_trusted(extra)


def find_active_part(name: str, extra: Sequence[str] = ()) -> str | None:
    """Return the entry of `ACTIVE_PARTS` that contains a class; None if the class is allowed.

    Args:
        name: the class's defining module and name, joined by a dot.
        extra: packages trusted on the command line, as for `trusted_packages`.
    """
    if is_wholly_trusted(name.split(".")[0], extra):
        return None
    return next((part for part in ACTIVE_PARTS if f"{name}.".startswith(f"{part}.")), None)


def check_import_path(path: str, key: str, extra: Sequence[str] = ()) -> list[str]:
    """Check a class's import path without importing anything, and return its parts.

    Args:
        path: the import path.
        key: the key in the YAML, for error messages.
        extra: packages trusted on the command line, as for `trusted_packages`.

    Raises:
        MaskfoldError (exit status 2): `path` is not an import path, has a private part, or its package is not trusted.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise MaskfoldError(
            f"{key}: found `{path}`, expected the import path of a class.",
            "Write the full path, for example torch.optim.AdamW.",
            status=2,
        )
    private = [part for part in parts if part.startswith("_")]
    if private:
        raise MaskfoldError(
            f"{key}: `{path}` contains the private name `{private[0]}`, expected public names only.",
            "Use the public import path of the class.",
            status=2,
        )
    roots = trusted_packages(extra)
    if parts[0] not in roots:
        raise MaskfoldError(
            f"{key}: `{path}` is not in a trusted package. The trusted packages are {', '.join(sorted(roots))}.",
            _trust_hint(parts, roots),
            status=2,
        )
    return parts


def _user_trusted(extra: Sequence[str]) -> frozenset[str]:
    if isinstance(extra, str):
        extra = [extra]
    packages = [name.strip() for text in (*extra, os.environ.get(TRUST_VARIABLE, "")) for name in text.split(",")]
    for name in packages:
        if name and not name.isidentifier():
            raise MaskfoldError(
                f"--trust or {TRUST_VARIABLE}: found `{name}`, expected the name of a package without dots.",
                "Write only the first part of the import path, for example my_nets for my_nets.unet.Fancy.",
                status=2,
            )
    return frozenset(name for name in packages if name)


def _trust_hint(parts: list[str], roots: frozenset[str]) -> str:
    root = parts[0]
    package = ABBREVIATIONS.get(root) or next(iter(nearest_names(root, roots, cutoff=0.75)), None)
    if package is not None:
        return f"Did you mean {'.'.join([package, *parts[1:]])}?"
    if root in sys.stdlib_module_names:
        return "Name a class of a trusted package."
    return f"If you trust {root}, add --trust {root} or set {TRUST_VARIABLE}={root}."
