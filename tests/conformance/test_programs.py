"""A program is asked in files, answers whole batches, and costs no more than a check whatever it does."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.example_programs import DEFECTS, TWIN, command_of, twin
from typer.testing import CliRunner

from vaespec import AutoencoderConfig
from vaespec.architecture import half_of
from vaespec.cli.app import app
from vaespec.initialize import initialize
from vaespec_conformance import checks, mutants  # noqa: F401  (registers them)
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.checks.model import ONE_MODEL
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.running.agenda import Item
from vaespec_conformance.running.examination import examine
from vaespec_conformance.running.facts import distribution
from vaespec_conformance.running.runner import run_item
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError, UnansweredError
from vaespec_conformance.subjects.program import DTYPES, SMALLEST, Program, ProgramSubject
from vaespec_conformance.subjects.programs import folders
from vaespec_conformance.subjects.programs.asking import PATIENCE, Asker, Recorder
from vaespec_conformance.subjects.programs.processes import Ending, ProgramError
from vaespec_conformance.subjects.programs.question import Answer

Z = np.zeros((1, 4, 2, 3))
WEIGHTS = initialize(SMALLEST, 0)
PLENTY = 60.0
"""Seconds that end a hang of a test, and that nothing needs."""
LANGUAGES = ("c", "javascript")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder in which requests are written."""
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The commands of the example programs, each built once."""
    commands = {}

    def command(language):
        if language not in commands:
            commands[language] = command_of(language, tmp_path_factory.mktemp(language))
        return commands[language]

    return command


@pytest.fixture
def subject():
    """Makes subjects of command lines, and ends their programs."""
    made = []

    def make(command, **options):
        made.append(undescribed(ProgramSubject.of_command(command, **{"seconds": PLENTY, **options})))
        return made[-1]

    yield make
    for one in made:
        one.close()


def undescribed(subject):
    """The subject, which is not asked what it is."""
    subject.maker.asker.about = {name: Answer() for name in ("describe", *DTYPES)}
    return subject


class Scripted:
    """In place of a program: a function that answers a request, and the requests that it got."""

    def __init__(self, answer):
        self.answer, self.requests = answer, []

    def run(self, exchange, seconds):
        content = json.loads((exchange.request / "request.json").read_text())
        self.requests.append(content)
        return self.answer(exchange, content["cases"]) or Ending("exited with code 0", good=True)

    def close(self):
        pass


def scripted(answer):
    """A subject whose program is a function (exchange, cases)."""
    program = Scripted(answer)
    return undescribed(ProgramSubject.asking(Asker(program, PLENTY), "scripted")), program


def answering(**tensors):
    """A subject that answers every case with these tensors."""

    def answer(exchange, cases):
        for case in cases:
            save_file(tensors, exchange.answer / f"{case['id']}.safetensors")

    return scripted(answer)[0]


def decode(subject, z=Z, dtype="float32"):
    return subject.build(SMALLEST, WEIGHTS, dtype).decode(z)


def encode(subject):
    return subject.build(SMALLEST, WEIGHTS, "float32").encode(np.zeros((1, 3, 2, 3)))


def complaint(subject, error=UnansweredError, call=decode):
    with pytest.raises(error) as raised:
        call(subject)
    return str(raised.value)


# -- the folders of a request and of an answer -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_request_holds_the_model_as_diffusers_writes_it_and_the_input_in_the_dtype(dtype):
    seen = {}

    def answer(exchange, cases):
        (row,) = cases
        folder = exchange.request / row["model"]
        seen.update(row, config=AutoencoderConfig.from_json(folder / "config.json"))
        seen["weights"] = load_file(folder / "diffusion_pytorch_model.safetensors")
        seen["input"] = load_file(exchange.request / row["input"])["latents"]
        save_file({"sample": seen["input"][:, :3]}, exchange.answer / f"{row['id']}.safetensors")

    subject, program = scripted(answer)
    z = np.random.default_rng(0).standard_normal((2, 4, 2, 3))
    result = decode(subject, z, dtype)
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert program.requests[0]["protocol"] == "vaespec-program/1"
    assert (seen["call"], seen["dtype"], seen["layers"], seen["config"]) == ("decode", dtype, False, SMALLEST)
    assert seen["weights"].keys() == WEIGHTS.keys()
    assert {w.dtype for w in seen["weights"].values()} == {seen["input"].dtype, result.dtype} == {stored}
    np.testing.assert_array_equal(
        seen["input"], z.astype(np.float64 if dtype == "float64" else np.float32).astype(stored)
    )


def test_the_request_names_every_case_once_and_holds_a_model_of_two_cases_once(temporary):
    kept = []

    def answer(exchange, cases):
        kept.append(sorted(str(p.relative_to(exchange.request)) for p in exchange.request.rglob("*.safetensors")))

    subject, program = scripted(answer)
    subject.prepare(CHECKS["behaviour.repeatable"], [ONE_MODEL], "float32")
    (request,) = program.requests
    ids = [case["id"] for case in request["cases"]]
    assert [case["call"] for case in request["cases"]] == ["encode", "decode"] * 3
    assert len(set(ids)) == 6
    inputs = [f"inputs/{id}.safetensors" for id in ids]
    assert kept == [sorted([*inputs, "models/0/diffusion_pytorch_model.safetensors"])]
    subject.prepare(CHECKS["model.decode"], [ONE_MODEL], "float32")
    assert not set(ids) & {case["id"] for case in program.requests[-1]["cases"]}
    subject.close()
    assert not list(temporary.iterdir())


def test_weights_are_written_once_for_all_requests(monkeypatch):
    written = []
    write = folders.write_safetensors
    monkeypatch.setattr(
        folders, "write_safetensors", lambda path, *rest: written.append(path.name) or write(path, *rest)
    )
    subject = answering(sample=np.zeros((1, 3, 2, 3), np.float32))
    for _ in range(3):
        decode(subject)
    assert written.count("diffusion_pytorch_model.safetensors") == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"image": np.zeros((1, 3, 2, 3), np.float32)}, "it has image, expected sample"),
        ({"sample": np.zeros((1, 3, 2, 3), np.float16)}, "sample is float16, expected float32 or wider"),
        ({"sample": np.zeros((1, 3, 2, 3), np.int32)}, "sample is int32, expected float32 or wider"),
        ({"sample": np.zeros((3, 2, 3), np.float32)}, "it has sample (3, 2, 3), expected (1, 3, 2, 3)"),
        ({"sample": np.zeros((1, 3, 200, 300), np.float32)}, "the shape (1, 3, 200, 300), expected (1, 3, 2, 3)"),
    ],
)
def test_an_answer_of_other_names_dtypes_or_axes_is_a_failure_in_words(answer, words):
    assert words in complaint(answering(**answer))


def test_a_mean_and_a_log_variance_of_different_shapes_are_a_failure():
    answer = {"mean": np.zeros((1, 4, 2, 3), np.float32), "logvar": np.zeros((1, 4, 1, 3), np.float32)}
    assert "mean (1, 4, 2, 3) and logvar (1, 4, 1, 3)" in complaint(answering(**answer), call=encode)


def test_a_wider_dtype_than_asked_for_is_taken():
    assert decode(answering(sample=np.ones((1, 3, 2, 3))), dtype="bfloat16").dtype == np.float64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rubbish", "its header would have"),
        (b"", "ends inside its header"),
        (b"\x00\x01\x00\x00\x00\x00\x00\x00{", "ends inside its header"),
    ],
)
def test_rubbish_and_a_file_that_is_not_complete_are_a_failure_in_words(content, words):
    subject, _ = scripted(
        lambda exchange, cases: (exchange.answer / f"{cases[0]['id']}.safetensors").write_bytes(content) and None
    )
    assert "cannot be read" in (message := complaint(subject))
    assert words in message
    assert "vaespec-program-" not in message


@pytest.mark.parametrize("answer", [[], {"not_supported": 1}, {"error": None}, "no"])
def test_another_json_than_the_protocol_has_is_a_failure_in_words(answer):
    def write(exchange, cases):
        (exchange.answer / f"{cases[0]['id']}.json").write_text(json.dumps(answer))

    assert '{"not_supported": "reason"}' in complaint(scripted(write)[0])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"not_supported": "no Mish here"}, NotSupportedError, "no Mish here"),
        ({"error": "tensor a is missing"}, ConformanceError, "answered with an error: tensor a is missing"),
    ],
)
def test_a_program_says_what_it_does_not_do_and_what_it_refuses(words, error, message):
    def write(exchange, cases):
        (exchange.answer / f"{cases[0]['id']}.json").write_text(json.dumps(words))

    subject = scripted(write)[0]
    assert message in complaint(subject, error)
    with pytest.raises(error) as raised:
        decode(subject)
    assert not isinstance(raised.value, UnansweredError)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_all_cases_of_a_check_are_answered_by_one_request():
    subject, program = scripted(lambda exchange, cases: None)
    subject.prepare(CHECKS["model.decode"], CHECKS["model.decode"].pinned, "float32")
    (request,) = program.requests
    assert len(request["cases"]) == len(CHECKS["model.decode"].pinned)


@pytest.mark.parametrize("name", ["model.encode", "model.decode", "behaviour.two_models", "behaviour.repeatable"])
def test_a_check_gets_the_answers_that_were_prepared_and_asks_nothing_more(name, built, subject):
    one = subject(shlex.join([*built("c"), "{request}", "{answer}"]))
    requests, run = [], one.maker.asker.program.run
    one.maker.asker.program.run = lambda exchange, seconds: requests.append(exchange) or run(exchange, seconds)
    one.prepare(CHECKS[name], [ONE_MODEL], "float32")
    assert max(CHECKS[name].run(one, ONE_MODEL, "float32")) <= 1
    assert len(requests) == 1


def test_equal_questions_are_asked_as_often_as_they_are_put():
    numbers = iter(range(100))

    def answer(exchange, cases):
        for case in cases:
            sample = np.full((2, 3, 6, 8), next(numbers), np.float32)
            tensors = {"sample": sample} if case["call"] == "decode" else {n: sample for n in ("mean", "logvar")}
            save_file(tensors, exchange.answer / f"{case['id']}.safetensors")

    subject, _ = scripted(answer)
    examination = examine(subject, Item(CHECKS["behaviour.repeatable"], "float32"), profile="quick", seed=0)
    assert "the result of the second call" in str(examination.failure[1])


def test_after_a_crash_the_other_cases_are_asked_again_each_alone():
    def answer(exchange, cases):
        for case in cases:
            if AutoencoderConfig.from_json(exchange.request / case["model"] / "config.json").act_fn != "silu":
                return Ending("was ended by SIGSEGV")
            save_file({"sample": np.zeros((1, 3, 2, 3), np.float32)}, exchange.answer / f"{case['id']}.safetensors")

    subject, program = scripted(answer)
    asked = [subject.build(SMALLEST.replace(act_fn=act), WEIGHTS, "float32") for act in ("mish", "silu", "silu")]
    recorder = replace(subject, maker=Program(subject.maker.asker, notes := Recorder()))
    for vae, z in zip(asked, (Z, Z, Z + 1), strict=True):
        recorder.build(vae.vae.model.config, WEIGHTS, "float32").decode(z)
    subject.maker.asker.ask_all(notes.questions)
    with pytest.raises(UnansweredError, match="SIGSEGV; it gave no answer to this case"):
        asked[0].decode(Z)
    assert asked[1].decode(Z).shape == asked[2].decode(Z + 1).shape == (1, 3, 2, 3)
    assert len(program.requests) == 4


def test_after_a_hang_the_first_case_without_an_answer_is_blamed_and_the_others_are_asked_once_more():
    def answer(exchange, cases):
        if len(cases) == 3:
            return Ending("did not end within 1 s", hung=True)
        for case in cases:
            save_file({"sample": np.zeros((1, 3, 2, 3), np.float32)}, exchange.answer / f"{case['id']}.safetensors")

    subject, program = scripted(answer)
    recorder = Recorder()
    for n in range(3):
        decode(replace(subject, maker=Program(subject.maker.asker, recorder)), Z + n)
    subject.maker.asker.ask_all(recorder.questions)
    with pytest.raises(UnansweredError, match="did not end within 1 s"):
        decode(subject, Z)
    assert decode(subject, Z + 1).shape == decode(subject, Z + 2).shape
    assert [len(request["cases"]) for request in program.requests] == [3, 2]


def test_a_program_that_never_ends_in_time_is_not_asked_for_ever():
    subject, program = scripted(lambda exchange, cases: Ending("did not end within 1 s", hung=True))
    for n in range(PATIENCE):
        assert "did not end" in complaint(subject, call=lambda s, n=n: decode(s, Z + n))
    last = (
        f"was not run any more, since {PATIENCE} requests in a row had no answer (in the last one it did not end within"
    )
    assert last in complaint(subject)
    assert len(program.requests) == PATIENCE


# -- what a program is -------------------------------------------------------------------------------------------------


def describing(words, dtypes=()):
    """A program that describes itself in these words, or decodes in these dtypes."""

    def answer(exchange, cases):
        for case in cases:
            if case["call"] == "describe":
                (exchange.answer / f"{case['id']}.json").write_text(json.dumps(words))
            elif case["dtype"] in dtypes:
                save_file({"sample": np.zeros((1, 3, 1, 1))}, exchange.answer / f"{case['id']}.safetensors")

    return ProgramSubject.asking(Asker(Scripted(answer), PLENTY), "described")


def described(words, dtypes=()):
    return describing(words, dtypes).capabilities


def test_the_name_that_a_program_gives_itself_is_in_the_report():
    assert distribution(describing({"name": "my_vae 0.3"})) == "my_vae 0.3"
    assert distribution(describing({"name": 3})) is None


def test_a_program_says_its_dtypes_what_it_lacks_and_its_configs():
    claimed = described({"dtypes": ["bfloat16", "float32"], "lacks": ["logvar"], "configs": [SMALLEST.to_dict()]})
    assert claimed.dtypes == ("float32", "bfloat16")
    assert claimed.lacks == {"logvar"}
    assert claimed.configs == (SMALLEST,)


@pytest.mark.parametrize("words", [{"not_supported": "describe"}, {"error": "describe"}, {}, {"dtypes": None}])
def test_a_program_that_says_nothing_has_the_dtypes_in_which_it_decodes(words):
    claimed = described(words, dtypes=("float32", "float64"))
    assert (claimed.dtypes, claimed.configs, claimed.lacks) == (("float32", "float64"), None, frozenset())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"dtypes": ["fp32"]}, 'dtypes "fp32": give a list of float32, bfloat16, float16, float64.'),
        ({"dtypes": 1}, "dtypes 1: give a list of float32, bfloat16, float16, float64."),
        ({"lacks": [["logvar"]]}, 'lacks ["logvar"]: give a list of encoder, logvar.'),
        ({"configs": ["sd1"]}, 'configs ["sd1"]: give a list of them, with block_out_channels.'),
        ({"configs": 5}, "configs 5: give a list of them, with block_out_channels."),
        ({"configs": {}}, "configs {}: give a list of them, with block_out_channels."),
        ({"configs": [{"block_out_channels": 5}]}, 'configs [{"block_out_channels": 5}]: give a list of them'),
        ({"configs": [{"block_out_channels": [5], "norm_num_groups": 32}]}, "a config that is none: "),
    ],
)
def test_a_program_that_describes_what_there_is_not_is_refused(words, complaint):
    with pytest.raises(ProgramError, match=re.escape(f"the program describes {complaint}")):
        described(words)


def test_the_page_s_description_is_understood():
    page = (Path(__file__).parents[2] / "docs" / "programs.md").read_text(encoding="utf-8")
    (words,) = (line for line in page.splitlines() if line.startswith('{"name"'))
    claimed = described(json.loads(words))
    assert [config.block_out_channels for config in claimed.configs] == [(128, 256, 512, 512)]
    assert claimed.lacks == {"logvar"}


@pytest.mark.parametrize("answer", [{}, {"name": "x"}, {"seconds": 1}])
def test_facts_are_no_answer_to_a_call(answer):
    def write(exchange, cases):
        (exchange.answer / f"{cases[0]['id']}.json").write_text(json.dumps(answer))

    assert '{"not_supported": "reason"}' in complaint(scripted(write)[0])


def test_two_answers_to_a_case_are_a_failure():
    def write(exchange, cases):
        (exchange.answer / f"{cases[0]['id']}.json").write_text('{"not_supported": "it"}')
        save_file({"sample": np.zeros((1, 3, 2, 3), np.float32)}, exchange.answer / f"{cases[0]['id']}.safetensors")

    assert "has answered twice, with case-1.safetensors and case-1.json" in complaint(scripted(write)[0])


def test_a_program_that_gives_the_mean_alone_is_examined_for_that():
    def answer(exchange, cases):
        for case in cases:
            vae = twin().build(
                AutoencoderConfig.from_json(exchange.request / case["model"] / "config.json"), weights, ""
            )
            mean, _ = vae.encode(load_file(exchange.request / case["input"])["images"])
            save_file({"mean": np.ascontiguousarray(mean)}, exchange.answer / f"{case['id']}.safetensors")

    weights = models.weights(ONE_MODEL, "float32")
    subject, _ = scripted(answer)
    assert max(CHECKS["model.encode"].run(subject, ONE_MODEL, "float32")) < 0.1
    with pytest.raises(NotSupportedError, match="mean alone"):
        CHECKS["model.logvar"].run(subject, ONE_MODEL, "float32")


# -- processes ---------------------------------------------------------------------------------------------------------


def shell(script):
    """A command line that runs a script of the shell with the request as $1 and the answer as $2."""
    return f"sh -c {shlex.quote(script)} sh {{request}} {{answer}}"


def serving(script):
    return f"sh -c {shlex.quote(script)}"


DONE = """echo '{"done": true}'"""


def group_of(file):
    """Whether processes of the group whose leader's number is in the file still run."""
    number = int(file.read_text())
    for _ in range(6000):
        try:
            os.killpg(number, 0)
        except (ProcessLookupError, PermissionError):
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("serves", [False, True])
def test_a_program_that_hangs_is_killed_with_all_that_it_started(serves, subject, tmp_path):
    script = f"echo $$ > {tmp_path}/number; echo thinking >&2; sleep 1000 & sleep 1000"
    one = subject(serving(script) if serves else shell(script), serves=serves, seconds=0.5)
    assert "decode: the program did not end within 0.5 s; the end of its stderr: thinking; it gave" in complaint(one)
    assert not group_of(tmp_path / "number")


