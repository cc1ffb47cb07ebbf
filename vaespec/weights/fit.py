"""How the VAE in a file fits a config: every tensor of the model filled once, every tensor of the file used."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vaespec.architecture import parameters, parameters_among
from vaespec.config import AutoencoderConfig
from vaespec.errors import WeightFileError, WeightMapError
from vaespec.escaping import escaped
from vaespec.parameter import Parameter
from vaespec.weights.canonical import CanonicalWeights
from vaespec.weights.config_from_weights import choose_config
from vaespec.weights.containers import plain_problem, with_inputs
from vaespec.weights.layouts import canonical_shape
from vaespec.weights.listing import shortened
from vaespec.weights.locate import VaeInFile

LOG = logging.getLogger("vaespec")


@dataclass(frozen=True)
class Fit:
    """The VAE in a file, its config and its parameters by canonical name, and what in the file does not fit them.

    `missing`, `shapes` and `contradictions` are problems, one line each; `unexpected` are the names under the VAE's
    prefix that are neither the model's nor known to be harmless; `not_plain` says which tensor is quantized, if any.
    """

    vae: VaeInFile
    config: AutoencoderConfig
    table: Mapping[str, Parameter]
    missing: tuple[str, ...]
    shapes: tuple[str, ...]
    contradictions: tuple[str, ...]
    unexpected: tuple[str, ...]
    not_plain: str | None

    @property
    def misfits(self) -> list[str]:
        """The problems of the model's own tensors, MAX_LISTED of each kind at most."""
        return [line for lines in (self.missing, self.shapes, self.contradictions) for line in shortened(lines)]


def fit(vae: VaeInFile, config: AutoencoderConfig | None = None, family: str | None = None) -> Fit:
    """Choose the config (see `choose_config`) and compare the file with it. Reads no tensor."""
    config, disagreements = choose_config(vae, config, family)
    model = parameters(config)
    table = parameters_among(list(filter(vae.has, model)), config, vae.halves)
    present = {name: stored for name in table if (stored := vae.stored(name)) in vae.file}
    maps = {stored: table[name].shape[1] for name, stored in present.items() if table[name].role in ("conv", "linear")}
    vae = replace(vae, file=with_inputs(vae.file, maps))
    return Fit(
        vae,
        config,
        table,
        missing=tuple(
            f"missing     {vae.stored(name)}   (needed for {name})"
            for name, row in table.items()
            if name not in present and not row.is_counter
        ),
        shapes=tuple(_misshapen(vae, table, present)),
        contradictions=tuple(f"config      {line}" for line in disagreements),
        unexpected=tuple(_unexpected(vae, model)),
        not_plain=plain_problem(vae.file, (stored for name, stored in present.items() if not table[name].is_counter)),
    )


def require_fit(vae: VaeInFile, fitted: Fit, strict: bool) -> None:
    """Raises WeightFileError for quantized weights, and one WeightMapError with every problem.

    Tensors that training left beside the model, and without `strict` unexpected ones, are left out with a warning.
    """
    if fitted.not_plain is not None:
        raise WeightFileError(fitted.not_plain)
    refused = refused_names(vae, fitted, strict)
    if problems := [*fitted.misfits, *shortened([f"unexpected  {name}" for name in refused])]:
        without = f'; the file\'s own names are without "{vae.halves[0]}."' if vae.bare else ""
        head = f'{vae.file.path} does not fit the config (dialect "{vae.dialect.name}"{without}):'
        if not fitted.misfits and refused != refused_names(vae, fitted, strict=False):
            problems.append("strict=False, or --no-strict, leaves out unexpected tensors")
        raise WeightMapError(head, *problems)
    if left := [*vae.ignored(), *fitted.unexpected]:
        tensors, are = ("1 tensor", "is") if len(left) == 1 else (f"{len(left)} tensors", "are")
        why = "that training left beside the model, as strict allows" if strict else f"that {are} not the model's"
        path, names = escaped(str(vae.file.path)), escaped(", ".join(shortened(left)))
        LOG.warning("%s: left out %s %s: %s", path, tensors, why, names)


def refused_names(vae: VaeInFile, fitted: Fit, strict: bool) -> tuple[str, ...]:
    """The unexpected names for which the file is refused: all, or without `strict` those of attention in the model.

    Attention that is left out would change a picture by less than one notices.
    """
    if strict:
        return fitted.unexpected
    return tuple(name for name in fitted.unexpected if vae.is_own(name) and ("attn" in name or "attention" in name))


def require_complete(weights: Mapping[str, np.ndarray], config: AutoencoderConfig) -> None:
    """Raises WeightMapError unless these canonical weights are exactly those of the model, or of one half of it."""
    if isinstance(weights, CanonicalWeights):
        return  # compared when the file was opened
    table = parameters_among(weights, config)
    missing = [f"missing     {name}" for name in table if name not in weights]
    shapes = [
        f"shape       {name}   given {weights[name].shape}, config wants {row.shape}"
        for name, row in table.items()
        if name in weights and weights[name].shape != row.shape
    ]
    unexpected = [f"unexpected  {name}" for name in weights if name not in table]
    if problems := [line for lines in (missing, shapes, unexpected) for line in shortened(lines)]:
        raise WeightMapError("the weights do not fit the config:", *problems)


def _misshapen(vae: VaeInFile, table: Mapping[str, Parameter], present: Mapping[str, str]) -> Iterable[str]:
    for name, stored in present.items():
        shape, row = vae.file.shape(stored), table[name]
        if canonical_shape(shape, row, vae.layout) != row.shape:
            yield f"shape       {stored}   file {shape}, config wants {row.shape}"


def _unexpected(vae: VaeInFile, model: Iterable[str]) -> Iterable[str]:
    """The names under the prefix that are neither of the whole model (an EMA's are ignored) nor harmless."""
    weights = replace(vae, ema=False)
    known = {weights.stored(name) for name in model} | set(vae.ignored())
    return (name for name in vae.names() if name not in known)
