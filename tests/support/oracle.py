"""diffusers' own models for our configs: what the specification is checked against."""

from __future__ import annotations

import copy
import inspect
from functools import cache, partial

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from support.configs import CONFIGS, drawn_weights, images, sizes, uniform

from vaespec import AutoencoderConfig


def diffusers_model(config: AutoencoderConfig) -> torch.nn.Module:
    """A new model of the class that the config belongs to, in float64, built from the config's fields."""
    cls = getattr(diffusers, config.class_name)
    taken = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in vars(config).items() if name in taken}).double().eval()


def weighted(config: AutoencoderConfig) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """diffusers' model and its canonical weights, drawn for the names and shapes of its own state_dict."""
    model = diffusers_model(config)
    weights = drawn_weights({name: tensor.shape for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=True)
    return model, weights


@cache
def oracle(name: str) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The model and weights of a named config; shared between tests, so not to be changed."""
    return weighted(CONFIGS[name])


def with_padding(model: torch.nn.Module, height: str, width: str) -> torch.nn.Module:
    """A copy of diffusers' model in which every convolution that pads has a padding_mode, for each axis its own."""
    padded = copy.deepcopy(model)
    for conv in padded.modules():
        if isinstance(conv, torch.nn.Conv2d) and conv.padding != (0, 0):
            if height == width:
                conv.padding_mode = height
            else:
                conv._conv_forward = partial(_conv_forward, conv, height, width)
    return padded


def _conv_forward(conv, height, width, x, weight, bias):
    for sides, mode in (((0, 0, 1, 1), height), ((1, 1, 0, 0), width)):
        x = F.pad(x, sides, mode=mode.replace("zeros", "constant"))
    return F.conv2d(x, weight, bias, conv.stride)


@torch.no_grad()
def encoded(model: torch.nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, logvar) of diffusers' posterior."""
    posterior = model.encode(torch.tensor(images)).latent_dist
    return posterior.mean.numpy(), posterior.logvar.numpy()


@torch.no_grad()
def decoded(model: torch.nn.Module, latents: np.ndarray) -> np.ndarray:
    return model.decode(torch.tensor(latents)).sample.numpy()


@cache
def expected(name: str, size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(images, moments, latents, decoded images) of diffusers in float64."""
    config, (model, _) = CONFIGS[name], oracle(name)
    x = images(config, *sizes(config)[size], batch=2)
    mean, logvar = encoded(model, x)
    z = uniform(f"latents {size}", mean.shape, -2, 2)
    return x, np.concatenate((mean, logvar), axis=1), z, decoded(model, z)
