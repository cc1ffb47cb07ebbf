"""FlaxAutoencoderKL of diffusers 0.35, the last with Flax. Latents go in as (B, H, W, C), which it takes besides NCHW.

`build` is the model as it is, with variances E[x²] - E[x]²; `build_centred` has Flax' own switch for E[(x - E[x])²].
"""

from functools import partial

import numpy as np

from vaespec.weights import stored

FIELDS = "block_out_channels down_block_types up_block_types layers_per_block latent_channels norm_num_groups".split()
SD1 = {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}.items()


class Port:
    def __init__(self, config, weights, fast_variance):
        import jax
        from diffusers.models import vae_flax
        from flax import linen, traverse_util

        if SD1 - config.items() or config.patch_size or "Attn" in str(config.down_block_types):
            raise NotImplementedError("it has the layers of SD 1 alone")
        vae_flax.nn.GroupNorm = partial(linen.normalization.GroupNorm, use_fast_variance=fast_variance)
        self.vae = vae_flax.FlaxAutoencoderKL(**{name: config[name] for name in FIELDS})
        self.params = traverse_util.unflatten_dict(stored(config, weights, dialect="flax"), sep=".")
        shapes = jax.eval_shape(self.vae.init_weights, jax.random.key(0))
        if jax.tree.map(np.shape, self.params) != jax.tree.map(np.shape, shapes):
            raise ValueError("these are not the model's weights.")

    def encode(self, x):
        posterior = self.vae.apply({"params": self.params}, x, method="encode").latent_dist
        return posterior.mean.transpose(0, 3, 1, 2), posterior.logvar.transpose(0, 3, 1, 2)

    def decode(self, z):
        return self.vae.apply({"params": self.params}, z.transpose(0, 2, 3, 1), method="decode").sample


build, build_centred = (partial(Port, fast_variance=fast) for fast in (True, False))
build.framework = build_centred.framework = "flax"
