"""`vaespec check` finds what a device computes wrong, names the place and the cause, and passes what is right."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import safetensors.numpy
import typer
from support.configs import narrow
from support.faulty_devices import Everywhere
from typer.testing import CliRunner

import vaespec
from vaespec.analysis.rounding import predicted_error
from vaespec.architecture import DECODER, ENCODER
from vaespec.cli.failures import CommandGroup
from vaespec.machine import host_memory
from vaespec.tiling import planner
from vaespec_conformance.commands.check import register
from vaespec_conformance.judging.places import WrongRegion
from vaespec_conformance.machine_check import check as machine_check
from vaespec_conformance.machine_check import sample_inputs
from vaespec_conformance.machine_check.findings import Cause, Comparison, Finding
from vaespec_conformance.machine_check.findings_text import sentences
from vaespec_conformance.machine_check.prediction import predict

ROOT = Path(__file__).parents[2]
FAULTS = ROOT / "tests" / "support" / "faulty_devices.py"
TWO_LEVELS = narrow((8, 8), latent_channels=4)
ONSET = 80
"""FROM in the file of faults: the search tries every latent between 64 and 96 px."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    vaespec.AutoencoderKL.from_config(TWO_LEVELS, backend="numpy").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def app():
    own = typer.Typer(cls=CommandGroup)
    own.callback()(lambda debug=False: None)
    register(own)
    return own


