"""`python -m competition.doctor`: print the table of checks even if the command `maskfold` does not start."""

import sys

from competition.doctor.checks import print_report

sys.exit(print_report())