@pytest.mark.parametrize("serves", [False, True])
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -SEGV $$", "was ended by SIGSEGV"),
        ("echo out of luck >&2; exit 3", "exited with code 3; the end of its stderr: out of luck"),
        ("exit 0", "exited with code 0"),
    ],
)
def test_a_program_that_dies_is_told_in_words(serves, script, words, subject):
    one = subject(serving(f"read line; {script}") if serves else shell(script), serves=serves)
    assert words in complaint(one)
    assert words in complaint(one)


@pytest.mark.parametrize("serves", [False, True])
def test_a_program_that_prints_without_end_is_stopped(serves, subject, monkeypatch):
    monkeypatch.setattr("vaespec_conformance.subjects.programs.processes.OUTPUT_LIMIT", 1 << 20)
    one = subject(serving("yes >&2") if serves else shell("yes"), serves=serves)
    assert "printed more than 1 MiB; the end of its std" in (message := complaint(one))
    assert len(message) < 500


def test_a_process_that_a_program_leaves_behind_is_killed_and_does_not_delay(subject, tmp_path):
    one = subject(shell(f"echo $$ > {tmp_path}/number; sleep 1000 & exit 0"))
    assert "exited with code 0" in complaint(one)
    assert not group_of(tmp_path / "number")


def test_other_lines_on_the_stdout_of_a_program_that_serves_are_a_failure_in_words(subject):
    assert "printed 'hello' on stdout, expected {\"done\": true}" in complaint(
        subject(serving("echo hello; cat"), serves=True)
    )


