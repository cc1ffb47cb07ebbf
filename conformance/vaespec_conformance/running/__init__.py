"""Running: which checks are run, in which processes, and their results."""
