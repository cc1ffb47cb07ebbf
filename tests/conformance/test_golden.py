"""Golden packs: complete, small, the same each time; right answers pass the checkers, planted faults are found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import vaespec
from vaespec import families
from vaespec.architecture import HALVES, parameters
from vaespec.cli.app import app
from vaespec.errors import InputError
from vaespec_conformance.golden_packs import pack as packs
from vaespec_conformance.golden_packs.pack import Request, write_pack

EXAMPLES = Path(__file__).parents[2] / "examples" / "golden"
ENDS = ("moments", "mean", "logvar", "sample")
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="session")
def per_layer(tmp_path_factory):
    """A narrow pack of SD 1 with every layer, at an odd size."""
    out = tmp_path_factory.mktemp("golden") / "pack"
    result = CliRunner().invoke(app, ["golden", str(out), "--family", "sd1", "--size", "33x47", "--per-layer"])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session", params=["C", "Python"])
def checker(request, tmp_path_factory):
    """Runs a checker: (exit code, what it printed)."""
    if request.param == "Python":
        command = [sys.executable, EXAMPLES / "check.py"]
    elif COMPILER is None:
        pytest.skip("no C compiler")
    else:
        command = [tmp_path_factory.mktemp("checker") / "check"]
        flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2"]
        subprocess.run([COMPILER, *flags, EXAMPLES / "check.c", "-o", command[0], "-lm"], check=True)

    def run(*arguments):
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


def manifest_of(pack):
    return json.loads((pack / "manifest.json").read_text(encoding="utf-8"))


def arrays(pack):
    """(inputs, expected outputs)."""
    return load_file(pack / "inputs.safetensors"), load_file(pack / "expected.safetensors")


def diffusers_model(pack, dtype=torch.float32):
    config = vaespec.AutoencoderConfig.from_json(pack / "config.json")
    return getattr(diffusers, config.class_name).from_pretrained(pack, torch_dtype=dtype).eval()


@torch.no_grad()
def answers(model, inputs):
    """What a model of diffusers' computes, and what each module that a pack names returns, in float32."""
    found = {}

    def keep(name, module, arguments, y):
        if isinstance(y, torch.Tensor):
            found[name] = y.float().numpy().copy()

    hooks = [module.register_forward_hook(partial(keep, name)) for name, module in model.named_modules() if name]
    posterior = model.encode(torch.tensor(inputs["images"])).latent_dist
    sample = model.decode(torch.tensor(inputs["latents"])).sample
    for hook in hooks:
        hook.remove()
    ends = {"moments": posterior.parameters, "mean": posterior.mean, "logvar": posterior.logvar, "sample": sample}
    return found, {name: y.float().numpy().copy() for name, y in ends.items()}


@pytest.fixture(scope="session")
def right_answer(per_layer):
    """diffusers' answer for every output of the pack."""
    inputs, expected = arrays(per_layer)
    layers, ends = answers(diffusers_model(per_layer), inputs)
    known = {name: y for name, y in layers.items() if name in expected}
    return {name: y.reshape(expected[name].shape) for name, y in known.items()} | ends  # a norm's (B, C, N) is a map


def written(tmp_path, tensors):
    path = tmp_path / "answer.safetensors"
    save_file({name: np.ascontiguousarray(y) for name, y in tensors.items()}, path)
    return path


# -- the pack ----------------------------------------------------------------------------------------------------


def test_a_pack_has_a_model_of_the_familys_topology_that_is_narrow_and_at_most_8_mb(per_layer):
    config, family = vaespec.AutoencoderConfig.from_json(per_layer / "config.json"), families.config("sd1")
    assert sum(path.stat().st_size for path in per_layer.iterdir()) <= 8e6
    assert config.block_out_channels == (8, 16, 32, 32)
    widths = ("block_out_channels", "norm_num_groups")
    assert config.replace(**{name: getattr(family, name) for name in widths}) == family


