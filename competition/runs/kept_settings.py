"""Settings of `training` that change only the last bits of a result: each run keeps those that it was started with.

They are not in the run's hash, so a run of a version that did not have them is found as before. `experiment.yaml` in
the run's folder has the values; where it has none, the run was started before the setting existed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from competition.config.experiment import Experiment
from competition.config.yaml import read_yaml
from competition.errors import MaskfoldError

# Key of `training`, and its value in a run whose YAML does not have the key (or has `auto`).
KEPT_SETTINGS = {"memory_format": "channels_first", "fused": "off"}
FUSED_OPTIMIZERS = ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD")
OWN_KERNEL_ARGS = ("fused", "foreach", "capturable", "differentiable")  # of an optimiser: they select its kernel


def drop_execution_keys(training: dict[str, Any], *, kept: bool) -> None:
    """Remove the keys of `training` that say how a network runs, because names of older runs do not cover them.

    Args:
        training: the section as plain data; changed in place.
        kept: also remove the settings that a run keeps; False removes only values `auto`.
    """
    for key in (*KEPT_SETTINGS, "compile"):
        if training[key] == "auto" or (kept and key in KEPT_SETTINGS):
            del training[key]


def decide_settings(exp: Experiment, channels_last: bool) -> dict[str, str]:
    """Return the kept settings of a new run: those of the YAML, and for `auto` those that are faster.

    The decision depends on the YAML and the network, never on a measurement, so all processes decide alike.

    Args:
        exp: the experiment.
        channels_last: whether it suits the network, see `competition.models.build.suits_channels_last`.
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
    """Return the kept settings of the run in a folder; None if there is no run."""
    if not (folder / "experiment.yaml").exists():
        return None
    training = read_yaml(folder / "experiment.yaml").tree.get("training")
    stored: dict[str, Any] = training if isinstance(training, dict) else {}
    return {
        key: before if (value := str(stored.get(key, "auto"))) == "auto" else value
        for key, before in KEPT_SETTINGS.items()
    }


def with_kept_settings(exp: Experiment, folder: Path) -> Experiment:
    """Return the experiment with the kept settings of the run in a folder; as it is if there is no run yet.

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
    """Return the experiment with these keys of `training`."""
    return exp.model_copy(update={"training": exp.training.model_copy(update=settings)})
