"""A port is examined as far as it goes: what it says that it does not take or have is not asked, and is no failure."""

from __future__ import annotations

import random
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.oracle import diffusers_model
from support.subjects_of_all_kinds import Port

from vaespec import families, parameters
from vaespec.initialize import initialize
from vaespec_conformance import Capabilities, PortSubject, Selection, run_conformance
from vaespec_conformance.cases.models import CONFIGS, LABELS, config_of, narrow
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.running import causes, outcome
from vaespec_conformance.running.case_selection import name_of, pinned_cases
from vaespec_conformance.running.labels import label

NARROW = {"norm_num_groups": 32, "layers_per_block": 2}
SD1 = narrow((32, 32, 64, 64), **NARROW)
FLUX1 = narrow((32, 32, 64, 64), latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **NARROW)
FOUR = narrow((4, 4, 8, 8), layers_per_block=2)
SMALL = narrow((4, 8), layers_per_block=1)
MODELS = Selection(dtypes=("float32",), checks=("model.encode", "model.decode", "model.logvar"))
HALVES = Selection(dtypes=("float32",), checks=("model.encode", "model.decode"))


@pytest.fixture(autouse=True)
def _no_search_for_causes_and_layers(monkeypatch):
    monkeypatch.setattr(causes, "SECONDS", 0.0)
    monkeypatch.setattr(outcome, "SECONDS", 0.0)


def run(build, selection=MODELS, **options):
    return run_conformance(PortSubject(build, "mine"), profile="quick", selection=selection, **options)


def maker(kind=Port, **attributes):
    """A function that builds a port of this class, with attributes that declare what it takes."""

    def build(config, weights):
        return kind(config, weights)

    vars(build).update(attributes)
    return build


class Diffusers:
    """diffusers' model, as a port that somebody wrote: it raises for what it does not have."""

    def __init__(self, config, weights):
        self.vae = diffusers_model(config).float().requires_grad_(False)
        self.vae.load_state_dict({name: torch.tensor(w) for name, w in weights.items()}, strict=True)

    def encode(self, x):
        posterior = self.vae.encode(torch.tensor(x)).latent_dist
        return posterior.mean.numpy(), posterior.logvar.numpy()

    def decode(self, z):
        return self.vae.decode(torch.tensor(z)).sample.numpy()


class GroupsOf32(Diffusers):
    def __init__(self, config, weights):
        if config.norm_num_groups != 32:
            raise NotImplementedError("every norm has 32 groups")
        super().__init__(config, weights)


class Neither:
    def __init__(self, config, weights):
        pass


class Refuses:
    def __init__(self, config, weights):
        raise NotImplementedError("not yet")


def four_levels_only(config):
    return None if config.levels == 4 else "four levels only"


class MeanAlone(Port):
    def encode(self, x):
        return super().encode(x)[0]


class DecoderAlone:
    def __init__(self, config, weights):
        self._port = Port(config, weights)

    def decode(self, z):
        return self._port.decode(z)


class EncoderAlone:
    def __init__(self, config, weights):
        self._port = Port(config, weights)

    def encode(self, x):
        return self._port.encode(x)


class ChannelsLast(Port):
    """NHWC inside, NCHW at the border."""

    def decode(self, z):
        return np.moveaxis(np.moveaxis(super().decode(z), 1, -1).copy(), -1, 1)


class QuantOutside(Port):
    """Its own model has no quant convolutions: those of the weights are computed in the adapter, with NumPy."""

    def __init__(self, config, weights):
        kept = {n: w for n, w in weights.items() if "quant_conv" not in n}
        self.outer = {n: w for n, w in weights.items() if "quant_conv" in n}
        super().__init__(replace(config, use_quant_conv=False, use_post_quant_conv=False), kept)

    def _linear(self, name, x):
        if f"{name}.weight" not in self.outer:
            return x
        w, b = self.outer[f"{name}.weight"][:, :, 0, 0], self.outer[f"{name}.bias"]
        return np.einsum("oc,bchw->bohw", w, x, dtype=np.float32) + b[:, None, None]

    def encode(self, x):
        moments = np.asarray(self.vae.encode(x).latent_dist.parameters)
        mean, logvar = np.split(self._linear("quant_conv", moments), 2, axis=1)
        return mean, logvar.clip(-30, 20)

    def decode(self, z):
        return super().decode(self._linear("post_quant_conv", z))


