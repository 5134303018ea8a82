"""The `maskfold` command line. Each command imports the heavy libraries that it needs."""

import sys

__all__ = ["main"]

try:
    from competition.cli.main import main
except KeyboardInterrupt:  # Ctrl-C during the import
    print("stopped", file=sys.stderr)
    raise SystemExit(130) from None
except ImportError as error:
    if (error.name or "").split(".")[0] == "competition":
        raise
    MISSING = str(error)

    def main() -> None:
        """Report the missing package and how to install it."""
        print(
            f"error: {MISSING}. Run `python -m competition.doctor` to list all missing packages, and "
            "`pip install -r requirements.lock` to install them.",
            file=sys.stderr,
        )
        sys.exit(1)
