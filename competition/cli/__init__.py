"""The command line: `maskfold`. Heavy libraries are imported by the commands that need them."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; where a package of its own is missing, say how to find out which."""
    try:
        from competition.cli.main import main as run
    except ImportError as error:
        if (error.name or "").split(".")[0] == "competition":
            raise
        print(f"error: {error}. `python -m competition.doctor` lists what is missing; "
              "pip install -r requirements.lock mends it.", file=sys.stderr)
        sys.exit(1)
    run()
