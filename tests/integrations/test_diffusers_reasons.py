"""What vaespec's layers do not know is left to diffusers' own code, with a warning, and never ignored."""

import pytest
import torch
from support.installed import TOLERANCE, decoded, distance, latents, tiny_vae
from torch import nn

import vaespec_diffusers
from vaespec.errors import InputError


class Wrapped(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base_layer, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x):
        return 2 * self.base_layer(x)


class Swapped:
    def __call__(self, attn, hidden_states, *args, **kwargs):
        return 2 * hidden_states


def wrap(vae):
    vae.decoder.conv_in = Wrapped(vae.decoder.conv_in)


def hook(vae):
    vae.decoder.mid_block.register_forward_hook(lambda module, args, output: 2 * output)


def hook_before(vae):
    vae.decoder.mid_block.resnets[0].register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))


def patch(vae):
    forward = vae.decoder.conv_in.forward
    vae.decoder.conv_in.forward = lambda x: 2 * forward(x)


def patch_padding(vae):
    conv = vae.decoder.conv_in
    pad = lambda x, w, b: nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), "circular"), w, b)  # noqa: E731
    conv._conv_forward = pad


def reflect(vae):
    vae.decoder.conv_out.padding_mode = "reflect"


def activate(vae):
    vae.decoder.mid_block.resnets[0].nonlinearity = nn.GELU()


def subclass(vae):
    vae.decoder.conv_in.weight = nn.Parameter(vae.decoder.conv_in.weight.detach().as_subclass(Doubled))


class Doubled(torch.Tensor):
    """Stands for the tensors of a library that quantizes."""


def attend(vae):
    vae.set_attn_processor(Swapped())


CHANGES = {
    wrap: r"decoder\.conv_in is a .*\.Wrapped",
    hook: r"decoder\.mid_block has a hook of PyTorch",
    hook_before: r"decoder\.mid_block\.resnets\.0 has a hook of PyTorch",
    patch: r"decoder\.conv_in has another forward",
    patch_padding: r"decoder\.conv_in has another forward",
    reflect: r"decoder\.conv_out pads with 'reflect'",
    activate: r"nonlinearity is a GELU",
    subclass: r"decoder\.conv_in has parameters of the type",
    attend: r"attention processor Swapped",
}


@pytest.mark.parametrize("options", [{}, {"tiling": "exact"}], ids=str)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_somebody_put_into_a_vae_is_computed_by_diffusers(change, options):
    vae = tiny_vae()
    change(vae)
    expected = decoded(vae)
    with vaespec_diffusers.install(vae, **options) as handle:
        with pytest.warns(UserWarning, match=CHANGES[change]):
            assert torch.equal(decoded(vae), expected)
        decoded(vae)  # a second warning would be an error
    assert {call.computed_by for call in handle.report().calls} == {"diffusers"}
    assert vae.use_tiling is False


def test_the_half_that_was_not_changed_is_computed_by_vaespec():
    vae = tiny_vae()
    wrap(vae)
    with vaespec_diffusers.install(vae) as handle, torch.no_grad():
        vae.encode(torch.zeros(1, 3, 8, 8))
    assert handle.report().calls[0].computed_by == "engine"


def test_padding_that_diffusers_cannot_do_is_refused_if_only_diffusers_can_compute():
    vae = tiny_vae()
    wrap(vae)
    with (
        vaespec_diffusers.install(vae, padding="circular"),
        pytest.raises(InputError, match=r"but this call is diffusers' own, since decoder\.conv_in is a"),
    ):
        decoded(vae)


def test_a_parametrized_weight_is_read_as_it_is_now():
    vae = tiny_vae()
    nn.utils.parametrize.register_parametrization(vae.decoder.conv_in, "weight", nn.Softplus())
    expected = decoded(vae)
    assert distance(decoded(tiny_vae()), expected) > 1e-2
    with vaespec_diffusers.install(vae) as handle:
        assert distance(decoded(vae), expected) < TOLERANCE
    assert handle.report().calls[0].computed_by != "diffusers"


def test_a_compiled_decode_is_diffusers_own_code():
    vae, graphs = tiny_vae(), []
    expected = decoded(vae)

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    with vaespec_diffusers.install(vae), torch.no_grad():
        torch._dynamo.reset()
        assert torch.equal(torch.compile(vae.decode, backend=backend)(latents()).sample, expected)
    assert len(graphs) == 1


class Pipe:
    """Stands for a pipeline that casts its VAE before it decodes."""

    def __init__(self, vae):
        self.vae = vae

    def upcast_vae(self):
        self.vae.to(torch.float32)


@pytest.mark.parametrize("change", [None, wrap], ids=["vaespec decodes", "diffusers decodes"])
def test_a_pipeline_casts_a_float16_vae_to_float32_only_if_diffusers_decodes(change):
    pipe = Pipe(tiny_vae().half())
    with vaespec_diffusers.install(pipe):
        if change is not None:
            change(pipe.vae)
        pipe.upcast_vae()
        assert pipe.vae.dtype == (torch.float16 if change is None else torch.float32)
    pipe.upcast_vae()
    assert pipe.vae.dtype == torch.float32
    assert vars(pipe).keys() == {"vae"}
