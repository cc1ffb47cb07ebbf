"""`install` borrows a VAE: `restore` gives it back as it was, and nothing is held twice meanwhile."""

from __future__ import annotations

import copy
import gc
import pickle
from types import FunctionType, ModuleType

import diffusers
import numpy as np
import pytest
import torch
from support.configs import relative_l2
from support.pipelines import build, make_vae, run

import vaespec
import vaespec_diffusers
from vaespec import VaespecError
from vaespec_diffusers import running
from vaespec_diffusers.models import PLAIN, computed_class

METHODS = ("encode", "decode", "forward", "_encode", "_decode", "tiled_encode", "tiled_decode", "enable_tiling", "to")


def traits(vae: torch.nn.Module) -> dict[str, object]:
    """Everything that shows on a VAE: its own attributes, its class, and what its methods are bound to."""
    methods = {name: (getattr(vae, name).__func__, getattr(vae, name).__self__ is vae) for name in METHODS}
    modules = {name: type(module) for name, module in vae.named_modules()}
    forwards = {name: module.forward.__func__ for name, module in vae.named_modules() if name}
    attributes = {name: id(value) for name, value in vae.__dict__.items()}
    return {"class": type(vae), **methods, "modules": modules, "forwards": forwards, "attributes": attributes}


def storages(vae: torch.nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in vae.state_dict().items()}


