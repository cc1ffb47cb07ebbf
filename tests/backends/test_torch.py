"""PyTorch's idioms on the torch backend: compile, vmap, generators, pytrees, precision, memory order.

The module is in test_torch_module.py, single operations in test_backends.py.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from support.configs import CONFIGS, TINY, images, relative_l2, uniform
from support.models import EXACT, array, model
from support.oracle import oracle
from torch.utils import _pytree as pytree

import vaespec_torch.ops
from vaespec import AutoencoderKL, AutoencoderKLOutput, DecoderOutput, DiagonalGaussian, InputError, ReferenceOps
from vaespec.analysis.rounding import predicted_error, rounded
from vaespec.architecture import decoder, encoder
from vaespec_torch.ops import TorchOps

PARTS = ("encode", "decode")


def given(part: str, batch: int = 2, height: int = 16, width: int = 16) -> torch.Tensor:
    """Images, or the latents of images of that size, for TINY."""
    if part == "encode":
        return torch.tensor(images(TINY, height, width, batch), dtype=torch.float32)
    return torch.tensor(uniform("z", (batch, 4, height // 2, width // 2), -2, 2), dtype=torch.float32)


def first(output: AutoencoderKLOutput | DecoderOutput) -> torch.Tensor:
    """The moments, or the images."""
    return pytree.tree_leaves(output)[0]


def functional(part: str, precision: str = "default"):
    """(params, encode or decode) of a tiny model."""
    vae = AutoencoderKL.from_config(TINY, backend="torch", device="cpu", precision=precision)
    params, encode, decode = vae.functional()
    return params, {"encode": encode, "decode": decode}[part]


# -- torch.compile and torch.func --------------------------------------------------------------------------------


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("precision", ["default", "highest"])
@pytest.mark.parametrize("part", PARTS)
def test_functions_compile_to_one_graph(part, precision):
    params, run = functional(part, precision)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for height, width in ((16, 16), (24, 8)):
        x = given(part, 2, height, width)
        assert relative_l2(array(first(compiled(params, x))), array(first(run(params, x)))) <= EXACT["float32"]
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.thorough  # half a minute of C++
@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # inductor's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++")
def test_inductor_computes_the_same_as_eager():
    params, run = functional("decode")
    z = given("decode", 1, 8, 8)
    with torch.no_grad():
        compiled = torch.compile(run, fullgraph=True)(params, z)
    assert relative_l2(array(compiled.sample), array(run(params, z).sample)) <= EXACT["float32"]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch loops over its attention
@pytest.mark.parametrize("order", ["plain", "channels-last"])
@pytest.mark.parametrize("part", PARTS)
def test_vmap_puts_an_axis_before_the_batch(part, order, monkeypatch):
    if order == "channels-last":
        monkeypatch.setattr(vaespec_torch.ops, "CHANNELS_LAST", ("cpu",))
    params, run = functional(part)
    x = given(part, 6).unflatten(0, (3, 2))
    mapped = first(torch.func.vmap(run, (None, 0))(params, x))
    one_by_one = torch.stack([first(run(params, item)) for item in x])
    assert relative_l2(array(mapped), array(one_by_one)) <= EXACT["float32"]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_grad_gives_the_gradients_of_each_item():
    params, decode = functional("decode")
    z = given("decode", 3)

    def loss(params, item):
        return decode(params, item[None]).sample.square().mean()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, z)
    for i, item in enumerate(z):
        for name, gradient in torch.func.grad(loss)(params, item).items():
            torch.testing.assert_close(each[name][i], gradient, rtol=1e-4, atol=1e-7)


# -- outputs -----------------------------------------------------------------------------------------------------

MOMENTS = torch.arange(16.0).reshape(1, 4, 2, 2)
SAMPLE = torch.ones(1, 3, 8, 8)
OUTPUTS = {
    "posterior": (DiagonalGaussian(MOMENTS, deterministic=True), [MOMENTS]),
    "encoded": (AutoencoderKLOutput(DiagonalGaussian(MOMENTS)), [MOMENTS]),
    "decoded": (DecoderOutput(SAMPLE), [SAMPLE]),
    "both": (DecoderOutput(SAMPLE, DiagonalGaussian(MOMENTS)), [SAMPLE, MOMENTS]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_pytrees_of_their_tensors(name):
    output, tensors = OUTPUTS[name]
    leaves, structure = pytree.tree_flatten(output)
    assert len(leaves) == len(tensors)
    assert all(leaf is tensor for leaf, tensor in zip(leaves, tensors, strict=True))
    again = pytree.tree_unflatten(leaves, structure)
    assert type(again) is type(output)
    assert repr(again) == repr(output)
    doubled = pytree.tree_map(lambda tensor: 2 * tensor, output)
    assert pytree.tree_structure(doubled) == structure
    assert all(torch.equal(leaf, 2 * tensor) for leaf, tensor in zip(pytree.tree_leaves(doubled), tensors, strict=True))
    assert pytree.treespec_loads(pytree.treespec_dumps(structure)).num_leaves == len(tensors)


def test_mapping_keeps_whether_a_posterior_is_deterministic():
    mapped = pytree.tree_map(torch.clone, DiagonalGaussian(MOMENTS, deterministic=True))
    assert mapped.deterministic
    assert not mapped.std.any()


# -- generators --------------------------------------------------------------------------------------------------


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(7 + i) for i in range(count)]


def posterior(dtype=torch.float32, batch: int = 3) -> DiagonalGaussian:
    return DiagonalGaussian(torch.tensor(uniform("moments", (batch, 8, 5, 3), -3, 3)).to(dtype))


def theirs(dtype=torch.float32, batch: int = 3) -> DiagonalGaussianDistribution:
    return DiagonalGaussianDistribution(posterior(dtype, batch).parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["one", "each", "global"])
def test_samples_are_those_of_diffusers_bit_for_bit(kind, dtype):
    make = {"one": lambda: generators(1)[0], "each": lambda: generators(3), "global": lambda: None}[kind]
    drawn = []
    for each in (posterior(dtype), theirs(dtype)):
        torch.manual_seed(3)
        generator = make()
        drawn += [(each.sample(generator), each.sample(generator=generator))]
    for ours, expected in zip(*drawn, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, expected)
    assert not torch.equal(*drawn[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_noise_is_that_of_diffusers(dtype):
    """At mean 0 and variance 1 the sample is the noise, which PyTorch draws in the dtype."""
    standard = torch.zeros(3, 8, 5, 3, dtype=dtype)
    sample = DiagonalGaussian(standard).sample(generators(1)[0])
    assert sample.dtype == dtype
    assert torch.equal(sample, DiagonalGaussianDistribution(standard).sample(generators(1)[0]))


def test_the_model_samples_as_diffusers():
    config, (diffusers_vae, _) = CONFIGS["sd"], oracle("sd")
    x = torch.tensor(images(config, 16, 16, batch=2))
    ours = model("sd", "torch")(x, sample_posterior=True, generator=generators(2)).sample
    with torch.no_grad():
        expected = diffusers_vae(x, sample_posterior=True, generator=generators(2)).sample
    assert relative_l2(array(ours), array(expected)) <= EXACT["float64"]


def test_a_generator_of_numpy_draws_the_same_for_tensors():
    p = posterior()
    drawn = p.sample(np.random.default_rng(0))
    expected = DiagonalGaussian(p.parameters.numpy()).sample(np.random.default_rng(0))
    assert relative_l2(array(drawn), expected) <= 2**-22  # exp, of another library


@pytest.mark.parametrize(
    ("generator", "words"),
    [
        (generators(2), "^2 generators for a batch of 3: give one, or one per item.$"),
        (generators(4), "^4 generators for a batch of 3: give one, or one per item.$"),
        (7, "^generator is a int: give a torch.Generator, a numpy.random.Generator, or seed=.$"),
        ([0, 1, 2], "^generator is a int: give a torch.Generator, a numpy.random.Generator, or seed=.$"),
    ],
)
def test_generators_that_do_not_fit_are_refused(generator, words):
    with pytest.raises(InputError, match=words):
        posterior().sample(generator)


# -- precision ---------------------------------------------------------------------------------------------------


def settings() -> list[str]:
    """The precision of float32 in everything that multiplies."""
    of = torch.backends
    return [kind.fp32_precision for kind in (of.cudnn.conv, of.cuda.matmul, of.mkldnn.conv, of.mkldnn.matmul)]


def followed() -> list[list[str]]:
    """The value of each setting as the process's own changes: a setting that the user has not set follows it."""
    before, seen = torch.backends.fp32_precision, []
    for precision in ("tf32", "ieee", before):
        torch.backends.fp32_precision = precision
        seen.append(settings())
    return seen


