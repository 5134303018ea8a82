"""Tests of competition.data."""
