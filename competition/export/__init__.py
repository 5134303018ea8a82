"""Export runs to a self-contained folder (weights, code, script, notebook) that predicts without this project."""

from __future__ import annotations
