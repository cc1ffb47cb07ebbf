"""install: a pipeline's own VAE, or a VAE by itself, is computed by vaespec until its handle restores it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from torch import nn

from vaespec.config_checks import brief
from vaespec.errors import InputError
from vaespec.registry import choose_backend, make_ops
from vaespec_diffusers.models import PLAIN, Computed, computed_class, plain_class
from vaespec_diffusers.reasons import decodes_by_itself
from vaespec_diffusers.reports import Report
from vaespec_diffusers.settings import ATTRIBUTES, Settings, initial

METHODS = ("encode", "decode", "_encode", "_decode", "tiled_encode", "tiled_decode", "enable_tiling", "disable_tiling")
"""What an installation replaces, or goes round: a VAE whose own methods they are not computes something else."""


class Handle:
    """Undoes an installation: by `restore()`, or at the end of a `with` block. `vae` is the VAE that was installed."""

    def __init__(self, vae: Any, pipe: Any, settings: Settings) -> None:
        self.vae: Any = vae
        self._settings = settings
        settings.before = {name: getattr(vae, name) for name in ATTRIBUTES}
        vae._vaespec = settings
        vae.__class__ = computed_class(vae.__class__)
        upcasts = hasattr(pipe, "upcast_vae") and "upcast_vae" not in vars(pipe)
        self._pipe = weakref.ref(pipe) if upcasts else lambda: None
        if upcasts:
            pipe.upcast_vae = KeepFloat16(pipe)

    def __repr__(self) -> str:
        state = "installed; restore() undoes it" if self._installed else "restored"
        return f"Handle({type(self.vae).__name__}, {state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def report(self) -> Report:
        """Return what the last hundred calls of encode and decode ran, the time, and the memory."""
        return self._settings.report()

    def restore(self) -> None:
        """Give the VAE its own methods and switches back; a second call does nothing.

        Raises InputError if the VAE was wrapped since by something that has to be undone first.
        """
        if not self._installed:
            return
        _give_back(self.vae)
        if (pipe := self._pipe()) is not None:
            vars(pipe).pop("upcast_vae", None)

    @property
    def _installed(self) -> bool:
        return getattr(self.vae, "_vaespec", None) is self._settings


class KeepFloat16:
    """What takes the place of a pipeline's `upcast_vae`, which casts the whole VAE to float32 before a decode.

    A float16 VAE stays as it is, since its decode widens one layer at a time what float16 cannot hold. It is cast
    nevertheless if the pipeline has another VAE by now, or if diffusers would decode.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe)  # so that a pipeline that is deleted is freed at once

    def __call__(self) -> None:
        """Cast the VAE, unless vaespec decodes."""
        pipe: Any = self._pipe()
        if pipe is not None and not (isinstance(pipe.vae, Computed) and decodes_by_itself(pipe.vae)):
            type(pipe).upcast_vae(pipe)

    def __reduce__(self) -> Any:
        """The copy of a pipeline keeps its own VAE in float16."""
        return KeepFloat16, (self._pipe(),)


