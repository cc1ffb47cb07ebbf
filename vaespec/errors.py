"""The exceptions, one class per kind of mistake, so that callers can handle each kind on its own."""

from vaespec.escaping import escaped


class VaespecError(Exception):
    """Base of every error that vaespec raises on purpose; the message is one sentence: the value, and what to do.

    Further arguments are lines below the sentence, such as the tensors that do not fit. A message contains names from
    files: characters that a terminal would obey are shown as escape sequences.
    """

    def __str__(self) -> str:
        return "\n  ".join(escaped(str(line)) for line in self.args)


class ConfigError(VaespecError, ValueError):
    """A configuration that describes no AutoencoderKL."""


class UnknownFieldError(ConfigError, KeyError):
    """A field that a configuration does not have, looked up as in a dict."""

    __str__ = Exception.__str__  # KeyError's own shows the message in quotation marks


class InputError(VaespecError, ValueError):
    """An image, latent or argument of the wrong rank, size, channels, dtype or range."""


class MemoryLimitError(InputError):
    """A limit of memory that is too little for a task; `enough` bytes would do."""

    def __init__(self, message: str, enough: int = 0) -> None:
        super().__init__(message)
        self.enough = enough


class NonFiniteError(VaespecError, ArithmeticError):
    """NaN or infinity in an input, a weight or a result; `culprit` is the layer or weight behind a result, in words."""

    def __init__(self, message: str, culprit: str = "") -> None:
        super().__init__(message)
        self.culprit = culprit


class Float16OverflowWarning(UserWarning):
    """A layer overflowed in float16, so that half of a model is computed in float32 from then on."""


class WeightFileError(VaespecError, OSError):
    """A weight file that is missing or truncated, or whose content contradicts its name."""


class PipelineError(WeightFileError):
    """A folder of a whole pipeline, whose VAE is in a folder of its own."""


class WeightMapError(VaespecError, ValueError):
    """A weight file whose tensors do not fit the model: names are missing or unexpected, or shapes are wrong."""


class BackendError(VaespecError, RuntimeError):
    """A backend that does not exist, is not installed, or cannot do what the caller requests."""
