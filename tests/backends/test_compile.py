"""`compile=True`: the framework compiles a model, which computes the same."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch
from support.configs import TINY, images, relative_l2, uniform
from support.models import EXACT, array

from vaespec import AutoencoderKL, BackendError
from vaespec_cpu.lazy_ops import LazyOps
from vaespec_mlx.ops import CompilingOps as MlxCompilingOps
from vaespec_torch.ops import CompilingOps

COMPILERS = {"torch": CompilingOps, "mlx": MlxCompilingOps}


@pytest.fixture
def graphs(monkeypatch):
    """What Dynamo hands to PyTorch's compiler, in place of which it is run as it is: inductor takes minutes."""
    found = []

    def as_it_is(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=as_it_is, fullgraph=True))
    yield found
    torch._dynamo.reset()


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("precision", ["default", "highest"])
@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
def test_a_compiled_model_computes_the_same(backend, precision):
    vae = AutoencoderKL.from_config(TINY, backend=backend, device="cpu", precision=precision, compile=True)
    plain = vae.with_backend("numpy", dtype="float64")
    x, z = images(TINY, 16, 24, 2), uniform("z", (1, TINY.latent_channels, 5, 7))
    assert relative_l2(array(vae.encode(x).latent_dist.mean), plain.encode(x).latent_dist.mean) <= EXACT["float32"]
    assert relative_l2(array(vae.decode(z).sample), plain.decode(z).sample) <= EXACT["float32"]


def test_pytorch_makes_a_graph_of_the_first_shape_and_one_for_other_sizes(graphs):
    vae = AutoencoderKL.from_config(TINY, backend="torch", device="cpu", precision="highest", compile=True)
    counts = []
    for shape in ((2, 5, 7), (2, 5, 7), (2, 6, 9), (2, 8, 10), (2, 11, 5)):
        batch, height, width = shape
        vae.decode(uniform("z", (batch, TINY.latent_channels, height, width)))
        counts.append(len(graphs))
    assert counts == [1, 1, 2, 2, 2]


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("backend", COMPILERS)
def test_a_model_that_compiles_does_so_when_it_has_moved(backend):
    vae = AutoencoderKL.from_config(TINY, backend=backend, device="cpu", compile=True)
    assert type(vae.to("float16")._model.ops) is COMPILERS[backend]
    assert type(vae.with_backend(backend, device="cpu")._model.ops) is not COMPILERS[backend]
    assert type(vae.with_backend(backend, device="cpu", compile=True)._model.ops) is COMPILERS[backend]


@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
def test_on_a_cpu_the_engine_computes_although_the_model_compiles(backend, graphs, monkeypatch):
    """The engine takes a third of the time of PyTorch's graph, and no minute before the first result."""
    monkeypatch.setattr("mlx.core.compile", lambda run: pytest.fail("compiled by MLX"))
    computed, from_nchw = [], LazyOps.from_nchw
    monkeypatch.setattr(LazyOps, "from_nchw", lambda ops, x: computed.append(1) or from_nchw(ops, x))
    vae = AutoencoderKL.from_config(TINY, backend=backend, device="cpu", compile=True)
    plain = vae.with_backend(backend, device="cpu")
    z = uniform("z", (1, TINY.latent_channels, 5, 7))
    np.testing.assert_array_equal(array(vae.decode(z).sample), array(plain.decode(z).sample))
    assert (len(graphs), computed != []) == (0, True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_on_a_cpu_what_is_recorded_for_a_gradient_is_compiled(graphs):
    vae = AutoencoderKL.from_config(TINY, backend="torch", device="cpu", compile=True)
    vae.decode(torch.zeros((1, TINY.latent_channels, 3, 4), requires_grad=True))
    assert len(graphs) == 1


def test_mlx_keeps_the_graphs_of_the_last_shapes(monkeypatch):
    made, compile_ = [], mx.compile
    monkeypatch.setattr(mx, "compile", lambda run: made.append(1) or compile_(run))
    monkeypatch.setattr("vaespec_mlx.ops.SHAPES_KEPT", 2)
    vae = AutoencoderKL.from_config(TINY, backend="mlx", device="cpu", precision="highest", compile=True)
    counts = []
    for height in (3, 4, 3, 5, 3, 4):
        vae.decode(uniform("z", (1, TINY.latent_channels, height, 3)))
        counts.append(len(made))
    assert counts == [1, 2, 2, 3, 3, 4]


@pytest.mark.usefixtures("graphs")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_gradients_pass_through_a_compiled_model():
    vae = AutoencoderKL.from_config(TINY, backend="torch", device="cpu", compile=True)
    z = torch.tensor(uniform("z", (1, TINY.latent_channels, 3, 4)), requires_grad=True)
    (compiled,) = torch.autograd.grad(vae.decode(z).sample.square().mean(), z)
    (plain,) = torch.autograd.grad(vae.with_backend("torch", device="cpu").decode(z).sample.square().mean(), z)
    assert relative_l2(array(compiled), array(plain)) <= EXACT["float32"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want a GPU")
def test_the_result_of_a_cuda_graph_is_not_overwritten_by_its_next_run():
    vae = AutoencoderKL.from_config(TINY, backend="torch", device="cuda", compile=True)
    z = [uniform(name, (1, TINY.latent_channels, 4, 4)) for name in "abc"]
    results = [vae.decode(each).sample for each in z]
    alone = [vae.with_backend("torch", device="cuda").decode(each).sample for each in z]
    for result, expected in zip(results, alone, strict=True):
        assert relative_l2(array(result.cpu()), array(expected.cpu())) <= 1e-2  # TF32


def test_a_backend_that_compiles_nothing_says_so():
    with pytest.raises(BackendError, match=r"^backend 'numpy' has no compiler: leave out compile=True\.$"):
        AutoencoderKL.from_config(TINY, backend="numpy", compile=True)