def install(
    pipe_or_vae: Any,
    *,
    tiling: Literal["blend", "exact", "auto"] | bool | None = None,
    max_memory: int | str | None = None,
    padding: str | Sequence[str] | None = None,
    precision: str = "default",
    compile: bool = False,
) -> Handle:
    """Let vaespec compute `encode` and `decode` of the AutoencoderKL or AutoencoderKLFlux2 that a pipeline has.

    The VAE keeps its parameters, device, dtype, hooks, switches and attention processors, and may be changed by
    diffusers' methods at any time. `tiling="exact"` or "auto" (with `max_memory`, bytes or "2GiB") takes the place of
    blended tiles: `enable_tiling()` without a mode keeps it. True or "blend": blended tiles;
    False: whole images; None: as the VAE is set. `max_memory` is all that the process, on a GPU the device, may hold,
    the rest of the pipeline too; alone it means "auto". `padding`: "zeros", "reflect", "replicate" or
    "circular", one word or two for (height, width). `precision`: "default" or "highest", float32 without TF32.
    `compile`: torch.compile where vaespec's layers run on PyTorch. Other options are in `pipe.vae.enable_tiling`.

    A pipeline that calls its `upcast_vae` before it decodes leaves a float16 VAE in float16, which decodes without
    overflow. One that casts the VAE by itself (SDXL's image to image, before it encodes) still does.

    Raises InputError for what is no such VAE, for a VAE that is installed already, by another pipeline perhaps, and for
    options that contradict each other; ConfigError for a config that is no such model's.
    """
    vae = _new(_vae_of(pipe_or_vae))
    if compile not in (True, False):
        raise InputError(f"compile={brief(compile)}: choose True or False.")
    settings = Settings(initial(tiling, max_memory, padding), precision, bool(compile))
    make_ops(choose_backend("torch"), "cpu", "float32", precision)  # says which precisions there are
    settings.tiling_of(vae).check(settings.model(vae))
    handle = Handle(vae, None if pipe_or_vae is vae else pipe_or_vae, settings)
    vae.use_tiling = settings.tiling.enabled if (tiling, max_memory) != (None, None) else vae.use_tiling
    return handle


def uninstall(pipe_or_vae: Any) -> None:
    """Undo `install` without its handle; nothing happens to a VAE that is not installed.

    Raises InputError for what is no such VAE, and as `Handle.restore`.
    """
    vae = _vae_of(pipe_or_vae)
    if not isinstance(vae, Computed):
        return
    if not _installed(vae):
        raise InputError("nothing was installed in this VAE, whose class is vaespec's: load it with diffusers' class.")
    _give_back(vae)
    if pipe_or_vae is not vae:
        vars(pipe_or_vae).pop("upcast_vae", None)


def _installed(vae: Computed) -> bool:
    """Whether `install` made the VAE what it is, and not its class."""
    return vae._vaespec is not None and vae._vaespec.before is not None


def _give_back(vae: Any) -> None:
    """Give an installed VAE its class and switches back."""
    if not isinstance(vae, Computed) or type(vae) is not computed_class(plain_class(type(vae))):
        raise InputError(
            f"the VAE is a {type(vae).__name__} of {type(vae).__module__} by now, and not as it was "
            "installed: undo what wrapped it, then restore."
        )
    settings: Any = vae._vaespec
    vae.__class__ = plain_class(type(vae))
    del vae._vaespec
    for name, value in settings.before.items():
        setattr(vae, name, value)


def _vae_of(given: Any) -> Any:
    """The VAE of a pipeline, or the VAE itself. Raises InputError for what is or has none."""
    held = hasattr(given, "vae") and not isinstance(given, nn.Module | type)
    vae = given.vae if held else given
    names = " or ".join(plain.__name__ for plain in PLAIN)
    if held and vae is None:
        raise InputError(f"this {type(given).__name__} has no VAE yet: load its components first.")
    if not isinstance(vae, PLAIN):
        what = type(vae).__name__ if isinstance(vae, nn.Module | Mapping) else brief(vae)
        held_by = f"the VAE of this {type(given).__name__}, {what}," if held else what
        raise InputError(
            f"{held_by} is no {names} of diffusers: give a pipeline with one, or one itself, in memory; "
            "vaespec_diffusers.AutoencoderKL.from_single_file loads files."
        )
    return vae


def _new(vae: Any) -> Any:
    """The VAE. Raises InputError if it is installed already, or computes something else than diffusers' class."""
    if isinstance(vae, Computed):
        why, undo = "computed by vaespec already, by its class", ""
        if _installed(vae):
            why = "installed already, perhaps by another pipeline that shares it"
            undo = ", or undo that first, with vaespec_diffusers.uninstall(pipe)"
        raise InputError(f"this VAE is {why}: change it by its enable_tiling() and set_padding(){undo}.")
    plain = next(plain for plain in PLAIN if isinstance(vae, plain))
    for name in METHODS:
        if name in vars(vae) or getattr(type(vae), name, None) is not getattr(plain, name, None):
            raise InputError(f"{name} of this {type(vae).__name__} is not diffusers' own: undo that, then install.")
    return vae
