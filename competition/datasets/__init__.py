"""Download public data sets, and make synthetic demos and phantoms."""
