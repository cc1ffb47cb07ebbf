"""The forms that are listed are the forms that run."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from support.configs import narrow
from typer.testing import CliRunner

import vaespec_cpu.ops
from vaespec import AutoencoderKL
from vaespec.analysis.convolutions import planned
from vaespec.architecture import decoder, encoder
from vaespec.cli.app import app
from vaespec.registry import get_backend, make_ops

WIDE = narrow((64, 128), norm_num_groups=32)
HALVES = {"encode": (encoder, (1, 3, 40, 24)), "decode": (decoder, (1, 4, 20, 12))}


def listed(direction: str, backend: str, precision: str = "default"):
    build, shape = HALVES[direction]
    return planned(build(WIDE), shape, make_ops(get_backend(backend), "cpu", "float32", precision))


@pytest.mark.parametrize("direction", HALVES)
@pytest.mark.parametrize("precision", ["default", "highest"])
def test_the_planned_forms_are_the_forms_that_run(monkeypatch, direction, precision):
    right, ran = vaespec_cpu.ops.choose_form, []

    def choose_form(task, forms):
        ran.append((task.size, task.inputs, task.outputs, right(task, forms).form))
        return right(task, forms)

    vae = AutoencoderKL.from_config(WIDE, backend="numpy", precision=precision)
    monkeypatch.setattr(vaespec_cpu.ops, "choose_form", choose_form)
    getattr(vae, direction)(np.zeros(HALVES[direction][1], np.float32))
    monkeypatch.undo()
    expected = [(one.x[2:], one.kernel[1], one.kernel[0], one.form) for one in listed(direction, "numpy", precision)]
    assert Counter(ran) == Counter(expected)


def test_every_convolution_is_named_once_and_costs_no_more_than_the_sum_as_it_is_written():
    result = listed("decode", "numpy")
    assert len({one.name for one in result}) == len(result)
    assert "decoder.up_blocks.0.upsamplers.0.conv" in {one.name for one in result if one.doubled}
    assert all(one.costs[one.form] <= one.costs["gathered"] for one in result)
    assert {"F(4, 3)", "doubled", "pointwise"} <= {one.form for one in result}


def test_highest_precision_takes_no_faster_form():
    assert {one.form for one in listed("decode", "numpy", "highest")} <= {"pointwise", "gathered", "scattered"}


def test_on_a_cpu_all_take_the_engines_forms_and_the_frameworks_decide_themselves():
    for backend in ("torch", "jax", "mlx"):
        assert listed("decode", backend) == listed("decode", "numpy")
        assert {(one.form, len(one.costs)) for one in listed("decode", backend, "highest")} == {("native conv2d", 0)}


def test_info_shows_the_plan():
    shown = CliRunner().invoke(app, ["info", "--plan", "--size", "64", "--backend", "numpy"]).stdout
    assert "Convolutions of decode:" in shown
    document = json.loads(CliRunner().invoke(app, ["info", "--plan", "--size", "64", "--json"]).stdout)
    assert {one["name"] for one in document["plan"]["encode"]} >= {"encoder.conv_in", "encoder.conv_out"}
    assert "plan" not in json.loads(CliRunner().invoke(app, ["info", "--json"]).stdout)
