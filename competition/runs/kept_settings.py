"""Keep, for each run, the settings of `training` that change only the last bits of a result.

The run's hash does not include these settings, so Maskfold still finds runs of versions without them. `experiment.yaml`
in the run's folder stores the values. A missing value means that the run is older than the setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from competition.config.experiment import Experiment
from competition.config.yaml import read_yaml
from competition.errors import MaskfoldError

# Key of `training`, and its value in a run whose YAML does not have the key (or has `auto`).
KEPT_SETTINGS = {"memory_format": "channels_first", "fused": "off"}
FUSED_OPTIMIZERS = ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD")
OWN_KERNEL_ARGS = ("fused", "foreach", "capturable", "differentiable")  # these keys select the optimiser's kernel


def drop_execution_keys(training: dict[str, Any], *, kept: bool) -> None:
    """Remove the keys of `training` that the run's hash excludes, because they set only how a network is executed.

    Args:
        training: the section as plain data; it is changed in place.
        kept: whether to remove the settings that a run keeps even if their value is not `auto`.
    """
    for key in (*KEPT_SETTINGS, "compile"):
        if training[key] == "auto" or (kept and key in KEPT_SETTINGS):
            del training[key]


def decide_settings(exp: Experiment, channels_last: bool) -> dict[str, str]:
    """Return the settings that a new run keeps: the YAML's values; the faster value replaces `auto`.

    The choice depends on the YAML and the network, never on a measurement, so all processes choose the same values.

    Args:
        exp: the experiment.
        channels_last: whether channels_last suits the network, see `competition.models.build.suits_channels_last`.
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
    """Return the settings that the run in a folder keeps; None if there is no run."""
    if not (folder / "experiment.yaml").exists():
        return None
    training = read_yaml(folder / "experiment.yaml").tree.get("training")
    return _resolved(training if isinstance(training, dict) else {})


def kept_settings(exp: Experiment) -> dict[str, str]:
    """Return the settings in an experiment that its run keeps, in the form that the checkpoints store."""
    return _resolved({key: getattr(exp.training, key) for key in KEPT_SETTINGS})


def _resolved(training: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings in a run's section `training`.

    If a value is missing or `auto`, return the value of older runs.
    """
    found = {key: str(training.get(key, "auto")) for key in KEPT_SETTINGS}
    return {key: KEPT_SETTINGS[key] if value == "auto" else value for key, value in found.items()}


def check_kept_settings(found: Mapping[str, str], exp: Experiment, path: Path) -> None:
    """Check that a checkpoint was written with the run's settings, because the optimiser's state depends on them.

    Args:
        found: settings in the checkpoint.
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
    """Return the experiment with the settings that the run in a folder keeps; unchanged if there is no run yet.

    Raises:
        MaskfoldError: the YAML asks for another setting than the run was started with.
    """
    if (stored := stored_settings(folder)) is None:
        return exp  # `competition.training.cross_validate.prepare_run` decides
    for key, value in stored.items():
        asked = getattr(exp.training, key)
        if asked not in ("auto", value):
            raise MaskfoldError(
                f"The run {folder} was started with training.{key}={value}; now training.{key}={asked}.",
                f"Set training.{key}=auto, or start another run with --new.",
            )
    return with_settings(exp, stored)


def with_settings(exp: Experiment, settings: dict[str, str]) -> Experiment:
    """Return the experiment with the keys of `training` set to `settings`."""
    return exp.model_copy(update={"training": exp.training.model_copy(update=settings)})
