"""The agenda of a run has the selected checks, level by level, and refuses names that do not exist."""

from __future__ import annotations

import pytest
from support.own_checks import define
from support.subjects_of_all_kinds import Good

from vaespec_conformance import BackendSubject, PortSubject, Selection
from vaespec_conformance.running.agenda import AgendaError, agenda, levels_between

GOOD = BackendSubject(Good())

pytestmark = pytest.mark.usefixtures("no_checks")


def test_the_agenda_has_the_selected_items_level_by_level():
    define("b", level="L3")
    define("a", level="L1", dtypes=("float16", "float32"))
    define("c", level="L1", subjects=("port",))
    assert [item.id for item in agenda(GOOD, Selection(dtypes=("float32", "float16")))] == [
        "a[float32]",
        "a[float16]",
        "b[float32]",
        "b[float16]",
    ]
    assert [item.id for item in agenda(GOOD, Selection(checks=("b[float32]",)))] == ["b[float32]"]


def test_levels_may_be_a_range_and_a_list():
    assert levels_between("L0-L2,L5") == ("L0", "L1", "L2", "L5")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"checks": ("ops.conv",)}, r"no check called 'ops.conv': choose ops.conv2d"),
        ({"dtypes": ("fp32",)}, r"no dtype called 'fp32': choose "),
        ({"levels": ("L10",)}, r"no level called 'L10': choose L1"),
    ],
)
def test_a_selection_of_something_that_does_not_exist_is_refused_with_the_choices(fields, message):
    define("ops.conv2d")
    with pytest.raises(AgendaError, match=message):
        Selection(**fields)


def test_checks_that_are_not_for_the_subject_are_refused_if_no_other_is_selected():
    define("a", subjects=("backend",))
    define("b", subjects=("backend", "port"))
    port = PortSubject(lambda config, weights: None, "mine")
    with pytest.raises(AgendaError, match=r"^a cannot examine a port: see `vaespec conformance --list`\.$"):
        agenda(port, Selection(checks=("a",)))
    assert agenda(port, Selection(checks=("a", "b")))
