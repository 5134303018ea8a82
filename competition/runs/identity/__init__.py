"""Identify a run: compute its hash from its settings and data, and record digests of its inputs."""