@pytest.fixture(params=["untouched", "medium", "tf32 everywhere"])
def _chosen_by_the_user(request):
    """Ways to have chosen a precision; undone afterwards."""
    if request.param == "medium":
        torch.set_float32_matmul_precision("medium")
    if request.param == "tf32 everywhere":
        torch.backends.fp32_precision = "tf32"
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.mkldnn.matmul.fp32_precision = "none"


def inside(precision: str, monkeypatch, fail: bool = False) -> list[list[str]]:
    """The settings at each convolution and linear map of a decoder; `fail` raises at the last."""
    vae, seen = AutoencoderKL.from_config(TINY, backend="torch", device="cpu", precision=precision), []

    def watched(op):
        def run(self, x, w, b, **options):
            seen.append(settings())
            if fail and w.shape[0] == 3:
                raise RuntimeError("the last convolution fails")
            return op(self, x, w, b, **options)

        return run

    with monkeypatch.context() as patched:
        for name in ("conv2d", "linear"):
            patched.setattr(TorchOps, name, watched(getattr(TorchOps, name)))
        vae.decode(given("decode"))
    return seen


@pytest.mark.usefixtures("_chosen_by_the_user")
def test_highest_is_true_float32_inside_and_changes_nothing_outside(monkeypatch):
    before = followed()
    seen = inside("highest", monkeypatch)
    assert len(seen) == sum(row.role in ("conv", "linear") for _, row in decoder(TINY).parameters())
    assert seen == [["ieee"] * 4] * len(seen)
    assert followed() == before


