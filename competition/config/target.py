"""`target` in a YAML file: the class behind an import path, if it is trusted and of the right kind."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from competition.config.errors import MaskfoldError
from competition.config.nearest import nearest, one_of
from competition.config.trust import active, check_path, trusted, trusted_by_user

if TYPE_CHECKING:
    from competition.config.experiment import Experiment

Parameter = inspect.Parameter
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
LIKENESS = 0.8  # from here on, an unknown name beside **kwargs is taken for a misspelt one


def resolve_target(path: str, kind: type | tuple[type, ...] | None, key: str, trust: Sequence[str] = ()) -> Any:
    """Find the class that `target` names, without running anything of a package that is not trusted.

    The path is followed from its package on. It may not leave the trusted packages on its way (`torch.os.system`), and
    the class itself has to come from one, by its own `__module__`, and not from a part of it that runs what arguments name
    (`trust.ACTIVE`). A package that the user trusts is also looked for in the working folder.

    Args:
        path: the import path, e.g. `monai.networks.nets.DynUNet`.
        kind: what the class has to be derived from; None takes anything that can be called.
        key: the key in the YAML, for the error.
        trust: packages that are trusted besides the known ones; see `competition.config.trust`.

    Returns:
        The class; for kind None possibly a function.

    Raises:
        MaskfoldError: status 2, with the nearest names where one is unknown.

    Example:
        >>> import torch
        >>> resolve_target("torch.optim.AdamW", torch.optim.Optimizer, "optimizer.target").__name__
        'AdamW'
    """
    parts = check_path(path, key, trust)
    roots = trusted(trust)
    if trusted_by_user(parts[0], trust):
        _look_here(parts[0])
    found: Any = _import(parts[0], path, key)
    for part in parts[1:]:
        found = _step(found, part, path, key)
        if isinstance(found, ModuleType) and found.__name__.split(".")[0] not in roots:
            _refuse(path, key, f"leads out of {parts[0]} into the module {found.__name__}")
    home = getattr(found, "__module__", None)
    if not isinstance(found, ModuleType) and (not isinstance(home, str) or home.split(".")[0] not in roots):
        _refuse(path, key, f"comes from {home or 'nowhere known'}, not from a trusted package")
    if (risky := active(f"{home}.{getattr(found, '__qualname__', '')}", trust)) is not None:
        raise MaskfoldError(
            f"{key}: `{path}` is of {risky}, whose classes read, write or run what their arguments name.",
            f"Name another class, or trust all of {parts[0]} with --trust {parts[0]}.",
            status=2,
        )
    _check_kind(found, kind, path, key)
    return found


def check_args(cls: Any, args: Mapping[str, Any], key: str, partial: bool = False) -> None:
    """Hold the arguments of the YAML against a constructor's signature.

    Where the constructor takes `**kwargs`, an unknown name passes unless it looks like a misspelt known one:
    `smp.Unet(encoder_nmae=…)` would be swallowed silently.

    Args:
        cls: the class.
        args: its keyword arguments.
        key: the key in the YAML, e.g. `model.args`.
        partial: further arguments follow, so that missing ones are no error.

    Raises:
        MaskfoldError: status 2; an argument is unknown or missing.
    """
    parameters = _parameters(cls)
    if parameters is None:
        return
    known = [name for name, parameter in parameters.items() if parameter.kind in NAMED]
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in args:
        if name in known:
            continue
        near = nearest(name, known, cutoff=LIKENESS if takes_all else 0.6)
        if near or not takes_all:
            cure = (
                f"Did you mean {near[0]}?"
                if near
                else (f"It takes {one_of(known)}." if known else f"Leave {key} out, it takes none.")
            )
            raise MaskfoldError(f"{key}.{name} is not an argument of {cls.__name__}.", cure, status=2)
    missing = [name for name in known if parameters[name].default is Parameter.empty and name not in args]
    if missing and not partial:
        raise MaskfoldError(
            f"{key} lacks {one_of(missing).replace(' or ', ' and ')}, which {cls.__name__} requires.",
            f"Add {key}.{missing[0]}.",
            status=2,
        )


def check_targets(exp: Experiment, trust: Sequence[str] = ()) -> None:
    """Check every `target` of an experiment and the names of its `args`, before anything starts.

    What a class makes of its arguments is checked where it is built.

    Args:
        exp: the experiment.
        trust: packages that are trusted besides the known ones.

    Raises:
        MaskfoldError: status 2, naming the key.
    """
    import torch

    slots: list[tuple[str, Any, type]] = [("model", exp.model, torch.nn.Module)]
    several = isinstance(exp.loss, list)
    slots += [
        (f"loss.{number}" if several else "loss", loss, torch.nn.Module) for number, loss in enumerate(exp.losses)
    ]
    slots += [("optimizer", exp.optimizer, torch.optim.Optimizer)]
    slots += [
        (f"augment.transforms.{number}", transform, object)
        for number, transform in enumerate(exp.augment.transforms or [])
    ]
    for key, slot, kind in slots:
        check_args(resolve_target(slot.target, kind, f"{key}.target", trust), slot.args, f"{key}.args", partial=True)


def _look_here(root: str) -> None:
    """Let Python find a user's own module in the working folder, after everything that is installed."""
    here = os.getcwd()
    if root not in sys.modules and here not in sys.path and importlib.util.find_spec(root) is None:
        sys.path.append(here)