def test_a_line_too_many_is_not_taken_for_the_next_answer(subject, built, tmp_path):
    """The program answers each request right, but says so twice, so that it is one line ahead."""
    vae = shlex.join(built("c"))
    script = f"""while read line; do echo "$line" | {vae}; {DONE}; done"""
    one = subject(serving(script), serves=True)
    first = decode(one)
    time.sleep(0.2)
    np.testing.assert_array_equal(decode(one), first)


def test_a_late_answer_is_not_taken_for_a_later_one():
    """The program writes its first answer into the folder of its second request."""
    late = []

    def answer(exchange, cases):
        late.append(cases[0]["id"])
        if len(late) > 1:
            save_file({"sample": np.zeros((1, 3, 2, 3), np.float32)}, exchange.answer / f"{late[0]}.safetensors")

    one, _ = scripted(answer)
    assert "it gave no answer to this case" in complaint(one)
    assert "it gave no answer to this case" in complaint(one)


def test_a_program_that_serves_stays_and_is_started_again_after_it_ended(subject, built, tmp_path):
    """It answers two requests, then it ends."""
    starts = tmp_path / "starts"
    vae = shlex.join(built("c"))
    script = f"""echo x >> {starts}; for i in 1 2; do read line && echo "$line" | {vae}; done"""
    one = subject(serving(script), serves=True)
    results = [decode(one, Z + n) for n in range(4)]
    assert all(result.shape == (1, 3, 2, 3) for result in results)
    assert len(starts.read_text().split()) == 2


