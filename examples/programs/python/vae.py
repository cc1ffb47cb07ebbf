"""The VAE of Stable Diffusion in one file of Python and NumPy: encoder and decoder, in float32, for any size.

It answers the requests of `vaespec conformance` by the protocol in docs/programs.md:

    vaespec conformance --program "python vae.py {request} {answer}"
    vaespec conformance --program-serve "python vae.py"

Layers compute in float64 and return float32.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

PROTOCOL = "vaespec-program/1"
EPS = 1e-6  # of every norm; most frameworks' default is 1e-5


class NotSupportedError(Exception):
    """What this program does not do."""


class RefusedError(Exception):
    """What is wrong with a model or an input."""


# -- safetensors: eight bytes of length, a table in JSON, and the numbers ----------------------------------------------


def read_tensors(path):
    """The float32 tensors of a file; None stands for a tensor of another dtype."""
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:data])
    table.pop("__metadata__", None)
    tensors = {}
    for name, row in table.items():
        first, end = (data + offset for offset in row["data_offsets"])
        numbers = np.frombuffer(content[first:end], "<f4").reshape(row["shape"]) if row["dtype"] == "F32" else None
        tensors[name] = numbers
    return tensors


def write_tensors(path, tensors):
    """Writes float32 tensors."""
    table, end = {}, 0
    for name, a in tensors.items():
        table[name] = {"dtype": "F32", "shape": a.shape, "data_offsets": [end, end + a.nbytes]}
        end += a.nbytes
    header = json.dumps(table).encode()
    numbers = [np.ascontiguousarray(a, "<f4").tobytes() for a in tensors.values()]
    write_whole(path, b"".join([len(header).to_bytes(8, "little"), header, *numbers]))


def write_whole(path, content):
    """Writes under another name and renames then, so that the file appears whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


# -- layers: one formula each ------------------------------------------------------------------------------------------

SAME, DOWN, NONE = (1, 1), (0, 1), (0, 0)  # zeros above and on the left, zeros below and on the right


