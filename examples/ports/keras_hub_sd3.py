"""KerasHub's VAE of Stable Diffusion 3, with channels last; `build_first` is it with channels first."""

import re
from functools import partial
from types import SimpleNamespace

import numpy as np

from vaespec.weights import stored

SD3 = {"act_fn": "silu", "norm_num_groups": 32, "use_quant_conv": False, "mid_block_add_attention": True}.items()
LAYERS = r"""mid_block.resnets_ mid_block_  mid_block.attentions_0 mid_attention  conv_shortcut residual_projection
    (down|up)_blocks_(.).resnets_ block_\2_  (down|up)_blocks_(.).(down|up)samplers_0. \1sample_\2_  query query_conv2d
    key key_conv2d  value value_conv2d  proj_attn output_conv2d  conv_in input_projection  conv_norm_out output_norm
    conv_out output_projection  scale$ gamma  (norm.*).bias \1.beta""".split()


def build(config, weights, data_format="channels_last"):
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    if SD3 - config.items() or "Attn" in str(config.down_block_types) or config.use_post_quant_conv:
        raise NotImplementedError("it has the layers of SD 3 alone, with 32 groups")
    widths, depth = list(config.block_out_channels), [config.layers_per_block] * config.levels
    halves = widths, depth, widths[::-1], [n + 1 for n in depth]
    vae = VAEBackbone(*halves, "mode", sample_channels=2 * config.latent_channels, data_format=data_format)
    variables = {variable.path.replace("/", "."): variable for variable in vae.weights}
    for name, w in stored(config, weights, dialect="flax").items():
        for flax, keras in zip(LAYERS[::2], LAYERS[1::2], strict=True):
            name = re.sub(flax, keras, name)
        variables.pop(name).assign(w[None, None] if w.ndim == 2 else w)
    assert not variables, f"no weights for {', '.join(variables)}"
    to, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if data_format == "channels_last" else 2 * ((0, 1, 2, 3),)
    run = lambda half, x: np.transpose(half(x.transpose(to)), back)  # noqa: E731
    return SimpleNamespace(encode=partial(run, vae.encode), decode=partial(run, vae.decode))


build_first = partial(build, data_format="channels_first")
build.lacks = build_first.lacks = {"logvar", "quiet building"}
build.framework = build_first.framework = "keras"
