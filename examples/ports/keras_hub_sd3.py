"""KerasHub's VAE of Stable Diffusion 3, on JAX: `build` with channels last, `build_first` with channels first."""

import re
from functools import partial

import numpy as np

from vaespec.weights import to_dialect

SD3 = {"act_fn": "silu", "norm_num_groups": 32, "use_quant_conv": False, "mid_block_add_attention": True}.items()
LAYERS = r"""mid_block.resnets_ mid_block_  mid_block.attentions_0 mid_attention  conv_shortcut residual_projection
    (down|up)_blocks_(.).resnets_ block_\2_  (down|up)_blocks_(.).(down|up)samplers_0. \1sample_\2_  query query_conv2d
    key key_conv2d  value value_conv2d  proj_attn output_conv2d  conv_in input_projection  conv_norm_out output_norm
    conv_out output_projection  scale$ gamma  (norm.*).bias \1.beta""".split()


class Port:
    def __init__(self, config, weights, data_format):
        from keras_hub.src.models.vae.vae_backbone import VAEBackbone

        if SD3 - config.items() or "Attn" in str(config.down_block_types) or config.use_post_quant_conv:
            raise NotImplementedError("it has the layers of SD 3 alone")
        widths, depth = list(config.block_out_channels), config.layers_per_block
        halves = widths, [depth] * len(widths), widths[::-1], [depth + 1] * len(widths)
        self.vae = VAEBackbone(*halves, "mode", sample_channels=2 * config.latent_channels, data_format=data_format)
        self.axes = (0, 2, 3, 1) if data_format == "channels_last" else (0, 1, 2, 3)
        variables = {variable.path.replace("/", "."): variable for variable in self.vae.weights}
        for name, w in to_dialect(config, weights, "flax").items():
            for pattern, layer in zip(LAYERS[::2], LAYERS[1::2], strict=True):
                name = re.sub(pattern, layer, name)
            variables.pop(name).assign(w[None, None] if w.ndim == 2 else w)
        assert not variables, f"no weights for {', '.join(variables)}"

    def encode(self, x):
        return np.transpose(self.vae.encode(x.transpose(self.axes)), np.argsort(self.axes))

    def decode(self, z):
        return np.transpose(self.vae.decode(z.transpose(self.axes)), np.argsort(self.axes))


build, build_first = (partial(Port, data_format=f"channels_{end}") for end in ("last", "first"))
build.lacks = build_first.lacks = {"logvar", "quiet building"}
