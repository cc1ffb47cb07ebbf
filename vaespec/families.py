"""The published families of this VAE, read from `families.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from vaespec.config import AutoencoderConfig
from vaespec.errors import ConfigError

# The fields that names and shapes of weights show; the others (scaling, ...) are convention.
STRUCTURE = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "decoder_widths",
    "layers_per_block",
    "latent_channels",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
    "patch_size",
)
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
CONVENTION = (*SCALING, "sample_size", "force_upcast")
SAMPLE_SIZE = 512  # px; diffusers' default, 32, makes tiles too small to be useful


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(resources.files("vaespec").joinpath("families.toml").read_text(encoding="utf-8"))


def names() -> tuple[str, ...]:
    """The families' names, for `family=`."""
    return tuple(_document()["family"])


def spelled(name: str) -> str:
    """The name of a family that is meant by "SDXL", "FLUX.1", "sd1.5" or "flux"; any other name stays as it is."""
    rows = _document()["family"].items()
    known = {_letters(other): own for own, row in rows for other in (own, *row.get("also", ()))}
    return known.get(_letters(name), name)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, str(name).casefold()))


@cache
def config(name: str) -> AutoencoderConfig:
    """The family's configuration. Raises ConfigError for a name unknown in any spelling, and lists the known."""
    name = spelled(name)
    if name not in names():
        raise ConfigError(f"unknown family {name!r}: choose one of {', '.join(names())}.")
    fields = {"scaling_factor": None, **_document()["common"], **_document()["family"][name]}
    for note in ("checkpoint_keys", "also"):
        fields.pop(note, None)
    attention, levels = fields.pop("attention_levels", ()), len(fields["block_out_channels"])
    attends = ["Attn" if level in attention else "" for level in range(levels)]
    fields["down_block_types"] = [f"{attn}DownEncoderBlock2D" for attn in attends]
    fields["up_block_types"] = [f"{attn}UpDecoderBlock2D" for attn in reversed(attends)]
    return AutoencoderConfig.from_dict(fields)


def matching(
    structure: AutoencoderConfig, checkpoint_keys: Iterable[str] = (), shown: tuple[str, ...] = STRUCTURE
) -> tuple[str, ...]:
    """The families whose weights have this structure; other names in a full checkpoint may narrow the choice.

    `shown` are the fields to compare; half of a VAE shows fewer.
    """
    candidates = [name for name in names() if all(getattr(config(name), f) == getattr(structure, f) for f in shown)]
    keys = tuple(checkpoint_keys)
    markers = {name: len(evidence(name, keys)) for name in candidates}
    return tuple(name for name in candidates if markers[name] == max(markers.values()))


def evidence(name: str, checkpoint_keys: Iterable[str]) -> tuple[str, ...]:
    """The beginnings of names that mark a full checkpoint of this family, if any of `checkpoint_keys` has them."""
    keys = tuple(checkpoint_keys)
    markers = _document()["family"][name].get("checkpoint_keys", ())
    return tuple(marker for marker in markers if any(key.startswith(marker) for key in keys))


def scaling(candidates: Iterable[str]) -> dict[str, Any] | None:
    """The scaling fields on which all candidates agree; None if they differ or none of them has a scale."""
    scales = [{field: getattr(config(name), field) for field in SCALING} for name in candidates]
    agree = scales and all(fields == scales[0] for fields in scales)
    return scales[0] if agree and (scales[0]["scaling_factor"] is not None) else None


def patches(candidates: Iterable[str]) -> dict[str, Any]:
    """FLUX.2's fields if all candidates are of its kind; half of a VAE may not show them."""
    fields = ("patch_size", "batch_norm_eps", "batch_norm_momentum")
    kinds = [{field: getattr(config(name), field) for field in fields} for name in candidates]
    return kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else {}


def sample_size(candidates: Iterable[str]) -> dict[str, Any]:
    """The sample_size on which all candidates agree; SAMPLE_SIZE if they differ, since only tiles depend on it."""
    sizes = {config(name).sample_size for name in candidates}
    return {"sample_size": sizes.pop() if len(sizes) == 1 else SAMPLE_SIZE} if sizes else {}


def scaling_candidates(structure: AutoencoderConfig) -> str:
    """The families with this structure and their scaling factors, in words."""
    known = [f"{n} ({config(n).scaling_factor})" for n in matching(structure) if config(n).scaling_factor is not None]
    return f"the shapes fit {', '.join(known)}" if known else "no published family with a scale has these shapes"