def _import(name: str, path: str, key: str) -> ModuleType:
    """Import a module of a trusted package."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name and "." not in name:
            raise MaskfoldError(
                f"{key}: `{path}` needs the package {name}, which is not installed.",
                f"Install {name}, or run from the folder that holds it.",
                status=2,
            ) from error
        if error.name == name:
            raise
        raise MaskfoldError(
            f"{key}: `{path}` needs the package {error.name}, which is not installed.",
            f"Install {error.name}.",
            status=2,
        ) from error
    except Exception as error:  # whatever somebody's module does while it is imported
        raise MaskfoldError(
            f"{key}: {name} cannot be imported: {type(error).__name__}: {error}.",
            f"Correct {name} until `python -c 'import {name}'` works.",
            status=2,
        ) from error


def _step(found: Any, part: str, path: str, key: str) -> Any:
    """From a module or class to what it holds."""
    try:
        return getattr(found, part)
    except AttributeError:
        pass  # perhaps a module that nobody has imported yet
    except ImportError as error:  # a lazy import within the package
        raise MaskfoldError(
            f"{key}: `{path}` needs something that is not installed: {error}.", "Install it.", status=2
        ) from error
    if isinstance(found, ModuleType) and hasattr(found, "__path__"):
        name = f"{found.__name__}.{part}"
        try:
            return _import(name, path, key)
        except ModuleNotFoundError:
            pass  # told below, with the names that are there
    near = nearest(part, [name for name in dir(found) if not name.startswith("_")], count=3)
    where = getattr(found, "__name__", type(found).__name__)
    raise MaskfoldError(
        f"{key}: `{path}` does not exist, since {where} has no {part}.",
        f"Did you mean {one_of(near)}?" if near else f"Look up what {where} holds.",
        status=2,
    )


def _check_kind(found: Any, kind: type | tuple[type, ...] | None, path: str, key: str) -> None:
    if kind is None:
        if not callable(found):
            _refuse(path, key, f"is a {type(found).__name__} and cannot be called")
        return
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = one_of(f"{one.__module__.split('.')[0]} {one.__name__}" if one is not object else "class" for one in kinds)
    if not isinstance(found, type):
        what = "module" if isinstance(found, ModuleType) else type(found).__name__
        raise MaskfoldError(
            f"{key}: `{path}` is a {what}, where a {wanted} is expected.",
            "Name a class." + _class_inside(found, kinds),
            status=2,
        )
    if not issubclass(found, kinds):
        raise MaskfoldError(
            f"{key}: `{path}` is a class, but not a {wanted}.", f"Name a class that is derived from {wanted}.", status=2
        )


def _class_inside(found: Any, kinds: tuple[type, ...]) -> str:
    """For a module that is named instead of the class in it."""
    inside = (
        [
            name
            for name, value in vars(found).items()
            if isinstance(value, type) and issubclass(value, kinds) and value.__module__ == found.__name__
        ]
        if isinstance(found, ModuleType)
        else []
    )
    return f" The module holds {', '.join(inside)}." if inside else ""


def _refuse(path: str, key: str, why: str) -> NoReturn:
    raise MaskfoldError(f"{key}: `{path}` {why}.", "Name a class of a trusted package where it is defined.", status=2)


def _parameters(cls: Any) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a constructor; None where they cannot be known."""
    init = inspect.getattr_static(cls, "__init__") if isinstance(cls, type) else cls
    own = isinstance(cls, type) and init is not object.__init__
    try:  # not the class's own signature: smp's classes have a `__new__` that takes anything
        parameters = dict(inspect.signature(init if own else cls).parameters)
    except (TypeError, ValueError):
        return None
    if own:
        parameters.pop(next(iter(parameters), ""), None)
    return parameters
