"""The one exception a user sees: what is wrong, and what to do about it."""


class MaskfoldError(Exception):
    """An error that the user can cure.

    Args:
        wrong: one sentence that says what is wrong, with the file, the row and the id.
        cure: one sentence that says what to do.
        status: the exit status of the command line: 1 the work failed, 2 the words or the YAML are wrong.

    Example:
        >>> str(MaskfoldError("a.png cannot be read.", "Replace the file."))
        'a.png cannot be read. Replace the file.'
    """

    def __init__(self, wrong: str, cure: str, *, status: int = 1) -> None:
        super().__init__(f"{wrong} {cure}")
        self.wrong = wrong
        self.cure = cure
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        """Whole, also when it crosses from one process to another."""
        return _remake, (self.wrong, self.cure, self.status)


def _remake(wrong: str, cure: str, status: int) -> MaskfoldError:
    return MaskfoldError(wrong, cure, status=status)
