"""vaespec inside diffusers: a pipeline's own VAE, on its own weights, computed by vaespec.

`install(pipe)` reroutes `encode` and `decode` of the VAE that a pipeline has; its handle, or `uninstall(pipe)`, undoes
it. `AutoencoderKL` and `AutoencoderKLFlux2` are diffusers' classes that compute with vaespec from the beginning.
"""

from vaespec_diffusers.installing import Handle, install, uninstall
from vaespec_diffusers.models import AutoencoderKL, AutoencoderKLFlux2
from vaespec_diffusers.reports import Call, Report

__all__ = ["AutoencoderKL", "AutoencoderKLFlux2", "Call", "Handle", "Report", "install", "uninstall"]
