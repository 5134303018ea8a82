"""Define the exceptions for errors that a user can fix. Each error says what is wrong and what to do."""

from __future__ import annotations

import re

# Python represents a byte of a file name that is not valid UTF-8 as a character from U+DC80 to U+DCFF.
SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text that can be printed and saved, in which a file name's invalid UTF-8 bytes are escaped.

    Python represents such a byte as a surrogate character. The byte becomes text such as `\xe9`.

    Example:
        >>> printable("caf\udce9.png") == r"caf\xe9.png"
        True
    """
    return SURROGATE.sub(_escape_surrogate, text)


def _escape_surrogate(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


class MaskfoldError(Exception):
    """Report an error that the user can fix.

    Args:
        message: one sentence that says what is wrong, with the file, the row and the id.
        hint: one sentence that says what to do.
        status: the exit status of the command line: 1 if the work failed, 2 for invalid arguments or YAML.

    Example:
        >>> str(MaskfoldError("a.png cannot be read.", "Replace the file."))
        'a.png cannot be read. Replace the file.'
    """

    def __init__(self, message: str, hint: str, *, status: int = 1) -> None:
        message, hint = printable(message), printable(hint)
        super().__init__(f"{message} {hint}")
        self.message = message
        self.hint = hint
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        """Return a constructor call with all attributes, so that the error can be sent to another process."""
        return _rebuild, (type(self), self.message, self.hint, self.status)


class ChangedDataError(MaskfoldError):
    """Report that a case's file has changed since the case table was made.

    A changed case always stops the command: the setting `on_bad_case: skip` does not skip the case.
    """


def _rebuild(kind: type[MaskfoldError], message: str, hint: str, status: int) -> MaskfoldError:
    return kind(message, hint, status=status)
