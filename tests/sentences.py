"""A check of the texts of errors that does not depend on their wording."""

from __future__ import annotations

from competition.errors import MaskfoldError


def assert_readable(error: MaskfoldError) -> None:
    """Assert that the message ends as a sentence, and that the hint is a whole sentence."""
    assert error.message.endswith(".") and error.message != error.message.upper(), error.message
    hint = error.hint
    assert hint[:1].isupper() and hint.endswith(".") and hint != hint.upper(), hint
