"""What training leaves beside a model is left out with a count; what could be the model's is refused, or asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.checkpoints import PLAIN, WEIGHTS_FILE, assert_same_bits, stored, tagged, written
from support.weight_files import WRITERS
from support.wild import Wild, read

import vaespec
from vaespec import AutoencoderKL, WeightMapError
from vaespec.weights import load_file
from vaespec.weights.beside import is_beside
from vaespec.weights.dialects import DIALECTS, OWN
from vaespec.weights.inspect import inspect_weights
from vaespec.weights.locate import locate

TRAINING = (
    *("logvar", "ema_decay", "scaled_fp8", "global_step", "epoch", "n_averaged", "num_updates", "colorize"),
    *("loss.logvar", "loss.discriminator.main.0.weight", "perceptual_loss.net.slice1.0.weight", "lossFn.scale"),
    *("discriminator.main.0.weight", "discriminator.attn.to_q.weight", "disc.attn.to_q.weight", "netD.main.0.bias"),
    *("PatchDiscriminator.0.weight", "lpips.lin0.model.1.weight", "LPIPS.scaling_layer.shift", "vgg16.features.0.bias"),
    *("model_ema.decay", "model_ema.num_updates", "ema.shadow.0", "ema_model.step", "shadow_params.0"),
    *("optimizer.state.0.exp_avg", "optimizer_states.0.step", "lr_schedulers.0.last", "gan_loss.real_label"),
)
LAYERS = ("adapter.0.weight", "conv_logvar.weight", "shift", "latents_mean", "step_embedding.weight", "norm_out.bias")


def added(names: tuple[str, ...], prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: np.zeros(3, np.float32) for name in names}


@pytest.mark.parametrize("name", TRAINING)
def test_names_of_training_are_known(name):
    assert is_beside(name)


@pytest.mark.parametrize("name", [*LAYERS, *(f"{part}.loss.weight" for part in OWN)])
def test_a_layer_that_nobody_knows_is_none_of_them(name):
    assert not is_beside(name)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_name_of_a_model_begins_with_a_part_that_is_its_own(tmp_path, dialect):
    assert {name.split(".")[0] for name in stored(PLAIN, tmp_path, dialect)} <= set(OWN)


@pytest.mark.parametrize("prefix", ["", "vae.", "module.", "model.first_stage_model._orig_mod."])
@pytest.mark.parametrize("dialect", ["diffusers", "ldm"])
def test_what_training_left_beside_the_model_is_left_out_with_a_count(tmp_path, caplog, dialect, prefix):
    arrays = stored(PLAIN, tmp_path, dialect, prefix)
    path = written(tmp_path, arrays | added(TRAINING, prefix))
    config, weights = load_file(path)
    assert_same_bits(weights, tagged(PLAIN))
    assert config == read(arrays)[0]
    assert f"model.safetensors: left out {len(TRAINING)} tensors that training left beside the model" in caplog.text
    found = inspect_weights(path)
    assert (set(found.ignored), found.problems) == ({prefix + name for name in TRAINING}, ())


@pytest.mark.parametrize("container", WRITERS)
def test_they_are_left_out_of_every_container(tmp_path, caplog, container):
    path = WRITERS[container](tmp_path, tagged(PLAIN) | added(("logvar", "discriminator.main.0.weight")))
    assert_same_bits(load_file(path)[1], tagged(PLAIN))
    assert "left out 2 tensors" in caplog.text


def test_a_discriminator_in_the_same_checkpoint_is_left_out(tmp_path, caplog):
    """As trainers write it: the model, its discriminator and the optimizers, each with a state of its own."""
    model = {name: torch.from_numpy(a) for name, a in tagged(PLAIN).items()}
    state = {"discriminator": {"main.0.weight": torch.zeros(3)}, "optimizer": {"state": {"step": torch.zeros(())}}}
    torch.save({**model, **state, "global_step": torch.tensor(7)}, tmp_path / "last.ckpt")
    assert_same_bits(load_file(tmp_path / "last.ckpt")[1], tagged(PLAIN))
    assert "left out 3 tensors" in caplog.text


@pytest.mark.parametrize("name", LAYERS)
def test_an_unknown_layer_beside_the_model_is_refused_and_the_error_says_how_to_go_on(tmp_path, name):
    path = written(tmp_path, tagged(PLAIN) | added((name,)))
    with pytest.raises(WeightMapError, match=rf"unexpected  {name}\n  strict=False, or --no-strict, leaves out"):
        load_file(path)
    assert inspect_weights(path).problems == (f"unexpected  {name}",)
    assert_same_bits(load_file(path, strict=False)[1], tagged(PLAIN))
    assert (inspect_weights(path, strict=False).problems, inspect_weights(path, strict=False).ignored) == ((), (name,))


def test_the_way_on_is_not_shown_where_it_does_not_help(tmp_path):
    arrays = tagged(PLAIN) | added(("adapter.weight",))
    del arrays["quant_conv.bias"]
    for strict in (True, False):
        with pytest.raises(WeightMapError, match=r"missing     quant_conv\.bias") as caught:
            read(arrays, PLAIN, strict=strict)
        assert "strict=False" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_attention_is_spared_only_inside_the_model(tmp_path, caplog, prefix):
    arrays = stored(PLAIN, tmp_path, prefix=prefix)
    spare = added(("critics.attn.to_q.weight", "my_attention.weight"), prefix)
    with pytest.raises(WeightMapError, match=r"unexpected  \S*my_attention\.weight"):
        read(arrays | spare)
    assert_same_bits(read(arrays | spare, strict=False)[1], tagged(PLAIN))
    assert "left out 2 tensors that are not the model's" in caplog.text
    own = f"{prefix}decoder.up_blocks.0.attentions.0.extra.weight"
    with pytest.raises(WeightMapError, match=rf"unexpected  {own}"):
        read(arrays | spare | added((own,)), strict=False)


def test_strict_false_is_understood_wherever_weights_are_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PLAIN.to_dict()), encoding="utf-8")
    path = written(tmp_path, tagged(PLAIN) | added(("adapter.weight",)), WEIGHTS_FILE)
    ways = (
        lambda **options: vaespec.load(tmp_path, **options),
        lambda **options: vaespec.load(path, **options),
        lambda **options: AutoencoderKL.from_pretrained(tmp_path, **options),
        lambda **options: AutoencoderKL.from_single_file(path, **options),
    )
    for load in ways:
        with pytest.raises(WeightMapError, match=r"unexpected  adapter\.weight"):
            load(backend="numpy")
        assert_same_bits(load(backend="numpy", strict=False).weights(), tagged(PLAIN))


def test_the_names_of_another_vae_are_outside_the_chosen_one(tmp_path, caplog):
    """An average with the names of its model, under a prefix that begins with the model's own."""
    arrays = tagged(PLAIN) | {f"average.{name}": a + 1 for name, a in tagged(PLAIN).items()}
    with pytest.raises(WeightMapError, match=r"2 VAEs in .*, under the prefixes \['', 'average\.'\]: give prefix="):
        read(arrays)
    assert_same_bits(read(arrays, PLAIN, prefix="")[1], tagged(PLAIN))
    assert len(locate(Wild(arrays), prefix="").unread(tagged(PLAIN))[1]) == len(tagged(PLAIN))
    assert not caplog.text


