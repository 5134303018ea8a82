"""Run all checks and print their results: as a table on a terminal, otherwise as one line per row."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from competition.doctor.finding import CheckResult, first_line

Check = Callable[[Path], list[CheckResult]]


def all_checks() -> dict[str, Check]:
    """Return all checks by name.

    `run_checks` uses the name only if a check raises an error: the row with the error then has this name.
    """
    from competition.doctor import machine, packages, stores

    return {
        "packages": lambda _: packages.check_packages(),
        "machine": lambda _: machine.check_machine(),
        "accelerators": lambda _: machine.check_accelerators(),
        "disk": stores.check_disk,
        "MLflow's store": stores.check_mlflow_store,
        "Optuna's storage": stores.check_optuna_storage,
        "kaggle": lambda _: machine.check_credentials(),
        "extras": lambda _: packages.check_extras(),
        "software": lambda _: machine.check_software(),
    }


def run_checks(root: Path | None = None) -> list[CheckResult]:
    """Run all checks.

    Args:
        root: the folder that contains `mlruns/`; None means the working folder.

    Returns:
        The rows of the table. If a check raises an error, its rows are replaced by a warning with the error.
    """
    findings: list[CheckResult] = []
    for name, check in all_checks().items():
        try:
            findings += check(root or Path.cwd())
        except Exception as error:  # noqa: BLE001 - a failing check must not hide the others
            detail = f"the check failed: {type(error).__name__}: {first_line(error)}"
            findings.append(CheckResult(name, "warning", detail, "Please report this error."))
    return findings


STYLES = {"ok": "green", "warning": "yellow", "unusable": "bold red"}


def print_report(root: Path | None = None) -> int:
    """Run all checks and print the table.

    Args:
        root: the folder that contains `mlruns/`; None means the working folder.

    Returns:
        The exit status: 1 if a row has the state `unusable`, otherwise 0.
    """
    if sys.stderr.isatty():
        print("checking; importing all packages takes a while …", file=sys.stderr)
    findings = run_checks(root)
    print_table(findings)
    print(summary_line(findings))
    return int(any(finding.state == "unusable" for finding in findings))


def print_table(findings: list[CheckResult]) -> None:
    """Print the rows: as a table on a terminal, otherwise one line per row."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.markup import escape
            from rich.table import Table
        except ImportError:
            pass  # the table reports that the package is missing
        else:
            table = Table(title="maskfold doctor")
            for name in ("check", "state", "result and hint"):
                table.add_column(name, no_wrap=name == "state")
            for row in findings:
                table.add_row(escape(row.name), f"[{STYLES[row.state]}]{row.state}[/]", escape(row.text))
            Console(highlight=False).print(table)
            return
    width = max(len(row.name) for row in findings)
    for row in findings:
        print(f"{row.state:8}  {row.name:{width}}  {row.text}")


def summary_line(findings: list[CheckResult]) -> str:
    """Return the last line of the report, which lists the checks with problems."""
    names = {state: [row.name for row in findings if row.state == state] for state in ("unusable", "warning")}
    parts = [f"rows with the state {state}: {', '.join(checks)}" for state, checks in names.items() if checks]
    return "; ".join(parts) or "all checks passed"
