"""Judging: results compared with the specification, within a budget."""
