"""What a subject declares is validated once: a mistake is a sentence, and members of a class are no declarations."""

from __future__ import annotations

import numpy as np
import pytest
from support.subjects_of_all_kinds import Good, Port

from vaespec_conformance import BackendSubject, Capabilities, PortSubject, Selection, run_conformance
from vaespec_conformance.subjects.capabilities import refused_size
from vaespec_conformance.subjects.errors import LoadError

DECODE = Selection(checks=("model.decode[float32]",))


def maker(**attributes):
    """A function that builds a port, with attributes that declare something."""

    def build(config, weights):
        return Port(config, weights)

    vars(build).update(attributes)
    return build


def four_levels_only(config):
    return None if config.levels == 4 else "four levels only"


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (
            {"lacks": {"log variance"}},
            "lacks is declared as {'log variance'}: give a set of names among 'encoder', 'dec",
        ),
        ({"lacks": 5}, "lacks is declared as 5: give"),
        (
            {"config": {"latent_channels": 4}},
            "config is declared as {'latent_channels': 4}: give an AutoencoderConfig.",
        ),
        ({"configs": []}, "configs is declared as []: give a list of one AutoencoderConfig or more, or nothing."),
        ({"sizes": (64,)}, "sizes is declared as (64,): give a function of height, width and batch."),
        ({"capabilities": {"dtypes": ("float32",)}}, "capabilities is declared as {'dtypes': ('float32',)}: give an"),
        ({"capabilities": Capabilities("float32")}, "capabilities.dtypes is declared as 'float32': give a tuple"),
        (
            {"capabilities": Capabilities(lacks={"deterministic"})},
            "capabilities.lacks is declared as {'deterministic'}",
        ),
        ({"gaps": ("model.logvar",)}, "gaps is declared as ('model.logvar',): give a list of Gap."),
        ({"distribution": 3}, "distribution is declared as 3: give the name of a package."),
    ],
)
def test_a_declaration_that_nobody_understands_is_refused_in_a_sentence(declared, words):
    with pytest.raises(LoadError) as error:
        run_conformance(PortSubject(maker(**declared), "mine"), selection=DECODE)
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)


def test_what_a_backend_declares_is_read_with_the_same_care():
    class Careless(Good):
        gaps = ("ops.silu",)

    with pytest.raises(LoadError, match=r"gaps is declared as \('ops.silu',\): give a list of Gap."):
        run_conformance(BackendSubject(Careless()), selection=DECODE)


class WithMembers(Port):
    """A class of which some members have the names of declarations."""

    config, sizes, lacks = None, (64,), 5

    def __init__(self, config, weights):
        super().__init__(config, weights)
        self.kept = dict(weights)

    def weights(self):
        return self.kept

    def accepts(self, image):
        return False


class WithDeclarations(Port):
    lacks = frozenset({"encoder"})
    accepts = staticmethod(four_levels_only)


def test_members_of_a_class_are_no_declarations():
    subject = PortSubject(WithMembers, "mine")
    assert (subject.declared.configs, subject.declared.lacks, subject.terms.weights) == (None, frozenset(), None)
    report = run_conformance(subject, profile="quick", selection=Selection(checks=("weights.kept[float32]",)))
    assert [result.status for result in report.results] == ["pass"]


def test_a_class_may_declare_as_a_function_does():
    declared = PortSubject(WithDeclarations, "mine").declared
    assert (declared.configs, declared.lacks) == (four_levels_only, {"encoder"})


@pytest.mark.parametrize(
    ("answer", "reason"), [(np.True_, None), (np.False_, "it does not take this size"), ("", "it")]
)
def test_a_declared_function_may_answer_in_numpy_s_bools(answer, reason):
    refusal = refused_size(lambda *size: answer, 1, 2, 3)
    assert refusal is None if reason is None else refusal.startswith(reason)


def test_a_declared_function_that_answers_something_else_or_raises_is_a_failure():
    for accepts, words in (
        (lambda config: 3, "returned 3: expected None, True"),
        (lambda config: 1 / 0, "accepts raised"),
    ):
        report = run_conformance(PortSubject(maker(accepts=accepts), "mine"), profile="quick", selection=DECODE)
        assert report.exit_code == 1
        assert words in report.bad[0].failure.message
