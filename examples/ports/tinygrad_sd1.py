"""The VAE of Stable Diffusion 1 in tinygrad's examples/stable_diffusion.py, of fixed widths; its encoder makes means.

tinygrad's wheel has no examples: TINYGRAD names a checkout of its repository. On a CPU it needs clang.
"""

import os
import sys
from contextlib import redirect_stdout

from vaespec import families
from vaespec.weights import stored


class Port:
    def __init__(self, config, weights):
        sys.path.append(os.environ["TINYGRAD"])
        from examples.stable_diffusion import AutoencoderKL
        from tinygrad import Tensor
        from tinygrad.nn.state import get_state_dict, load_state_dict

        self.vae, self.tensor, named = AutoencoderKL(), Tensor, stored(config, weights, dialect="ldm")
        if get_state_dict(self.vae).keys() != named.keys():
            raise ValueError("the weights are not the model's.")
        load_state_dict(self.vae, {name: Tensor(w) for name, w in named.items()}, strict=True, verbose=False)

    def encode(self, x):
        with redirect_stdout(None):
            return self.vae.quant_conv(self.vae.encoder(self.tensor(x)))[:, :4].numpy()

    def decode(self, z):
        with redirect_stdout(None):
            return self.vae.decoder(self.vae.post_quant_conv(self.tensor(z))).numpy()


def build(config, weights):
    return Port(config, weights)


build.config, build.lacks, build.framework = families.config("sd1"), {"logvar"}, "tinygrad"
