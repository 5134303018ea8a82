"""Kills, faults and strangers: what the project promises when things go wrong."""
