"""All looks, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from competition.doctor.finding import Finding, first_line

Look = Callable[[Path], list[Finding]]


def looks() -> dict[str, Look]:
    """What is looked at, by the name that is shown should the look itself fail."""
    from competition.doctor import accelerators, credentials, disk, machine, packages, software, store

    return {
        "packages": lambda _: packages.look(),
        "machine": lambda _: machine.look(),
        "accelerators": lambda _: accelerators.look(),
        "disk": disk.look,
        "MLflow's store": store.look_mlflow,
        "Optuna's storage": store.look_optuna,
        "kaggle": lambda _: credentials.look(),
        "extras": lambda _: packages.look_extras(),
        "software": lambda _: software.look(),
    }


def examine(root: Path | None = None) -> list[Finding]:
    """Look at everything.

    Args:
        root: the folder that holds `mlruns/`; the working folder by default.

    Returns:
        The rows of the table. Whatever a look raises becomes a row of its own.
    """
    found: list[Finding] = []
    for name, look in looks().items():
        try:
            found += look(root or Path.cwd())
        except Exception as error:  # noqa: BLE001 - one look that fails must not hide the others
            found.append(
                Finding(
                    name,
                    "warning",
                    f"could not be examined: {type(error).__name__}: {first_line(error)}",
                    "Please report this.",
                )
            )
    return found
