"""`MaskfoldError`: message, hint and exit status, also after pickling."""

import pickle

from competition.errors import MaskfoldError


def test_an_error_crosses_processes_whole():
    error = pickle.loads(pickle.dumps(MaskfoldError("a.png cannot be read.", "Replace the file.", status=2)))
    assert (str(error), error.message, error.hint, error.status) == (
        "a.png cannot be read. Replace the file.",
        "a.png cannot be read.",
        "Replace the file.",
        2,
    )
