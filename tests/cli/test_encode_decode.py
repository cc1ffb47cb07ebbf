"""encode and decode: files of latents hold all that decoding needs, and are refused if they contradict themselves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.configs import CONFIGS, narrow
from support.workplace import MODEL, NARROW, error, picture, pixels, run, saved, vae

import vaespec


@pytest.mark.parametrize("options", [("--pad", "floor"), ("--pad", "edge"), ("--sample", "--seed", "3")])
@pytest.mark.parametrize("raw", [True, False])
def test_encode_then_decode_equals_roundtrip(options, raw):
    names = [picture("cat.jpg", 13, 10), picture("dog.png", 22, 9, seed=1), picture("x/fox.png", 8, 8, seed=2)]
    run("roundtrip", *names, *options, "--output", "direct", *MODEL)
    run("encode", *names, *options, *(["--raw"] if raw else []), "--output", "some/latents.safetensors", *MODEL)
    run("decode", "some/latents.safetensors", "--output", "decoded", *MODEL)
    assert {path.name for path in Path("decoded").iterdir()} == {"cat-vae.png", "dog-vae.png", "fox-vae.png"}
    for path in Path("decoded").iterdir():
        difference = pixels(path).astype(int) - pixels(Path("direct") / path.name)
        assert np.abs(difference).max() <= (0 if raw else 1)  # scaling and back rounds


def test_the_latents_equal_the_python_api_and_the_metadata_are_complete():
    picture("cat.png", 16, 12), picture("dog.png", 9, 8, seed=1)
    run("encode", "cat.png", "dog.png", "--sample", "--seed", "5", *MODEL)
    with Image.open("cat.png") as cat:
        expected = vae().encode_latents(cat, seed=[5])[0]
    np.testing.assert_array_equal(load_file("latents.safetensors")["0-cat"], expected)
    with safe_open("latents.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop("config")) == NARROW.to_dict()
    assert json.loads(metadata.pop("pictures")) == [
        {"tensor": "0-cat", "file": "cat.png", "height": 12, "width": 16, "pad": "floor", "seed": 5},
        {"tensor": "1-dog", "file": "dog.png", "height": 8, "width": 9, "pad": "floor", "seed": 6},
    ]
    assert metadata == {
        "format": "vaespec-latents",
        "version": "1",
        "written_by": f"vaespec {vaespec.__version__}",
        "f": "4",
        "values": "normalized",
        "posterior": "sample",
    }


def test_pictures_of_one_name_stay_apart_through_encode_and_decode():
    names = [picture("one/cat.png"), picture("two/cat.png", seed=1)]
    run("encode", *names, *MODEL)
    document = json.loads(run("decode", "latents.safetensors", "--output", "out", "--json", *MODEL).stdout)
    assert [row["output"] for row in document["pictures"]] == ["out/0-cat-vae.png", "out/1-cat-vae.png"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_latents_are_stored_in_the_dtype_of_the_model(dtype):
    picture("cat.png")
    run("encode", "cat.png", "--raw", "--dtype", dtype, *MODEL)
    run("decode", "latents.safetensors", *MODEL)
    assert load_file("latents.safetensors")["0-cat"].dtype.name == dtype
    assert pixels("cat-vae.png").shape == (8, 12, 3)


def test_flux2_latents_are_patchified_and_edge_keeps_any_size():
    saved(CONFIGS["flux2"], Path("flux2"))
    picture("cat.png", 37, 21)
    model = ("--weights", "flux2", "--backend", "numpy")
    run("encode", "cat.png", "--pad", "edge", *model)
    assert load_file("latents.safetensors")["0-cat"].shape == (8 * 4, 2, 3)
    run("decode", "latents.safetensors", *model)
    assert pixels("cat-vae.png").shape == (21, 37, 3)
    picture("dog.png", 24, 16)
    assert "dog.png: latents of 2 x 3 cannot be cut into 2 x 2 patches" in error("encode", "dog.png", *model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_channels": 8}, "latent_channels is 4 in the latents, 8 in the weights"),
        ({"scaling_factor": 0.5}, "scaling_factor is 0.18215 in the latents, 0.5 in the weights"),
    ],
)
def test_decode_refuses_weights_that_do_not_fit(changes, words):
    saved(NARROW.replace(**changes), Path("other"))
    picture("cat.png")
    run("encode", "cat.png", *MODEL)
    assert words in error("decode", "latents.safetensors", "--weights", "other")


def test_decode_takes_the_scale_of_the_latents_if_the_weights_have_none():
    saved(NARROW.replace(scaling_factor=None), Path("other"))
    picture("cat.png")
    run("encode", "cat.png", *MODEL)
    run("decode", "latents.safetensors", *MODEL, "--output", "known")
    run("decode", "latents.safetensors", "--weights", "other", "--backend", "numpy", "--output", "unknown")
    np.testing.assert_array_equal(pixels("known/cat-vae.png"), pixels("unknown/cat-vae.png"))


def test_decode_refuses_weights_of_another_f():
    saved(narrow((8, 8)), Path("other"))
    picture("cat.png")
    run("encode", "cat.png", *MODEL)
    assert "downsampling_factor is 4 in the latents, 2 in the weights" in error(
        "decode", "latents.safetensors", "--weights", "other"
    )


def test_raw_latents_need_no_scale():
    saved(NARROW.replace(scaling_factor=None), Path("unscaled"))
    picture("cat.png")
    assert "give --family, or --raw" in error("encode", "cat.png", "--weights", "unscaled")
    run("encode", "cat.png", "--weights", "unscaled", "--raw")
    run("decode", "latents.safetensors", "--weights", "unscaled")


def tampered(**changes: str) -> Path:
    """A latents file with changed metadata."""
    picture("cat.png")
    run("encode", "cat.png", *MODEL)
    with safe_open("latents.safetensors", framework="numpy") as file:
        metadata = {**file.metadata(), **changes}
    save_file(load_file("latents.safetensors"), "tampered.safetensors", metadata)
    return Path("tampered.safetensors")


ENTRY = {"tensor": "0-cat", "file": "cat.png", "height": 10, "width": 13, "pad": "floor", "seed": None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "is not a file of `vaespec encode`"),
        ({"version": "2"}, "has version '2', but"),
        ({"config": "{"}, "damaged metadata"),
        ({"values": "other"}, "damaged metadata ('values' is 'other', not one of normalized, raw)"),
        ({"pictures": "[[]]"}, "damaged metadata (a picture is no object with the fields tensor, file, height, width"),
        ({"pictures": "5"}, "damaged metadata ('pictures' is no list)"),
        ({"pictures": json.dumps([{**ENTRY, "tensor": 5}])}, "damaged metadata (the tensor of a picture is 5)"),
        ({"pictures": json.dumps([{**ENTRY, "seed": "x"}])}, "damaged metadata (the seed of a picture is 'x')"),
        ({"pictures": json.dumps([{**ENTRY, "more": 1}])}, "damaged metadata (a picture is no object with the fields"),
        ({"pictures": json.dumps([{**ENTRY, "tensor": "../../cat"}])}, "damaged metadata"),
        ({"pictures": json.dumps([{**ENTRY, "height": "ten"}])}, "damaged metadata"),
        (
            {"pictures": json.dumps([{**ENTRY, "pad": "mirror"}])},
            "damaged metadata (the pad of a picture is 'mirror', not one",
        ),
        ({"pictures": json.dumps([{**ENTRY, "file": 5}])}, "damaged metadata"),
        ({"pictures": json.dumps([{**ENTRY, "height": 1e308}])}, "damaged metadata"),
        ({"pictures": json.dumps([{**ENTRY, "width": True}])}, "damaged metadata"),
        ({"pictures": json.dumps([ENTRY]).replace('"pad"', '"height": 9, "pad"')}, "it has the key 'height' twice"),
        ({"pictures": "[" * 10**5 + "]" * 10**5}, "nested too deeply"),
        ({"config": '{"layers_per_block": ' + "9" * 5000 + "}"}, "it has a number of 5,000 digits"),
        ({"config": '{"layers_per_block": 10000000}'}, "layers_per_block=10000000: expected"),
        ({"config": '{"act_fn": "silu", "act_fn": "mish"}'}, "it has the key 'act_fn' twice"),
        ({"config": " " * 2**20 + "{}"}, "it has 1,048,578 bytes, the limit is 1,048,576"),
        ({"pictures": json.dumps([{**ENTRY, "tensor": "1-dog"}])}, "has no tensor '1-dog'"),
        ({"pictures": json.dumps([{**ENTRY, "height": 100}])}, "'0-cat' is (4, 2, 3), but its metadata say (4, 25, 3)"),
        ({"pictures": "[]"}, "has no pictures"),
    ],
)
def test_decode_refuses_a_file_that_contradicts_itself(changes, words):
    assert words in error("decode", tampered(**changes), "--output", "out", *MODEL)
    assert not Path("out").exists()


def test_decode_writes_nothing_outside_its_folder():
    entry = {**ENTRY, "file": "../../escaped.png"}
    run("decode", tampered(pictures=json.dumps([entry])), "--output", "deep/out", *MODEL)
    assert Path("deep/out/escaped-vae.png").exists()


def test_finite_latents_that_overflow_are_reported_in_one_line_without_a_warning():
    tampered()
    with safe_open("tampered.safetensors", "np") as file:
        metadata = file.metadata()
    save_file({"0-cat": np.full((4, 2, 3), 3e38, np.float32)}, "big.safetensors", metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = error("decode", "big.safetensors", *MODEL)
    assert "big.safetensors, tensor '0-cat': the latents, unscaled in float32, hold 24 NaN or infinite" in words


def test_latents_that_are_not_finite_are_reported():
    tampered()
    save_file(
        {"0-cat": np.full((4, 2, 3), np.nan, np.float32)},
        "nan.safetensors",
        safe_open("latents.safetensors", framework="numpy").metadata(),
    )
    assert "NaN" in error("decode", "nan.safetensors", *MODEL)


# -- padding -------------------------------------------------------------------------------------------------------


def test_padding_is_chosen_for_encode_decode_and_roundtrip():
    picture("cat.png", 16, 12)
    padding = ("--padding", "reflect,replicate")
    run("encode", "cat.png", *padding, *MODEL)
    padded = vae()
    padded.set_padding(("reflect", "replicate"))
    with Image.open("cat.png") as cat:
        latents = padded.encode_latents(cat)
        zeros = vae().encode_latents(cat)
    np.testing.assert_array_equal(load_file("latents.safetensors")["0-cat"], latents[0])
    assert np.abs(zeros - latents).max() > 1e-3
    run("decode", "latents.safetensors", "--output", "decoded", *padding, *MODEL)
    run("roundtrip", "cat.png", "--output", "direct", *padding, *MODEL)
    difference = pixels("decoded/cat-vae.png").astype(int) - pixels("direct/cat-vae.png")
    assert np.abs(difference).max() <= 1  # scaling and back rounds


@pytest.mark.parametrize("words", ["mirror", "reflect,", "zeros,zeros,zeros", ""])
def test_a_padding_of_unknown_words_is_a_usage_error(words):
    picture("cat.png")
    assert "'circular'" in run("roundtrip", "cat.png", "--padding", words, *MODEL, code=2).stderr


def test_a_picture_too_small_for_its_padding_is_left_out_and_listed():
    picture("flat.png", 16, 4), picture("cat.png", 16, 12)
    said = run("encode", "flat.png", "cat.png", "--padding", "reflect", *MODEL, code=1).stderr
    assert "flat.png: images of 4 x 16 px: a feature map would have 1 row, but padding 'reflect'" in said
    assert list(load_file("latents.safetensors")) == ["1-cat"]
    run("encode", "flat.png", "cat.png", *MODEL)
    said = run("decode", "latents.safetensors", "--padding", "reflect", *MODEL, code=1).stderr
    assert "tensor '0-flat': latents of 1 x 4: a feature map would have 1 row, but padding 'reflect'" in said
    assert Path("cat-vae.png").exists()
    assert not Path("flat-vae.png").exists()
