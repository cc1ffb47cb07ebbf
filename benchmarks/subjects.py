"""The subjects of `python -m benchmarks.run`: our backends and their peers, all with the same weights.

A subject is a function (folder, direction, shape) -> run(x), NumPy to NumPy; `folder` holds a diffusers model and
`shape` is the shape of x. `python -m benchmarks.subjects NAME FOLDER DIRECTION DEVICE` is the process of one subject:
for each line of stdin it runs once and prints the seconds and its highest resident memory; the line may name a file
for the result.
"""

import importlib.util
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

FLAX = ("diffusers==0.35.2", "flax==0.10.7", "jax==0.6.2")
"""The last diffusers with FlaxAutoencoderKL, and its requirements: they run in their own environment."""


@dataclass(frozen=True)
class Subject:
    """A way to run the VAE. `needs` are the modules it imports; `precision` is the dtype of its numbers.

    Images larger than `up_to` px are not measured, because a run would take minutes.
    """

    prepare: object
    needs: tuple[str, ...] = ()
    precision: str = "float32"
    environment: tuple[str, ...] = ()
    up_to: float = math.inf

    @property
    def missing(self):
        """The modules that are not installed."""
        return [name for name in self.needs if not self.environment and importlib.util.find_spec(name) is None]


# -- ours --------------------------------------------------------------------------------------------------------------


def ours(backend, folder, direction, shape, **options):
    """AutoencoderKL on one of our backends."""
    import vaespec

    vae = vaespec.AutoencoderKL.from_pretrained(folder, **{"backend": backend, "device": "cpu", **options})
    if direction == "encode":
        return lambda x: vae.to_numpy(vae.encode(x).latent_dist.mean)
    return lambda z: vae.to_numpy(vae.decode(z).sample)


# -- peers -------------------------------------------------------------------------------------------------------------


def half_of_diffusers(folder, direction, dtype="float32", *, channels_last=False):
    """The encode (to the mean) or decode of diffusers' AutoencoderKL, as a module."""
    import diffusers
    import torch

    torch.set_grad_enabled(False)

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            vae = diffusers.AutoencoderKL.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval()
            self.vae = vae.to(memory_format=torch.channels_last) if channels_last else vae

        def forward(self, x):
            return self.vae.encode(x).latent_dist.mean if direction == "encode" else self.vae.decode(x).sample

    return Half().eval()


def diffusers(folder, direction, shape, *, dtype="float32", channels_last=False, compiled=False, device="cpu"):
    """diffusers' model: eager, in channels-last order, or compiled."""
    import torch

    half = half_of_diffusers(folder, direction, dtype, channels_last=channels_last).to(device)
    call = torch.compile(half, fullgraph=True) if compiled else half
    order = torch.channels_last if channels_last else torch.contiguous_format

    def run(x):
        y = call(torch.from_numpy(x).to(device, getattr(torch, dtype), memory_format=order))
        return y.to(torch.promote_types(y.dtype, torch.float32)).cpu().numpy()

    return run


def onnxruntime(folder, direction, shape):
    """diffusers' model on ONNX Runtime, exported for this shape and optimized when it is loaded."""
    import onnxruntime as ort
    import torch

    path = Path(folder) / f"{direction}-{'x'.join(map(str, shape))}.onnx"
    torch.onnx.export(half_of_diffusers(folder, direction), (torch.zeros(shape),), path, dynamo=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def openvino(folder, direction, shape, *, precision):
    """diffusers' model on OpenVINO, converted for this shape, computed in `precision` ("f32" or "bf16")."""
    import openvino as ov
    import torch

    converted = ov.convert_model(
        half_of_diffusers(folder, direction), example_input=torch.zeros(shape), input=ov.PartialShape(shape)
    )
    compiled = ov.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda x: np.array(compiled(x)[0])


def flax(folder, direction, shape):
    """diffusers' FlaxAutoencoderKL, compiled for this shape."""
    import jax
    from diffusers import FlaxAutoencoderKL

    vae, params = FlaxAutoencoderKL.from_pretrained(f"{folder}/flax")

    def encode(params, x):
        return vae.apply({"params": params}, x, method=vae.encode).latent_dist.mean.transpose(0, 3, 1, 2)

    def decode(params, z):
        return vae.apply({"params": params}, z, method=vae.decode).sample

    run = jax.jit({"encode": encode, "decode": decode}[direction])
    return lambda x: np.asarray(run(params, x))


def plain_mlx(folder, direction, shape):
    """The layers of mlx.nn, as its examples use them, in our topology."""
    import mlx.core as mx

    from vaespec import AutoencoderKL
    from vaespec.model import Model

    vae = AutoencoderKL.from_pretrained(folder, backend="mlx", device="cpu")
    table, ops = vae._model.table(), plain_mlx_ops()
    placed = Model(
        vae.config,
        vae._model.encoder,
        vae._model.decoder,
        ops.load_params(vae._model.ops.export_params(vae._model.params, table), table),
        ops,
    )
    half = {"encode": "encoder", "decode": "decoder"}[direction]
    del vae

    def run(x):
        with mx.stream(mx.cpu):
            y = getattr(placed, half)(mx.array(x), placed.params, ops)
            mx.eval(y)
        return np.array(y)[:, : y.shape[1] // 2] if direction == "encode" else np.array(y)

    return run


def plain_mlx_ops():
    """The operations of a model with the layers of mlx.nn."""
    import mlx.core as mx
    from mlx import nn

    from vaespec_mlx.ops import MlxOps

    class PlainOps(MlxOps):
        def compile(self, model):
            return lambda x, params: model(x, params, self)

        def conv2d(self, x, w, b, *, stride, padding):
            (top, bottom), (left, right) = padding
            if (top, left) != (bottom, right):
                x, (top, left) = mx.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))), (0, 0)
            return mx.conv2d(x, w, stride=stride, padding=(top, left)) + b

        def group_norm(self, x, scale, shift, *, groups, eps):
            layer = nn.GroupNorm(groups, x.shape[3], eps=eps, pytorch_compatible=True)
            layer.weight, layer.bias = scale, shift
            return layer(x)

        def silu(self, x):
            return nn.silu(x)

        def upsample_nearest2x(self, x):
            return nn.Upsample(scale_factor=2)(x)

        def attention(self, q, k, v, *, scale):
            q, k, v = (t[:, None] for t in (q, k, v))
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)[:, 0]

    return PlainOps("cpu", "float32")


