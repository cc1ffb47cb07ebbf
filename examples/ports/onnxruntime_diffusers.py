"""diffusers' AutoencoderKL on ONNX Runtime: PyTorch exports each config once, and every model gets its own weights."""

from functools import cache, partial
from io import BytesIO
from types import SimpleNamespace

RESULTS = {"encode": lambda y: (y.latent_dist.mean, y.latent_dist.logvar), "decode": lambda y: y.sample}


@cache
def export(config):
    """diffusers' module, and ONNX models of its halves, whose initializers have the names of the weights."""
    import onnx
    import torch
    from diffusers import AutoencoderKL

    vae, models = AutoencoderKL.from_config(config.to_dict()).eval(), []
    vae.load_state_dict({name: 0 * w + i for i, (name, w) in enumerate(vae.state_dict().items())})  # equal ones merge
    for verb, channels in (("encode", config.in_channels), ("decode", config.latent_channels)):
        vae.forward = lambda x, verb=verb: RESULTS[verb](getattr(vae, verb)(x))
        file, sizes = BytesIO(), {"input_names": ["x"], "dynamic_axes": {"x": [0, 2, 3]}}
        torch.onnx.export(vae, torch.zeros(1, channels, 32, 32), file, **sizes, do_constant_folding=False, dynamo=False)
        models.append(onnx.load_from_string(file.getvalue()))
    return vae, models


def build(config, weights):
    import torch
    from onnx.numpy_helper import from_array
    from onnxruntime import InferenceSession

    vae, models = export(config)
    vae.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})  # refuses what does not fit
    for tensor in (tensor for model in models for tensor in model.graph.initializer):
        tensor.CopyFrom(from_array(weights[tensor.name], tensor.name))
    encode, decode = (partial(InferenceSession(model.SerializeToString()).run, None) for model in models)
    return SimpleNamespace(encode=lambda x: tuple(encode({"x": x})), decode=lambda z: decode({"x": z})[0])


build.framework, build.accepts = "onnxruntime", lambda config: "only AutoencoderKL" if config.patch_size else None
