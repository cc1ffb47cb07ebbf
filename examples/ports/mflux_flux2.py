"""The VAE of FLUX.2 in mflux, whose encoder gives the mean alone. Its own arguments make it narrow."""

import numpy as np

from vaespec.weights import stored


class Port:
    def __init__(self, config, weights):
        import mlx.core as mx
        from mflux.models.common.config.model_config import ModelConfig
        from mflux.models.flux2.model.flux2_vae import vae as flux2

        ModelConfig.precision = mx.float32  # bfloat16 unless it is set
        sizes = {name: getattr(config, name) for name in ("block_out_channels", "layers_per_block", "norm_num_groups")}
        self.vae, self.array, self.patch = flux2.Flux2VAE(), mx.array, flux2.Flux2LatentCreator.patchify_latents
        self.vae.encoder, self.vae.decoder = flux2.Flux2Encoder(**sizes), flux2.Flux2Decoder(**sizes)
        names = stored(config, weights, dialect="mflux-flux2")
        names.pop("bn.num_batches_tracked", None)  # counts the batches of a training, and mflux only infers
        self.vae.load_weights([(name, mx.array(w)) for name, w in names.items()], strict=True)

    def encode(self, x):
        return np.array(self.vae.encode(self.array(x)))

    def decode(self, z):
        return np.array(self.vae.decode(self.array(z)))

    def encode_latents(self, x):
        return np.array(self.patch(self.vae.normalize_latents(self.vae.encode(self.array(x)))))

    def decode_latents(self, z):
        return np.array(self.vae.decode_packed_latents(self.array(z)))


def build(config, weights):
    return Port(config, weights)


build.accepts = lambda config: None if config.patch_size and config.latent_channels == 32 else "only FLUX.2's VAE"
build.lacks, build.distribution, build.framework = {"logvar"}, "mflux", "mlx"
