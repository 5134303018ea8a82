"""Whether this machine can train: what is installed, what the machine has, where results go.

Nothing here imports a package that may be missing before it has looked for it: `python -m competition.doctor` prints its
table with a bare Python.
"""

from competition.doctor.examination import examine
from competition.doctor.finding import Finding

__all__ = ["Finding", "examine"]
