"""The likely cause that a failure of a port names is the true one, or none is named."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from conformance.test_mutants import caught, mistaken_port
from conformance.test_ports import Port, eps, middle_attentions, modules, run_pinned, subject, unclamped
from diffusers.models.attention_processor import Attention
from diffusers.models.upsampling import Upsample2D
from support.depth import first

from vaespec_conformance import Selection, run_conformance
from vaespec_conformance.mutants import MUTANTS, hints
from vaespec_conformance.running import causes
from vaespec_conformance.subjects.subjects import PortSubject

# -- the defects of public ports, in diffusers' model ------------------------------------------------------------------


def norms_named(*parts: str):
    """Sets eps to 1e-5 in the norms whose name has one of the parts."""

    def spoil(vae):
        for name, module in vae.named_modules():
            if isinstance(module, torch.nn.GroupNorm) and any(part in name for part in parts):
                module.eps = 1e-5

    return spoil


def one_pass(norm):
    """Computes the variance as E[x²] - E[x]², as Flax does."""

    def forward(x):
        g = x.reshape(len(x), norm.num_groups, -1)
        mean = g.mean(-1, keepdim=True)
        variance = ((g * g).mean(-1, keepdim=True) - mean * mean).clamp(min=0)
        y = ((g - mean) / (variance + norm.eps).sqrt()).reshape(x.shape)
        axes = (1, -1, *[1] * (x.ndim - 2))
        return y * norm.weight.reshape(axes) + norm.bias.reshape(axes)

    norm.forward = forward


def same(vae):
    """Pads as TensorFlow's SAME at stride 2."""
    for block in vae.encoder.down_blocks:
        for downsampler in block.downsamplers or ():
            conv = downsampler.conv
            downsampler.forward = lambda x, *_, conv=conv: conv(
                torch.nn.functional.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
            )


def groups(count):
    """Sets the number of groups of every norm, or that of its channels if there are fewer."""
    return modules(torch.nn.GroupNorm, lambda norm: setattr(norm, "num_groups", min(count, norm.num_channels)))


def bilinear(upsampler):
    double = partial(torch.nn.functional.interpolate, scale_factor=2.0, mode="bilinear")
    upsampler.forward = lambda x, *_, **__: upsampler.conv(double(x))


def attention_left_out(vae):
    for attention in middle_attentions(vae):
        attention.forward = lambda x, **_: x


def resnets_swapped(vae):
    for middle in (vae.encoder.mid_block, vae.decoder.mid_block):
        middle.resnets = middle.resnets[::-1]


def flags_confused(vae):
    """Applies post_quant_conv if use_quant_conv is set."""
    if not vae.config.use_quant_conv:
        vae.post_quant_conv = None


def tokens_not_turned(attention):
    """Reshapes tokens (B, N, C) to (B, C, H, W), as KerasHub does for channels_first."""

    def forward(x, **_):
        B, C, H, W = x.shape
        t = attention.group_norm(x.flatten(2)).transpose(1, 2)
        q, k, v = attention.to_q(t), attention.to_k(t), attention.to_v(t)
        return x + attention.to_out[0](torch.softmax(q @ k.mT / C**0.5, -1) @ v).reshape(B, C, H, W)

    attention.forward = forward


def layout_guessed(port, z):
    """Takes latents whose last axis has as many numbers as there are channels for NHWC, as Flax does."""
    return Port.decode(port, z.transpose(0, 3, 1, 2) if z.shape[-1] == z.shape[1] else z)


def deviation(port, x):
    mean, logvar = Port.encode(port, x)
    return mean, np.exp(0.5 * logvar)


def spoiled(**methods):
    return PortSubject(type("Spoiled", (Port,), methods), "spoiled")


ENCODE, DECODE = "model.encode", "model.decode"
NAMED = {
    "eps in all norms": (subject(modules(torch.nn.GroupNorm, eps)), DECODE, "group_norm_eps_1e_5"),
    "eps in attention": (subject(norms_named("group_norm")), DECODE, "eps_1e_5_in_attention"),
    "eps in resnets": (subject(norms_named("norm1", "norm2")), DECODE, "eps_1e_5_in_resnets"),
    "eps in one norm": (subject(norms_named("conv_norm_out")), DECODE, "eps_1e_5_in_conv_norm_out"),
    "one group": (subject(groups(1)), DECODE, "norm_num_groups_ignored"),
    "32 groups": (subject(groups(32)), DECODE, "group_norm_always_32_groups"),
    "SAME": (subject(same), ENCODE, "conv2d_same_at_stride_2"),
    "bilinear": (subject(modules(Upsample2D, bilinear)), DECODE, "upsample_bilinear"),
    "attention left out": (subject(attention_left_out), DECODE, "middle_attention_left_out"),
    "resnets swapped": (subject(resnets_swapped), DECODE, "middle_resnets_swapped"),
    "flags confused": (subject(flags_confused), DECODE, "post_quant_conv_by_the_other_flag"),
    "tokens not turned": (subject(modules(Attention, tokens_not_turned)), DECODE, "pixels_reshaped_without_turning"),
    "layout guessed": (spoiled(decode=layout_guessed), DECODE, "decode_reads_latents_as_nhwc"),
    "not clamped": (spoiled(encode=unclamped), "model.logvar", "encode_does_not_clamp_logvar"),
    "deviation": (spoiled(encode=deviation), ENCODE, "encode_returns_the_deviation"),
    "images from 0 to 1": (
        spoiled(encode=lambda port, x: Port.encode(port, 2 * x - 1)),
        ENCODE,
        "encode_expects_images_from_0_to_1",
    ),
    "images mapped to 0 to 1": (
        spoiled(encode=lambda port, x: Port.encode(port, x / 2 + 0.5)),
        ENCODE,
        "encode_expects_images_from_0_to_1_halved",
    ),
}
"""Defects of public ports: (the port, the check that finds it, the known mistake that is its cause)."""


