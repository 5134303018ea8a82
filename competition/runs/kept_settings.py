"""Give a run the same execution settings in every command: `training.memory_format` and `training.fused`.

These two settings select how the network and the optimiser are computed, and change only the last bits of a result. A
new run decides them once and stores them in the `experiment.yaml` of its folder; this module calls them kept settings.
When the run resumes, they must be the same.

The run's hash does not include them, so that runs of older versions, which did not have these settings, are still
found. If a run's YAML has no value, the run is older than the setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from competition.config.experiment import Experiment
from competition.config.yaml import read_yaml
from competition.errors import MaskfoldError

# The keys of `training`, each with the value that applies to runs whose YAML has no value or `auto`.
KEPT_SETTINGS = {"memory_format": "channels_first", "fused": "off"}
FUSED_OPTIMIZERS = ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD")
OWN_KERNEL_ARGS = ("fused", "foreach", "capturable", "differentiable")  # these keys select the optimiser's kernel


def drop_execution_keys(training: dict[str, Any], *, kept: bool) -> None:
    """Remove the execution settings from the section `training`, because the run's hash excludes them.

    The execution settings are the keys of `KEPT_SETTINGS`, and `compile`. `compile` is removed only if its value is
    `auto`.

    Args:
        training: the section as plain data; it is changed in place.
        kept: whether to remove the keys of `KEPT_SETTINGS` with any value; False removes them only if their value is
            `auto`.
    """
    for key in (*KEPT_SETTINGS, "compile"):
        if training[key] == "auto" or (kept and key in KEPT_SETTINGS):
            del training[key]


def decide_settings(exp: Experiment, channels_last: bool) -> dict[str, str]:
    """Return the values of `KEPT_SETTINGS` for a new run: those of the YAML, with `auto` replaced by the faster value.

    The decision depends only on the YAML and the network, and not on a measurement, so that all processes decide alike.

    Args:
        exp: the experiment.
        channels_last: whether channels_last suits the network, see `competition.models.build.suits_channels_last`.

    Returns:
        The value of each key of `KEPT_SETTINGS`.
    """
    is_mps = exp.run.accelerator == "mps"
    has_kernel = exp.optimizer.target in FUSED_OPTIMIZERS and not any(
        key in exp.optimizer.args for key in OWN_KERNEL_ARGS
    )
    decided = {
        "memory_format": "channels_last" if channels_last and not is_mps else "channels_first",
        "fused": "on" if has_kernel and not is_mps else "off",
    }
    asked = {key: getattr(exp.training, key) for key in KEPT_SETTINGS}
    return {key: decided[key] if value == "auto" else value for key, value in asked.items()}


def stored_settings(folder: Path) -> dict[str, str] | None:
    """Return the values of `KEPT_SETTINGS` that a run's folder stores; None if the folder contains no run."""
    if not (folder / "experiment.yaml").exists():
        return None
    training = read_yaml(folder / "experiment.yaml").tree.get("training")
    return _resolved(training if isinstance(training, dict) else {})


def kept_settings(exp: Experiment) -> dict[str, str]:
    """Return the values of `KEPT_SETTINGS` in an experiment, as checkpoints store them.

    `auto` becomes the old default, the behaviour of versions that did not have the setting.
    """
    return _resolved({key: getattr(exp.training, key) for key in KEPT_SETTINGS})


def _resolved(training: Mapping[str, Any]) -> dict[str, str]:
    """Return the values of `KEPT_SETTINGS` in a section `training`; a missing value or `auto` means the old default.

    The old default is the behaviour of versions that did not have the setting.
    """
    found = {key: str(training.get(key, "auto")) for key in KEPT_SETTINGS}
    return {key: KEPT_SETTINGS[key] if value == "auto" else value for key, value in found.items()}


def check_kept_settings(found: Mapping[str, str], exp: Experiment, path: Path) -> None:
    """Check that a checkpoint was written with the run's values of `KEPT_SETTINGS`.

    The state of the optimiser in the checkpoint depends on these settings.

    Args:
        found: values of `KEPT_SETTINGS` in the checkpoint.
        exp: the run's experiment.
        path: path of the checkpoint, in the fold's folder.

    Raises:
        MaskfoldError: a setting differs.
    """
    for key, value in kept_settings(exp).items():
        if found.get(key) != value:
            raise MaskfoldError(
                f"The checkpoint {path} was written with training.{key}={found.get(key)}, but the run's "
                f"experiment.yaml has {value}.",
                f"Set training.{key}: {found.get(key)} in {path.parent.parent / 'experiment.yaml'}.",
            )


def with_kept_settings(exp: Experiment, folder: Path) -> Experiment:
    """Return the experiment with the values of `KEPT_SETTINGS` that a run's folder stores.

    If the folder contains no run yet, return the experiment unchanged.

    Raises:
        MaskfoldError: the YAML asks for another setting than the run was started with.
    """
    if (stored := stored_settings(folder)) is None:
        return exp  # `competition.training.cross_validate.prepare_run` decides
    for key, value in stored.items():
        asked = getattr(exp.training, key)
        if asked not in ("auto", value):
            raise MaskfoldError(
                f"The run {folder} was started with training.{key}={value}, but the value is now {asked}.",
                f"Set training.{key}=auto, or start another run with --new.",
            )
    return with_settings(exp, stored)


def with_settings(exp: Experiment, settings: dict[str, str]) -> Experiment:
    """Return a copy of the experiment whose section `training` has the values in `settings`, a value for each key."""
    return exp.model_copy(update={"training": exp.training.model_copy(update=settings)})
