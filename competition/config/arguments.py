"""Refuse arguments in the YAML that name files, addresses, caches or hubs, unless the user allows them.

A `target` can name only classes of trusted packages, but the YAML may come from a stranger, who chooses the arguments.
With a path in `cache_dir`, a class can write files anywhere, and with `checkpoint_path`, it may unpickle a file. The
check reads only the names and values of the arguments, so it imports no class. If the user trusts the package of a
class (`--trust`), the arguments of this class are not checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from competition.config.instantiate import is_wholly_trusted
from competition.errors import MaskfoldError

ALLOW_VARIABLE = "MASKFOLD_ALLOW"  # child processes inherit this variable, so `--allow` also applies to folds
SECTIONS = ("model", "loss", "optimizer", "augment")  # the sections of the YAML with a `target`
# Maskfold's own keys for pretrained weights; competition.models.pretrained reads and checks their values.
WEIGHTS_KEYS = ("model.args.encoder_weights", "model.args.pretrained")

# Names that the patterns below do not match. Each is refused for every target, because segmentation_models_pytorch
# passes arguments on to timm, and a class may be imported through another package.
NAMES_BY_LIBRARY = {
    "albumentations": ("reference_images", "read_fn"),
    "monai": ("bert_config", "reader", "writer", "resource"),
    "timm": ("pretrained_cfg", "pretrained_cfg_overlay", "source", "state_dict", "custom_load", "revision"),
    "huggingface_hub": ("hf_hub_id", "hf_hub_filename", "repo_id", "endpoint", "token"),
}
REFUSED_NAMES = frozenset(name for names in NAMES_BY_LIBRARY.values() for name in names)
NAME_PARTS = frozenset(
    ("dir", "dirs", "directories", "directory", "hf", "hub", "pretrained", "repo", "repos", "repository", "root", "uri")
    + ("uris", "weights")
)
NAME_ENDINGS = ("cache", "checkpoint", "ckpt", "download", "file", "filename", "folder", "path", "url")
# Names for which the value `true` starts a download; for other names (`use_checkpoint`, `cache_grid`) it is harmless.
DOWNLOAD_PARTS = frozenset(("custom", "download", "downloads", "pretrained"))
HUB_PREFIX = re.compile(r"(?:hf[_-]?hub|local[_-]?dir|file|data|https?|ftp|s3|gs)\s*:", re.IGNORECASE)
FILE_NAME = re.compile(
    r"\.(?:pth|pt|ckpt|bin|safetensors|pkl|pickle|npy|npz|onnx|h5|hdf5|gguf|msgpack|json|ya?ml|toml|txt|csv|py|pyc|so|sh|"
    r"zip|tar|gz|tgz|xz|whl|ttf|otf|png|jpe?g|tiff?|nii|dcm)$",
    re.IGNORECASE,
)
NAME_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
MAX_SHOWN = 80  # characters of a value in a message


class RefusedArgument(NamedTuple):
    """Describe an argument that names a file, an address, a cache or a hub."""

    key: str  # the key in the YAML, e.g. `model.args.cache_dir`
    value: Any
    reason: str  # why it is refused, for the message


def check_argument_values(
    target: str, args: Mapping[str, Any], key: str, trust: Sequence[str] = (), where: str = ""
) -> None:
    """Check that no argument, nested ones included, names a file, an address, a cache or a hub.

    Args:
        target: the import path of the class; if the user trusts its package, its arguments are not checked.
        args: the arguments of the class in the YAML.
        key: the key of these arguments in the YAML, e.g. `model.args`.
        trust: packages trusted on the command line.
        where: the file and line of the arguments, with which the message begins, e.g. `unet2d.yaml, line 9: `; empty if
            they are not known.

    Raises:
        MaskfoldError (exit status 2): an argument names a file, an address, a cache or a hub, and the user did not
            allow its key.
    """
    if is_wholly_trusted(target.split(".")[0], trust):
        return
    for found in refused_arguments(args, key, trust):
        if is_allowed(found.key):
            continue
        shown = repr(found.value)
        shown = shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "…"
        raise MaskfoldError(
            f"{where}{found.key}: found {shown}, {found.reason}. Maskfold refuses arguments that may select a "
            "file, an address, a cache or a hub.",
            f"Remove {found.key}. To load pretrained weights, set `encoder_weights`. If you trust the YAML, add "
            f"--allow {found.key} or set {ALLOW_VARIABLE}={found.key}.",
            status=2,
        )


def refused_arguments(args: Mapping[str, Any], key: str, trust: Sequence[str] = ()) -> Iterator[RefusedArgument]:
    """Yield the arguments whose name or value may refer to a file, an address, a cache or a hub.

    Args:
        args: the arguments in the YAML. An argument may contain other targets, such as the transforms of a group;
            their arguments are checked too.
        key: the key of these arguments in the YAML.
        trust: packages trusted on the command line; arguments of classes in these packages are not yielded.
    """
    for name, value in args.items():
        argument_key = f"{key}.{name}"
        if argument_key in WEIGHTS_KEYS and isinstance(value, str | bool | None):
            continue
        if is_refused_name(str(name)) and _names_something(str(name), value):
            yield RefusedArgument(argument_key, value, f"but the argument `{name}` may open a file or a hub")
        else:
            yield from _refused_values(value, argument_key, trust)


def is_refused_name(name: str) -> bool:
    """Return whether an argument with this name may select a file, an address, a cache or a hub.

    Example:
        >>> is_refused_name("cache_dir"), is_refused_name("decoder_channels")
        (True, False)
    """
    parts = _parts(name)
    return (
        name in REFUSED_NAMES
        or not NAME_PARTS.isdisjoint(parts)
        or any(part.removesuffix("s").endswith(NAME_ENDINGS) for part in parts)
    )


def _parts(name: str) -> list[str]:
    return [word.lower() for word in NAME_WORDS.findall(name)]


def _names_something(name: str, value: Any) -> bool:
    """Return whether an argument with a suspicious name, such as `cache_dir`, is refused because of its value.

    Text and mappings are refused. Numbers (`drop_path_rate: 0.1`), False and None are allowed, because they name no
    file. True is refused only if the argument's name means a download, e.g. `pretrained`.
    """
    if value is True:
        return not DOWNLOAD_PARTS.isdisjoint(_parts(name))
    if isinstance(value, list | tuple):
        return any(_names_something(name, item) for item in value)
    return not isinstance(value, bool | int | float | None)


def _refused_values(value: Any, key: str, trust: Sequence[str]) -> Iterator[RefusedArgument]:
    if isinstance(value, Mapping):
        target = value.get("target")
        if isinstance(target, str) and is_wholly_trusted(target.split(".")[0], trust):
            # The nested target's arguments are those of its own class.
            value = {name: item for name, item in value.items() if name != "args"}
        yield from refused_arguments(value, key, trust)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _refused_values(item, f"{key}.{index}", trust)
    elif isinstance(value, bytes | os.PathLike):
        yield RefusedArgument(key, value, "a path")
    elif isinstance(value, str) and (reason := _describe_text(value)) is not None:
        yield RefusedArgument(key, value, f"{reason}")


def _describe_text(text: str) -> str | None:
    """Return what a text refers to, e.g. `a path` or `an address`; None if it refers to no file, address or hub."""
    if "://" in text:
        return "an address"
    if HUB_PREFIX.search(text):
        return "the name of a hub, an address or a folder"
    if "/" in text or "\\" in text or text.startswith("~") or text in (".", ".."):
        return "a path"
    if FILE_NAME.search(text):
        return "a file name"
    try:
        return "the name of a file in the working folder" if os.path.isfile(text) else None
    except ValueError:  # a null character
        return "not a name"


# What the user allows


def allow_arguments(keys: Sequence[str]) -> None:
    """Allow arguments in this process and in the processes that it starts (`--allow` on the command line).

    Args:
        keys: keys of the arguments in the YAML, e.g. `model.args.checkpoint_path`. A key also allows all arguments
            below it, so `model.args` allows all arguments of the network.

    Raises:
        MaskfoldError (exit status 2): a key is not below `model`, `loss`, `optimizer` or `augment`.
    """
    if keys:
        os.environ[ALLOW_VARIABLE] = ",".join([*allowed_keys(), *_split(keys, "--allow")])


def allowed_keys() -> tuple[str, ...]:
    """Return the keys of the arguments that the user allows, from the environment variable `MASKFOLD_ALLOW`.

    Raises:
        MaskfoldError (exit status 2): a key is not below `model`, `loss`, `optimizer` or `augment`.
    """
    return _split([os.environ.get(ALLOW_VARIABLE, "")], ALLOW_VARIABLE)


def is_allowed(key: str) -> bool:
    """Return whether the user allows the argument with this key (`--allow`).

    A key also allows all arguments below it. For example, `model.args` allows `model.args.cache_dir`.
    """
    return any(f"{key}.".startswith(f"{allowed}.") for allowed in allowed_keys())


def allows_any_below(key: str) -> bool:
    """Return whether the user allows this key, e.g. `model.args`, or at least one argument below it (`--allow`)."""
    return is_allowed(key) or any(allowed.startswith(f"{key}.") for allowed in allowed_keys())


def _split(texts: Sequence[str], source: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for text in texts for key in text.split(",") if key.strip())
    for key in keys:
        if key.split(".")[0] not in SECTIONS:
            raise MaskfoldError(
                f"{source}: found `{key}`, expected the key of an argument below {', '.join(SECTIONS)}.",
                "Write the whole key, for example model.args.checkpoint_path.",
                status=2,
            )
    return keys
