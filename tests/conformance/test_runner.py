"""A run counts what it looks at, keeps the smallest failure, survives what hangs, and depends on its seed alone."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import settings
from support.own_checks import define, pinned
from support.subjects_of_all_kinds import DeclaresNonsense, Empty, Good, Narrow, Wrong

from vaespec_conformance import BackendSubject, ConformanceError, Gap, Selection, run_conformance
from vaespec_conformance.judging.registry import EXACT, Margin
from vaespec_conformance.mutants import hints
from vaespec_conformance.running import runner
from vaespec_conformance.running.agenda import AgendaError
from vaespec_conformance.running.timing import HungError, call_within

GOOD = BackendSubject(Good())
FLOAT32 = Selection(dtypes=("float32",))

pytestmark = pytest.mark.usefixtures("no_checks")


def run(subject=GOOD, **options):
    return run_conformance(subject, **{"selection": FLOAT32, **options})


def only(report):
    (result,) = report.results
    return result


@pytest.mark.parametrize(("profile", "drawn"), [("quick", 3), ("default", 6), ("thorough", 12)])
def test_the_pinned_cases_and_those_of_the_profile_are_run_and_counted(profile, drawn):
    seen = []
    define("own", lambda subject, case, dtype: seen.append(case["number"]) or EXACT, pinned=pinned(7, 8))
    result = only(run(profile=profile))
    assert (result.status, result.examples, result.required) == ("pass", drawn + 2, drawn + 2)
    assert seen[:2] == [7, 8]
    assert len(seen) == drawn + 2


def test_the_reported_case_is_the_smallest_that_fails(monkeypatch):
    def fails_from_1000(subject, case, dtype):
        if case["number"] >= 1000:
            error = ConformanceError("too large.", where="there", eta2=5.0, etainf=2.0)
            error.evidence = (None, case, dtype, None, None)
            raise error
        return EXACT

    monkeypatch.setattr(hints, "likely", lambda error, *_: f"a limit below {error.evidence[1]['number']}")
    define("own", fails_from_1000)
    result = only(run())
    assert (result.status, result.eta2, result.etainf) == ("fail", 5.0, 2.0)
    assert result.failure.case == {"number": 1000, "seed": 0}
    assert (result.failure.message, result.failure.where, result.failure.hint) == (
        "too large.",
        "there",
        "a limit below 1000",
    )


def test_a_failing_pinned_case_is_reported_and_nothing_is_drawn():
    calls = []

    def fails(subject, case, dtype):
        calls.append(case)
        raise ConformanceError("no.")

    define("own", fails, pinned=pinned(5))
    result = only(run())
    assert (result.examples, result.failure.case["number"]) == (1, 5)
    assert {case["number"] for case in calls} == {5}


def test_any_other_exception_of_a_check_is_an_error_and_no_failure():
    define("own", lambda subject, case, dtype: 1 / 0)
    result = only(run())
    assert (result.status, result.failure.message) == ("error", "ZeroDivisionError: division by zero.")


@pytest.mark.parametrize("margin", [Margin(1.001, 0.0), Margin(0.0, 3.0), Margin(float("nan"), 0.0)])
def test_more_than_the_budget_and_nan_do_not_pass(margin):
    define("own", lambda subject, case, dtype: margin)
    assert only(run()).status == "fail"


def test_the_greatest_margin_is_kept():
    define(
        "own", lambda subject, case, dtype: Margin(case["number"] / 10, 0.25), pinned=pinned(3, 6, 1), cases=_nothing()
    )
    assert (only(run()).eta2, only(run()).etainf) == (0.6, 0.25)


def _nothing():
    from hypothesis import strategies as st

    from vaespec_conformance.cases.strategies import cases

    return cases(number=st.just(0))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_cases():
    define("own", lambda subject, case, dtype: Margin(case["number"] / 10**6, 0.0))
    reports = [run(seed=seed).to_json() for seed in (3, 3, 4)]
    assert reports[0] == reports[1]
    assert run(seed=3).results != run(seed=4).results


def test_a_check_draws_the_same_cases_alone_and_among_others():
    seen = []
    define("first", lambda subject, case, dtype: seen.append(case) or EXACT)
    run()
    alone = list(seen)
    seen.clear()
    define("another")
    run()
    assert seen == alone


DRAW = """
import sys
from hypothesis import strategies as st
from vaespec_conformance.cases.strategies import cases
from vaespec_conformance.cases.drawing import run_drawn
{local}
drawn = []
run_drawn(lambda case: drawn.append(case["number"]), cases(number=st.integers(0, 10**6)),
          examples=200, seed=5, shrink=True)
