"""Subjects: backends and ports, loaded by name and called with NumPy arrays."""
