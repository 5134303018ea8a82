"""`python -m competition.doctor`: the same table where `maskfold` itself does not start."""

import sys

from competition.doctor.table import report

sys.exit(report())