def test_a_program_that_serves_ends_when_its_stdin_is_closed(subject, built, tmp_path):
    one = subject(serving(f"{shlex.join(built('c'))}; echo ended > {tmp_path}/ended"), serves=True)
    decode(one)
    one.close()
    assert (tmp_path / "ended").read_text() == "ended\n"


@pytest.mark.parametrize(
    ("command", "serves", "words"),
    [
        ("./my_vae", False, 'lacks {request} and {answer}: write it like "./my_vae {request} {answer}"'),
        ("./my_vae {request}", False, "lacks {answer}"),
        ("./my_vae {request}", True, "has {request}: a program that serves reads both folders from stdin"),
        ("./my_vae '", True, "cannot be split into words (No closing quotation)"),
        ("", True, "is empty"),
        ("./no_such_vae {request} {answer}", False, "no program './no_such_vae' that may be run"),
    ],
)
def test_a_command_line_that_cannot_be_run_is_refused_at_once(command, serves, words):
    with pytest.raises(ProgramError) as raised:
        ProgramSubject.of_command(command, serves=serves)
    assert words in str(raised.value)


def test_words_with_spaces_reach_the_program_as_the_shell_would_pass_them(subject, tmp_path):
    one = subject(shell('echo "$3" >&2; exit 1') + " 'two words'")
    assert "two words" in complaint(one)


