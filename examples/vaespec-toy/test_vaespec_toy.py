"""Is it the same VAE? A test for each check of the suite and each dtype: `pytest` in this folder."""

from vaespec_toy import ToyBackend

from vaespec_conformance import conformance_suite

TestToy = conformance_suite(ToyBackend, profile="quick")
