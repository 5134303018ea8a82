"""Check whether this machine can train: installed packages, hardware, disk and result stores.

The modules of this package import only the standard library, so that `python -m competition.doctor` works even if
packages are missing.
"""

from competition.doctor.checks import run_checks
from competition.doctor.finding import CheckResult

__all__ = ["CheckResult", "run_checks"]