# -- the examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", [*LANGUAGES, pytest.param("rust", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("half", ["encode", "decode"])
def test_an_example_passes_and_its_layers_are_those_of_the_twin(language, half, built, subject):
    one = subject(shlex.join(built(language)), serves=True)
    case = Case.of(config="attentive", regime="plain", size=(3, 4), more=1, seed=1)
    assert max(CHECKS[f"model.{half}"].run(one, case, "float32")) < 0.1
    x = (models.images if half == "encode" else models.latents)(case, "float32").astype(np.float32)
    vae = one.build(models.config_of(case), models.weights(case, "float32"), "float32").vae
    layers = vae.layers(half, x)
    same = twin().build(models.config_of(case), models.weights(case, "float32"), "float32").vae
    same.model.results = {}
    getattr(same, half)(x)
    assert {layer.name for layer in half_of(half).build(models.config_of(case)).layers} <= layers.keys()
    assert same.model.results.keys() <= {f"layer.{name}" for name in layers}
    for name, expected in same.model.results.items():
        np.testing.assert_allclose(layers[name.removeprefix("layer.")], expected, atol=2e-5)


def test_the_python_example_runs_as_a_program(subject):
    one = subject(shlex.join([sys.executable, str(TWIN)]), serves=True)
    one.maker.asker.about.clear()
    assert one.capabilities.dtypes == ("float32",)
    assert max(CHECKS["model.decode"].run(one, ONE_MODEL, "float32")) < 0.1


