"""Running: which checks, in which processes, and what came out."""
