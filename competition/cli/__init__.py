"""The command line: `maskfold`. Heavy libraries are imported by the commands that need them."""

from competition.cli.main import main

__all__ = ["main"]