@pytest.mark.parametrize(("family", "levels"), [("sd1", 4), ("flux1", 4), ("flux2", 4), ("kl-f4", 3)])
def test_a_pack_of_the_ends_alone_has_32_groups_and_at_most_8_mb(family, levels):
    request = Request(family=family, size=(33, 47))
    config = request.config()
    assert (config.norm_num_groups, config.levels) == (32, levels)
    assert request._bytes(config) <= 8e6


@pytest.mark.parametrize("family", families.names())
def test_every_family_has_a_narrow_model_that_fits_with_every_layer(family):
    f = families.config(family).downsampling_factor
    request = Request(family=family, size=(max(33, 2 * f + 1), max(47, 2 * f + 1)), per_layer=True)
    config = request.config()
    assert request._bytes(config) <= 8e6
    assert min(config.block_out_channels + config.decoder_widths) >= 2 * config.norm_num_groups


def test_every_layer_and_every_owner_of_parameters_is_there_with_its_budget(per_layer):
    _, expected = arrays(per_layer)
    config = vaespec.AutoencoderConfig.from_json(per_layer / "config.json")
    layers = {layer.name for half in HALVES.values() for layer in half.build(config).layers}
    owners = {name.rpartition(".")[0] for name in parameters(config)}
    outputs = [name for name in expected if not name.startswith("budget.")]
    assert set(outputs) == layers | owners | set(ENDS)
    assert all(0 < float(expected[f"budget.{name}"]) < 1e-3 for name in outputs)


