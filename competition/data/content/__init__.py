"""Compute the digests of a case's files, and check that the files have not changed since a run began."""
