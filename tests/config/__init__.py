"""Tests of competition.config."""
