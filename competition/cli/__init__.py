"""Define the command line `maskfold`. Each command imports only the heavy libraries that it needs."""

import sys
from typing import NoReturn

__all__ = ["main"]

_import_error: ImportError | None = None
try:
    from competition.cli.main import main as _run_command
except KeyboardInterrupt:  # Ctrl-C during the import
    print("stopped", file=sys.stderr)
    raise SystemExit(130) from None
except ImportError as error:
    _import_error = error


def main() -> None:
    """Run the command line; if a package is missing, print its name and how to install it."""
    if _import_error is not None:
        _report_missing(_import_error)
    try:
        _run_command()
    except ModuleNotFoundError as error:
        _report_missing(error)


def _report_missing(error: ImportError) -> NoReturn:
    """Print which package is missing, and exit; for the command `maskfold doctor`, print its report instead."""
    if (error.name or "").split(".")[0] == "competition":  # the missing module is part of Maskfold, so this is a bug
        raise error
    if sys.argv[1:2] == ["doctor"]:
        from competition.doctor.checks import print_report

        sys.exit(print_report())
    print(
        f"error: {error}. Run `python -m competition.doctor` to list all missing packages, and "
        "`pip install -r requirements.lock` to install them.",
        file=sys.stderr,
    )
    sys.exit(1)
