"""What every test runs under: one torch thread, four JAX devices, reproducible hypothesis, a clean environment."""

from __future__ import annotations

import os

from vaespec import machine

os.environ["TRITON_INTERPRET"] = "0" if machine.nvidia_gpus() else "1"  # Triton looks when it is imported, as by torch

import jax
import pytest
import torch
from hypothesis import settings

from vaespec import registry

settings.register_profile("vaespec", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("vaespec")
torch.set_num_threads(1)
jax.config.update("jax_num_cpu_devices", 4)  # to shard over


@pytest.fixture(autouse=True)
def _clean_surroundings(monkeypatch):
    """No backend chosen from outside, and none that an earlier test registered."""
    monkeypatch.delenv("VAESPEC_BACKEND", raising=False)
    monkeypatch.setattr(registry, "_registered", {})
