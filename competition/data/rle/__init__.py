"""Read tables of run lengths: the rows of each case, and the order in which the rows number pixels."""
