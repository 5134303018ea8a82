"""Print the table of checks with `python -m competition.doctor`, even if the command `maskfold` does not start."""

import sys

from competition.doctor.checks import print_report

sys.exit(print_report())