@pytest.mark.parametrize("wrapper", ["", "_orig_mod."])
@pytest.mark.parametrize("copy", ["ema.", "ema_model.module.", "loss.", "model_ema.", "discriminator.net."])
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_a_whole_vae_that_training_left_beside_the_model_is_left_out_and_can_be_chosen(
    tmp_path, caplog, prefix, copy, wrapper
):
    def wrapped(prefix: str, more: int) -> dict[str, np.ndarray]:
        return {prefix + name.replace("coder.", f"coder.{wrapper}"): a + more for name, a in tagged(PLAIN).items()}

    arrays = wrapped(prefix, 0) | wrapped(prefix + copy, 1)
    assert_same_bits(read(arrays)[1], tagged(PLAIN))
    assert f"left out {len(tagged(PLAIN))} tensors that training left" in caplog.text
    assert_same_bits(read(arrays, prefix=prefix)[1], tagged(PLAIN))
    assert_same_bits(read(arrays, prefix=prefix + copy)[1], {name: a + 1 for name, a in tagged(PLAIN).items()})


def test_shards_with_a_loss_are_read(tmp_path):
    save_file(tagged(PLAIN), tmp_path / "a.safetensors")
    save_file(added(("loss.logvar",)), tmp_path / "b.safetensors")
    files = dict.fromkeys(tagged(PLAIN), "a.safetensors") | {"loss.logvar": "b.safetensors"}
    (tmp_path / f"{WEIGHTS_FILE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (tmp_path / "config.json").write_text(json.dumps(PLAIN.to_dict()), encoding="utf-8")
    assert_same_bits(AutoencoderKL.from_pretrained(tmp_path, backend="numpy").weights(), tagged(PLAIN))