def test_a_crash_is_no_refusal_of_wrong_weights():
    subject, _ = scripted(lambda exchange, cases: Ending("was ended by SIGSEGV"))
    case = CHECKS["weights.strict"].pinned[0]
    with pytest.raises(UnansweredError, match="SIGSEGV"):
        CHECKS["weights.strict"].run(subject, case, "float32")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_example_says_what_it_does_not_do(language, dtype, built, subject):
    one = subject(shlex.join(built(language)), serves=True)
    config = SMALLEST if dtype == "float16" else SMALLEST.replace(act_fn="mish")
    with pytest.raises(NotSupportedError, match="float16" if dtype == "float16" else "act_fn mish"):
        one.build(config, WEIGHTS, dtype).decode(Z)


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_example_refuses_wrong_weights(language, built, subject):
    one = subject(shlex.join([*built(language), "{request}", "{answer}"]))
    result = run_item(one, Item(CHECKS["weights.strict"], "float32"), profile="quick", seed=0)
    assert (result.status, result.failure) == ("pass", None)


def test_what_an_example_does_not_do_is_not_asked_and_fails_nothing(built, subject):
    one = subject(shlex.join([*built("c"), "{request}", "{answer}"]))
    result = run_item(one, Item(CHECKS["model.decode"], "float32"), profile="quick", seed=0)
    assert (result.status, result.failure) == ("pass", None)
    assert result.not_asked == {"Mish": "act_fn mish"}


