"""What must not leave the DICOM files: the patient's name, and dates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import permutations
from typing import Any

DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate", "PatientBirthDate")
# A name made of these is none: what anonymisers and test data write in its place.
NO_NAMES = {"anon", "anonym", "anonymous", "anonymized", "anonymised", "case", "deidentified", "demo", "dummy", "id", "name",
            "nobody", "none", "patient", "phantom", "removed", "sample", "subject", "test", "unknown", "volunteer"}
HIDDEN = "***"


def private_words(dataset: Any) -> frozenset[str]:
    """Finds what of a header must not be repeated.

    Args:
        dataset: a header with PatientName and dates.

    Returns:
        Regular expressions (for `hide`) of the name's words, of the name written together, and of the dates. A word with
        a digit is a code and no name.
    """
    written = re.split(r"[\s^=,]+", str(dataset.get("PatientName") or "").casefold())
    codes = [part for part in written if any(sign.isdigit() for sign in part)]
    parts = [word for part in written if part not in codes for word in re.split(r"[._'’-]+", part) if word]
    words = set()
    if not any(part in NO_NAMES for part in parts):
        names = [part for part in parts if part.isalpha()]
        # Whole words: the name Long is not in `prolonged`; digits and underscores end a word, as in LONG_1.
        words |= {_alone(re.escape(name)) for name in names if _long(name, 2)}
        words |= {re.escape(a + b) if _long(a + b, 4) else _alone(re.escape(a) + r"[\W_]*" + re.escape(b))
                  for a, b in permutations(names, 2)}
    for keyword in DATES:
        date = str(dataset.get(keyword) or "")
        if re.fullmatch(r"\d{8}", date):
            year, month, day = date[:4], date[4:6], date[6:]
            for order in ((year, month, day), (day, month, year), (month, day, year)):
                words.add(r"(?<!\d)" + r"[-._/ ]?".join(order) + r"(?!\d)")
    return frozenset(words)


def _alone(expression: str) -> str:
    """The expression with no letter before and after it."""
    return rf"(?<![^\W\d_]){expression}(?![^\W\d_])"


def _long(word: str, letters: int) -> bool:
    """Whether a word is long enough to be hidden: two letters are too often a part of something else, two signs of
    Chinese or Japanese are a name."""
    return len(word) > (letters if word.isascii() else 1)


def hide(text: str, words: Iterable[str]) -> str:
    """Replaces private words in a text by `***`."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.sub("|".join(longest_first), HIDDEN, text, flags=re.IGNORECASE) if longest_first else text


def reveals(text: str, words: Iterable[str]) -> bool:
    """Whether a private word is in the text."""
    return hide(text, words) != text
