"""A question before something is downloaded or spent."""

from __future__ import annotations

import sys

import typer

from competition.cli.main import fail
from competition.config import MaskfoldError


def ask(question: str, yes: bool, cure: str, otherwise: str) -> None:
    """Goes on with --yes, or when a person says so; else the program ends with `otherwise` and status 1.

    Raises:
        MaskfoldError: nobody can be asked (status 2).
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise MaskfoldError("Nobody can be asked: this is no terminal.", cure, status=2)
    if not typer.confirm(question):
        fail(otherwise, 1)
