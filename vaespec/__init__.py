"""vaespec: AutoencoderKL, the image VAE of Stable Diffusion and FLUX, as a specification that runs."""

from vaespec.architecture import decoder, encoder, parameters
from vaespec.autoencoder import AutoencoderKL, load
from vaespec.config import AutoencoderConfig
from vaespec.errors import (
    BackendError,
    ConfigError,
    InputError,
    NonFiniteError,
    VaespecError,
    WeightFileError,
    WeightMapError,
)
from vaespec.ops import Ops
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.posterior import DiagonalGaussian
from vaespec.reference import ReferenceOps
from vaespec.registry import backends, register_backend

__version__ = "0.1.0"

__all__ = [
    "AutoencoderConfig",
    "AutoencoderKL",
    "AutoencoderKLOutput",
    "BackendError",
    "ConfigError",
    "DecoderOutput",
    "DiagonalGaussian",
    "InputError",
    "NonFiniteError",
    "Ops",
    "ReferenceOps",
    "VaespecError",
    "WeightFileError",
    "WeightMapError",
    "backends",
    "decoder",
    "encoder",
    "load",
    "parameters",
    "register_backend",
]
