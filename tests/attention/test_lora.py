"""LoRA: a low-rank update that is drawn, trained, fused and named as in diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from support.attending import (
    DECODER,
    ENCODER,
    SMALL,
    UPDATE,
    changed,
    compared,
    distance,
    loaded,
    state,
    with_processor,
)
from support.configs import EPS, uniform
from support.models import BACKENDS, EXACT, array, each_backend, model
from support.oracle import oracle

from vaespec import AutoencoderKL, InputError
from vaespec.architecture import parameters
from vaespec.attention import Chunked, FusedQKV, LoRA, Sdpa


def drawn_lora(vae: AutoencoderKL) -> dict[str, np.ndarray]:
    """Canonical weights for every LoRA of a model, without zeros."""
    return {name: uniform(name, row.shape) for name, row in vae._model.table().items() if "_lora." in name}


def with_lora(vae: AutoencoderKL, weights: Mapping[str, np.ndarray]) -> AutoencoderKL:
    """The model with `weights` in the place of its own, as after training."""
    return vae.with_params(vae.functional().params | vae._model.ops.load_params(weights, vae._model.table()))


def updated(lora: Mapping[str, np.ndarray], factor: float, name: str = SMALL) -> torch.nn.Module:
    """diffusers' model with W + factor · up · down for each W of its attention."""
    weights, changes = oracle(name)[1], {}
    for key, up in lora.items():
        if match := re.fullmatch(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.up\.weight", key):
            layer, part = match.groups()
            weight = f"{layer}.{part}{'.0' if part == 'to_out' else ''}.weight"
            changes[weight] = weights[weight] + factor * up @ lora[key.replace(".up.", ".down.")]
    assert len(changes) == len(lora) / 2
    return changed(changes, name)


@each_backend
def test_a_new_lora_changes_nothing(backend):
    vae, z = model(SMALL, backend), compared(SMALL)[1]
    before = array(vae.decode(z).sample)
    vae.set_attn_processor("lora")
    np.testing.assert_array_equal(array(vae.decode(z).sample), before)


@pytest.mark.parametrize("lora", [UPDATE, LoRA(rank=5), LoRA(rank=2, core=Chunked(4)), LoRA(rank=2, core=FusedQKV())])
@each_backend
def test_a_lora_agrees_with_diffusers_with_the_update_in_its_weights(backend, lora):
    vae = with_processor(lora, backend=backend)
    weights = drawn_lora(vae)
    vae, factor = with_lora(vae, weights), lora.scale * (lora.alpha or lora.rank) / lora.rank
    assert distance(vae, updated(weights, factor)) <= EXACT[vae.dtype]
    assert distance(vae, oracle(SMALL)[0]) > 1e-2


def test_a_lora_at_every_level_agrees_with_diffusers_with_the_update_in_its_weights():
    vae = with_processor(UPDATE, "kl-f16")
    weights = drawn_lora(vae)
    assert len(weights) == 7 * 4 * 2
    assert distance(with_lora(vae, weights), updated(weights, 0.75, "kl-f16"), "kl-f16") <= EXACT["float64"]


def test_the_parameters_of_a_lora_are_named_as_in_diffusers_0_23():
    vae = with_processor(LoRA(rank=3), "sd")
    added = vae._model.table().keys() - parameters(vae.config).keys()
    assert added == {
        f"{part}.mid_block.attentions.0.processor.to_{projection}_lora.{way}.weight"
        for part in ("encoder", "decoder")
        for projection in ("q", "k", "v", "out")
        for way in ("down", "up")
    }
    assert {vae._model.table()[name].shape for name in added} == {(3, 24), (24, 3)}
    assert (
        vae.functional().params.keys()
        == vae.with_backend("torch").module().state_dict().keys()
        == vae._model.table().keys()
    )


def test_down_is_normal_with_deviation_one_over_rank_and_up_is_zero():
    """The deviation of n draws is within 5 / √(2 n) of its expected size, their mean within 5 / √n of 0."""
    params = with_processor(LoRA(rank=8), "kl-f16").functional().params
    assert not any(params[name].any() for name in params if "_lora.up." in name)
    down = np.concatenate([a.ravel() for name, a in params.items() if "_lora.down." in name])
    assert abs(8 * down.std() - 1) < 5 / np.sqrt(2 * down.size)
    assert abs(8 * down.mean()) < 5 / np.sqrt(down.size)


def test_each_lora_is_drawn_from_the_seed_and_its_name_on_every_backend():
    def drawn(backend: str, seed: int) -> dict[str, np.ndarray]:
        vae = with_processor(LoRA(seed=seed), backend=backend, dtype="float32")
        params = vae._model.ops.export_params(vae._model.params, vae._model.table())
        return {name: params[name] for name in params if "_lora.down." in name}

    first, *others = (drawn(backend, 0) for backend in BACKENDS)
    for other in others:
        np.testing.assert_equal(other, first)
    every = [*first.values(), *drawn("numpy", 1).values()]
    assert len({a.tobytes() for a in every}) == len(every)


def test_training_a_lora_leaves_the_other_weights_unchanged():
    vae = with_processor(UPDATE, backend="torch")
    module, x = vae.module(), torch.tensor(compared(SMALL)[0])
    lora = {name: tensor for name, tensor in module.named_parameters() if "_lora." in name}
    module.requires_grad_(False)
    for tensor in lora.values():
        tensor.requires_grad_(True)
    optimizer, losses = torch.optim.Adam(lora.values(), lr=1e-2), []
    for _ in range(12):
        loss = (module(x).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
    assert all(tensor.grad.abs().max() > 0 for tensor in lora.values())
    weights = oracle(SMALL)[1]
    for name, tensor in module.named_parameters():
        if name not in lora:
            assert tensor.grad is None, name
            np.testing.assert_array_equal(array(tensor), weights[name])


def test_gradients_reach_every_part_of_a_lora_after_one_step():
    """Before the first step, up is zero and stops the gradient."""
    module, x = with_processor(UPDATE, backend="torch").module(), torch.tensor(compared(SMALL)[0])
    lora = {name: tensor for name, tensor in module.named_parameters() if "_lora." in name}
    optimizer = torch.optim.SGD(lora.values(), lr=1e-2)

    def reached() -> set[str]:
        optimizer.zero_grad()
        module(x).sample.square().mean().backward()
        return {name for name, tensor in lora.items() if tensor.grad.any()}

    assert reached() == {name for name in lora if ".up." in name}
    optimizer.step()
    assert reached() == lora.keys()


@each_backend
def test_fusing_a_lora_adds_it_to_the_weights(backend, tmp_path):
    vae = with_processor(LoRA(rank=2, alpha=3.0, scale=0.5, core=Chunked(4)), backend=backend)
    weights = drawn_lora(vae)
    vae, theirs = with_lora(vae, weights), updated(weights, 0.75)
    vae.fuse_lora()
    assert set(vae.attn_processors.values()) == {Chunked(4)}
    assert distance(vae, theirs) <= EXACT[vae.dtype]
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(vae.weights()[name], array(tensor), rtol=EPS[vae.dtype], atol=EPS[vae.dtype])
    vae.save_pretrained(tmp_path)
    assert distance(vae, loaded(tmp_path)) <= EXACT[vae.dtype]


def test_fusing_without_a_lora_changes_nothing():
    vae = with_processor("chunked")
    before = state(vae)
    vae.fuse_lora()
    np.testing.assert_equal(state(vae), before)


def test_fusing_a_lora_leaves_other_layers_alone():
    vae = model(SMALL)
    vae.set_attn_processor({ENCODER: UPDATE, DECODER: Chunked(3)})
    weights = drawn_lora(vae)
    vae = with_lora(vae, weights)
    vae.fuse_lora()
    assert vae.attn_processors == {ENCODER: Sdpa(), DECODER: Chunked(3)}
    assert distance(vae, updated(weights, 0.75)) <= EXACT["float64"]


def test_weights_with_a_lora_are_neither_returned_nor_saved(tmp_path):
    vae = with_processor(UPDATE)
    message = (
        r"^encoder.mid_block.attentions.0 has a LoRA, which is no part .*: fuse_lora\(\) to add it .* or set_attn_proc"
    )
    for refused in (
        vae.weights,
        lambda: vae.save_pretrained(tmp_path / "folder"),
        lambda: vae.save_single_file(tmp_path / "file.safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            refused()
    assert list(tmp_path.iterdir()) == []
    vae.set_attn_processor("sdpa")
    np.testing.assert_equal(vae.weights(), oracle(SMALL)[1])


@pytest.mark.parametrize(("again", "factor"), [(LoRA(rank=2, alpha=1.0), 0.5), (LoRA(2, scale=3.0, seed=9), 3.0)])
def test_another_scale_or_alpha_keeps_what_was_trained(again, factor):
    vae = with_processor(UPDATE)
    weights = drawn_lora(vae)
    vae = with_lora(vae, weights)
    vae.set_attn_processor(again)
    assert distance(vae, updated(weights, factor)) <= EXACT["float64"]


def test_another_rank_begins_anew():
    vae = with_processor(UPDATE)
    vae = with_lora(vae, drawn_lora(vae))
    vae.set_attn_processor(LoRA(rank=3))
    assert distance(vae, oracle(SMALL)[0]) <= EXACT["float64"]


@each_backend
def test_a_lora_moves_with_its_model(backend):
    vae = with_processor(UPDATE, backend=backend)
    weights = drawn_lora(vae)
    vae, theirs = with_lora(vae, weights), updated(weights, 0.75)
    vae.to(dtype="float32")
    assert distance(vae, theirs) <= EXACT["float32"]
    for other in BACKENDS:
        moved = vae.with_backend(other)
        assert set(moved.attn_processors.values()) == {UPDATE}
        np.testing.assert_equal(state(moved.with_backend(backend)), state(vae))
    assert distance(vae.with_backend("torch"), theirs) <= EXACT["float32"]


@pytest.mark.parametrize("rank", [0, -4])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(InputError, match=f"a LoRA of rank {rank}: expected a rank of at least 1"):
        LoRA(rank)