ROWS = {
    "32 groups, raised": maker(GroupsOf32, configs=[SD1]),
    "32 groups, listed": maker(Diffusers, configs=[SD1, FLUX1]),
    "four levels": maker(configs=[SD1], accepts=four_levels_only),
    "capabilities": maker(capabilities=Capabilities(configs=(FLUX1,))),
    "fixed": maker(config=FLUX1),
    "mean alone": maker(MeanAlone),
    "mean alone, declared": maker(Port, lacks={"logvar"}),
    "decoder alone": maker(DecoderAlone),
    "decoder alone, declared": maker(Port, lacks={"encoder"}),
    "encoder alone": maker(EncoderAlone),
    "NHWC inside": maker(ChannelsLast),
    "quant convolutions outside": maker(QuantOutside),
    "own weights": maker(weights=lambda config: initialize(config, 7)),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_port_that_is_right_in_what_it_declares_passes(name):
    report = run(ROWS[name])
    assert (report.exit_code, report.bad) == (0, ())
    assert sum(result.examples for result in report.results) >= 5


def test_the_verdict_names_what_was_taken_and_what_was_not_asked():
    report = run(maker(GroupsOf32, accepts=four_levels_only))
    families, left_out = report.headline.split("; not asked: ")
    assert families == "mine: partial for SD 1, FLUX.1, FLUX.2"
    assert left_out.split(". ")[0].split("; ")[3] == f"{len(report.left_out) - 3} more"
    assert "four levels only" in report.left_out.values()
    assert "attention outside the middle" in report.left_out


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (maker(accepts=lambda config: "not this one"), "refused (not this one)"),
        (
            maker(type("Refuses", (Port,), {"__init__": lambda *_: (_ for _ in ()).throw(NotImplementedError)})),
            "refused",
        ),
        (
            maker(type("Raises", (Port,), {"__init__": lambda *_: 1 / 0})),
            "no config that was asked could be built: build",
        ),
        (maker(Neither), "it has no encoder; it has no decoder"),
    ],
)
def test_a_run_in_which_nothing_is_taken_is_vacuous_and_says_why(build, words):
    report = run(build)
    assert report.exit_code == 3
    assert words in report.headline.replace("No config", "no config")


def test_a_config_of_no_published_family_is_too_little():
    report = run(maker(config=narrow((8, 8, 8), latent_channels=5, act_fn="mish")))
    assert (report.verdict, report.exit_code) == ("vacuous", 3)
    assert "No published family was taken" in report.headline


class WithoutMiddleAttention(Port):
    """Its middle adds nothing, which is right only where there is none."""

    def __init__(self, config, weights):
        super().__init__(config, {name: 0 * w if ".to_out.0." in name else w for name, w in weights.items()})


def test_a_port_that_is_wrong_in_every_family_has_failed_whatever_else_it_passes():
    report = run(maker(WithoutMiddleAttention), Selection(checks=("model.decode[float32]",)))
    assert report.taken == ("a middle without attention",)
    assert (report.verdict, report.exit_code) == ("failed", 1)


def test_a_case_that_is_run_again_may_be_in_a_config_of_no_family():
    selected = HALVES.to_dict() | {"case": ["{}"]}
    report = run(maker(configs=[CONFIGS["mish"]]), HALVES)
    again = replace(report, about=report.about | {"run": report.about["run"] | {"selection": selected}})
    assert (report.exit_code, again.exit_code) == (3, 0)


def test_the_usual_config_alone_is_no_published_family():
    report = run(maker(configs=[CONFIGS["plain"]]), HALVES)
    assert (report.verdict, report.taken) == ("vacuous", (LABELS["plain"],))
    assert "No published family was taken, only SD 1 with two levels" in report.headline
    alone = replace(report, results=tuple(replace(result, not_asked=None) for result in report.results))
    assert alone.exit_code == 0  # a selection in which no family is asked


