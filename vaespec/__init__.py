"""vaespec: AutoencoderKL, the image VAE of Stable Diffusion and FLUX, as a specification that runs."""

TYPE_CHECKING = False  # typing's, which takes a while to import: see __getattr__
if TYPE_CHECKING:
    from vaespec.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Imports a module of this package, or a name of `vaespec.api`, when it is first used.

    So the command line handles Ctrl-C before NumPy and most of the standard library are imported.
    """
    from importlib import import_module
    from importlib.util import find_spec

    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    api = import_module("vaespec.api")
    if name == "__all__" or name in api.__all__:
        return globals().setdefault(name, getattr(api, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from vaespec import api

    return sorted({*globals(), *api.__all__})