@pytest.mark.parametrize("name", first(6, NAMED))
def test_the_cause_of_a_planted_defect_is_named_rightly(name):
    port, check, mistake = NAMED[name]
    passed, errors = run_pinned(port, check)
    assert errors
    cause = MUTANTS[mistake].cause
    assert hints.likely(errors[0], passed) == cause
    assert {hints.likely(error, passed) for error in errors[1:3]} <= {cause, None}


def test_a_variance_in_one_pass_is_named():
    passed, errors = run_pinned(subject(modules(torch.nn.GroupNorm, one_pass)), DECODE)
    assert [hints.likely(error, passed) for error in errors] == [hints.FAR]


# -- the known mistakes, in ports --------------------------------------------------------------------------------------

IN_ITS_OWN_WORDS = (
    *("behaviour.repeatable", "behaviour.inputs", "behaviour.results", "behaviour.threads", "behaviour.state"),
    *("weights.strict", "weights.owned", "weights.kept"),
)
"""Checks that compare a subject with itself, and say what is wrong."""
COMPARED = [
    name
    for name, mutant in MUTANTS.items()
    if mutant.seen_in_ports not in (None, *IN_ITS_OWN_WORDS)
    and not mutant.seen_in_ports.startswith("sizes.")
    and "float32" not in mutant.equivalent_in
]
"""Mistakes that show as other numbers than the specification's. At real sizes a search for the cause takes minutes."""
UNNAMED = {
    "attention_without_subtracting_the_largest_logit": "it stops the model, which refuses numbers that are not finite",
    "tiled_decode_swaps_rows_and_columns_of_tiles": "it stops the model: tiles of two heights are joined in a row",
    "sample_draws_its_own_noise": "it gives other numbers in each call",
}
"""Mistakes for which no cause is named, and why."""
TIED = (
    "group_norm_one_group",
    "conv2d_mirrors_the_border",
    "norm_num_groups_ignored",
    "conv2d_pads_all_sides_at_stride_2",
    "conv2d_swaps_kernel_height_and_width",
    "act_fn_ignored",
)
"""Mistakes that are another one in a port, or once were."""


@pytest.mark.parametrize("name", first(len(TIED), dict.fromkeys((*TIED, *COMPARED))))
def test_a_mistake_in_a_port_is_named_at_the_first_case_that_it_fails(name):
    mutant = MUTANTS[name]
    passed, errors = run_pinned(mistaken_port(mutant), mutant.seen_in_ports)
    hint = hints.likely(errors[0], passed)
    assert hint is None if name in UNNAMED else mutant.cause in hint.split(" Or: ")


def test_statistics_in_16_bits_are_not_taken_for_a_variance_in_one_pass():
    passed, errors = run_pinned(mistaken_port(MUTANTS["group_norm_statistics_in_16_bits"]), ENCODE, "bfloat16")
    assert hints.likely(errors[0], passed) is None


def test_two_mistakes_that_a_case_cannot_tell_apart_are_both_named():
    mutant = MUTANTS["conv2d_pads_all_sides_at_stride_2"]
    error = caught("model.encode", mistaken_port(mutant), "float32")
    assert hints.likely(error) == " Or: ".join(
        f"The padding at stride 2 is {padding}, not ((0, 1), (0, 1))."
        for padding in (((1, 0), (1, 0)), ((1, 1), (1, 1)))
    )


# -- several failures of one check -------------------------------------------------------------------------------------

ONE_CHECK = Selection(checks=("model.decode[float32]",))


def failure_of(port):
    (result,) = run_conformance(port, profile="quick", selection=ONE_CHECK).bad
    return result.failure


def test_a_mistake_that_was_found_is_recognized_in_cases_that_are_not_searched(monkeypatch):
    monkeypatch.setattr(causes, "SEARCHED", 1)
    failure = failure_of(spoiled(decode=lambda port, z: Port.decode(port, z)[:, ::-1]))
    assert failure.hint
    assert failure.others == ()


def test_failures_whose_cause_was_not_searched_are_told_as_such(monkeypatch):
    monkeypatch.setattr(causes, "SECONDS", 0.0)
    failure = failure_of(spoiled(decode=lambda port, z: Port.decode(port, z) * 1.001))
    assert failure.hint is None
    assert "was not searched" in failure.message
    assert failure.others == ()


def test_a_variance_in_one_pass_is_not_suspected_if_other_cases_fail_too():
    failure = failure_of(spoiled(decode=lambda port, z: Port.decode(port, z) * 1.001))
    assert hints.FAR not in (failure.hint, *(other.hint for other in failure.others))
