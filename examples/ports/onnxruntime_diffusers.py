"""diffusers' AutoencoderKL on ONNX Runtime: each half is exported once for each config, for any size, by PyTorch."""

from functools import lru_cache
from io import BytesIO

import numpy as np


@lru_cache(2)
def exported(config):
    """The ONNX models of the encoder (to moments) and of the decoder, whose initializers have the names of weights."""
    import onnx, torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
