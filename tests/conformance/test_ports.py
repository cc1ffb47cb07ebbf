"""diffusers' AutoencoderKL, examined as a port, passes; with any one mistake in it, it does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from diffusers.utils import logging
from support.depth import first
from support.oracle import diffusers_model

import vaespec_conformance.checks  # noqa: F401  (registers)
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.subjects.capabilities import Capabilities
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import PortSubject

FEATURES = frozenset({"tiling", "slicing", "sample", "weights", "deterministic", "threads", "legacy_names"})
logging.set_verbosity_error()  # diffusers warns of half precision, which these tests use on purpose
DTYPES = ("float32", "bfloat16", "float16", "float64")


class Port:
    """diffusers' model behind the methods that the suite calls; `spoil` puts a mistake into it."""

    strict = True

    def __init__(self, config, weights, dtype="float32", *, spoil: Callable[[torch.nn.Module], object] | None = None):
        self.config, self.dtype = config, getattr(torch, dtype)
        self.vae = diffusers_model(config).to(self.dtype).requires_grad_(False)
        self.vae.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: self._new_names(state))
        self.vae.load_state_dict({name: torch.tensor(w) for name, w in weights.items()}, strict=self.strict)
        if spoil:
            spoil(self.vae)

    def _new_names(self, state):
        """Renames the parameters of older files, as diffusers' from_pretrained does."""
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            for name in [name for name in state if f".{old}." in name]:
                w = state.pop(name)
                state[name.replace(f".{old}.", f".{new}.")] = w[:, :, 0, 0] if w.ndim == 4 else w

    def posterior(self, x):
        return self.vae.encode(torch.tensor(x, dtype=self.dtype)).latent_dist

    def encode(self, x):
        posterior = self.posterior(x)
        return posterior.mean.double().numpy(), posterior.logvar.double().numpy()

    def decode(self, z):
        return self.vae.decode(torch.tensor(z, dtype=self.dtype)).sample.double().numpy()

    def sample(self, x, noise):
        posterior = self.posterior(x)
        return (posterior.mean + posterior.std * torch.tensor(noise, dtype=self.dtype)).double().numpy()

    def weights(self):
        return {name: w.double().numpy() for name, w in self.vae.state_dict().items()}

    def tiled_encode(self, x):
        return self._with(self.vae.enable_tiling, self.vae.disable_tiling, self.encode, x)

    def tiled_decode(self, z):
        return self._with(self.vae.enable_tiling, self.vae.disable_tiling, self.decode, z)

    def sliced_encode(self, x):
        return self._with(self.vae.enable_slicing, self.vae.disable_slicing, self.encode, x)

    def sliced_decode(self, z):
        return self._with(self.vae.enable_slicing, self.vae.disable_slicing, self.decode, z)

    def _with(self, enable, disable, call, x):
        enable()
        try:
            return call(x)
        finally:
            disable()


def subject(spoil: Callable[[torch.nn.Module], object] | None = None) -> PortSubject:
    maker = partial(Port, spoil=spoil)
    maker.capabilities = Capabilities(DTYPES, features=FEATURES)
    return PortSubject(maker, "diffusers")


PORT_CHECKS = [check for check in CHECKS.values() if "port" in check.subjects and "latents" not in check.requires]


def failures(port: PortSubject, dtype: str = "float32", room: float = 1.0) -> set[str]:
    """The checks that fail; raises AssertionError if one that passes used more than `room` of its budget."""
    failed = set()
    for check in PORT_CHECKS:
        for case in check.pinned_in(dtype):
            try:
                assert max(check.run(port, case, dtype)) <= room, f"{check.id} {case.to_json()}"
            except ConformanceError:
                failed.add(check.id)
                break
    return failed


@pytest.mark.parametrize("dtype", first(1, DTYPES))
def test_diffusers_passes_with_a_quarter_of_each_budget_left(dtype):
    assert failures(subject(), dtype, room=0.75) == set()


# -- with one mistake --------------------------------------------------------------------------------------------------


def modules(kind: type, change: Callable[[torch.nn.Module], object]) -> Callable[[torch.nn.Module], object]:
    """Applies `change` to every module of a kind."""
    return lambda vae: [change(module) for module in vae.modules() if isinstance(module, kind)]


def eps(norm):
    norm.eps = 1e-5


def one_group(norm):
    norm.num_groups = 1


def replicate(conv):
    if conv.padding == (1, 1):
        conv.padding_mode, conv._reversed_padding_repeated_twice = "replicate", [1, 1, 1, 1]


def pad_above(vae):
    """Pads the downsampled maps above and left, not below and right."""
    for block in vae.encoder.down_blocks:
        for downsampler in block.downsamplers or ():
            conv = downsampler.conv
            downsampler.forward = lambda x, *_, conv=conv: conv(torch.nn.functional.pad(x, (1, 0, 1, 0)))


def middle_attentions(vae):
    middles = (vae.encoder.mid_block, vae.decoder.mid_block)
    return [attention for middle in middles for attention in middle.attentions if attention]


