"""Why a series is not converted: one reason, which ends in the table and never stops the other series."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from competition.config.errors import MaskfoldError
from competition.data.files import FullDisk


class Refused(Exception):
    """A series, or one of its files, that cannot become a volume; the text says why."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns whatever a decoder raises inside into `Refused` that begins with `what`.

    Raises:
        Refused: for anything that goes wrong inside.
        FullDisk: nothing more can be written; the other series would fail as well.
    """
    try:
        yield
    except (Refused, FullDisk):
        raise
    except MaskfoldError as error:
        raise Refused(error.wrong.rstrip(".")) from error
    except Exception as error:  # decoders meet arbitrary bytes and raise arbitrary types
        words = " ".join(str(error).split())[:200]
        raise Refused(f"{what} ({type(error).__name__}{': ' + words if words else ''})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom's remarks on files that break the standard a little: they cannot be cured by the reader."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
