"""Time in training: the speed of steps and validations, and the lines that report a fold's progress."""
