"""From masks to the file that the host's grader accepts, and back.

from competition.submission import PROFILES, RleFormat, encode, decode, write_submission
write_submission(masks, PROFILES["tgs-salt"], "salt.csv", sample="sample_submission.csv")
"""

from competition.rle import RleFormat, decode, encode
from competition.submission.profiles import PROFILES, Profile, TrainTable, profile_of
from competition.submission.read import Entry, Sample, read_sample, read_submission
from competition.submission.validate import Verdict, validate_submission
from competition.submission.writer import write_submission

__all__ = [
    "PROFILES",
    "Entry",
    "Profile",
    "RleFormat",
    "Sample",
    "TrainTable",
    "Verdict",
    "decode",
    "encode",
    "profile_of",
    "read_sample",
    "read_submission",
    "validate_submission",
    "write_submission",
]
