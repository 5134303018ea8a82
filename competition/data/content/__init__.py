"""Digests of the files of a case, and the check that they have not changed since a run began."""