def test_the_manifest_lists_the_outputs_in_the_order_of_the_run_and_the_hashes_of_the_files(per_layer):
    manifest = manifest_of(per_layer)
    assert manifest["format"] == "vaespec-golden/1"
    order = [output["name"] for output in manifest["outputs"]]
    assert order[0] == "encoder.conv_in"
    assert order[-2:] == ["decoder.conv_out", "sample"]
    assert order.index("moments") < order.index("post_quant_conv")
    for name, file in manifest["files"].items():
        content = (per_layer / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    _, expected = arrays(per_layer)
    for output in manifest["outputs"]:
        assert list(expected[output["name"]].shape) == output["shape"]
        assert float(expected[f"budget.{output['name']}"]) == output["budget"]


def test_the_bytes_are_the_same_in_a_process_with_another_number_of_threads(per_layer, tmp_path):
    command = [
        sys.executable,
        "-c",
        "import vaespec.cli as c; c.main()",
        "golden",
        str(tmp_path / "again"),
        "--family",
        "sd1",
        "--per-layer",
    ]
    subprocess.run(
        command,
        check=True,
        env=os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "3"),
        capture_output=True,
    )
    for path in per_layer.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_pack_of_another_seed_has_other_numbers(tmp_path):
    request = partial(Request, family="kl-f4", size=(9, 11), groups=4)
    first, second = (write_pack(tmp_path / str(seed), request(seed=seed)) for seed in (0, 1))
    assert first["files"]["config.json"] == second["files"]["config.json"]
    for name in ("diffusion_pytorch_model.safetensors", "inputs.safetensors", "expected.safetensors"):
        assert first["files"][name]["sha256"] != second["files"][name]["sha256"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_pack_of_another_dtype_is_passed_by_diffusers_in_that_dtype(checker, tmp_path, dtype):
    write_pack(tmp_path / "pack", Request(family="flux2", size=(17, 23), dtype=dtype, groups=4))
    model = vaespec.load(tmp_path / "pack", backend="torch", dtype=dtype)
    assert {w.dtype.name for w in model.weights().values()} <= {dtype, "int64"}
    raw = {name: y.float() for name, y in torch_file(tmp_path / "pack" / "inputs.safetensors").items()}
    theirs = diffusers_model(tmp_path / "pack", getattr(torch, dtype))
    with torch.no_grad():
        posterior = theirs.encode(raw["images"].to(theirs.dtype)).latent_dist
        sample = theirs.decode(raw["latents"].to(theirs.dtype)).sample
    from safetensors.torch import save_file as save_torch

    ends = {"mean": posterior.mean, "logvar": posterior.logvar, "sample": sample}
    save_torch({name: y.contiguous() for name, y in ends.items()}, tmp_path / "answer.safetensors")
    code, text = checker(tmp_path / "pack", tmp_path / "answer.safetensors")
    assert code == 0, text


def torch_file(path):
    from safetensors.torch import load_file as load_torch

    return load_torch(path)


# -- the checkers ------------------------------------------------------------------------------------------------


def test_each_checker_has_at_most_sixty_lines():
    for name in ("check.c", "check.py"):
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 60


def test_diffusers_answer_passes_layer_by_layer(checker, per_layer, right_answer, tmp_path):
    code, text = checker(per_layer, written(tmp_path, right_answer))
    assert code == 0, text
    assert len(text.splitlines()) == len(right_answer) + 1
    assert len(right_answer) == len(manifest_of(per_layer)["outputs"])


def test_the_torch_backends_answer_passes(checker, per_layer, tmp_path):
    inputs, _ = arrays(per_layer)
    vae = vaespec.load(per_layer, backend="torch", dtype="float32")
    posterior = vae.encode(inputs["images"]).latent_dist
    sample = vae.decode(inputs["latents"]).sample
    ends = {"mean": posterior.mean, "logvar": posterior.logvar, "sample": sample}
    assert checker(per_layer, written(tmp_path, {name: y.numpy() for name, y in ends.items()}))[0] == 0


def changed(name, change):
    """A fault in one output."""

    def fault(answer, pack):
        return answer | {name: change(answer[name].copy())}

    return fault


def in_the_model(change):
    """A fault in diffusers' model, seen in its ends alone."""

    def fault(answer, pack):
        model = diffusers_model(pack)
        change(model)
        return answers(model, arrays(pack)[0])[1]

    return fault


def set_at(index, value):
    def change(y):
        y[index] = value(y) if callable(value) else value
        return y

    return change


def eps(model):
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-5


def eps_of_one(model):
    model.decoder.mid_block.attentions[0].group_norm.eps = 1e-5


def no_bias(model):
    torch.nn.init.zeros_(model.encoder.down_blocks[0].resnets[0].conv1.bias)


FAULTS = {
    "eps": (in_the_model(eps), "moments"),
    "eps of one norm": (in_the_model(eps_of_one), "sample"),
    "bias dropped": (in_the_model(no_bias), "moments"),
    "one pixel": (changed("sample", set_at((0, 1, 7, 9), 1.0)), "sample"),
    "last row stale": (changed("sample", set_at((0, slice(None), -1), lambda y: y[0, :, -2])), "sample"),
    "NaN": (changed("logvar", set_at((0, 0, 0, 0), np.nan)), "logvar"),
    "wrong shape": (changed("sample", lambda y: y[:, :, :-1]), "sample"),
    "missing output": (lambda answer, pack: {n: y for n, y in answer.items() if n != "sample"}, "sample"),
    "transposed": (changed("mean", lambda y: y.swapaxes(2, 3).reshape(y.shape)), "mean"),
    "channels swapped": (changed("sample", lambda y: y[:, [1, 0, 2]]), "sample"),
    "scaled by 1.001": (changed("quant_conv", lambda y: y * np.float32(1.001)), "quant_conv"),
    "not clamped": (lambda answer, pack: answer | {"logvar": np.split(answer["moments"], 2, 1)[1]}, "logvar"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_its_first_output_named(checker, per_layer, right_answer, tmp_path, fault):
    plant, first = FAULTS[fault]
    code, text = checker(per_layer, written(tmp_path, plant(right_answer, per_layer)))
    assert code == 1, text
    assert text.rstrip().endswith(f"budget: {first}")


def test_with_a_prefix_only_those_outputs_are_compared_and_all_of_them(checker, per_layer, right_answer, tmp_path):
    decoder = {name: y for name, y in right_answer.items() if name.startswith("decoder.")}
    path = written(tmp_path, decoder)
    assert checker(per_layer, path, "decoder.")[0] == 0
    assert checker(per_layer, path)[0] == 1  # without mean, logvar and sample
    del decoder["decoder.conv_in"]
    code, text = checker(per_layer, written(tmp_path, decoder), "decoder.")
    assert code == 1
    assert "decoder.conv_in" in text.splitlines()[-1]


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 64, b"\x40" + b"\0" * 7 + b"{}"])
def test_what_is_no_safetensors_file_has_exit_code_2(checker, per_layer, tmp_path, content):
    (tmp_path / "answer").write_bytes(content)
    code, text = checker(per_layer, tmp_path / "answer")
    assert code == 2
    assert text.startswith("check: ")
    assert checker(per_layer, tmp_path / "absent")[0] == 2


def test_metadata_and_spaces_in_an_answers_table_do_not_matter(checker, per_layer, right_answer, tmp_path):
    path = written(tmp_path, {name: right_answer[name] for name in ("mean", "logvar", "sample")})
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table = {"__metadata__": {"note": '{"mean": {"dtype": "F64"}}'}, **json.loads(raw[8:start])}
    header = json.dumps(table, indent=1).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[start:])
    assert checker(per_layer, path)[0] == 0


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "sd9"], "unknown family 'sd9': choose one of sd1"),
        (["--family", "sd1", "--size", "33by47"], "HEIGHTxWIDTH"),
        (["--family", "sd1", "--size", "9x15"], "--size 9x15 is too small: sd1 needs at least 16x16 px."),
        (["--family", "sd1", "--size", "90000x90000"], "GiB are free: choose a smaller size."),
        (["--family", "sd1", "--dtype", "int8"], "dtype 'int8': choose float32"),
        (["--family", "sd1", "--groups", "5"], "--groups 5: choose 32, 4, 2"),
        (["--family", "sd1", "--groups", "4", "--full-width"], "leave out --full-width"),
    ],
)
def test_a_wrong_request_is_refused_in_one_sentence_and_nothing_is_left(tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["golden", str(tmp_path / "new" / "pack"), *arguments])
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_refused_and_an_empty_one_is_taken(tmp_path):
    (tmp_path / "own").write_text("mine")
    request = Request(family="kl-f4", size=(9, 11), groups=4)
    with pytest.raises(InputError, match="has files in it: name a new folder, or an empty one"):
        write_pack(tmp_path, request)
    with pytest.raises(InputError, match="is no folder"):
        write_pack(tmp_path / "own", request)
    (tmp_path / "empty").mkdir()
    write_pack(tmp_path / "empty", request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "own"]


def test_after_an_error_nothing_half_written_is_left(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(packs, "write_safetensors", fail)
    with pytest.raises(OSError, match="disk full"):
        write_pack(tmp_path / "deep" / "pack", Request(family="kl-f4", size=(9, 11), groups=4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sample", "mean"])
def test_a_tensors_name_in_the_metadata_of_an_answer_is_no_tensor(checker, per_layer, tmp_path, name):
    answer = load_file(per_layer / "expected.safetensors")
    save_file(answer, tmp_path / "answer.safetensors", {"output": name, name: "moments"})
    assert checker(per_layer, tmp_path / "answer.safetensors")[0] == 0


def test_an_empty_folder_that_somebody_stands_in_is_filled(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_pack(Path("."), Request(family="sd1", size=(16, 16)))
    assert {path.name for path in Path(".").iterdir()} >= {"manifest.json", "expected.safetensors"}


def test_every_file_of_a_pack_may_be_read_by_others(per_layer):
    assert len({path.stat().st_mode for path in per_layer.iterdir()}) == 1
