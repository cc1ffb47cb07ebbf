"""CostOps: figures checked against published ones and against the memory of real arrays."""

import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaespec import families
from vaespec.analysis.cost import cost
from vaespec.architecture import count_parameters, decoder, encoder
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.initialize import initialize
from vaespec.reference import ReferenceOps

SD = families.config("sd1")
NARROW = AutoencoderConfig(
    block_out_channels=(4, 8, 8),
    down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    norm_num_groups=2,
)


def test_the_sd_decoder_at_512_px_costs_2_48_tflop_of_convolution():
    assert cost(SD, "decode", (64, 64)).conv_flops == pytest.approx(2.48e12, rel=0.01)


def test_the_sd_encoder_costs_4_13_mflop_per_pixel():
    assert cost(SD, "encode", (512, 512)).conv_flops / 512**2 == pytest.approx(4.13e6, rel=0.01)


def test_the_sd_model_has_83_653_863_parameters_and_weighs_four_bytes_each():
    assert count_parameters(SD) == 83_653_863
    assert cost(SD, "decode", (8, 8)).weight_bytes == 4 * 83_653_863


def test_attention_grows_with_the_square_of_the_pixels_and_convolution_with_the_pixels():
    small, large = cost(SD, "decode", (64, 64)), cost(SD, "decode", (128, 128))
    assert large.conv_flops == 4 * small.conv_flops
    logits = 4 * 512 * (128**4 - 4 * 64**4)  # what grows faster than the pixels: Q Kᵀ and its product with V
    assert large.attention_flops - 4 * small.attention_flops == logits


def test_half_the_bytes_per_number_are_half_the_memory():
    wide, narrow = (cost(SD, "decode", (64, 64), bytes_per_number=n) for n in (4, 2))
    assert (wide.peak_bytes, wide.moved_bytes) == (2 * narrow.peak_bytes, 2 * narrow.moved_bytes)


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 21), st.integers(4, 21), st.integers(1, 3), st.sampled_from(["encode", "decode"]))
def test_arithmetic_shapes_and_peak_memory_equal_those_of_a_watched_run(height, width, batch, direction):
    model, channels = (encoder(NARROW), 3) if direction == "encode" else (decoder(NARROW), 4)
    watch = Watch()
    y = model(watch.held(np.zeros((batch, channels, height, width))), initialize(NARROW, seed=0), watch)
    predicted = cost(NARROW, direction, (height, width), batch, bytes_per_number=8)
    assert predicted.output_shape == y.shape
    assert predicted.conv_flops == watch.conv_flops
    assert predicted.peak_bytes == watch.peak_bytes


class Watch:
    """The specification in float64; counts multiplications of convolutions and bytes of live arrays."""

    def __init__(self):
        self.ops = ReferenceOps(np)
        self.conv_flops = self.bytes = self.peak_bytes = 0

    def held(self, x):
        """Copy x, and count its bytes until Python frees the copy."""
        x = np.array(x, np.float64)
        self.weigh(x.nbytes)
        weakref.finalize(x, self.weigh, -x.nbytes)
        return x

    def weigh(self, change):
        self.bytes += change
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def run(self, layer, x, params):
        return layer(x, params, self)

    def __getattr__(self, name):
        op = getattr(self.ops, name)
        if name in ("from_nchw", "to_nchw"):  # the array itself, in this layout
            return op

        def watched(*args, **kwargs):
            y = op(*args, **kwargs)
            if name == "conv2d":
                self.conv_flops += 2 * y.size * args[1][0].size
            return self.held(y)

        return watched


def test_an_unknown_direction_is_refused():
    with pytest.raises(InputError, match="direction='enc': expected encode or decode"):
        cost(SD, "enc", (8, 8))
