"""Measures the error of every backend and dtype against diffusers in float64, at full width; prints a table.

    python benchmarks/accuracy.py [FAMILY ...] [--backends torch jax] [--device cuda] [--precision highest]

The weights are diffusers' initial ones, the same for all. The error is the relative L2 of the moments of a random image
and of the image of random latents. Needs the `test` extra; about two minutes per family on two cores.
"""

import argparse

import diffusers
import numpy as np
import torch

import vaespec
from vaespec import families
from vaespec.registry import get_backend
from vaespec_conformance.subjects.subjects import BackendSubject

SIZE = 64  # px
DTYPES = ("float64", "float32", "bfloat16", "float16")


class Reference:
    """A backend that is the specification itself, on NumPy."""

    name = "reference"
    framework = "numpy"
    dtypes = ("float64",)

    def devices(self):
        """NumPy's device."""
        return ("cpu",)

    def ops(self, device, dtype, precision):
        """The specification's own operations."""
        return vaespec.ReferenceOps(np, dtype, device)


def oracle(config):
    """(diffusers' model in float64, its weights)."""
    fields = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
    if config.patch_size:
        fields.pop("force_upcast")  # in FLUX.2's config.json, but no argument of its class
    torch.manual_seed(0)
    model = getattr(diffusers, config.class_name)(**fields).double().eval()
    return model, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def error(actual, expected):
    """‖actual - expected‖ / ‖expected‖."""
    return np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected)


def dtypes(backend):
    """The dtypes that a backend has in this process: JAX has float64 only if JAX_ENABLE_X64 is set."""
    available = BackendSubject(get_backend(backend)).capabilities.dtypes
    return [dtype for dtype in DTYPES if dtype in available]


@torch.no_grad()
def measure(family, backends, device, precision):
    """Prints a row for each backend and dtype."""
    config = families.config(family)
    model, weights = oracle(config)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1, config.in_channels, SIZE, SIZE))
    z = rng.standard_normal((1, config.latent_channels, SIZE // 8, SIZE // 8))
    moments = model.encode(torch.tensor(x)).latent_dist.parameters.numpy()
    images = model.decode(torch.tensor(z)).sample.numpy()
    for backend, dtype in [(name, dtype) for name in backends for dtype in dtypes(name)]:
        options = {"backend": backend, "device": device, "dtype": dtype, "precision": precision}
        vae = vaespec.AutoencoderKL(config, weights, **options)
        encoded = vae.to_numpy(vae.encode(x).latent_dist.parameters)
        decoded = vae.to_numpy(vae.decode(z).sample)
        print(f"| {family} | {backend} | {dtype} | {error(encoded, moments):.1e} | {error(decoded, images):.1e} |")


if __name__ == "__main__":
    vaespec.register_backend(Reference())
    installed = ["reference", *(info.name for info in vaespec.backends() if info.version and info.name != "reference")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=("sd1", "flux1", "flux2"))
    parser.add_argument("--backends", nargs="+", choices=installed, default=installed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("default", "highest"), default="default")
    arguments = parser.parse_args()
    print("| family | backend | dtype | encode | decode |\n|---|---|---|---|---|")
    for name in arguments.families:
        measure(name, arguments.backends, arguments.device, arguments.precision)
