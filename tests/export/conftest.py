"""Fixtures of the bundle tests."""

from tests.export.bundles import bundled

__all__ = ["bundled"]