@pytest.mark.parametrize(
    "mutant", ["encode_swaps_mean_and_logvar", "queries_and_values_swapped", "norm_num_groups_ignored"]
)
def test_a_known_mistake_that_is_put_into_a_program_is_caught(mutant, built, subject):
    one = mutants.MUTANTS[mutant].wrap(subject(shlex.join(built("c")), serves=True))
    with pytest.raises(ConformanceError, match="budgets"):
        CHECKS[mutants.MUTANTS[mutant].owner].run(one, ONE_MODEL, "float32")


EVIDENT = {"no_clamp": "model.logvar", "mean_and_logvar_swapped": "model.encode"}
EVIDENT |= {"zeros_on_all_sides_of_downsampling": "model.encode"}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught_as_in_the_python_twin(language, defect, subject, tmp_path):
    """Both fail, by the same numbers, from which the cause is found."""
    check = CHECKS[EVIDENT.get(defect, "model.decode")]
    regime = {"eps_1e_5": "faint", "attention_without_scale": "sharp"}.get(defect, "plain")
    case = Case.of(config="plain", regime=regime, size=(3, 4), more=0, seed=1)
    one = subject(shlex.join([*command_of(language, tmp_path, defect), "{request}", "{answer}"]))
    found = []
    for examined in (one, twin(defect)):
        with pytest.raises(ConformanceError, match=r"budgets|bound") as raised:
            check.run(examined, case, "float32")
        found.append(raised.value.evidence[3])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_the_verdicts_of_an_example_are_those_of_the_python_twin_check_by_check(language, defect, subject, tmp_path):
    one = subject(shlex.join([*command_of(language, tmp_path, defect), "{request}", "{answer}"]))
    verdicts = []
    for examined in (one, twin(defect)):
        items = [Item(check, "float32") for check in CHECKS.values() if "program" in check.subjects]
        results = [run_item(examined, item, profile="quick", seed=0) for item in items]
        verdicts.append([(r.id, r.status, r.failure and r.failure.hint) for r in results])
    assert verdicts[0] == verdicts[1]
    assert any(status == "fail" for _, status, _ in verdicts[0]) == (defect is not None)


# -- the command -------------------------------------------------------------------------------------------------------


def conformance(*arguments):
    return CliRunner().invoke(app, ["conformance", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--program", "a {request} {answer}", "--backend", "numpy"), "name one of them"),
        (("--program", "true {request} {answer}", "--device", "cpu"), "a program chooses its device itself"),
        (("--program", "true {request}"), "lacks {answer}"),
        (("--program", ""), "--program is empty"),
        (("--program-serve", ""), "--program-serve is empty"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, words):
    result = conformance(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())


def test_the_command_examines_a_program_and_leaves_nothing(built, temporary, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(temporary))
    serving = shlex.join(built("c"))
    result = conformance("--program-serve", serving, "--check", "model.logvar", "--profile", "quick", "--json")
    report = json.loads(result.stdout)
    (row,) = (row for row in report["checks"] if row["dtype"] == "float32")
    assert (row["status"], report["subject"]["kind"], report["canary"]["status"]) == ("pass", "program", "caught")
    assert report["claims"]["dtypes"] == ["float32"]
    assert not list(temporary.iterdir())


def test_a_program_that_hangs_costs_its_checks_and_the_run_goes_on(temporary, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(temporary))
    result = conformance(
        *("--program", shell("sleep 1000"), "--check", "model.logvar", "--check", "behaviour.batch"),
        *("--profile", "quick", "--time-limit", "0.3", "--json", "--dtype", "float32"),
    )
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [row["status"] for row in report["checks"]] == ["fail", "fail"]
    assert not list(temporary.iterdir())


def test_a_run_that_is_told_to_end_leaves_no_program_and_no_files(tmp_path, temporary):
    script = f"echo $$ > {tmp_path}/number; sleep 1000"
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # as started from a terminal
    code = f"{listen}; from vaespec.cli import main; main()"
    run = subprocess.Popen(
        [sys.executable, "-c", code, "conformance", "--program", shell(script), "--check", "model.logvar"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(6000):
        if (tmp_path / "number").exists() and (tmp_path / "number").read_text():
            break
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    run.wait(PLENTY)
    assert not group_of(tmp_path / "number")
    assert not list(temporary.iterdir())
