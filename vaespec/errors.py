"""What can go wrong, one class per kind of mistake, so that callers can tell them apart."""


class VaespecError(Exception):
    """Base of every error vaespec raises on purpose; its message is one sentence with the values and what to do."""


class ConfigError(VaespecError, ValueError):
    """A configuration that describes no AutoencoderKL."""


class InputError(VaespecError, ValueError):
    """An image, latent or argument of the wrong rank, size, channels, dtype or range."""


class NonFiniteError(VaespecError, ArithmeticError):
    """NaN or infinity in an input, a weight or a result."""


class WeightFileError(VaespecError, OSError):
    """A weight file that is missing, truncated, or not what its name says."""


class WeightMapError(VaespecError, ValueError):
    """A weight file whose tensors do not fit the model: missing, unexpected or misshapen names."""


class BackendError(VaespecError, RuntimeError):
    """A backend that does not exist, is not installed, or cannot do what was asked."""
