"""Tests of competition.inference."""