def test_what_is_refused_is_not_counted_beside_a_failure():
    class Darker(Port):
        def decode(self, z):
            return super().decode(z) * 0.99

    report = run(maker(Darker, configs=[SMALL]), Selection(checks=("model.decode[float32]",)))
    (result,) = report.bad
    own = {
        case for case in pinned_cases(PortSubject(maker(config=SMALL), "x"), CHECKS["model.decode"], "float32", "quick")
    }
    asked = [case for case in own if config_of(case) == SMALL]
    assert result.examples == len(asked)
    assert result.failure.count == f"{len(asked)} of {len(asked)} cases"


def test_the_family_of_a_config_is_found_by_its_layers():
    assert label(families.config("flux1")) == "FLUX.1 at full width"
    assert label(families.config("sd1")) == "SD 1 at full width"
    assert label(narrow((8, 8), act_fn="relu")) == "a config of its own"


@pytest.mark.parametrize(
    ("widths", "groups", "name"),
    [
        ((128, 256, 512, 512), 16, "SD 1"),
        ((2, 2, 4, 4), 2, "SD 1"),
        ((1, 1, 1, 1), 1, "a config of its own"),
        ((32, 32, 32, 32), 32, "a config of its own"),
    ],
)
def test_a_relative_of_a_family_has_norms_of_several_groups_of_several_channels(widths, groups, name):
    assert label(replace(families.config("sd1"), block_out_channels=widths, norm_num_groups=groups)) == name


# -- NotImplementedError -----------------------------------------------------------------------------------------


class OddHeights(Port):
    """Raises what PyTorch raises for an operator that a device does not have."""

    def decode(self, z):
        if z.shape[2] % 2:
            raise NotImplementedError("not currently implemented for the MPS device")
        return super().decode(z)


def test_a_call_that_is_not_implemented_is_a_failure_if_others_are():
    result, *_ = run(maker(OddHeights), HALVES).bad
    assert (result.id, result.status) == ("model.decode[float32]", "fail")
    assert "decode raised NotImplementedError: not currently implemented for the MPS" in result.failure.message


@pytest.mark.parametrize("only", [(2, 4, 2, 4), (2, 4, 3, 4)])
def test_a_port_that_answers_one_size_alone_does_not_lack_the_half(only):
    class Picky(Port):
        def decode(self, z):
            if z.shape != only:
                raise NotImplementedError
            return super().decode(z)

    report = run(maker(Picky), Selection(checks=("model.decode[float32]",)))
    assert report.exit_code == 1


class EncoderToDo(Port):
    def encode(self, x):
        raise NotImplementedError("to do")


def test_a_half_of_which_no_call_is_implemented_is_lacking():
    report = run(maker(EncoderToDo), Selection(checks=("model.encode", "model.decode", "behaviour.repeatable")))
    assert (report.exit_code, report.left_out["the encoder"]) == (0, "to do")
    statuses = {result.check: result.status for result in report.results if result.dtype == "float32"}
    assert statuses == {"model.encode": "not_asked", "model.decode": "pass", "behaviour.repeatable": "pass"}


def test_a_build_may_not_refuse_what_it_has_built():
    built = []

    def tires(config, weights):
        built.append(config)
        if built.count(config) > 4:
            raise NotImplementedError("later")
        return Port(config, weights)

    result, *_ = run(tires, HALVES).bad
    assert "build raised NotImplementedError: later" in result.failure.message


def test_a_build_may_not_refuse_some_weights_of_a_config():
    def faint(config, weights):
        if abs(weights["decoder.conv_in.weight"]).max() < 0.05:
            raise NotImplementedError("too small")
        return Port(config, weights)

    result, *_ = run(faint, Selection(checks=("model.decode[float32]",))).bad
    assert "build raised NotImplementedError: too small" in result.failure.message


def test_bad_weights_may_be_refused_by_any_exception():
    def build(config, weights):
        try:
            return Port(config, weights)
        except Exception as error:
            raise NotImplementedError("these weights") from error

    report = run(build, Selection(checks=("weights.strict[float32]",)))
    assert [(result.status, result.not_asked) for result in report.results] == [("pass", None)]


