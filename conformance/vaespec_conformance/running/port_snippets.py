"""Snippets for ports: a few lines that build the VAE of a failing case and compare it, without the suite."""

from __future__ import annotations

import json

from vaespec.architecture import ENCODER
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.models import config_of
from vaespec_conformance.checks.model import HALF_OF
from vaespec_conformance.judging.registry import Check
from vaespec_conformance.subjects.subjects import PortSubject


def port_snippet(subject: PortSubject, check: Check, case: Case, dtype: str) -> str | None:
    """The snippet; None for another check than encode or decode, or another dtype than float32.

    It draws ordinary weights; those of the case, which make some mistakes large, are in the suite only.
    """
    if check.id not in HALF_OF or dtype != "float32":
        return None
    half, config, factor = HALF_OF[check.id], config_of(case), config_of(case).downsampling_factor
    height, width = (n * factor + dict(case.items).get("more", 0) for n in case["size"])
    _, channels, height, width = half.input_shape(config, 2, height, width)
    expected = "vae.encode(x).latent_dist.mean" if half is ENCODER else "vae.decode(x).sample"
    take = "[0]" if half is ENCODER else ""
    return "\n".join(
        [
            "import json",
            "import numpy as np",
            "from vaespec import AutoencoderConfig, AutoencoderKL, parameters",
            *_import(subject.name),
            "",
            f"config = AutoencoderConfig.from_dict(json.loads({json.dumps(config.to_dict())!r}))",
            f"rng = np.random.default_rng({case['seed']})",
            "weights = {name: (rng.standard_normal(p.shape) / max(1, p.fan_in) ** 0.5).astype('float32')",
            "           for name, p in parameters(config).items()}",
            f"x = rng.standard_normal((2, {channels}, {height}, {width})).astype('float32')  # {half.source}",
            "vae = AutoencoderKL(config, weights, backend='reference')",
            f"expected = np.asarray({expected})",
            f"actual = np.asarray(build(config, dict(weights)).{half.verb}(x){take})",
            "print(np.linalg.norm(actual - expected) / np.linalg.norm(expected))",
            "",
        ]
    )


def _import(name: str) -> list[str]:
    """The lines that import the function that builds a port, from a module or from a file."""
    place, _, function = name.rpartition(":")
    if not place.endswith(".py"):
        return [f"from {place or name} import {function} as build"]
    return ["import runpy", f"build = runpy.run_path({place!r})[{function!r}]"]