TORCH = ("torch", "diffusers")
PEERS = {
    "diffusers": Subject(diffusers, TORCH),
    "diffusers channels-last": Subject(partial(diffusers, channels_last=True), TORCH),
    "diffusers compiled": Subject(partial(diffusers, compiled=True), TORCH),
    "diffusers bf16 channels-last": Subject(
        partial(diffusers, dtype="bfloat16", channels_last=True), TORCH, "bfloat16"
    ),
    "ONNX Runtime": Subject(onnxruntime, (*TORCH, "onnx", "onnxscript", "onnxruntime")),
    "OpenVINO": Subject(partial(openvino, precision="f32"), (*TORCH, "openvino")),
    "OpenVINO bf16": Subject(partial(openvino, precision="bf16"), (*TORCH, "openvino"), "bfloat16"),
    "Flax": Subject(flax, environment=FLAX),
    "mlx.nn": Subject(plain_mlx, ("mlx",), up_to=64),
}
PEERS_ON_CUDA = {
    "diffusers": Subject(partial(diffusers, device="cuda"), TORCH),
    "diffusers bf16": Subject(partial(diffusers, device="cuda", dtype="bfloat16"), TORCH, "bfloat16"),
    "diffusers bf16 channels-last": Subject(
        partial(diffusers, device="cuda", dtype="bfloat16", channels_last=True), TORCH, "bfloat16"
    ),
    "diffusers bf16 compiled": Subject(
        partial(diffusers, device="cuda", dtype="bfloat16", channels_last=True, compiled=True), TORCH, "bfloat16"
    ),
}
EXACT = partial(diffusers, dtype="float64")
"""The reference of all errors."""


def our_subjects(device):
    """Our subjects by name: each backend on the CPU, or PyTorch on CUDA. The names of the others are peers."""
    if device == "cuda":
        torch = partial(ours, "torch", device="cuda")
        return {
            "vaespec torch": Subject(torch, ("torch",)),
            "vaespec torch bf16": Subject(partial(torch, dtype="bfloat16"), ("torch",), "bfloat16"),
            "vaespec torch bf16 compiled": Subject(
                partial(torch, dtype="bfloat16", compile=True), ("torch",), "bfloat16"
            ),
        }
    from vaespec import backends  # the environments of peers do not have its requirements

    return {
        **{f"vaespec {info.name}": Subject(partial(ours, info.name), (info.framework,)) for info in backends()},
        "vaespec numpy, highest": Subject(partial(ours, "numpy", precision="highest")),
        "vaespec torch bf16": Subject(partial(ours, "torch", dtype="bfloat16"), ("torch",), "bfloat16"),
    }


def peers(device):
    """The peers by name."""
    return PEERS_ON_CUDA if device == "cuda" else PEERS


def matrix_product():
    """GFLOP/s of a product of two matrices of 2048 x 2048, float32."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * 2048**3 / (time.perf_counter() - start) / 1e9


def peak_memory(device):
    """The peak of the bytes that were allocated on a CUDA device, or resident in this process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reset_peak(device):
    """Resets the peak, so that loading, exporting and compiling do not count."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def serve(name, folder, direction, device):
    """Runs once for each line of stdin and prints the seconds and the memory."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # exporters print to stdout, which is for results only
    x = np.load(Path(folder) / f"{direction}.npy")
    prepare = EXACT if name == "exact" else (peers(device).get(name) or our_subjects(device)[name]).prepare
    run = prepare(folder, direction, x.shape)
    print(json.dumps("ready"), file=pipe, flush=True)
    for line in sys.stdin:
        reset_peak(device)
        start = time.perf_counter()
        y = run(x)
        seconds = time.perf_counter() - start
        if line.strip():
            np.save(line.strip(), np.asarray(y, np.float64))  # .npy knows no bfloat16
        print(json.dumps({"seconds": seconds, "memory": peak_memory(device)}), file=pipe, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
