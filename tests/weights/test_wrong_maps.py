"""Every wrong map that fits the shapes is caught by the check that real files pass.

The first mutants change the dialects' tables, row by row; the others are mistakes that people made. Most of them change
a picture by less than one notices, and one (the bias of to_k) does not change it at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest
from support.depth import first
from support.real_files import FILES, RealFile, check, filled

from vaespec import VaespecError, families
from vaespec.layouts import HWIO, OHWI, OIHW, Layout
from vaespec.parameter import Parameter
from vaespec.weights import config_from_weights, layouts, locate
from vaespec.weights.canonical import CanonicalWeights
from vaespec.weights.dialects import DIALECTS, DIFFUSIONKIT, MLX, Dialect

CAUGHT = (AssertionError, VaespecError)
FULL = "ldm-kl-f32"
"""The family whose files need every row of every table: it has attention in its levels, and both quant convolutions."""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_right_tables_pass(dialect):
    check(RealFile(FULL, dialect))


# -- rows of the tables ------------------------------------------------------------------------------------------


def wrong_tables(dialect: Dialect) -> Iterator[tuple[str, Dialect]]:
    """What is wrong, and the mutant: each row left out, its levels counted from the other end, leaves exchanged."""
    for ours, stored in dict(reversed(dialect.modules)).items():  # the first row of a name is the one that counts
        rest = tuple(row for row in dialect.modules if row != (ours, stored))
        yield f"{ours} left out", replace(dialect, modules=rest)
        flipped = stored.replace("flip_i", "i") if "flip_i" in stored else stored.replace("{i}", "{flip_i}")
        if flipped != stored:
            yield f"{ours} flipped", replace(dialect, modules=((ours, flipped), *rest))
    leaves = dict(dialect.leaves)
    for ours, other in zip(leaves, [*leaves][1:] + [*leaves][:1], strict=True):
        rest = {name: stored for name, stored in leaves.items() if name != ours}
        yield f"{ours} left out", replace(dialect, leaves=rest)
        if ours != other:
            exchanged = {ours: leaves[other], other: leaves[ours]}
            yield f"{ours} and {other} exchanged", replace(dialect, leaves=leaves | exchanged)


WRONG_TABLES = {
    f"{name}: {what}": (name, mutant) for name, dialect in DIALECTS.items() for what, mutant in wrong_tables(dialect)
}


@pytest.mark.parametrize("what", first(40, WRONG_TABLES))
def test_no_row_of_a_table_can_be_lost_or_changed(monkeypatch, what):
    name, mutant = WRONG_TABLES[what]
    file = RealFile(FULL, name)
    arrays = filled(file)
    monkeypatch.setitem(DIALECTS, name, mutant)
    with pytest.raises(CAUGHT):
        check(file, arrays, dialect=name)  # else a neighbour of its names might be taken, and be right


# -- names -------------------------------------------------------------------------------------------------------

EXCHANGES = [
    ("sd1-ldm-standalone", "attentions.0.to_q.", "attentions.0.to_k."),
    ("sd1-diffusers-deprecated", "attentions.0.to_q.", "attentions.0.to_v."),
    ("sd1-flax", "attentions.0.to_v.", "attentions.0.to_out.0."),
    ("flux1-mflux", "to_q.bias", "to_k.bias"),
    ("sd1-ldm-standalone", "down_blocks.2.resnets.1.norm1.", "down_blocks.2.resnets.1.norm2."),
    ("sd1-flax", "mid_block.resnets.0.conv1.", "mid_block.resnets.0.conv2."),
    ("flux1-bfl", "mid_block.resnets.0.", "mid_block.resnets.1."),
    ("flux2-bfl", "encoder.mid_block.", "decoder.mid_block."),
    ("sd1-mlx-examples", "group_norm.weight", "group_norm.bias"),
    ("sd3-ldm-full-prefix", "norm1.weight", "norm1.bias"),
    ("sd1-diffusers", "decoder.up_blocks.0.resnets.", "decoder.up_blocks.1.resnets."),
    ("sd1-ldm-vae-prefix", "decoder.up_blocks.0.upsamplers.", "decoder.up_blocks.1.upsamplers."),
    ("ldm-kl-f32-ldm", "encoder.down_blocks.4.attentions.", "encoder.down_blocks.5.attentions."),
    ("ldm-kl-f32-ldm", "up_blocks.0.attentions.0.", "up_blocks.0.attentions.1."),
    ("flux2-mflux", "decoder.up_blocks.0.resnets.1.", "decoder.up_blocks.0.resnets.2."),
    ("sd1-flax", "conv1.bias", "conv2.bias"),
    ("flux1-mlx-examples", "down_blocks.1.resnets.0.conv_shortcut.bias", "down_blocks.1.resnets.0.conv1.bias"),
    ("flux2-diffusers", "bn.running_mean", "bn.running_var"),
]


@pytest.mark.parametrize(("name", "one", "other"), EXCHANGES)
def test_no_two_tensors_of_one_shape_can_be_exchanged(monkeypatch, name, one, other):
    right = Dialect.stored

    def wrong(self: Dialect, canonical: str, levels: int) -> str:
        first, second = canonical.replace(one, other), canonical.replace(other, one)
        return right(self, first if first != canonical else second, levels)

    arrays = filled(FILES[name])
    monkeypatch.setattr(Dialect, "stored", wrong)
    with pytest.raises(AssertionError):  # the shapes agree, the numbers do not
        check(FILES[name], arrays)


# -- axes --------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "H and W exchanged, PyTorch": ("sd1-ldm-standalone", OIHW, Layout("OIWH")),
    "H and W exchanged, MLX": ("flux1-mflux", OHWI, Layout("OWHI")),
    "H and W exchanged, Flax": ("sd1-flax", HWIO, Layout("WHIO", "IO")),
    "Dense not transposed": ("sd1-flax", HWIO, Layout("HWIO", "OI")),
    "linear maps transposed, PyTorch": ("sd1-diffusers", OIHW, Layout("OIHW", "IO")),
    "linear maps transposed, MLX": ("flux2-mflux", OHWI, Layout("OHWI", "IO")),
    "outputs for inputs, PyTorch": ("sd1-diffusers", OIHW, Layout("IOHW")),
    "outputs for inputs, MLX": ("sd1-mlx-examples", OHWI, Layout("IHWO")),
    "outputs for inputs, Flax": ("sd1-flax", HWIO, Layout("HWOI", "IO")),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_no_layout_can_name_other_axes(monkeypatch, what):
    name, right, wrong = LAYOUTS[what]
    monkeypatch.setattr(layouts, "LAYOUTS", tuple(wrong if layout == right else layout for layout in layouts.LAYOUTS))
    with pytest.raises(CAUGHT):
        check(FILES[name])


Change = Callable[[np.ndarray], np.ndarray]
CHANGES: Mapping[str, tuple[str, str, Change]] = {
    "the bias of to_k lost": ("sd1-ldm-standalone", "to_k.bias", np.zeros_like),
    "quant_conv transposed": ("sd1-ldm-standalone", "quant_conv.weight", lambda a: np.einsum("oihw->iohw", a)),
    "first layer as if in OHWI": ("sd1-diffusers", "encoder.conv_in.weight", lambda a: np.einsum("oihw->owih", a)),
    "first layer as if in OIHW": ("sd1-mlx-examples", "encoder.conv_in.weight", lambda a: np.einsum("oihw->ohwi", a)),
    "kl-f4's latents as if in OHWI": ("ldm-kl-f4-ldm", "decoder.conv_in.weight", lambda a: np.einsum("oihw->owih", a)),
    "kl-f4's post_quant_conv transposed": (
        "ldm-kl-f4-ldm",
        "post_quant_conv.weight",
        lambda a: np.einsum("oihw->iohw", a),
    ),
    "a kernel rotated by half a turn": ("flux1-bfl", "mid_block.resnets.1.conv2.weight", lambda a: a[:, :, ::-1, ::-1]),
    "a shortcut transposed by reshaping": ("sdxl-diffusers", "conv_shortcut.weight", lambda a: a.T.reshape(a.shape)),
    "q transposed": ("sd1-diffusers-deprecated-conv4d", "to_q.weight", np.transpose),
    "a norm's scale from the other end": ("flux2-diffusers", "conv_norm_out.weight", lambda a: a[::-1]),
    "mean and log-variance exchanged": (
        "sd3-ldm-standalone",
        "encoder.conv_out.bias",
        lambda a: np.roll(a, len(a) // 2),
    ),
    "one number off": ("flux1-diffusers", "decoder.conv_out.bias", lambda a: a + (np.arange(len(a)) == 1)),
    "double precision": ("flux1-diffusers", "decoder.conv_out.bias", lambda a: a.astype(np.float64)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_no_tensor_can_be_changed_on_its_way(monkeypatch, what):
    name, suffix, change = CHANGES[what]
    right, met = CanonicalWeights.__getitem__, []

    def wrong(self: Mapping[str, np.ndarray], canonical: str) -> np.ndarray:
        array = right(self, canonical)
        if not canonical.endswith(suffix):
            return array
        met.append(canonical)
        return change(array)

    monkeypatch.setattr(CanonicalWeights, "__getitem__", wrong)
    with pytest.raises(AssertionError):
        check(FILES[name])
    assert met


def test_a_kernel_is_not_merely_reshaped(monkeypatch):
    """A reshape has the right shape if a linear map is square, or if two layouts have equal sizes."""

    def wrong(a: np.ndarray, row: Parameter, layout: Layout) -> np.ndarray:
        return a.reshape(row.shape)

    monkeypatch.setattr("vaespec.weights.canonical.to_canonical", wrong)
    for name in ("sd1-flax", "sd1-mlx-examples", "flux1-mlx-examples", "flux1-mflux", "flux2-mflux"):
        with pytest.raises(AssertionError):
            check(FILES[name])


# -- finding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mlx", "diffusionkit"])
def test_levels_cannot_be_in_the_other_order(monkeypatch, form):
    wrong = {"mlx": DIFFUSIONKIT, "diffusionkit": MLX}[form]
    monkeypatch.setattr(locate, "_flipped", lambda file, prefix: wrong)
    with pytest.raises(CAUGHT):
        check(RealFile("sd3", form, "first_stage_model."))


@pytest.mark.parametrize("name", ["sd1-flax", "flux1-mflux", "flux2-mflux", "sd1-mlx-examples", "flux1-mlx-examples"])
def test_the_layout_cannot_be_taken_for_granted(monkeypatch, name):
    monkeypatch.setattr(locate, "detect", lambda shapes, preferred, path: OIHW)
    with pytest.raises(CAUGHT):
        check(FILES[name])


@pytest.mark.parametrize("voters", [r"encoder\.conv_in\.weight$", r"\.weight$"])
def test_layers_of_three_channels_cannot_vote_for_the_layout(monkeypatch, voters):
    """The first layer of kl-f4 is (128, 3, 3, 3) in two layouts."""
    file = RealFile("ldm-kl-f4", "diffusers")
    arrays = filled(file, "OHWI")
    check(file, arrays)
    monkeypatch.setattr(locate, "RESNET_KERNEL", re.compile(voters))
    with pytest.raises(CAUGHT):
        check(file, arrays)


WRONG_FIELDS = [
    ("sd1-ldm-standalone", "_encoder", {"quant": False}),
    ("flux1-bfl", "_decoder", {"quant": True}),
    ("sd3-ldm-standalone", "_decoder", {"latent_channels": 4}),
    ("sd1-flax", "_encoder", {"layers_per_block": 3}),
    ("ldm-kl-f32-ldm", "_encoder", {"attends": ("",) * 6}),
    ("ldm-kl-f32-ldm", "_decoder", {"attends": ("Attn", "Attn", "", "", "", "")}),
    ("sd1-mlx-examples", "_decoder", {"widths": (512, 512, 256, 128)}),
    ("flux2-bfl", "_encoder", {"middle": False}),
]


@pytest.mark.parametrize(("name", "half", "fields"), WRONG_FIELDS)
def test_no_field_can_be_inferred_wrong(monkeypatch, name, half, fields):
    side = half.removeprefix("_")
    right = config_from_weights.READ[side]
    monkeypatch.setitem(config_from_weights.READ, side, lambda vae: replace(right(vae), **fields))
    with pytest.raises(CAUGHT):
        check(FILES[name])


@pytest.mark.parametrize("guess", ["sd1", "sdxl"])
def test_a_scale_cannot_be_guessed(monkeypatch, guess):
    monkeypatch.setattr(families, "matching", lambda *args: (guess,))
    wrong = {"sd1": "sdxl-ldm-full-prefix", "sdxl": "sd1-ldm-standalone"}[guess]
    with pytest.raises(AssertionError, match=r"scaling_factor|sample_size"):
        check(FILES[wrong])
