"""Write submission files that the grader of the competition's host accepts, and read, validate and score them.

Example:
    >>> from competition.submission import PROFILES, write_submission
    >>> write_submission(masks, PROFILES["tgs-salt"], "salt.csv", sample="sample_submission.csv")  # doctest: +SKIP
"""

from competition.config.profiles import PROFILES, Profile, TrainTable, profile_of
from competition.rle import decode, encode
from competition.rle_text import RleFormat
from competition.submission.reader import SampleSubmission, SubmissionRow, read_sample, read_submission
from competition.submission.validate import ValidationReport, validate_submission
from competition.submission.writer import write_submission

# Names of versions before 0.2, for scripts that import them.
Entry, Sample, Verdict = SubmissionRow, SampleSubmission, ValidationReport

__all__ = [
    "PROFILES",
    "Profile",
    "RleFormat",
    "SampleSubmission",
    "SubmissionRow",
    "TrainTable",
    "ValidationReport",
    "decode",
    "encode",
    "profile_of",
    "read_sample",
    "read_submission",
    "validate_submission",
    "write_submission",
]
