"""A check of error messages that does not depend on their wording."""

from __future__ import annotations

from competition.errors import MaskfoldError


def assert_readable(error: MaskfoldError) -> None:
    """Assert that the message ends with a full stop, and that the hint also begins with a capital letter."""
    assert error.message.endswith(".") and error.message != error.message.upper(), error.message
    hint = error.hint
    assert hint[:1].isupper() and hint.endswith(".") and hint != hint.upper(), hint
