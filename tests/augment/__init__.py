"""Tests of competition.augment."""
