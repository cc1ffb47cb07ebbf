"""The checks, a file for each level. Importing this registers them all, in the order of the levels."""

from importlib import import_module

for _name in ("structure", "operations", "model"):
    import_module(f"vaespec_conformance.checks.{_name}")