print(drawn)
"""


def test_imported_modules_do_not_change_the_drawn_cases(tmp_path):
    (tmp_path / "constants.py").write_text("NUMBERS = (123456, 234567, 345678)\n")
    drawn = [
        subprocess.run(
            [sys.executable, "-c", DRAW.format(local=local)], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for local in ("", "sys.path.insert(0, ''); import constants")
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0].count(",") == 199


def test_calls_share_a_thread_until_one_does_not_end():
    first, gate = call_within(60, threading.get_ident), threading.Event()
    assert call_within(60, threading.get_ident) == first != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        call_within(60, lambda: 1 // 0)
    with pytest.raises(HungError):
        call_within(0.1, lambda: gate.wait(60))
    assert call_within(60, threading.get_ident) != first
    gate.set()


def test_the_user_s_settings_of_hypothesis_are_left_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = settings.default
    define("own", lambda subject, case, dtype: 1 / (case["number"] < 9 or 0))
    assert only(run()).status == "error"
    assert settings.default is before
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def patient_with_others(monkeypatch):
    """Limits each call to 0.1 s if its check is called "hang…", and never any other: a busy machine changes nothing."""

    def limited(seconds, call):
        hangs = hasattr(call, "args") and call.args[1].check.id.startswith("hang")
        return call_within(0.1 if hangs else 600.0, call)

    monkeypatch.setattr(runner, "call_within", limited)


def hang(subject, case, dtype):
    threading.Event().wait()


@pytest.mark.usefixtures("patient_with_others")
def test_a_check_that_does_not_end_is_an_error_and_the_others_are_run():
    define("hang", hang)
    define("two")
    one, two = run(time_limit=1.0).results
    assert (one.status, one.failure.message) == ("error", "it did not end within 1 s; --time-limit gives it more.")
    assert two.status == "pass"


@pytest.mark.usefixtures("patient_with_others")
def test_after_three_checks_that_do_not_end_the_others_are_not_begun():
    begun = []
    for letter in "abcde":
        define(f"hang {letter}", hang)
    report = run(progress=lambda item: begun.append(item.id))
    assert begun == ["hang a[float32]", "hang b[float32]", "hang c[float32]"]
    assert [result.status for result in report.results] == ["error"] * 5
    assert report.results[4].failure.message == "it was not begun, since 3 checks before it did not end."
    assert report.exit_code == 1


def test_a_failure_that_is_not_repeated_is_still_a_failure():
    calls = iter(range(10**6))

    def fails_once(subject, case, dtype):
        if next(calls) == 3:
            raise ConformanceError("now and then.")
        return EXACT

    define("own", fails_once)
    result = only(run())
    assert (result.status, result.failure.message) == (
        "fail",
        "now and then. It does not fail each time this case is run.",
    )


def test_a_wrong_operation_fails_its_check():
    def group_norm_has_this_eps(subject, case, dtype):
        ops = subject.backend.ops("cpu", dtype, "highest")
        x, scale, shift = (ops.from_numpy(np.array(a)) for a in ([[[[0.0, 2e-3]]]], [1.0], [0.0]))
        y = ops.to_numpy(ops.to_nchw(ops.group_norm(ops.from_nchw(x), scale, shift, groups=1, eps=1e-6)))
        if not abs(y.max() - 0.5**0.5) < 1e-5:
            raise ConformanceError("eps.")
        return EXACT

    define("own", group_norm_has_this_eps)
    assert only(run()).status == "pass"
    assert only(run(BackendSubject(Wrong()))).status == "fail"


# -- gaps and claims ---------------------------------------------------------------------------------------------


class Gappy(Good):
    gaps = (Gap("own[float16]", "bug", "it is known", "https://example.org/1", until="2.0"),)


def gap_run(check):
    define("own", check)
    return run(BackendSubject(Gappy()), selection=Selection(dtypes=("float16",)))


def fails(subject, case, dtype):
    raise ConformanceError("wrong.")


def test_a_declared_gap_may_fail():
    report = gap_run(fails)
    result = only(report)
    assert (result.status, result.reason, result.url) == (
        "gap",
        "bug: it is known (until 2.0)",
        "https://example.org/1",
    )
    assert report.exit_code == 0


def test_a_declared_gap_that_passes_is_not_conformant():
    report = gap_run(lambda subject, case, dtype: EXACT)
    assert (only(report).status, report.verdict) == ("xpass", "failed")


def test_a_declared_gap_does_not_excuse_an_error_of_the_check():
    assert only(gap_run(lambda subject, case, dtype: 1 / 0)).status == "error"


def test_no_gap_excuses_a_required_check():
    class Core(Good):
        gaps = (Gap("own", "bug", "it is known"),)

    define("own", fails)
    result = only(run(BackendSubject(Core())))
    assert result.status == "fail"
    assert result.failure.message == "wrong. A gap cannot be declared for what every subject must do."


def test_a_gap_for_no_check_is_refused():
    define("ops.group_norm")
    with pytest.raises(AgendaError, match=r"declares a gap for 'ops.grup_norm': choose ops.group_norm."):
        run(BackendSubject(DeclaresNonsense()))


@pytest.mark.parametrize(("check", "works"), [(lambda subject, case, dtype: EXACT, True), (fails, False)])
def test_a_dtype_that_is_not_claimed_is_tried_once_and_neither_passes_nor_fails(check, works):
    define("own", check, dtypes=("float32", "bfloat16"))
    report = run(selection=Selection(dtypes=("bfloat16",)))
    result = only(report)
    assert (result.status, result.reason, result.works) == ("undeclared", "bfloat16 not claimed", works)
    assert result.examples == 1
    assert report.verdict == "vacuous"


def test_a_feature_that_is_not_claimed_is_tried_too():
    define("own", requires=("time travel",))
    assert only(run()).reason == "time travel not claimed"


# -- vacuous runs ------------------------------------------------------------------------------------------------


def test_a_backend_that_claims_nothing_is_vacuous():
    define("own")
    report = run(BackendSubject(Empty()), selection=Selection())
    assert (report.verdict, report.exit_code) == ("vacuous", 3)
    assert report.headline == "empty: vacuous. No check was run; float32 is not claimed."


def test_a_backend_that_does_not_claim_float32_is_vacuous():
    define("own")
    report = run(BackendSubject(Narrow()), selection=Selection())
    assert (report.verdict, report.unseen) == ("vacuous", ("float32 is not claimed",))


def test_a_canary_that_survives_is_vacuous(monkeypatch):
    canary = {"status": "survived", "mutant": "no bias", "check": "ops.conv2d[float32]"}
    monkeypatch.setattr("vaespec_conformance.running.runner.preliminaries", lambda subject: {"canary": canary})
    define("own")
    report = run()
    assert (report.verdict, report.exit_code) == ("vacuous", 3)
    assert report.unseen == ("the canary was not caught: no bias passed ops.conv2d[float32]",)


def test_a_check_whose_cases_cannot_be_drawn_is_an_error():
    from hypothesis import strategies as st

    from vaespec_conformance.cases.strategies import cases

    define("own", cases=cases(number=st.integers(0, 9).filter(lambda n: n > 9)))
    assert only(run()).status == "error"


def test_a_selection_is_partial_and_the_whole_is_conformant():
    define("own")
    define("other", level="L2")
    assert run(selection=Selection(levels=("L2",))).verdict == "partial"
    assert run(selection=Selection()).verdict == "conformant"
