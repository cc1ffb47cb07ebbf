"""The pages that begin with an error are true: they quote it right, and what they tell to call exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers.pipelines import pipeline_loading_utils
from typer.testing import CliRunner

import vaespec
from vaespec.cli.app import app

ROOT = Path(__file__).parents[1]
NAMES = ("docs/diffusers.md", "docs/float16.md", "docs/check-your-machine.md")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
each_page = pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))


def calls(page: str) -> list[tuple[str, list[str]]]:
    """Each call of the page's Python: the dotted name, and the keywords. A block that is not Python raises an error."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4
    nodes = (node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call))
    return [(ast.unparse(node.func), [word.arg for word in node.keywords if word.arg]) for node in nodes]


def accepted(name: str, keywords: list[str]) -> None:
    """Asserts that a function exists and takes the keywords, by name or among any others."""
    module, *path = name.split(".")
    found = importlib.import_module(module)
    for part in path:
        found = getattr(found, part)
    taken = inspect.signature(found).parameters
    any_other = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    assert any_other or set(keywords) <= taken.keys(), (name, keywords)


@each_page
def test_what_the_page_calls_of_vaespec_exists(page):
    own = [(name, keywords) for name, keywords in calls(page) if name.startswith("vaespec.")]
    assert own
    for name, keywords in own:
        accepted(name, keywords)


@each_page
def test_what_the_page_calls_of_the_integration_exists(page):
    pytest.importorskip("vaespec_diffusers")
    own = [(name, keywords) for name, keywords in calls(page) if name.startswith("vaespec_diffusers.")]
    assert own
    for name, keywords in own:
        accepted(name, keywords)


@pytest.mark.parametrize(("weights", "input_"), [("float16", "float32"), ("float32", "float16")])
def test_the_mismatch_of_dtypes_is_quoted_as_pytorch_raises_it(weights, input_):
    vae = diffusers.AutoencoderKL(block_out_channels=(32,)).to(getattr(torch, weights))
    with pytest.raises(RuntimeError) as raised:
        vae.decode(torch.zeros(1, 4, 2, 2, dtype=getattr(torch, input_)))
    assert f"RuntimeError: {raised.value}\n" in PAGES["docs/float16.md"]


def test_the_error_of_a_foreign_vae_is_quoted_as_diffusers_raises_it():
    source = inspect.getsource(pipeline_loading_utils)
    assert "is of type: {model_cls}, but should be {expected_class_obj}" in source
    assert '"... is of type: <class ...>, but should be <class' in PAGES["docs/diffusers.md"]


def cut_file(folder):
    safetensors.numpy.save_file({"a": np.zeros(9, np.float32)}, folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-9])
    return folder / "cut.safetensors"


@pytest.mark.parametrize(
    ("fails", "quoted"),
    [
        (lambda folder: safetensors.numpy.load_file(cut_file(folder)), "incomplete metadata, file not fully covered"),
        (lambda folder: safetensors.numpy.load_file(cut_file(folder)), "Error while deserializing header"),
        (
            lambda folder: diffusers.AutoencoderKLFlux2.from_single_file(cut_file(folder)),
            "FromOriginalModelMixin is currently only compatible with",
        ),
        (
            lambda folder: diffusers.AutoencoderKL(block_out_channels=(32,)).load_state_dict({}),
            'Missing key(s) in state_dict: "encoder.conv_in.weight"',
        ),
        (
            lambda folder: diffusers.AutoencoderKL(block_out_channels=(32,)).decode(np.zeros((1, 4, 2, 2), np.float32)),
            "got (numpy.ndarray, Parameter, ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_is_quoted_as_it_is_raised(fails, quoted, tmp_path):
    with pytest.raises(Exception, match=re.escape(quoted)):
        fails(tmp_path)
    assert quoted in PAGES["docs/diffusers.md"]


def test_the_sha256_of_the_page_is_that_of_info_and_of_a_model():
    info = CliRunner().invoke(app, ["info", "tiny"]).stdout
    assert vaespec.weights.digest(vaespec.load("tiny", backend="numpy").weights()) in info
    assert "vaespec.weights.digest(vae.weights())" in PAGES["docs/diffusers.md"]
    options = CliRunner().invoke(app, ["info", "--help"], env={"COLUMNS": "200"}).output
    assert all(option in options for option in ("--no-digest", "--check", "--json"))


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([\w./-]*(?:#[\w-]+)?)\)", page + (ROOT / "README.md").read_text(encoding="utf-8")):
        name, _, section = target.partition("#")
        path = next((path for path in (ROOT / "docs" / name, ROOT / name) if path.exists()), None)
        assert path is not None, target
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE) if section else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not section or section in anchors, target
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in readme for name in NAMES)
