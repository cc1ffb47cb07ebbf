"""Settings: how a VAE of diffusers is run by vaespec; what diffusers has no attribute for."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from vaespec.architecture import HALVES
from vaespec.callers import warn_user
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.model import Model
from vaespec.processors import as_processor, with_processors
from vaespec.settings import RunSettings
from vaespec.tiling.planner import as_bytes
from vaespec.tiling.settings import Tiling
from vaespec_diffusers.live import VaeLive
from vaespec_diffusers.reports import Call, Report
from vaespec_torch.ops import TorchOps

ATTRIBUTES = {
    "use_slicing": "slicing",
    "use_tiling": "enabled",
    "tile_sample_min_size": "tile_sample_min_size",
    "tile_latent_min_size": "tile_latent_min_size",
    "tile_overlap_factor": "tile_overlap_factor",
}
"""diffusers' attributes that say in which parts a VAE works, and the fields of Tiling that they are. Both obey."""

CONVOLUTIONS_IN = {f"{half}.conv_in.weight" for half in HALVES}


@dataclass
class Settings:
    """The `tiling` has the mode, the limits and the padding; the five ATTRIBUTES stay with the VAE.

    `whole`: whether large images are computed whole too, if no tiling is enabled.
    `before`: what those were before an installation; None for a VAE of our own class, which was never another.
    """

    tiling: Tiling = field(default_factory=Tiling)
    precision: str = "default"
    compile: bool = False
    whole: bool = False
    before: dict[str, Any] | None = None
    calls: deque[tuple[Call, Callable[[], int | None]]] = field(default_factory=partial(deque, maxlen=100))
    warned: set[str] = field(default_factory=set)
    _kept: dict[Any, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the VAE needs: not what holds the parameters of this one, nor the calls of this one."""
        return vars(self) | {"_kept": {}, "calls": deque(maxlen=self.calls.maxlen), "warned": set()}

    @property
    def pads(self) -> bool:
        """Whether maps are padded with anything but zeros, which diffusers' code does not do."""
        return set(self.tiling.padding) != {"zeros"}

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made for this key before, or make it and keep it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def model(self, vae: Any) -> Model:
        """Return the layers of a VAE, without parameters. Raises ConfigError for the config of another model."""
        config = AutoencoderConfig.from_dict(dict(vae.config))
        model: Model = self.kept(config, lambda: Model.outline(config, CONVOLUTIONS_IN, TorchOps("cpu", "float32")))
        return model

    def model_now(self, vae: Any) -> Model:
        """Return `model` with the attention processors that the VAE has now.

        It is the same for the same processors, since its layers may be compiled. Raises InputError for a processor
        of another kind.
        """
        model = self.model(vae)
        attention = [layer.name for layer in model.attention_layers()]
        chosen = {name: as_processor(vae.get_submodule(name).processor) for name in attention}
        layers = {name: with_processors(getattr(model, name), chosen) for name in HALVES}
        changed: Model = self.kept((model.config, *chosen.values()), lambda: model.replace(**layers))
        return changed

    def live(self, vae: Any) -> VaeLive:
        """Return what runs the VAE, always the same, with what it has compiled. It does not keep the VAE alive."""
        root: Any = weakref.proxy(vae)
        live: VaeLive = self.kept(id(vae), lambda: VaeLive(root, precision=self.precision, compile=self.compile))
        return live

    def tiling_of(self, vae: Any) -> Tiling:
        """Return the tiling of the next run, with the VAE's attributes as they are now."""
        attributes = {name: getattr(vae, attribute) for attribute, name in ATTRIBUTES.items()}
        return replace(self.tiling, **attributes)

    def set_tiling(self, vae: Any, tiling: Tiling) -> None:
        """Set the tiling of a VAE, and its attributes."""
        self.tiling = tiling
        for attribute, name in ATTRIBUTES.items():
            setattr(vae, attribute, getattr(tiling, name))

    def record(self, call: Call, memory: Callable[[], int | None] = lambda: None) -> None:
        """Record a call; `memory` estimates its memory when somebody asks."""
        self.calls.append((call, memory))

    def report(self) -> Report:
        """Return the last hundred calls."""
        return Report(tuple(call._replace(memory=memory()) for call, memory in self.calls))

    def warn(self, reason: str) -> None:
        """Warn that diffusers computes, once for each reason."""
        if reason not in self.warned:
            self.warned.add(reason)
            warn_user(f"vaespec leaves this VAE to diffusers' own code, since {reason}.", UserWarning)


class Switches(RunSettings):
    """The methods of RunSettings for a model and a tiling."""

    def __init__(self, model: Model, tiling: Tiling) -> None:
        self._model, self._tiling = model, tiling

    @property
    def tiling(self) -> Tiling:
        """The tiling that the methods have set."""
        return self._tiling


def initial(tiling: Any, max_memory: int | str | None, padding: Any) -> Tiling:
    """Return the tiling that `install` is given: "auto" if there is a limit alone. InputError for an unknown mode."""
    tiling = "auto" if tiling is None and max_memory is not None else tiling
    known = (None, True, False, "blend", "exact", "auto")
    if not any(tiling is choice or (isinstance(tiling, str) and tiling == choice) for choice in known):
        raise InputError(
            f"tiling={tiling!r}: choose True or 'blend', 'exact', 'auto', False, or None for what the VAE is set to."
        )
    if max_memory is not None and tiling not in ("exact", "auto"):
        raise InputError(
            f"max_memory={max_memory!r} with tiling={tiling!r}: only 'exact' and 'auto' have a limit; give one of them."
        )
    return Tiling(
        mode=tiling if isinstance(tiling, str) else "blend",  # type: ignore[arg-type]
        enabled=bool(tiling),
        max_memory=None if max_memory is None else as_bytes(max_memory),
        padding="zeros" if padding is None else padding,
    )
