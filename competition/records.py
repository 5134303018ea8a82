"""Store JSON records with a digest of their own content, so that an edited number is not mistaken for a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from competition.errors import MaskfoldError
from competition.io import RESTORE_HINT, json_digest, nan_to_none, read_record, sha256_of_file

# Key of the digests of the record itself and of its tables: {"digests": {"summary.json": …, "scores.csv": …}}
DIGESTS_KEY = "digests"
SUBMISSION_DIGEST = "submission"  # key of the own digest of the JSON next to a submission, which the user may rename


def with_own_digest(plain: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of a record that also contains a digest of the record's content.

    Args:
        plain: the record as JSON data; NaN becomes None. If it has the key `digests`, the value contains digests of
            other files.
        name: the key of the digest in `digests`; usually the name of the record's file.

    Example:
        >>> record = with_own_digest({"score": 0.5}, "result.json")
        >>> is_unedited(record, "result.json"), is_unedited({**record, "score": 0.9}, "result.json")
        (True, False)
    """
    content = json.loads(json.dumps(nan_to_none(dict(plain))))  # as the file will be read, e.g. with text as keys
    return {**content, DIGESTS_KEY: {**(content.get(DIGESTS_KEY) or {}), name: _digest(content, name)}}


def is_unedited(plain: Mapping[str, Any], name: str) -> bool:
    """Return whether a record was not edited since it was written; a record without a digest is accepted.

    Args:
        plain: the record, as read from its file.
        name: key of the record's digest in `digests`, as for `with_own_digest`.
    """
    digests = plain.get(DIGESTS_KEY)
    expected = digests.get(name) if isinstance(digests, dict) else None
    return expected is None or expected == _digest(plain, name)


def check_unedited(path: Path, plain: Mapping[str, Any], name: str, hint: str) -> None:
    """Check that a record was not edited since it was written; a record without a digest is accepted.

    Args:
        path: the record's file, for the message.
        plain: the record, as read from its file.
        name: key of the record's digest in `digests`, as for `with_own_digest`.
        hint: what the user can do.

    Raises:
        MaskfoldError: the record was changed after it was written.
    """
    if not is_unedited(plain, name):
        raise MaskfoldError(f"{path} was edited after Maskfold wrote it: its content does not match its digest.", hint)


def read_unedited_record(path: Path, name: str, hint: str = RESTORE_HINT) -> dict[str, Any]:
    """Read a record, and check that it was not edited.

    Args:
        path: the record's JSON file.
        name: key of the record's digest in `digests`, as for `with_own_digest`.
        hint: what the user can do if the record is damaged or was changed.

    Raises:
        FileNotFoundError: the file is missing.
        MaskfoldError: the file is damaged, or was changed after it was written.
    """
    plain = read_record(path, hint)
    check_unedited(path, plain, name, hint)
    return plain


def changed_tables(folder: Path, plain: Mapping[str, Any]) -> list[str]:
    """Return the names of the tables in a record's folder whose content does not match the record's digests.

    A record that was copied from another folder matches its own digest. The tables show that it does not belong to this
    folder. Tables that were deleted, e.g. to save space, are not compared.

    Args:
        folder: the folder of the record and its tables.
        plain: the record, as read from its file. Digests of files other than CSV and TSV are ignored.
    """
    digests = plain.get(DIGESTS_KEY)
    return [
        name
        for name, expected in (digests.items() if isinstance(digests, dict) else ())
        if name == Path(name).name and name.endswith((".csv", ".tsv"))
        if (folder / name).is_file() and sha256_of_file(folder / name) != expected
    ]


def _digest(plain: Mapping[str, Any], name: str) -> str:
    """Return the digest of a record; the record's own digest is left out of the content."""
    others = {key: value for key, value in (plain.get(DIGESTS_KEY) or {}).items() if key != name}
    return json_digest({**plain, DIGESTS_KEY: others})