class LooseDecoder(DecoderAlone):
    def __init__(self, config, weights):
        loose = {
            name: weights.get(name, np.zeros(row.shape)).reshape(row.shape) for name, row in parameters(config).items()
        }
        super().__init__(config, loose)


@pytest.mark.parametrize(("kind", "status"), [(DecoderAlone, "pass"), (EncoderAlone, "pass"), (LooseDecoder, "fail")])
def test_half_a_port_is_asked_to_refuse_the_wrong_weights_of_its_half(kind, status):
    (result,) = run(maker(kind), Selection(checks=("weights.strict[float32]",))).results
    assert result.status == status


def test_a_loader_that_empties_the_dictionary_does_not_own_the_arrays():
    class Pops:
        def __init__(self, config, weights):
            self.config, self.kept = config, {name: weights.pop(name) for name in list(weights)}

        def decode(self, z):
            return Port(self.config, self.kept).decode(z)

    assert run(maker(Pops), Selection(checks=("weights.owned[float32]",))).bad


class Bias:
    """Returns the last bias of each half, whatever it is given."""

    def __init__(self, config, weights):
        self.f, self.weights = config.downsampling_factor, weights

    def encode(self, x):
        moments = self.weights["quant_conv.bias"][:, None, None] + self.zeros(x, 1 / self.f)
        return np.split(moments, 2, axis=1)

    def decode(self, z):
        return self.weights["decoder.conv_out.bias"][:, None, None] + self.zeros(z, self.f)

    def zeros(self, x, factor):
        return np.zeros((len(x), 1, *(int(factor * n) for n in x.shape[2:])), np.float32)


def unlike(*names):
    """A function that gives weights of which some are zeros."""
    return lambda config: {n: 0 * w if n in names else w for n, w in initialize(config, 7).items()}


@pytest.mark.parametrize(
    ("kind", "weights", "words"),
    [
        (Bias, unlike("quant_conv.weight", "decoder.conv_out.weight"), "encode hardly depends on the input (0 of"),
        (Port, unlike("quant_conv.weight", "decoder.conv_out.weight"), "with its own weights, decode hardly depends"),
    ],
)
def test_own_weights_under_which_nothing_depends_on_the_input_show_nothing(kind, weights, words):
    report = run(maker(kind, weights=weights, config=FOUR), HALVES)
    assert (report.verdict, report.exit_code, report.bad) == ("vacuous", 3, ())
    assert words in report.headline


def test_half_that_does_not_depend_on_the_input_is_told():
    report = run(maker(weights=unlike("quant_conv.weight"), config=FOUR), HALVES)
    assert report.exit_code == 0
    assert "encode with its own weights" in report.left_out


# -- what a port returns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "dtype"),
    [(lambda y: y + 5j, "complex64"), (lambda y: y.astype(str), "<U32"), (lambda y: np.full(y.shape, None), "object")],
)
def test_results_are_real_numbers(change, dtype):
    class Odd(Port):
        def decode(self, z):
            return change(super().decode(z))

    result, *_ = run(maker(Odd), Selection(checks=("model.decode[float32]",))).bad
    assert result.failure.message == f"decode returned an array of {dtype}: expected real numbers, such as float32."


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda config, weights: None, "build returned None: expected an object with encode or decode"),
        (lambda config, weights: sys.exit(3), "build raised SystemExit: 3"),
    ],
)
def test_a_build_that_builds_nothing_is_named(build, message):
    report = run(build, HALVES)
    assert report.exit_code == 3
    assert message in report.headline


# -- sizes and sameness ------------------------------------------------------------------------------------------


def test_sizes_that_a_port_does_not_take_are_not_asked():
    def sizes(height, width, batch):
        return "even heights only" if height % 2 else None

    class Even(Port):
        def decode(self, z):
            assert z.shape[2] % 2 == 0
            return super().decode(z)

    report = run(maker(Even, sizes=sizes, lacks="encoder"), HALVES)
    assert report.bad == ()
    assert "even heights only" in report.left_out.values()


