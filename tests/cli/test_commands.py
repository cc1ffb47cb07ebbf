"""The commands as their users see them: what they write, and what they print."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from support.checkpoints import WEIGHTS_FILE
from support.workplace import COMMANDS, MODEL, files, picture, pixels, run, vae

import vaespec
from vaespec import autoencoder, pictures
from vaespec.cli import console, loading, picture_files
from vaespec.ops import KERNELS

# -- help and version --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command):
    assert f"Example: vaespec {command}" in run(command, "--help").stdout


def test_the_version_is_printed():
    assert run("--version").stdout == f"vaespec {vaespec.__version__}\n"


def test_showing_help_loads_no_framework_and_no_pillow():
    heavy = {"torch", "jax", "mlx", "PIL", "rich.table", "rich.progress"}
    code = f"import sys, vaespec.cli.app; print(*{heavy!r} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# -- roundtrip ---------------------------------------------------------------------------------------------------


def test_roundtrip_writes_the_output_of_the_model_and_prints_its_psnr():
    picture("cat.png", 16, 12)
    result = run("roundtrip", "cat.png", "--output", "out", *MODEL)
    with Image.open("cat.png") as original:
        (expected,) = pictures.to_pixels(vae()(original).sample)
    np.testing.assert_array_equal(pixels("out/cat-vae.png"), expected)
    assert f"{pictures.psnr(pixels('cat.png'), expected):.2f} dB" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(("width", "height"), [(4, 4), (5, 7), (8, 11), (13, 10), (40, 6)])
def test_floor_drops_rows_and_columns_to_a_multiple_of_f(width, height):
    picture("cat.png", width, height)
    run("roundtrip", "cat.png", *MODEL)
    assert pixels("cat-vae.png").shape == (height // 4 * 4, width // 4 * 4, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (4, 4), (5, 7), (13, 10), (40, 3)])
def test_edge_keeps_the_size(width, height):
    picture("cat.png", width, height)
    run("roundtrip", "cat.png", "--pad", "edge", *MODEL)
    assert pixels("cat-vae.png").shape == (height, width, 3)


def test_edge_repeats_the_last_row_and_column():
    picture("cat.png", 13, 10)
    padded = np.pad(pixels("cat.png"), ((0, 2), (0, 3), (0, 0)), mode="edge")
    Image.fromarray(padded).save("padded.png")
    run("roundtrip", "cat.png", "padded.png", "--pad", "edge", *MODEL)
    np.testing.assert_array_equal(pixels("cat-vae.png"), pixels("padded-vae.png")[:10, :13])


def test_the_json_of_roundtrip_has_a_row_for_each_picture_and_their_mean():
    picture("a.png"), picture("b.png", 9, 9, seed=1)
    document = json.loads(run("roundtrip", "a.png", "b.png", "--json", *MODEL).stdout)
    assert [row["picture"] for row in document["pictures"]] == ["a.png", "b.png"]
    assert [row["output_size"] for row in document["pictures"]] == [[8, 12], [8, 8]]
    assert document["mean_psnr"] == pytest.approx(np.mean([row["psnr"] for row in document["pictures"]]))
    assert document["backend"] == "numpy"


def test_picture_i_is_sampled_with_seed_plus_i():
    picture("a.png"), picture("b.png", seed=1)
    run("roundtrip", "a.png", "b.png", "--sample", "--seed", "7", "--output", "both", *MODEL)
    run("roundtrip", "b.png", "--sample", "--seed", "8", "--output", "alone", *MODEL)
    run("roundtrip", "b.png", "--mode", "--output", "mode", *MODEL)
    np.testing.assert_array_equal(pixels("both/b-vae.png"), pixels("alone/b-vae.png"))
    assert (pixels("mode/b-vae.png") != pixels("alone/b-vae.png")).any()


def test_a_file_name_that_looks_like_markup_is_printed_unchanged():
    picture("[bold]cat.png")
    assert "[bold]cat-vae.png" in run("roundtrip", "[bold]cat.png", *MODEL).stdout


# -- pictures of every kind --------------------------------------------------------------------------------------


def test_transparent_pixels_are_white():
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save("clear.png")
    np.testing.assert_array_equal(np.asarray(picture_files.read(Path("clear.png"))), np.full((8, 8, 3), 255))


def test_sixteen_bit_greys_are_kept_not_clipped():
    grey = np.array([[0, 257], [32896, 65535]], np.uint16)
    Image.fromarray(grey).save("deep.png")
    np.testing.assert_array_equal(np.asarray(picture_files.read(Path("deep.png")))[..., 0], grey)


def test_a_photograph_is_rotated_as_its_exif_demands():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter turn, clockwise
    Image.new("RGB", (12, 8), "red").save("turned.jpg", exif=exif)
    assert picture_files.read_header(Path("turned.jpg")).height == 12
    assert picture_files.read(Path("turned.jpg")).shape == (12, 8, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_mode_are_read(mode):
    name = "cat.tif" if mode == "CMYK" else "cat.png"
    if mode == "I;16":
        Image.fromarray(np.full((8, 12), 30000, np.uint16)).save(name)
    else:
        Image.new("RGB", (12, 8), "teal").convert(mode).save(name)
    run("roundtrip", name, *MODEL)
    assert pixels("cat-vae.png").shape == (8, 12, 3)


# -- demo and info -----------------------------------------------------------------------------------------------


@pytest.fixture
def _embedded(weights_without_attention, monkeypatch):
    """Replaces the embedded weights by narrow ones."""
    monkeypatch.setattr(autoencoder, "EMBEDDED", weights_without_attention)


@pytest.mark.usefixtures("_embedded")
def test_the_demo_draws_three_pictures_in_one_row():
    result = run("demo", "--backend", "numpy")
    assert files() == {"vaespec-demo.png"}
    height, width, _ = pixels("vaespec-demo.png").shape
    assert height > 256
    assert width > 3 * 256
    for words in ("dB", "3 x 256 x 256", "4 x 64 x 64", "12 times fewer", " s\n", "numpy on cpu, float32"):
        assert words in result.stdout


@pytest.mark.usefixtures("_embedded")
def test_the_demo_shows_the_embedded_photograph_unchanged():
    run("demo", "--output", "new/grid.png", "--backend", "numpy")
    photograph = pixels(Path(vaespec.__file__).parent / "assets" / "astronaut.png")
    assert photograph.shape == (256, 256, 3)
    np.testing.assert_array_equal(pixels("new/grid.png")[28 : 28 + 256, 12 : 12 + 256], photograph)


@pytest.mark.usefixtures("_embedded")
def test_the_json_of_the_demo_has_its_figures():
    document = json.loads(run("demo", "--backend", "numpy", "--json").stdout)
    assert document["compression"] == 12.0
    assert document["latent"] == [4, 64, 64]
    assert document["parameters"] == vae("tiny").num_parameters()
    assert document["encode_seconds"] > 0


# -- backends and where a model runs -----------------------------------------------------------------------------


NUMPY_DTYPES = ("float32", "float64", "float16", "bfloat16")


def listed() -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(run("backends", "--json").stdout)}


def rows() -> dict[str, str]:
    """The lines of the table, by the name of the backend."""
    return {line.split()[0]: line for line in run("backends").stdout.partition("\n\n")[0].splitlines()}


@pytest.fixture
def _fewer_frameworks(monkeypatch):
    monkeypatch.setattr("vaespec.registry._framework_version", lambda name: "2.4" if name == "numpy" else None)


def test_the_json_of_backends_describes_each():
    row = listed()["numpy"]
    assert row.pop("ops") == {op: "fallback" if op in ("mish", "gelu", "add") else "native" for op in KERNELS}
    assert row == {
        "name": "numpy",
        "available": True,
        "problem": None,
        "framework": "numpy",
        "version": np.__version__,
        "devices": ["cpu"],
        "dtypes": list(NUMPY_DTYPES),
        "switches": {},
        "distribution": "vaespec",
    }


def test_the_table_of_backends_has_a_row_for_each_and_names_its_fallback_ops():
    table = rows()
    assert table.keys() == {"backend", *listed()}
    assert table["numpy"].split() == [
        "numpy",
        "yes",
        "numpy",
        np.__version__,
        "cpu",
        *NUMPY_DTYPES,
        "mish",
        "gelu",
        "add",
    ]
    assert run("backends").stdout.endswith("\nfrom vaespec: numpy, jax, mlx, reference, torch\n")


def test_devices_of_a_kind_are_counted_in_the_table_and_listed_in_the_json(monkeypatch):
    gpus = tuple(f"cuda:{i}" for i in range(8))
    monkeypatch.setattr("vaespec_torch.TorchBackend.accelerators", lambda self: gpus)
    assert "  8 x cuda, cpu  " in rows()["torch"]
    assert listed()["torch"]["devices"] == [*gpus, "cpu"]


@pytest.mark.usefixtures("_fewer_frameworks")
def test_a_backend_without_its_framework_is_listed_with_the_remedy():
    sentence = "backend 'torch' needs torch, which is not installed: pip install \"vaespec[torch]\"."
    assert rows()["torch"].split()[:3] == ["torch", "no", "torch"]
    assert f"\n{sentence}\n" in run("backends").stdout
    assert not listed()["torch"]["available"]
    assert listed()["torch"]["problem"] == sentence


def test_environment_variables_that_change_numbers_are_reported_if_they_are_set(monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    monkeypatch.delenv("JAX_ENABLE_X64", raising=False)
    text = run("backends").stdout
    assert "\nmlx: MLX_ENABLE_TF32=0 (not set: " in text
    assert "JAX_ENABLE_X64" not in text
    assert listed()["mlx"]["switches"]["MLX_ENABLE_TF32"]["value"] == "0"
    assert listed()["jax"]["switches"]["JAX_ENABLE_X64"] == {"value": None, "default": "not set: no float64"}


@pytest.mark.parametrize(
    ("chosen", "words"), [("torch", "used if no backend is named"), ("abacus", "there is no such backend")]
)
def test_the_backend_of_the_environment_is_reported_even_if_it_does_not_exist(monkeypatch, chosen, words):
    monkeypatch.setenv("VAESPEC_BACKEND", chosen)
    assert f"\nVAESPEC_BACKEND={chosen}: {words}.\n" in run("backends").stdout


def test_the_reference_and_a_namespace_are_backends_by_name_and_by_import_path():
    picture("cat.png")
    for name in ("reference", "array_api_strict"):
        document = json.loads(run("roundtrip", "cat.png", "-w", "weights", "--backend", name, "--json").stdout)
        assert document["backend"] == name


def test_an_import_path_that_is_no_namespace_is_refused():
    picture("cat.png")
    result = run("roundtrip", "cat.png", "-w", "weights", "--backend", "json", code=1)
    assert "error: json is no Array API namespace" in result.stderr


def test_the_list_of_backends_says_that_any_namespace_will_do_and_imports_none(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "wave")  # a module of the standard library
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    text = " ".join(run("backends").stdout.split())
    assert rows()["reference"].split()[:3] == ["reference", "yes", "numpy"]
    assert "any other Array API namespace is a backend too, by its import path: --backend array_api_strict" in text
    assert "VAESPEC_BACKEND=wave: used if no backend is named, if this module is an Array API namespace." in text
    assert "wave" not in sys.modules


def test_the_list_of_backends_is_readable_in_a_hundred_columns(monkeypatch):
    monkeypatch.setattr("vaespec_torch.TorchBackend.accelerators", lambda self: ("cuda:0", "cuda:1"))
    for info in vaespec.backends():
        for name in info.switches:
            monkeypatch.setenv(name, "1")
    assert max(map(len, run("backends").stdout.splitlines())) <= 100


RUNNING = {
    "demo": ["demo"],
    "roundtrip": ["roundtrip", "cat.png"],
    "encode": ["encode", "cat.png", "--output", "again.safetensors"],
    "decode": ["decode", "latents.safetensors"],
}


@pytest.fixture
def loads(monkeypatch, weights_without_attention) -> list[dict]:
    """The placement of every model that is made. A picture and its latents exist."""
    monkeypatch.setattr(autoencoder, "EMBEDDED", weights_without_attention)
    picture("cat.png")
    run("encode", "cat.png")
    calls, real = [], loading.AutoencoderKL
    monkeypatch.setattr(
        loading, "AutoencoderKL", lambda *opened, **options: calls.append(options) or real(*opened, **options)
    )
    return calls


@pytest.mark.parametrize("command", RUNNING.values(), ids=RUNNING)
def test_a_model_runs_on_the_backend_of_the_options(command, loads):
    placement = {"backend": "torch", "device": "cpu", "dtype": "float64", "precision": "highest"}
    run(*command, *(word for name, value in placement.items() for word in (f"--{name}", value)))
    run(*command)
    assert loads == [
        placement,
        {"backend": None, "device": None, "dtype": None, "precision": "default"},
    ]


@pytest.mark.parametrize("command", ["roundtrip", "encode", "compare", "decode"])
def test_spare_tensors_beside_the_model_are_left_out_on_request(command):
    shutil.copytree("weights", "spare")
    weights = Path("spare", WEIGHTS_FILE)
    save_file(load_file(weights) | {"adapter.attn.weight": np.zeros(1, np.float32)}, weights)
    picture("cat.png", 48, 40)
    run("encode", "cat.png", *MODEL)
    inputs = {"decode": ("latents.safetensors",), "compare": ("cat.png", "--tiling")}.get(command, ("cat.png",))
    options = (*inputs, "-w", "spare", *MODEL[2:])
    assert "unexpected  adapter.attn.weight" in run(command, *options, code=1).stderr
    run(command, *options, "--no-strict")


@pytest.mark.parametrize("command", RUNNING)
def test_the_help_explains_precision(command):
    help_text = run(command, "--help").stdout
    assert "--precision" in help_text
    assert "default|highest" in help_text
    assert "TF32" in help_text


# -- progress ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_appears_on_the_terminal_if_the_work_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    with console.progress("painting", 3) as advance:
        time.sleep(0.1)
        advance()
        print("a result")
    assert "painting" in sys.stderr.getvalue()
    assert capsys.readouterr().out == "a result\n"


def test_quick_work_shows_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with console.progress("painting", 3) as advance:
        advance()
    assert "painting" not in sys.stderr.getvalue()
