"""Subjects: backends, ports and programs, loaded by name and called with NumPy arrays."""
