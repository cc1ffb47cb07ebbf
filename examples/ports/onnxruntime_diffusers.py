"""diffusers' AutoencoderKL on ONNX Runtime: PyTorch exports each config once, and every model gets its own weights."""

import io
from functools import cache
from types import SimpleNamespace


@cache
def export(config):
    """diffusers' module, and the ONNX models of its halves, whose initializers have the names of its weights."""
    import onnx
    import torch
    from diffusers import AutoencoderKL

    vae, models = AutoencoderKL.from_config(config.to_dict()).eval(), []
    for i, parameter in enumerate(vae.parameters()):
        parameter.data.fill_(i)  # the exporter would merge equal ones
    encode = lambda x: tuple(map(vars(vae.encode(x).latent_dist).get, ("mean", "logvar")))  # noqa: E731
    decode = lambda z: vae.decode(z).sample  # noqa: E731
    for vae.forward, channels in ((encode, config.in_channels), (decode, config.latent_channels)):
        file, sizes = io.BytesIO(), {"input_names": ["x"], "dynamic_axes": {"x": [0, 2, 3]}}
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
    encoder, decoder = (InferenceSession(model.SerializeToString()) for model in models)
    return SimpleNamespace(
        encode=lambda x: tuple(encoder.run(None, {"x": x})), decode=lambda z: decoder.run(None, {"x": z})[0]
    )


build.distribution, build.framework = "diffusers", "onnxruntime"
build.accepts = lambda config: "FLUX.2's is another class" if config.patch_size else None
