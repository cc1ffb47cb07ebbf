"""Judging: results are compared with the specification, within a budget."""