def conv(model, name, x, out, kernel=3, stride=1, padding=SAME):
    """A convolution with a bias."""
    w = model.weight(f"{name}.weight", (out, x.shape[1], kernel, kernel)).astype(np.float64)
    bias = model.weight(f"{name}.bias", (out,))
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), padding, padding))
    height, width = ((n - kernel) // stride + 1 for n in x.shape[2:])
    y = np.zeros((x.shape[0], out, height, width)) + bias[:, None, None]
    for u in range(kernel):
        for v in range(kernel):
            tap = x[:, :, u : u + stride * (height - 1) + 1 : stride, v : v + stride * (width - 1) + 1 : stride]
            y += np.einsum("oi,bihw->bohw", w[:, :, u, v], tap, optimize=True)
    return model.noted(name, y.astype(np.float32))


def pointwise(model, name, x, out):
    """A 1 x 1 convolution."""
    return conv(model, name, x, out, kernel=1, padding=NONE)


def linear(model, name, t):
    """W t + b for tokens (batch, n, channels)."""
    channels = t.shape[2]
    w, bias = model.weight(f"{name}.weight", (channels, channels)), model.weight(f"{name}.bias", (channels,))
    return model.noted(name, (t.astype(np.float64) @ w.T.astype(np.float64) + bias).astype(np.float32))


def group_norm(model, name, x):
    """(x - mean) / sqrt(variance + eps) over each group of channels, with a scale and a shift per channel."""
    channels = x.shape[1]
    scale, shift = model.weight(f"{name}.weight", (channels,)), model.weight(f"{name}.bias", (channels,))
    groups = model.config["norm_num_groups"]
    g = x.astype(np.float64).reshape(len(x), groups, channels // groups * x.shape[2] * x.shape[3])
    g = (g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + EPS)
    y = g.reshape(x.shape) * scale[:, None, None] + shift[:, None, None]
    return model.noted(name, y.astype(np.float32))


def silu(x):
    """x / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        return (x / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def add(x, y):
    """The sum of two maps."""
    return x + y


def norm_silu_conv(model, norm, name, x, out):
    """Norm, activation, convolution."""
    return conv(model, name, silu(group_norm(model, norm, x)), out)


def resnet(model, name, x, out):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), with a 1 x 1 convolution of x if the width changes."""
    h = norm_silu_conv(model, f"{name}.norm1", f"{name}.conv1", x, out)
    h = norm_silu_conv(model, f"{name}.norm2", f"{name}.conv2", h, out)
    if x.shape[1] != out:
        x = pointwise(model, f"{name}.conv_shortcut", x, out)
    return model.noted(name, add(x, h))


def attend(q, k, v):
    """softmax(scale · Q Kᵀ) V over all tokens, with one head; a few queries at a time."""
    scale = 1 / np.sqrt(q.shape[2])
    keys, values = k.astype(np.float64).transpose(0, 2, 1), v.astype(np.float64)
    parts = []
    for first in range(0, q.shape[1], 256):
        p = scale * q[:, first : first + 256].astype(np.float64) @ keys
        p = np.exp(p - p.max(2, keepdims=True))
        parts.append(p / p.sum(2, keepdims=True) @ values)
    return np.concatenate(parts, axis=1).astype(np.float32)


def attention(model, name, x):
    """x + to_out(attend(to_q(t), to_k(t), to_v(t))) with t = norm(x), the pixels of which are tokens."""
    batch, channels, height, width = x.shape
    t = group_norm(model, f"{name}.group_norm", x).reshape(batch, channels, height * width).transpose(0, 2, 1)
    q, k, v = (linear(model, f"{name}.{part}", t) for part in ("to_q", "to_k", "to_v"))
    h = linear(model, f"{name}.to_out.0", attend(q, k, v)).transpose(0, 2, 1).reshape(x.shape)
    return model.noted(name, add(x, h))


def doubled(x):
    """Repeats every pixel in a square of four."""
    return x.repeat(2, axis=2).repeat(2, axis=3)


def upsample(model, name, x):
    """Doubles a map, then convolves it."""
    return model.noted(name, conv(model, f"{name}.conv", doubled(x), x.shape[1]))


def downsample(model, name, x):
    """A convolution of stride 2, with zeros below and on the right only."""
    return model.noted(name, conv(model, f"{name}.conv", x, x.shape[1], stride=2, padding=DOWN))


# -- the two halves, from the first layer to the last ------------------------------------------------------------------


def stage(model, block, kind, x, out, resnets):
    """The layers of one resolution."""
    for i in range(resnets):
        x = resnet(model, f"{block}.resnets.{i}", x, out)
        if kind.startswith("Attn"):
            x = attention(model, f"{block}.attentions.{i}", x)
    return x


def middle(model, block, x):
    """Resnet, attention, resnet."""
    x = resnet(model, f"{block}.resnets.0", x, x.shape[1])
    if model.config["mid_block_add_attention"]:
        x = attention(model, f"{block}.attentions.0", x)
    return resnet(model, f"{block}.resnets.1", x, x.shape[1])


def head(model, half, x, out):
    """The last norm, activation and convolution of a half."""
    x = model.noted(f"{half}.conv_act", silu(group_norm(model, f"{half}.conv_norm_out", x)))
    return conv(model, f"{half}.conv_out", x, out)


def encoder(model, x):
    """Images -> mean and log-variance, in one map."""
    config = model.config
    widths, moments = config["block_out_channels"], 2 * config["latent_channels"]
    x = conv(model, "encoder.conv_in", x, widths[0])
    for level, width in enumerate(widths):
        block = f"encoder.down_blocks.{level}"
        x = stage(model, block, config["down_block_types"][level], x, width, config["layers_per_block"])
        if level + 1 < len(widths):
            x = downsample(model, f"{block}.downsamplers.0", x)
    x = middle(model, "encoder.mid_block", x)
    x = head(model, "encoder", x, moments)
    return pointwise(model, "quant_conv", x, moments) if config["use_quant_conv"] else x


def decoder(model, x):
    """Latents -> images."""
    config = model.config
    widths = (config.get("decoder_block_out_channels") or config["block_out_channels"])[::-1]
    if config["use_post_quant_conv"]:
        x = pointwise(model, "post_quant_conv", x, x.shape[1])
    x = conv(model, "decoder.conv_in", x, widths[0])
    x = middle(model, "decoder.mid_block", x)
    for level, width in enumerate(widths):
        block = f"decoder.up_blocks.{level}"
        x = stage(model, block, config["up_block_types"][level], x, width, config["layers_per_block"] + 1)
        if level + 1 < len(widths):
            x = upsample(model, f"{block}.upsamplers.0", x)
    return head(model, "decoder", x, config["out_channels"])


def encode(model, images):
    """Images -> mean and log-variance."""
    mean, logvar = np.split(encoder(model, images), 2, axis=1)
    return {"mean": mean, "logvar": np.clip(logvar, -30, 20)}


def decode(model, latents):
    """Latents -> images."""
    return {"sample": decoder(model, latents)}


# -- the model: a config and its weights. What this program does not do is said, and wrong weights are refused --------


class Model:
    """A config and its weights, and the results of layers if they are asked for."""

    def __init__(self, config, weights, layers=False):
        if config["act_fn"] not in ("silu", "swish"):
            raise NotSupportedError(f"act_fn {config['act_fn']}")
        self.config, self.weights = config, weights
        self.read, self.results = set(), None
        self.require_all_and_no_others()
        self.results = {} if layers else None

    def weight(self, name, shape):
        """A weight, which must be there and have this shape."""
        w = self.weights.get(name)
        if w is None or w.shape != shape:
            raise RefusedError(f"tensor {name} is {'missing' if w is None else w.shape}: expected float32 {shape}")
        self.read.add(name)
        return w

    def require_all_and_no_others(self):
        """Runs both halves on a batch of no images: that reads every weight, and what is not read is none of ours."""
        encoder(self, np.zeros((0, self.config["in_channels"], 64, 64), np.float32))
        decoder(self, np.zeros((0, self.config["latent_channels"], 2, 2), np.float32))
        for name in self.weights.keys() - self.read:
            if not (self.config.get("patch_size") and name.startswith("bn.")):
                raise RefusedError(f"tensor {name} is unexpected")

    def noted(self, layer, y):
        """Notes the result of a layer, if the request asks for them."""
        if self.results is not None and y.ndim == 4:
            self.results[f"layer.{layer}"] = y
        return y


def load(folder, layers=False):
    """The model of a folder, as diffusers writes it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Model(config, read_tensors(folder / "diffusion_pytorch_model.safetensors"), layers)


# -- the protocol: a folder with a request in, a folder with answers out ----------------------------------------------

CALLS = {"encode": (encode, "images"), "decode": (decode, "latents")}


def compute(row, request):
    """The tensors that answer one case."""
    if row["call"] not in CALLS:
        raise NotSupportedError(f"the call {row['call']}")
    if row["dtype"] != "float32":
        raise NotSupportedError(f"{row['dtype']}: this program computes in float32")
    run, name = CALLS[row["call"]]
    model = load(request / row["model"], row["layers"])
    return run(model, read_tensors(request / row["input"])[name]) | (model.results or {})


def answer_case(row, request, folder):
    """Writes the answer to one case."""

    def words(**values):
        write_whole(folder / f"{row['id']}.json", json.dumps(values).encode())

    if row["call"] == "describe":
        return words(name="vae.py", dtypes=["float32"])
    try:
        write_tensors(folder / f"{row['id']}.safetensors", compute(row, request))
    except NotSupportedError as reason:
        words(not_supported=str(reason))
    except RefusedError as message:
        words(error=str(message))


def answer_request(request, folder):
    """Answers every case of a request."""
    content = json.loads((request / "request.json").read_text(encoding="utf-8"))
    if content["protocol"] != PROTOCOL:
        sys.exit(f"{content['protocol']}: this program knows {PROTOCOL} only")
    for row in content["cases"]:
        answer_case(row, request, folder)


def serve():
    """Each line of stdin names the folders of a request; a line on stdout says that it is answered."""
    for line in sys.stdin:
        folders = json.loads(line)
        answer_request(Path(folders["request"]), Path(folders["answer"]))
        print(json.dumps({"done": True}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        answer_request(*map(Path, sys.argv[1:]))
    else:
        serve()
