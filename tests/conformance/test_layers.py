"""The first wrong layer of a VAE is named: from inside, from what it tells itself, or by bisection of a black box."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from conformance.test_ports import Port as DiffusersPort
from conformance.test_ports import subject as diffusers_port
from support.made_reports import report as made_report

import vaespec_numpy
from vaespec.analysis.rounding import rounded
from vaespec.architecture import HALVES
from vaespec.reference import ReferenceOps
from vaespec_conformance import Selection, run_conformance
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.layers import first_wrong_layer, probing, search
from vaespec_conformance.mutants import MUTANTS, hints
from vaespec_conformance.reports.html import to_html
from vaespec_conformance.reports.markdown import to_markdown
from vaespec_conformance.reports.report import SCHEMA_FILE, Report
from vaespec_conformance.reports.result import Failure, Result
from vaespec_conformance.reports.text import failure_lines
from vaespec_conformance.subjects.errors import UnansweredError
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject

CONFIG = models.narrow((8, 16), layers_per_block=1)


class Changed:
    """Ops with some operations replaced by f(ops, *arguments, **numbers)."""

    def __init__(self, ops, **replaced):
        self.ops, self.replaced = ops, replaced

    def __getattr__(self, name):
        return partial(self.replaced[name], self.ops) if name in self.replaced else getattr(self.ops, name)


@dataclass
class BlackBox:
    """The specification in float32, whose layer `at` runs on changed ops."""

    config: object
    weights: dict
    at: str = ""
    replaced: tuple = ()

    def run(self, half, x):
        ops = ReferenceOps(np, "float32")
        for layer in HALVES[half].build(self.config).layers:
            x = layer(x, self.weights, Changed(ops, **dict(self.replaced)) if layer.name == self.at else ops)
        return x

    def encode(self, x):
        mean, logvar = np.split(self.run("encoder", x), 2, axis=1)
        return mean, logvar.clip(-30, 20)

    def decode(self, z):
        return self.run("decoder", z)


def black_box(at="", **replaced):
    return PortSubject(partial(BlackBox, at=at, replaced=tuple(replaced.items())), "black box")


def no_bias(ops, x, w, b, **numbers):
    return ops.conv2d(x, w, 0 * b, **numbers)


def wide_eps(ops, x, scale, shift, *, groups, eps):
    return ops.group_norm(x, scale, shift, groups=groups, eps=10 * eps)


def all_sides(ops, x, w, b, *, stride, padding):
    return ops.conv2d(x, w, b, stride=stride, padding=((1, 1), (1, 1)))


def shifted(ops, x):
    return np.roll(ops.upsample_nearest2x(x), 1, 3)


FAULTS = {
    "encoder.conv_in": {"conv2d": no_bias},
    "encoder.down_blocks.1.resnets.0": {"group_norm": wide_eps},
    "encoder.down_blocks.0.downsamplers.0": {"conv2d": all_sides},
    "encoder.mid_block.attentions.0": {"add": lambda ops, x, y: y},
    "quant_conv": {"conv2d": no_bias},
    "post_quant_conv": {"conv2d": no_bias},
    "decoder.mid_block.attentions.0": {"attention": lambda ops, q, k, v, *, scale: ops.attention(q, k, v, scale=1.0)},
    "decoder.mid_block.resnets.1": {"silu": lambda ops, x: ops.relu(x)},
    "decoder.up_blocks.0.upsamplers.0": {"upsample_nearest2x": shifted},
    "decoder.conv_act": {"silu": lambda ops, x: ops.relu(x)},
}


def half_of(layer):
    return "encoder" if layer.startswith(("encoder", "quant")) else "decoder"


@pytest.mark.parametrize("layer", FAULTS)
def test_the_wrong_layer_of_a_black_box_is_named(layer):
    found = first_wrong_layer(black_box(layer, **FAULTS[layer]), CONFIG, half=half_of(layer))
    assert found is not None
    assert found.layer == layer.replace("conv_act", "conv_norm_out")
    assert dict(found.strip)[found.layer] > 1


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("port", [black_box(), diffusers_port()], ids=["black box", "diffusers"])
def test_no_layer_of_a_right_port_is_named(port, half):
    assert first_wrong_layer(port, CONFIG, half=half) is None


@pytest.mark.parametrize(
    "behind",
    [
        lambda y: y / 2 + 0.5,
        lambda y: -y,
        lambda y: 0 * y,
        lambda y: 1.001 * y,
        np.tanh,
        lambda y: y.astype(np.float16).astype(np.float32),
        lambda y: np.concatenate([y[:, :, :-1], 0 * y[:, :, -1:]], axis=2),
    ],
)
def test_no_layer_is_named_for_a_mistake_behind_the_layers(behind):
    class Spoilt(BlackBox):
        def encode(self, x):
            mean, logvar = super().encode(x)
            return behind(mean), logvar

        def decode(self, z):
            return behind(super().decode(z))

    assert first_wrong_layer(PortSubject(Spoilt, "behind"), CONFIG) is None
    assert first_wrong_layer(PortSubject(Spoilt, "behind"), CONFIG, half="encoder") is None


@pytest.mark.parametrize("mistake", ["silu_is_gelu", "resnet_without_residual", "middle_resnets_swapped"])
def test_no_late_layer_is_named_for_a_mistake_that_is_in_many(mistake):
    wrong = MUTANTS[mistake].wrap(BackendSubject(vaespec_numpy.backend))
    assert first_wrong_layer(PortSubject.of(wrong), CONFIG) is None


@pytest.mark.parametrize("seconds", [1, 20, 100])
def test_a_search_asks_a_slow_port_no_more_than_its_time_allows(monkeypatch, seconds):
    clock, at = SimpleNamespace(now=0.0), "decoder.mid_block.resnets.1"
    for module in (probing, search):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(BlackBox):
        def decode(self, z):
            clock.now += 6
            return super().decode(z)

    port = PortSubject(partial(Slow, at=at, replaced=tuple(FAULTS[at].items())), "slow")
    assert first_wrong_layer(port, CONFIG, seconds=seconds) is None or seconds == 100
    assert clock.now <= max(6, seconds)


# -- ports of every kind -----------------------------------------------------------------------------------------------

WRONG = {half: f"{half}.mid_block.resnets.1" for half in HALVES}
OWN_CONFIG = models.narrow((4, 8, 8), norm_num_groups=2, latent_channels=6, layers_per_block=1)


class Faulty(BlackBox):
    """A wrong activation in one resnet of each half."""

    def run(self, half, x):
        relu = ("silu", lambda ops, x: ops.relu(x))
        return BlackBox(self.config, self.weights, WRONG[half], (relu,)).run(half, x)


class DecoderAlone(Faulty):
    encode = property()


class EncoderAlone(Faulty):
    decode = property()


class MeanAlone(Faulty):
    def encode(self, x):
        return super().encode(x)[0]


class OwnConfig(Faulty):
    config = OWN_CONFIG


class Narrow(Faulty):
    """Computes in bfloat16, as an adapter that takes a dtype."""

    def __init__(self, config, weights, dtype):
        super().__init__(config, {name: rounded(w, dtype) for name, w in weights.items()})
        self.dtype = dtype

    def run(self, half, x):
        return rounded(super().run(half, x), self.dtype)


class RaisesForZeros(Faulty):
    def __init__(self, config, weights):
        if not all(w.any() for w in weights.values()):
            raise ValueError("a tensor of zeros")
        super().__init__(config, weights)


class EveryOtherTime(BlackBox):
    """Wrong in every other call, as a cache that is not cleared."""

    calls = count()

    def run(self, half, x):
        return super().run(half, x) + next(self.calls) % 2


class Random(BlackBox):
    rng = np.random.default_rng(0)

    def run(self, half, x):
        return super().run(half, x + 0.1 * self.rng.standard_normal(x.shape).astype(np.float32))


class OwnWeights(Faulty):
    weights = None

    @staticmethod
    def given(config):
        return models.weights(Case.of(config="plain", regime="plain", size=(2, 3), more=0, seed=5), "float32")


class Flat(Faulty):
    """Returns numbers without axes."""

    def run(self, half, x):
        return super().run(half, x).ravel() if half == "decoder" else super().run(half, x)[:, :, 0]


class Noticed(BlackBox):
    """A wrong input of the first layer, which is seen from inside."""

    def layers(self, call, x):
        half, ops, told = {"encode": "encoder", "decode": "decoder"}[call], ReferenceOps(np, "float32"), {}
        x = x / 2 + 0.5
        for layer in HALVES[half].build(self.config).layers:
            x = told[layer.name] = layer(x, self.weights, ops)
        return told

    def run(self, half, x):
        return super().run(half, x / 2 + 0.5)


BOTH = tuple(HALVES)
KINDS = {
    "decoder alone": (DecoderAlone, ("decoder",)),
    "encoder alone": (EncoderAlone, ("encoder",)),
    "mean alone": (MeanAlone, BOTH),
    "a config of its own": (OwnConfig, BOTH),
    "in bfloat16": (Narrow, ("decoder",)),  # the encoder is wrong by less than three budgets: nothing is clear
    "raises for tensors of zeros": (RaisesForZeros, ()),
    "wrong every other time": (EveryOtherTime, ()),
    "random": (Random, ()),
    "its own weights": (OwnWeights, ()),
    "results of other shapes": (Flat, ()),
    "a wrong input of the first layer": (Noticed, ()),
}


def of_kind(kind):
    """The subject, a config that it takes, and its dtype."""
    made = kind
    if kind is OwnWeights:
        made = lambda config, weights: kind(config, weights)  # noqa: E731
        made.weights = kind.given
    port = PortSubject(made, "kind")
    return port, OWN_CONFIG if kind is OwnConfig else CONFIG, "bfloat16" if kind is Narrow else "float32"


@pytest.mark.parametrize("name", KINDS)
def test_ports_of_every_kind_have_the_right_layer_named_or_none(name):
    kind, named = KINDS[name]
    port, config, dtype = of_kind(kind)
    found = {half: first_wrong_layer(port, config, dtype, half) for half in HALVES}
    assert {half: one.layer for half, one in found.items() if one} == {half: WRONG[half] for half in named}


def test_a_program_that_does_not_answer_a_probe_is_asked_no_more():
    asked = []

    class Hangs(Faulty):
        def decode(self, z):
            asked.append(z)
            if len(asked) > 3:
                raise UnansweredError("decode: the program did not end in time.")
            return super().decode(z)

    assert first_wrong_layer(PortSubject(Hangs, "hangs"), CONFIG) is None
    assert len(asked) == 4


def test_a_known_mistake_in_the_layer_gives_the_part_and_the_cause():
    found = first_wrong_layer(black_box("decoder.conv_in", conv2d=no_bias), CONFIG)
    assert found.cause == "The bias is not added."


def spoilt(part, attribute, value):
    """Changes one number of one module."""
    return lambda layer, vae: setattr(vae.get_submodule(f"{layer}.{part}".strip(".")), attribute, value)


@pytest.mark.parametrize(
    ("layer", "part", "spoil"),
    [
        ("decoder.up_blocks.1.resnets.1", "norm2", spoilt("norm2", "eps", 0.1)),
        ("encoder.mid_block.attentions.0", None, spoilt("", "rescale_output_factor", 2.0)),
    ],
)
def test_a_port_made_of_objects_is_watched_from_inside(layer, part, spoil):
    found = first_wrong_layer(diffusers_port(partial(spoil, layer)), CONFIG, half=half_of(layer))
    assert (found.layer, found.part) == (layer, part)
    assert "from inside" in found.how
    used = dict(found.strip)
    assert used[layer] > 1 >= max(used[name] for name in list(used)[: list(used).index(layer)])
    assert found.picture.startswith("data:image/png")


def test_a_class_whose_objects_return_their_weights_is_watched_too():
    class Mine(DiffusersPort):
        def __init__(self, config, weights):
            super().__init__(config, weights)
            self.vae.decoder.mid_block.resnets[1].norm2.eps = 0.1

    assert first_wrong_layer(PortSubject(Mine, "mine"), CONFIG).name == "decoder.mid_block.resnets.1.norm2"


def test_a_port_that_returns_its_layers_is_believed():
    class Telling(BlackBox):
        def layers(self, call, x):
            half = "encoder" if call == "encode" else "decoder"
            told, ops = {}, ReferenceOps(np, "float32")
            for layer in HALVES[half].build(self.config).layers:
                x = told[layer.name] = layer(x, self.weights, ops) + 0.1 * (layer.name == "decoder.mid_block.resnets.0")
            return told

        def decode(self, z):
            return list(self.layers("decode", z).values())[-1]

    found = first_wrong_layer(PortSubject(Telling, "telling"), CONFIG)
    assert found.layer == "decoder.mid_block.resnets.0"
    assert "from inside" in found.how


def test_the_objects_of_a_port_are_as_before_when_it_was_watched():
    built = []

    def spoil(vae):
        vae.decoder.conv_norm_out.eps = 0.1
        built.append((vae, [type(module) for module in vae.modules()]))

    assert first_wrong_layer(diffusers_port(spoil), CONFIG).layer == "decoder.conv_norm_out"
    assert all([type(module) for module in vae.modules()] == before for vae, before in built)


def test_a_run_names_the_layer_of_a_failing_port_and_searches_none_in_a_backend(monkeypatch):
    monkeypatch.setattr(hints, "likely", lambda *arguments: None)  # the search for the cause takes longer
    selection = Selection(dtypes=("float32",), checks=("model.decode",))
    failing = black_box(WRONG["decoder"], **FAULTS[WRONG["decoder"]])
    (result,) = run_conformance(failing, profile="quick", selection=selection).results
    assert (result.status, result.failure.layers["layer"]) == ("fail", WRONG["decoder"])
    backend = MUTANTS["silu_is_gelu"].wrap(BackendSubject(vaespec_numpy.backend))
    (result,) = run_conformance(backend, profile="quick", selection=selection).results
    assert (result.status, result.failure.layers) == ("fail", None)


@pytest.fixture(scope="module")
def report():
    at = "decoder.mid_block.resnets.1"
    found = first_wrong_layer(black_box(at, **FAULTS[at]), CONFIG)
    failure = Failure("decode is off.", layers=found.to_dict())
    return made_report(Result("model.decode", "L3", "float32", "fail", 1, 1, 9.0, 9.0, failure=failure))


def test_the_report_of_a_failed_port_names_the_layer_and_shows_the_strip(report):
    layers = report.results[0].failure.layers
    assert layers["layer"] == "decoder.mid_block.resnets.1"
    assert Report.from_json(report.to_json()).results[0].failure.layers == layers
    for text in ("\n".join(failure_lines(report.results[0])), to_markdown(report)):
        assert "first wrong layer: decoder.mid_block.resnets.1" in text
        assert "█" in text
    assert 'title="decoder.mid_block.resnets.1: ' in to_html(report)


def test_the_report_keeps_to_its_schema_when_it_names_a_layer(report):
    jsonschema.validate(json.loads(report.to_json()), json.loads(SCHEMA_FILE.read_text()))
