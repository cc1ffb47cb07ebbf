"""Subjects: a backend or a port, loaded and driven from outside."""
