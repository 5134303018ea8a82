"""Public data sets, downloaded whole or not at all."""