def test_a_mistake_in_what_is_claimed_is_still_found():
    class Dark(MeanAlone):
        def encode(self, x):
            return super().encode(x) * 0.99

    report = run(maker(Dark, config=SD1), HALVES)
    assert [result.id for result in report.bad] == ["model.encode[float32]"]


def test_an_unsupported_case_does_not_hide_a_true_failure():
    class Confused(Port):
        def __init__(self, config, weights):
            if any("Attn" in kind for kind in config.down_block_types):
                raise ValueError("attention is in the middle only")
            super().__init__(config, weights)

        def decode(self, z):
            return super().decode(z) + 0.01

    (result,) = run(maker(Confused), Selection(checks=("model.decode[float32]",))).bad
    causes = (result.failure, *result.failure.others)
    assert len(causes) >= 2
    assert any("off by" in cause.message for cause in causes)
    (raised,) = (cause for cause in causes if cause.stage == "build")
    assert "build raised ValueError: attention is in the middle only" in raised.message
    assert "test_ports_as_they_are.py:" in raised.message


def test_an_exception_names_its_line_and_the_shape_that_it_was_given():
    class Broken(Port):
        def decode(self, z):
            raise IndexError("no such row")

    (result,) = run(maker(Broken), Selection(checks=("model.decode[float32]",))).bad
    assert "decode raised IndexError: no such row (with latents (2, 4, 3, 4), at test_ports" in result.failure.message


def test_what_a_port_does_not_claim_is_not_run():
    report = run(maker(), Selection(dtypes=("bfloat16", "float16", "float64"), levels=("L3",)))
    assert {result.status for result in report.results} == {"undeclared"}
    assert {(result.examples, result.works) for result in report.results} == {(0, None)}


def test_a_build_that_takes_a_dtype_is_probed():
    def build(config, weights, dtype="float32"):
        return Port(config, weights)

    report = run(build, Selection(checks=("model.decode[bfloat16]",)))
    assert [(result.status, result.works) for result in report.results] == [("undeclared", True)]


def test_a_canary_is_not_caught_by_a_port_that_raises():
    report = run(maker(type("Raises", (Port,), {"decode": lambda *_: 1 / 0, "encode": lambda *_: 1 / 0})), HALVES)
    assert report.about["canary"]["status"] == "not run"
    assert report.verdict == "failed"


@pytest.mark.parametrize(("lacks", "failed"), [((), 1), (("quiet building",), 0)])
def test_building_may_change_random_states_if_the_port_says_so(lacks, failed):
    class Seeds(Port):
        def __init__(self, config, weights):
            random.random()
            super().__init__(config, weights)

    state = Selection(checks=("behaviour.state[float32]",))
    assert len(run(maker(Seeds, lacks=lacks), state).bad) == failed


def test_calls_never_change_random_states():
    class Draws(Port):
        def decode(self, z):
            random.random()
            return super().decode(z)

    assert run(maker(Draws, lacks=("quiet building",)), Selection(checks=("behaviour.state[float32]",))).bad


def test_the_environment_names_the_packages_of_what_a_port_builds():
    environment = run(maker(Diffusers, configs=[SD1]), HALVES).about["environment"]
    assert {"torch", "diffusers"} <= environment.keys()


def test_a_port_names_its_distribution():
    about = run(maker(distribution="numpy"), HALVES).about
    assert about["subject"]["distribution"] == f"numpy {np.__version__}"


def test_a_config_of_the_port_s_own_travels_in_the_case():
    class Wrong(Port):
        def decode(self, z):
            return super().decode(z) + 1

    (result,) = run(maker(Wrong, config=SMALL), Selection(checks=("model.decode[float32]",))).bad
    assert result.failure.case["config"] == name_of(SMALL)


def test_warnings_of_a_port_do_not_reach_the_report():
    class Warns(Port):
        def decode(self, z):
            warnings.warn("old", stacklevel=1)
            return super().decode(z)

    with pytest.warns(UserWarning, match="old"):
        assert run(maker(Warns), HALVES).bad == ()