@pytest.fixture
def check(app, weights):
    def run(*arguments, source=weights, code=0):
        result = CliRunner().invoke(app, ["check", str(source), *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result

    return run


def answer(check, *arguments, code=0, **options):
    """The JSON document, and its only half."""
    document = json.loads(check(*arguments, "--json", code=code, **options).stdout)
    (half,) = document["halves"]
    return document, half


# -- faults of devices -------------------------------------------------------------------------------------------

FIVE = {
    "Zeros": ("size", "zeros from row 70 on", "some rows of a map are not computed"),
    "Stale": ("size", "other numbers from row 75 on", "some rows of a map are not computed"),
    "Tile": ("size", "zeros in one block: rows 32 to 63, columns 32 to 63", "a tile of a map is not computed"),
    "Narrow": ("precision", "everywhere", "multiplies float32 as TF32"),
    "Wrapped": ("index", "from number 65,536 of the map on", "an index wraps at 65,536 = 2^16"),
}


@pytest.mark.parametrize(("fault", "half"), [*((fault, "decode") for fault in FIVE), ("Zeros", "encode")])
def test_a_fault_from_a_size_on_is_found_with_its_size_place_cause_and_way_out(check, fault, half):
    cause, where, words = FIVE[fault]
    document, found = answer(check, "--size", 96, "--half", half, "--backend", f"{FAULTS}:{fault}", code=1)
    assert document["verdict"] == found["verdict"] == "wrong"
    onset = 92 if fault == "Wrapped" else ONSET  # 8 x 92 x 92 is the first map beyond 2^16
    assert (found["right_up_to"], found["wrong_from"]) == (onset - 4 if fault != "Wrapped" else 88, onset)
    assert found["cause"] == cause
    layer = "encoder.conv_in" if half == "encode" else "decoder.up_blocks.0.upsamplers.0.conv"
    assert (found["operation"]["name"], found["operation"]["layer"]) == ("conv2d", layer)
    assert where in (found["operation_where"] or "everywhere")
    assert found["bands_right"] is True
    text = " ".join(document["sentences"])
    for part in (f"wrong from {onset} px on", words, f'enable_tiling("exact", band_rows={found["band_rows"]})'):
        assert part in text


@pytest.mark.parametrize(
    ("subject", "dtype", "precision"),
    [
        (f"{FAULTS}:Clean", "float32", "default"),
        ("numpy", "bfloat16", "default"),
        ("numpy", "float64", "default"),
        ("torch", "float32", "highest"),
        ("torch", "bfloat16", "default"),
        ("torch", "float16", "highest"),
        ("jax", "float32", "default"),
        ("mlx", "float16", "default"),
    ],
)
def test_a_right_backend_passes(check, subject, dtype, precision):
    result = check("--size", "70x66", "--backend", subject, "--dtype", dtype, "--precision", precision)
    assert result.stdout.count(" right\n") == 2
    assert ": right at 70 x 66 px." in result.stdout.splitlines()[-1]


def test_nan_is_wrong_and_names_the_layer(check):
    document, found = answer(check, "--size", 96, "--half", "encode", "--backend", f"{FAULTS}:Nan", code=1)
    assert (found["problem"], found["error"], found["share"]) == ("NaN or infinity", None, None)
    assert "first in the conv2d after reading encoder.conv_in.bias" in document["sentences"][0]
    assert "NaN or infinity at row 79, column 79" in " ".join(document["sentences"])


def test_an_operation_that_raises_from_a_size_on_is_wrong(check):
    document, found = answer(check, "--size", 96, "--half", "encode", "--backend", f"{FAULTS}:Raising", code=1)
    assert (found["cause"], found["wrong_from"]) == ("exception", ONSET)
    assert "INT_MAX" in document["sentences"][0]


def test_a_device_without_memory_is_asked_for_less(check):
    error = check("--size", 96, "--backend", f"{FAULTS}:Full", code=2).stderr.splitlines()[-1]
    assert error.startswith("vaespec: error: the device has too little memory to encode images of 96 x 96")
    assert "smaller --size" in error


def test_what_is_wrong_at_every_size_is_no_matter_of_size(check):
    document, found = answer(check, "--size", 96, "--half", "decode", "--backend", f"{FAULTS}:Everywhere", code=1)
    assert (found["right_up_to"], found["wrong_from"], found["cause"]) == (None, 64, "everywhere")
    assert "silu of 1 x 8 x 32 x 32 after decoder.mid_block.resnets.0.norm1" in " ".join(document["sentences"])
    assert document["sentences"][-1] == "Likely cause: the device's own silu, whatever the size."


def test_a_wrong_reference_is_no_verdict_about_the_subject(check, monkeypatch):
    broken = Everywhere.ops("cpu", "float32", "default")
    monkeypatch.setattr("vaespec_conformance.machine_check.setups.reference_ops", lambda dtype: broken)
    error = check("--size", 40, "--half", "encode", code=2).stderr.splitlines()[-1]
    assert "the NumPy engine, which is the reference, is wrong on this machine itself: encode of 40 px is off" in error


# -- diffusers ---------------------------------------------------------------------------------------------------


def test_diffusers_own_model_passes(check):
    document, _ = answer(check, "--size", "66x97", "--half", "decode", "--diffusers", "--device", "cpu")
    assert (document["setup"]["name"], document["setup"]["device"]) == ("diffusers", "cpu")


def test_a_fault_of_diffusers_model_is_found_by_its_result_alone(check, monkeypatch):
    from vaespec_diffusers.unchanged import Unchanged

    run = Unchanged.run

    def faulty(self, half, x, tiling=None):
        y = run(self, half, x)
        if x.shape[3] >= ONSET // 2:
            y[:, :, 60:] = 0
        return y

    monkeypatch.setattr(Unchanged, "run", faulty)
    _, found = answer(check, "--size", 96, "--half", "decode", "--diffusers", "--device", "cpu", code=1)
    assert (found["wrong_from"], found["cause"], found["operation"]) == (ONSET, "size", None)
    assert found["where"] == "zeros from row 60 on"


def test_float16_that_cannot_hold_the_maps_is_told_from_a_fault_of_the_device(check, tmp_path):
    vae = vaespec.AutoencoderKL.from_config(TWO_LEVELS.replace(force_upcast=False), backend="numpy")
    large = vae.weights() | {"decoder.conv_in.bias": np.full(8, 6e4, np.float32)}
    large["decoder.mid_block.resnets.0.conv2.bias"] = np.full(8, 6e4, np.float32)
    vaespec.AutoencoderKL(vae.config, large, backend="numpy").save_pretrained(tmp_path / "large")
    options = ("--size", 64, "--half", "decode", "--dtype", "float16", "--diffusers", "--device", "cpu")
    document, found = answer(check, *options, source=tmp_path / "large", code=1)
    assert found["cause"] == "overflow"
    assert "force_upcast" in document["sentences"][-1]


def test_diffusers_takes_neither_a_backend_nor_a_precision(check):
    for options in (("--backend", "numpy"), ("--precision", "highest")):
        assert "leave out --backend and --precision" in check("--diffusers", *options, code=2).stderr


def test_without_diffusers_the_option_says_what_to_install(check, monkeypatch):
    monkeypatch.setattr("vaespec_conformance.machine_check.setups.find_spec", lambda name: None)
    assert 'pip install "vaespec[diffusers]"' in check("--diffusers", code=2).stderr


# -- the picture and the budget ----------------------------------------------------------------------------------


def test_a_smaller_picture_is_a_crop_and_no_two_rows_are_alike():
    whole = sample_inputs.picture(3, 70, 90)
    np.testing.assert_array_equal(sample_inputs.picture(3, 40, 30), whole[:, :, :40, :30])
    assert abs(whole).max() <= 1
    assert len(np.unique(whole.transpose(2, 0, 1, 3).reshape(70, -1), axis=0)) == 70


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_prediction_is_that_of_the_analysis(dtype):
    vae, x = vaespec.AutoencoderKL.from_config(TWO_LEVELS, backend="numpy"), sample_inputs.picture(3, 16, 12)
    expected = predicted_error(ENCODER.build(TWO_LEVELS), x, vae.weights(), dtype)
    assert predict(ENCODER, TWO_LEVELS, vae.weights(), x, dtype).error == pytest.approx(expected, rel=1e-6)


def test_the_latents_of_the_decoder_alone_are_those_of_both_halves(check):
    options = ("--size", 40, "--backend", "numpy")
    both = json.loads(check(*options, "--json").stdout)["halves"]
    assert [answer(check, *options, "--half", half)[1] for half in ("encode", "decode")] == both


def test_latents_have_the_mean_and_the_deviation_of_the_encoders():
    moments = np.random.default_rng(0).normal(3, 2, (1, 8, 30, 30))
    z = sample_inputs.latents(4, 64, 64, sample_inputs.Scale.of(moments))
    assert z.shape == (1, 4, 64, 64)
    np.testing.assert_allclose(z.mean((0, 2, 3)), moments[:, :4].mean((0, 2, 3)), atol=2.4)
    np.testing.assert_allclose(z.std((0, 2, 3)), moments[:, :4].std((0, 2, 3)), rtol=0.3)


# -- causes ------------------------------------------------------------------------------------------------------

OF_NAN, OF_ROWS = Comparison(math.inf, math.inf, "NaN or infinity"), WrongRegion("rows", "in row 3 of 9", "zeros")
CAUSES = {
    "overflow": {"dtype": "float16", "overflows": True, "comparison": OF_NAN},
    "exception": {"comparison": Comparison(math.inf, math.inf, "raised RuntimeError: no")},
    "precision": {"comparison": Comparison(1e-3, 9.0)},
    "index": {"comparison": Comparison(1.0, 9.0, region=WrongRegion("index", "from number 65,536 on", "zeros", 2**16))},
    "size": {"comparison": Comparison(1.0, 9.0, region=OF_ROWS), "right_up_to": 80},
    "everywhere": {"comparison": Comparison(1.0, 9.0, region=OF_ROWS)},
}


def test_each_cause_has_its_own_sentence():
    assert CAUSES.keys() == set(get_args(Cause))
    plain = Finding("decode", "float32", 1e-5, 1e-7, False, OF_NAN, wrong_from=64)
    found = {cause: replace(plain, **facts) for cause, facts in CAUSES.items()}
    assert {cause: finding.cause for cause, finding in found.items()} == {cause: cause for cause in CAUSES}
    said = [next(line for line in sentences(finding) if line.startswith("Likely")) for finding in found.values()]
    assert len(set(said)) == len(CAUSES)


# -- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["30000", "2x400000000", "999999999"])
@pytest.mark.parametrize("subject", ["numpy", f"{FAULTS}:Elsewhere"])
def test_a_picture_that_is_too_large_for_the_memory_is_refused_before_anything_is_planned(
    check, monkeypatch, size, subject
):
    monkeypatch.setattr(planner, "choose", lambda *a: pytest.fail("it planned bands, which can take minutes"))
    error = check("--size", size, "--backend", subject, "--max-memory", "2GiB", code=2).stderr
    height, width = size.split("x") if "x" in size else (size, size)
    assert f"code {height} x {width} px as a whole, numpy needs about " in error
    assert "2.00 GiB are allowed: give a smaller --size, or more --max-memory.\n" in error


def out_of_memory(*arguments):
    raise MemoryError


def test_a_reference_without_memory_is_no_verdict(check, monkeypatch):
    monkeypatch.setattr(machine_check.MachineCheck, "_expected", out_of_memory)
    error = check("--size", 40, "--backend", "numpy", code=2).stderr.splitlines()[-1]
    assert error == "vaespec: error: not enough memory to check 40 x 40 px: give a smaller --size."


def test_what_is_wrong_stays_wrong_if_the_memory_is_too_little_to_find_out_more(check, monkeypatch):
    monkeypatch.setattr(machine_check, "first_wrong_operation", out_of_memory)
    _, found = answer(check, "--size", 96, "--half", "decode", "--backend", f"{FAULTS}:Zeros", code=1)
    assert (found["wrong_from"], found["operation"], found["bands_right"]) == (ONSET, None, None)


@pytest.mark.parametrize(("fault", "code"), [("Clean", 0), ("Tile", 1)])
def test_the_whole_check_keeps_to_its_memory(app, tmp_path, fault, code):
    config = narrow((8, 8), latent_channels=4, mid_block_add_attention=False)
    vaespec.AutoencoderKL.from_config(config, backend="numpy").save_pretrained(tmp_path)
    allowed = 128 * 2**20
    arguments = [
        "check",
        str(tmp_path),
        "--size",
        "192",
        "--half",
        "decode",
        "--backend",
        f"{FAULTS}:{fault}",
        "--max-memory",
    ]
    tracemalloc.start()
    try:
        result = CliRunner().invoke(app, [*arguments, str(host_memory().used + allowed)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.exit_code == code, result.output
    assert 2 * 2**20 < peak < allowed


def test_one_side_is_freed_before_the_other_is_loaded(check, monkeypatch):
    alive, load = [], machine_check.LoadedModel.of.__func__

    def of(cls, *arguments):
        assert not [side for side in alive if side() is not None]
        side = load(cls, *arguments)
        alive.append(weakref.ref(side.model))
        return side

    monkeypatch.setattr(machine_check.LoadedModel, "of", classmethod(of))
    check("--size", 96, "--backend", f"{FAULTS}:Tile", code=1)
    assert len(alive) > 10


# -- requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "0"), "give one number, or HEIGHTxWIDTH such as 768x1024"),
        (("--size", "a"), "give one number, or HEIGHTxWIDTH such as 768x1024"),
        (("--size", "9" * 5000), "give one number, or HEIGHTxWIDTH such as 768x1024"),
        (("--size", "1"), "--size 1x1 is too small: this VAE needs at least 2 x 2 px."),
        (("--half", "both"), "choose encode or decode"),
        (("--dtype", "int8", "--backend", "numpy"), "no dtype 'int8'"),
        (("--dtype", "int8", "--diffusers"), "dtype 'int8': choose float32"),
        (("--device", "mps", "--backend", "numpy"), "no device 'mps' here: choose cpu"),
        (("--device", "abc", "--diffusers"), "PyTorch has no device 'abc' here"),
        (("--backend", "none"), "no backend named 'none'"),
        (("--backend", "none.py:x"), "none.py cannot be imported"),
        (("--max-memory", "4"), "and 4 bytes are allowed: give a smaller --size, or more --max-memory."),
        (("--max-memory", "much"), "expected a number of bytes"),
    ],
)
def test_an_invalid_request_has_exit_code_2_and_says_what_to_do(check, options, message):
    words = " ".join(check(*options, code=2).stderr.replace("│", "").split())
    assert message in words
    assert "Traceback" not in words


@pytest.mark.parametrize("kind", ["cut", "no VAE", "missing"])
def test_a_file_that_cannot_be_read_has_exit_code_2(check, weights, tmp_path, kind):
    source = tmp_path / "x.safetensors"
    if kind != "missing":
        whole = (weights / "diffusion_pytorch_model.safetensors").read_bytes()
        source.write_bytes(whole[:-100] if kind == "cut" else b"hello" * 100)
    error = check(source=source, code=2).stderr
    assert error.startswith("vaespec: error: ")
    assert error.count("\n") == 1


def test_half_a_model_is_checked_alone_and_the_other_half_is_refused(check, weights, tmp_path):
    tensors = safetensors.numpy.load_file(weights / "diffusion_pytorch_model.safetensors")
    half = {name: w for name, w in tensors.items() if name.startswith(("decoder", "post_quant"))}
    safetensors.numpy.save_file(half, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_bytes((weights / "config.json").read_bytes())
    _, found = answer(check, "--size", 40, "--backend", "numpy", source=tmp_path)
    assert found["half"] == DECODER.verb
    options = {"source": tmp_path, "code": 2}
    assert "no encoder" in check("--half", "encode", **options).stderr
    assert "no encoder" in check("--diffusers", "--device", "cpu", **options).stderr


def test_the_document_has_the_same_keys_whatever_the_verdict(check):
    right, half = answer(check, "--size", 40, "--half", "encode", "--backend", "numpy")
    wrong, other = answer(check, "--size", 96, "--half", "encode", "--backend", f"{FAULTS}:Tile", code=1)
    assert right.keys() == wrong.keys()
    assert half.keys() == other.keys()
    assert right["schema"] == "vaespec-check/1"
    assert right["size"] == [40, 40]


def test_progress_goes_to_stderr_and_the_answer_to_stdout(check):
    result = check("--size", 40, "--half", "encode", "--backend", "numpy")
    assert [line.split(": ")[1] for line in result.stderr.splitlines()][:2] == ["encode", "loading the weights"]
    assert result.stdout.splitlines()[0].split() == [
        "half",
        "dtype",
        "error",
        "budget",
        "of",
        "the",
        "budget",
        "verdict",
    ]


def test_the_command_is_an_entry_point_and_needs_neither_hypothesis_nor_a_framework():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vaespec.commands"]
    assert points["check"] == f"{register.__module__}:{register.__name__}"
    code = (
        "import sys; import vaespec_conformance.commands.check, vaespec_conformance.machine_check.check\n"
        "import vaespec_conformance.machine_check.setups, vaespec_conformance.machine_check.findings_text\n"
        "print([name for name in ('hypothesis', 'torch', 'diffusers', 'jax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
