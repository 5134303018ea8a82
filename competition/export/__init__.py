"""Export of runs to a self-contained folder that predicts without this project: weights, code, script and notebook."""

from __future__ import annotations
