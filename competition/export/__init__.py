"""Export runs to a self-contained folder (weights, code, script, notebook) that predicts without Maskfold installed."""

from __future__ import annotations