@pytest.mark.usefixtures("_chosen_by_the_user")
def test_highest_changes_nothing_outside_when_a_layer_fails(monkeypatch):
    before = followed()
    with pytest.raises(RuntimeError, match="the last convolution fails"):
        inside("highest", monkeypatch, fail=True)
    assert followed() == before


@pytest.mark.usefixtures("_chosen_by_the_user")
def test_the_default_precision_is_the_users(monkeypatch):
    before = settings()
    seen = inside("default", monkeypatch)
    assert seen == [before] * len(seen)


# -- memory order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "channels-last"])
@pytest.mark.parametrize("name", ["sd", "attention-everywhere"])
def test_maps_and_kernels_are_in_the_order_of_the_device(name, kind, monkeypatch):
    """On the CPU plain; here it also stands in for a device whose convolutions want channels last."""
    monkeypatch.setattr(vaespec_torch.ops, "CHANNELS_LAST", ("cpu",) if kind == "channels-last" else ())
    order = torch.channels_last if kind == "channels-last" else torch.contiguous_format
    seen = []

    def watched(op):
        def run(self, *tensors, **options):
            y = op(self, *tensors, **options)
            seen.extend(t for t in (*tensors, y) if isinstance(t, torch.Tensor) and t.ndim == 4)
            return y

        return run

    for op in ("conv2d", "group_norm", "silu", "upsample_nearest2x"):
        monkeypatch.setattr(TorchOps, op, watched(getattr(TorchOps, op)))
    vae, x = model(name, "torch"), torch.tensor(images(CONFIGS[name], 32, 16, batch=2))
    posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
    sample = vae.decode(posterior.mode()).sample
    assert len(seen) > 100
    assert all(t.is_contiguous(memory_format=order) for t in seen)
    assert posterior.parameters.is_contiguous()
    assert sample.is_contiguous()
    monkeypatch.undo()
    assert relative_l2(array(sample), array(model(name, "torch")(x).sample)) <= EXACT["float64"]


def test_the_statistics_of_a_norm_do_not_cancel_whatever_the_order():
    """PyTorch's own kernel for channels-last memory on the CPU takes E[x²] - E[x]², 0.4 off here: u · (μ / σ)²."""
    x = torch.tensor(uniform("x", (1, 8, 9, 9))) + 3e3
    scale, shift = torch.ones(8), torch.zeros(8)
    options = {"groups": 2, "eps": 1e-6}
    expected = TorchOps("cpu", "float64").group_norm(x.float().double(), scale.double(), shift.double(), **options)
    result = TorchOps("cpu", "float32").group_norm(
        x.float().contiguous(memory_format=torch.channels_last), scale, shift, **options
    )
    assert relative_l2(array(result), array(expected)) <= 8 * 2**-24 * 3e3 / 0.577  # a mean that is 8 roundings off


# -- devices -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA")
    return request.param


def errors(device: str, dtype: str) -> list[tuple[float, float]]:
    """(error, predicted error) of encoder and decoder, for inputs and weights that the dtype holds exactly."""
    config, weights = CONFIGS["sd"], oracle("sd")[1]
    vae = AutoencoderKL(config, weights, backend="torch", device=device, dtype=dtype, precision="highest")
    held = {name: a.astype(np.float64) for name, a in vae.weights().items()}
    x, z = (rounded(a, dtype) for a in (images(config, 64, 64), uniform("z", (1, 4, 8, 8), -2, 2)))
    result = []
    for network, run, given in ((encoder(config), vae.encode, x), (decoder(config), vae.decode, z)):
        actual = vae.to_numpy(first(run(given))).astype(np.float64)
        exact = network(given, held, ReferenceOps(np))
        result.append((relative_l2(actual, exact), predicted_error(network, given, held, dtype)))
    return result


def test_highest_precision_is_float32_on_every_device(device):
    assert max(error for error, _ in errors(device, "float32")) <= EXACT["float32"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_cost_the_predicted_error_on_every_device(device, dtype):
    for error, predicted in errors(device, dtype):
        assert error <= 4 * predicted


def test_a_generator_on_the_cpu_draws_the_same_for_every_device(device):
    standard = torch.zeros(3, 8, 5, 3)
    for make in (lambda: generators(1)[0], lambda: generators(3)):
        drawn = DiagonalGaussian(standard.to(device)).sample(make())
        assert drawn.device.type == device
        assert torch.equal(drawn.cpu(), DiagonalGaussian(standard).sample(make()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_generator_on_another_device_is_refused():
    with pytest.raises(InputError, match=r"^a generator on cuda.* for latents on cpu: give one on the CPU.$"):
        posterior().sample(torch.Generator("cuda"))
