"""The names that `import vaespec` offers, which the package imports from here when one is first used."""

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
