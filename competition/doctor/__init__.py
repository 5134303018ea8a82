"""Check whether this machine can train: installed packages, hardware, disk and result stores.

These modules import only the standard library, so that `python -m competition.doctor` also works if packages are
missing.
"""

from competition.doctor.checks import run_checks
from competition.doctor.finding import CheckResult

__all__ = ["CheckResult", "run_checks"]
