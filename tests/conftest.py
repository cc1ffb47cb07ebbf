"""Every test runs with one torch thread, four JAX devices, reproducible hypothesis, and no settings of the user.

`pytest` sees each value of each parameter of a test at least once, but for those marked thorough; `pytest --thorough`
runs every combination of them, four times as many examples of hypothesis, and JAX's programs fully optimized.
"""

from __future__ import annotations

import os

from vaespec import machine

os.environ["TRITON_INTERPRET"] = "0" if machine.nvidia_gpus() else "1"  # Triton reads it when torch imports it

import jax
import pytest
import torch
from hypothesis import settings

from vaespec import registry

torch.set_num_threads(1)
jax.config.update("jax_num_cpu_devices", 4)  # to shard over


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="run every combination of the parameters of every test")


def pytest_configure(config):
    examples = 40 if config.getoption("--thorough") else 10
    settings.register_profile("vaespec", deadline=None, derandomize=True, database=None, max_examples=examples)
    settings.load_profile("vaespec")
    config.addinivalue_line("markers", "thorough: run with --thorough only, since it takes long")
    jax.config.update("jax_disable_most_optimizations", not config.getoption("--thorough"))
    share_compiled_programs(config)


def share_compiled_programs(config) -> None:
    """XLA compiles a program once for all workers: most of what JAX's tests did was to compile the same programs."""
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config, items):
    if not config.getoption("--thorough"):
        items[:] = one_for_each_value([item for item in items if not item.get_closest_marker("thorough")])


def one_for_each_value(items: list[pytest.Item]) -> list[pytest.Item]:
    """The items that give a parameter of their test a value that no item before them has given it."""
    seen, kept = set(), []
    for item in items:
        test = item.nodeid.partition("[")[0]
        callspec = getattr(item, "callspec", None)
        values = {(test, name, id(value)) for name, value in callspec.params.items()} if callspec else {(test,)}
        if not values <= seen:
            kept.append(item)
        seen |= values
    return kept


@pytest.fixture(autouse=True)
def _clean_surroundings(monkeypatch):
    """No backend is chosen by the environment, and none is left registered by an earlier test."""
    monkeypatch.delenv("VAESPEC_BACKEND", raising=False)
    monkeypatch.setattr(registry, "_registered", {})