def keys_unscaled(vae):
    for attention in middle_attentions(vae):
        attention.to_k.weight.mul_(attention.to_k.out_features**0.5)
        attention.to_k.bias.mul_(attention.to_k.out_features**0.5)


def mixed_batch(norm):
    """Computes statistics over all items of the batch together."""

    def forward(x):
        together = x.transpose(0, 1).reshape(1, x.shape[1], -1, x.shape[3])
        y = torch.nn.functional.group_norm(together, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return y.reshape(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)

    if norm.weight.ndim == 1:
        norm.forward = lambda x: forward(x) if x.ndim == 4 else type(norm).forward(norm, x)


def half_precision(conv):
    """Rounds the kernels to bfloat16."""
    conv.weight.copy_(conv.weight.bfloat16())


def noisy(vae):
    decoder = vae.decoder.forward
    vae.decoder.forward = lambda *arguments: decoder(*arguments) + 1e-3 * torch.rand(())


def clipped(vae):
    decoder = vae.decoder.forward
    vae.decoder.forward = lambda *arguments: decoder(*arguments).clamp(-1, 1)


def greedy(vae):
    """Does not blend the overlap of two tiles."""
    vae.blend_v = vae.blend_h = lambda a, b, extent: b


DEFECTS = {
    "eps of 1e-5": (modules(torch.nn.GroupNorm, eps), {"model.encode", "model.decode"}),
    "one group": (modules(torch.nn.GroupNorm, one_group), {"model.encode", "model.decode"}),
    "zeros above and left": (pad_above, {"model.encode"}),
    "borders repeated": (modules(torch.nn.Conv2d, replicate), {"model.encode", "model.decode"}),
    "attention unscaled": (keys_unscaled, {"model.encode", "model.decode"}),
    "batch mixed": (modules(torch.nn.GroupNorm, mixed_batch), {"model.encode", "model.decode"}),
    "weights of 8 bits": (modules(torch.nn.Conv2d, half_precision), {"model.encode", "model.decode", "weights.kept"}),
    "not deterministic": (noisy, {"behaviour.repeatable"}),
    "clipped": (clipped, {"model.decode"}),
    "tiles not faded": (greedy, {"tiling.decode", "tiling.encode"}),
}


@pytest.mark.parametrize("name", first(3, DEFECTS))
def test_one_mistake_in_diffusers_is_detected(name):
    spoil, expected = DEFECTS[name]
    assert expected <= failures(subject(spoil))


def unclamped(port, x):
    parameters = port.posterior(x).parameters.double().numpy()
    return np.split(parameters, 2, axis=1)


def written(port, x):
    x *= 0.5
    return Port.encode(port, x)


def square(port, x):
    """Pads images to a square and crops the result, which changes the statistics."""
    f, n = port.config.downsampling_factor, max(x.shape[2:])
    padded = np.pad(x, ((0, 0), (0, 0), (0, n - x.shape[2]), (0, n - x.shape[3])))
    return tuple(part[:, :, : x.shape[2] // f, : x.shape[3] // f] for part in Port.encode(port, padded))


def even(port, x):
    """Refuses odd sizes."""
    if x.shape[2] % port.config.downsampling_factor:
        raise ValueError("sizes must be even")
    return Port.encode(port, x)


@pytest.mark.parametrize(
    ("encode", "expected"),
    [(unclamped, "model.logvar"), (written, "behaviour.inputs"), (square, "model.encode"), (even, "model.encode")],
    ids=["log-variance not cut", "argument written to", "square images only", "odd sizes refused"],
)
def test_one_mistake_around_diffusers_is_detected(encode, expected):
    spoiled = type("Spoiled", (Port,), {"encode": encode})
    assert expected in failures(PortSubject(spoiled, "spoiled"))


def run_pinned(port: PortSubject, check: str, dtype: str = "float32") -> tuple[list[Case], list[ConformanceError]]:
    """The cases of quick that pass, and the errors of the others."""
    passed, errors = [], []
    for case in CHECKS[check].pinned_in(dtype):
        try:
            CHECKS[check].run(port, case, dtype)
            passed.append(case)
        except ConformanceError as error:
            errors.append(error)
    return passed, errors


def test_a_loader_that_lets_weights_be_missing_is_detected():
    class Loose(Port):
        strict = False

    assert "missing were accepted" in str(run_pinned(PortSubject(Loose, "loose"), "weights.strict")[1][0])


def test_a_class_is_a_port_and_its_method_weights_declares_no_weights_of_its_own():
    port = PortSubject(Port, "diffusers")
    assert "weights" in port.capabilities.features
    assert run_pinned(port, "weights.kept")[1] == []
    assert run_pinned(port, "model.logvar")[1] == []


def test_weights_strict_is_not_passed_by_a_port_that_raises_in_every_build():
    def refusing(config, weights):
        raise ValueError("no")

    with pytest.raises(ConformanceError, match="build raised ValueError"):
        CHECKS["weights.strict"].run(PortSubject(refusing, "refusing"), CHECKS["weights.strict"].pinned[0], "float32")