def decoded(vae: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return vae.decode(torch.ones(1, vae.config.latent_channels, 8, 8)).sample


@pytest.mark.parametrize("kind", ["sd", "flux", "flux2"])
@pytest.mark.parametrize("options", [{}, {"tiling": "exact"}, {"padding": "circular"}], ids=["", "exact", "circular"])
def test_restore_leaves_the_vae_as_it_was(kind, options):
    vae = make_vae(kind)
    before, state = traits(vae), {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    picture = decoded(vae)
    handle = vaespec_diffusers.install(vae, **options)
    decoded(vae)
    handle.restore()
    assert traits(vae) == before
    assert vae.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in vae.state_dict().items())
    assert torch.equal(decoded(vae), picture)


def test_the_state_dict_of_an_installed_vae_is_unchanged():
    vae, plain = make_vae(), make_vae()
    vaespec_diffusers.install(vae)
    decoded(vae)
    assert list(vae.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in vae.state_dict().items())
    assert [name for name, _ in vae.named_modules()] == [name for name, _ in plain.named_modules()]


def test_parameters_have_the_same_storage_before_during_and_after():
    vae = make_vae()
    before, objects = storages(vae), {name: id(parameter) for name, parameter in vae.named_parameters()}
    with vaespec_diffusers.install(vae):
        decoded(vae)
        assert storages(vae) == before
        assert {name: id(parameter) for name, parameter in vae.named_parameters()} == objects
    assert storages(vae) == before


def held(root: object) -> int:
    """Bytes of all tensors and NumPy arrays that can be reached from an object; memory that two share counts once."""
    sizes, seen, waiting = {}, {}, [root]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type | ModuleType):
            continue
        seen[id(each)] = each  # kept, so that no other object gets its id
        if isinstance(each, torch.Tensor):
            sizes[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        elif isinstance(each, np.ndarray):
            sizes.setdefault(each.ctypes.data, each.nbytes)
        waiting += (each.__closure__ or ()) if isinstance(each, FunctionType) else gc.get_referents(each)
    return sum(sizes.values())


@pytest.mark.parametrize("options", [{}, {"tiling": "exact"}], ids=["whole", "exact"])
def test_an_installed_vae_holds_less_than_a_hundredth_of_the_model_besides(options):
    vae = make_vae(block_out_channels=(128, 256))
    size = sum(tensor.nbytes for tensor in vae.state_dict().values())
    decoded(vae)
    before = held(vae)
    handle = vaespec_diffusers.install(vae, **options)
    decoded(vae)
    assert before >= size > 10e6
    assert held((vae, handle)) - before < 0.01 * size
    vae._vaespec.copied = vae.decoder.conv_in.weight.numpy(force=True).repeat(100)
    assert held((vae, handle)) - before > 0.01 * size  # so a copy would be seen


def test_the_context_manager_restores_after_an_error():
    vae = make_vae()
    before = traits(vae)
    with pytest.raises(RuntimeError, match="mine"), vaespec_diffusers.install(vae):
        raise RuntimeError("mine")
    assert traits(vae) == before


def test_restoring_twice_is_restoring_once():
    vae = make_vae()
    before, handle = traits(vae), vaespec_diffusers.install(vae)
    handle.restore()
    handle.restore()
    assert traits(vae) == before


def test_a_restored_vae_can_be_installed_again():
    vae = make_vae()
    expected = decoded(vae)
    for _ in range(2):
        with vaespec_diffusers.install(vae):
            assert relative_l2(decoded(vae), expected) <= 2e-6


@pytest.mark.parametrize("again", ["the vae", "its pipeline"])
def test_installing_twice_is_an_error_that_says_so(again):
    pipe = build("sd")
    with vaespec_diffusers.install(pipe) as handle:
        with pytest.raises(VaespecError, match="already"):
            vaespec_diffusers.install(pipe if again == "its pipeline" else pipe.vae)
        assert relative_l2(run(pipe, "sd"), run(build("sd"), "sd")) <= 2e-6
        assert handle.report() is not None


def test_two_pipelines_share_one_installed_vae():
    vae = make_vae()
    first, second = build("sd", vae), build("sd-img2img", vae)
    expected = {"sd": run(first, "sd"), "sd-img2img": run(second, "sd-img2img")}
    handle = vaespec_diffusers.install(first)
    with pytest.raises(VaespecError, match="already"):
        vaespec_diffusers.install(second)
    for pipe, name in ((first, "sd"), (second, "sd-img2img")):
        assert relative_l2(run(pipe, name), expected[name]) <= 2e-6
    handle.restore()
    for pipe, name in ((first, "sd"), (second, "sd-img2img")):
        assert np.array_equal(run(pipe, name), expected[name])
    with vaespec_diffusers.install(second):
        assert relative_l2(run(first, "sd"), expected["sd"]) <= 2e-6


def test_a_pipeline_made_from_another_shares_its_installed_vae():
    pipe = build("sd")
    vaespec_diffusers.install(pipe)
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    assert relative_l2(run(other, "sd-img2img"), run(build("sd-img2img"), "sd-img2img")) <= 2e-6


@pytest.mark.parametrize("ours", ["installed", "our class"])
def test_a_pipeline_hands_its_vae_to_another(ours, tmp_path):
    pipe = build("sdxl")
    if ours == "installed":
        vaespec_diffusers.install(pipe)
    else:
        pipe.vae.save_pretrained(tmp_path)
        pipe.vae = vaespec_diffusers.AutoencoderKL.from_pretrained(tmp_path)
    other = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert other.vae is pipe.vae
    assert relative_l2(run(other, "sdxl-img2img"), run(build("sdxl-img2img"), "sdxl-img2img")) <= 2e-6


def test_our_classes_are_equal_to_those_that_they_stand_for():
    pairs = [(getattr(vaespec_diffusers, plain.__name__), plain) for plain in PLAIN]
    pairs.append((computed_class(Mine), Mine))
    for ours, plain in pairs:
        assert (ours, hash(ours)) == (plain, hash(plain))
        assert [ours == other for other, _ in pairs] == [ours is other for other, _ in pairs]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_of_a_pipeline_keeps_its_own_vae_in_float16(copied):
    pipe = build("sdxl").to(torch.float16)
    vaespec_diffusers.install(pipe)
    other = copied(pipe)
    other.upcast_vae()
    assert (pipe.vae.dtype, other.vae.dtype) == (torch.float16, torch.float16)
    other.vae = make_vae("sdxl").half()
    with pytest.warns(FutureWarning, match="upcast_vae"):
        other.upcast_vae()
    assert (pipe.vae.dtype, other.vae.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize(("options", "most"), [({}, 30), ({"tiling": "auto"}, 30), ({"tiling": "exact"}, 30)])
def test_a_limit_alone_is_the_limit_of_auto(options, most):
    vae = make_vae()
    expected = decoded(vae)
    with vaespec_diffusers.install(vae, max_memory=f"{most}GiB", **options) as handle:
        assert relative_l2(decoded(vae), expected) <= 2e-6
        assert vae._settings.tiling.max_memory == most << 30
        assert vae._settings.tiling.mode == options.get("tiling", "auto")
        assert ("bands" in str(handle.report())) == (options == {"tiling": "exact"})
    assert not vae.use_tiling


@pytest.mark.parametrize("tiling", [True, False, "blend"])
def test_a_limit_of_what_has_none_is_refused(tiling):
    with pytest.raises(VaespecError, match=f"with tiling={tiling!r}: only 'exact' and 'auto' have a limit"):
        vaespec_diffusers.install(make_vae(), tiling=tiling, max_memory="4GiB")


@pytest.mark.parametrize(
    "wrong", [None, "picture", 3, np.ones((1, 4, 8, 8), np.float32)], ids=lambda x: type(x).__name__
)
def test_what_is_no_tensor_is_refused(wrong):
    vae = make_vae()
    vaespec_diffusers.install(vae)
    for method, what in ((vae.encode, "images"), (vae.decode, "latents"), (vae.tiled_decode, "latents")):
        with pytest.raises(VaespecError, match=f"of a {type(wrong).__name__}: expected a tensor of {what}"):
            method(wrong)


class Mine(diffusers.AutoencoderKL):
    """A user's own VAE."""


class Bare:
    """A pipeline that has lost its VAE."""

    vae = None


@pytest.mark.parametrize(
    "wrong", [None, "sdxl", 3, Bare(), torch.nn.Linear(2, 2), diffusers.AutoencoderTiny, diffusers.AutoencoderTiny()]
)
def test_what_is_no_vae_of_ours_is_refused_in_one_sentence(wrong):
    with pytest.raises(VaespecError) as caught:
        vaespec_diffusers.install(wrong)
    assert "\n" not in str(caught.value)
    assert ("has no VAE" if isinstance(wrong, Bare) else "AutoencoderKL") in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "options",
    [
        {"tiling": "neat"},
        {"padding": "mirror"},
        {"max_memory": "much"},
        {"precision": "some"},
        {"compile": "max-autotune"},
    ],
)
def test_a_wrong_option_leaves_the_vae_as_it_was(options):
    vae = make_vae()
    before = traits(vae)
    with pytest.raises(VaespecError, match=str(next(iter(options.values())))):
        vaespec_diffusers.install(vae, **options)
    assert traits(vae) == before


def test_the_report_says_what_ran_with_its_memory_and_time():
    vae = make_vae()
    handle = vaespec_diffusers.install(vae)
    decoded(vae)
    text = str(handle.report())
    assert "decode" in text
    assert "encode" not in text.replace("decode", "")


@pytest.mark.parametrize("padding", ["circular", ("zeros", "circular")])
def test_an_installed_padding_is_that_of_the_model(padding):
    vae = make_vae()
    plain = vaespec.load(vae, backend="torch")
    plain.set_padding(padding)
    with vaespec_diffusers.install(vae, padding=padding):
        assert relative_l2(decoded(vae), plain.decode(torch.ones(1, 4, 8, 8)).sample) <= 2e-6


def test_a_model_from_memory_computes_on_any_backend():
    vae = make_vae("flux2")
    for backend in ("numpy", "torch"):
        ours = vaespec.load(vae, backend=backend)
        assert relative_l2(np.asarray(ours.decode(np.ones((1, 4, 8, 8), np.float32)).sample), decoded(vae)) <= 2e-6


def test_an_installed_vae_can_be_pickled():
    vae = make_vae()
    expected = decoded(vae)
    vaespec_diffusers.install(vae)
    assert relative_l2(decoded(pickle.loads(pickle.dumps(vae))), expected) <= 2e-6


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_uninstall_undoes_an_installation_whose_handle_is_lost(name):
    pipe = build(name)
    before, own = traits(pipe.vae), set(vars(pipe))
    vaespec_diffusers.install(pipe, tiling="exact")
    vaespec_diffusers.uninstall(pipe)
    assert traits(pipe.vae) == before
    assert set(vars(pipe)) == own
    vaespec_diffusers.uninstall(pipe)  # nothing is left to undo
    handle = vaespec_diffusers.install(pipe)
    vaespec_diffusers.uninstall(pipe.vae)
    handle.restore()
    assert traits(pipe.vae) == before


def test_a_pipeline_upcasts_again_after_its_vae_alone_was_uninstalled():
    pipe = build("sdxl", make_vae("sdxl").half())
    vaespec_diffusers.install(pipe)
    vaespec_diffusers.uninstall(pipe.vae)
    with pytest.warns(FutureWarning, match="upcast_vae"):
        pipe.upcast_vae()
    assert pipe.vae.dtype is torch.float32


def test_the_errors_of_a_second_installation_say_how_to_undo_the_first():
    vae = make_vae()
    vaespec_diffusers.install(vae)
    with pytest.raises(VaespecError, match=r"or undo that first, with vaespec_diffusers\.uninstall\(pipe\)\.$"):
        vaespec_diffusers.install(vae)
    ours = vaespec_diffusers.AutoencoderKL(**vae.config)
    with pytest.raises(VaespecError, match=r"computed by vaespec already, .* and set_padding\(\)\.$"):
        vaespec_diffusers.install(ours)
    with pytest.raises(VaespecError, match="nothing was installed in this VAE"):
        vaespec_diffusers.uninstall(ours)


def test_a_handle_and_its_report_show_what_they_are():
    vae = make_vae()
    handle = vaespec_diffusers.install(vae)
    assert repr(handle) == "Handle(AutoencoderKL, installed; restore() undoes it)"
    vae.decode(torch.ones(1, 4, 8, 8))
    assert "float32 on cpu: autograd, one piece, " in repr(handle.report())
    assert repr(handle.report()).endswith("(a gradient is recorded; torch.no_grad() is faster if none is wanted)")
    handle.restore()
    assert repr(handle) == "Handle(AutoencoderKL, restored)"


@pytest.mark.parametrize(
    ("options", "large", "parts"),
    [({}, 4 * 32 * 16 * 16, "bands"), ({}, 4 * 32 * 16 * 16 + 1, "one piece"), ({"tiling": False}, 1, "one piece")],
    ids=["large", "small", "whole"],
)
def test_large_images_are_computed_in_exact_bands_on_a_cpu(monkeypatch, options, large, parts):
    monkeypatch.setattr(running, "LARGE", large)
    vae = make_vae(block_out_channels=(32, 64))
    expected = decoded(vae)  # of 16 px
    with vaespec_diffusers.install(vae, **options) as handle:
        assert relative_l2(decoded(vae), expected) <= 2e-6
        assert parts in handle.report().calls[-1].parts
        assert parts in str(vae.estimate_memory((1, 3, 16, 16)).plan)
