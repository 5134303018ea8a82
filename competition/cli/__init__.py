"""The command line: `maskfold`. Heavy libraries are imported by the commands that need them."""

import sys

__all__ = ["main"]

try:
    from competition.cli.main import main
except KeyboardInterrupt:  # in the fraction of a second that the import takes
    print("stopped", file=sys.stderr)
    raise SystemExit(130) from None
except ImportError as error:
    if (error.name or "").split(".")[0] == "competition":
        raise
    MISSING = str(error)

    def main() -> None:
        """Say what is missing, and how to see whether anything else is."""
        print(
            f"error: {MISSING}. `python -m competition.doctor` lists what is missing; "
            "pip install -r requirements.lock mends it.",
            file=sys.stderr,
        )
        sys.exit(1)
