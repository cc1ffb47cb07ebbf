"""The folders of the protocol: requests are written, answers are read. docs/programs.md is the page about them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vaespec import strict_json
from vaespec.errors import WeightFileError
from vaespec.weights.containers import write_safetensors
from vaespec.weights.containers.safetensors import open_safetensors
from vaespec_conformance.subjects.programs.question import DESCRIBE, INPUTS, RESULTS, Answer, Model, Question, as_stored

PROTOCOL = "vaespec-program/1"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
LAYER = "layer."
"""The beginning of the name of a tensor that is the result of a layer."""
KEPT = 256 << 20
"""Bytes of models that are kept on disk for later requests."""
ADVICE = re.compile("[:;] (the )?download.*")
"""What the loader of weights says to somebody who has downloaded the file."""
TOO_LARGE = 64
"""How many times as many numbers as expected an answer may have and still be read, so that its shape can be judged."""
WIDER = {
    "bfloat16": ("bfloat16", "float32", "float64"),
    "float16": ("float16", "float32", "float64"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}
"""The dtypes of an answer: the dtype of the case, or one that holds all its numbers."""


@dataclass(frozen=True)
class Exchange:
    """The folders of one request and its answer, and the questions by the ids of their cases."""

    request: Path
    answer: Path
    questions: dict[str, Question]

    def read(self, id: str) -> Answer | None:
        """The answer to one case; None if there is none."""
        found = [file for ending in ANSWERS if os.path.lexists(file := self.answer / f"{id}.{ending}")]
        if not found:
            return None
        if len(found) > 1:
            both = " and ".join(file.name for file in found)
            return Answer(failure=f"the program has answered twice, with {both}: write one of them.")
        try:
            return ANSWERS[found[0].suffix[1:]](found[0], self.questions[id])
        except (WeightFileError, OSError, ValueError) as error:
            reason = ADVICE.sub("", str(error).replace(str(found[0]), "it").removesuffix("."))
            return Answer(failure=f"{found[0].name}, the program's answer, cannot be read: {reason}.")

    def remove(self) -> None:
        """Deletes both folders."""
        for folder in (self.request, self.answer):
            shutil.rmtree(folder, ignore_errors=True)


class Folders:
    """A temporary folder with the requests of a subject. It is deleted with this object, and when Python ends."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="vaespec-program-"))
        self.close = weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        self.models: dict[str, Path] = {}  # digest -> its folder, the one used last at the end
        self.cases = self.requests = 0

    def write(self, questions: Sequence[Question]) -> Exchange:
        """Writes a request; ids of cases are never used again, so that no late answer is taken for a later one."""
        self._forget(keep={q.model.digest for q in questions if q.model})
        self.requests += 1
        request, answer = (self.root / f"{kind}-{self.requests}" for kind in ("request", "answer"))
        for folder in (request / "models", request / "inputs", answer):
            folder.mkdir(parents=True)
        listed: dict[str, Question] = {}
        models: dict[str, str] = {}
        rows = []
        for question in questions:
            self.cases += 1
            listed[id := f"case-{self.cases}"] = question
            row: dict[str, Any] = {"id": id, "call": question.call}
            if question.model:
                row |= {
                    "dtype": question.model.dtype,
                    "model": self._linked(question.model, request, models),
                    "input": _write_input(question, request, id),
                    "layers": question.layers,
                }
            rows.append(row)
        _write_json(request / "request.json", {"protocol": PROTOCOL, "cases": rows})
        return Exchange(request, answer, listed)

    def _linked(self, model: Model, request: Path, models: dict[str, str]) -> str:
        """Puts a model into a request, once; returns its place there."""
        if model.digest not in models:
            models[model.digest] = place = f"models/{len(models)}"
            (request / place).mkdir()
            for file in self._written(model).iterdir():
                _link(file, request / place / file.name)
        return models[model.digest]

    def _written(self, model: Model) -> Path:
        """The folder of a model, as diffusers writes it."""
        folder = self.models.pop(model.digest, None)
        if folder is None:
            folder = self.root / "models" / model.digest
            folder.mkdir(parents=True)
            _write_json(folder / CONFIG, model.config.to_dict())
            write_safetensors(folder / WEIGHTS, model.stored(), {"format": "pt"})
        self.models[model.digest] = folder
        return folder

    def _forget(self, keep: set[str]) -> None:
        """Deletes the models that were not used for longest, but for those of the next request."""
        size = {digest: (folder / WEIGHTS).stat().st_size for digest, folder in self.models.items()}
        for digest in [digest for digest in self.models if digest not in keep]:
            if sum(size.values()) <= KEPT:
                return
            del size[digest]
            shutil.rmtree(self.models.pop(digest), ignore_errors=True)


def _link(file: Path, target: Path) -> None:
    """A second name of a file, or a copy if the system has no hard links."""
    with suppress(OSError):
        return os.link(file, target)
    shutil.copyfile(file, target)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _write_input(question: Question, request: Path, id: str) -> str:
    assert question.model
    place = f"inputs/{id}.safetensors"
    write_safetensors(request / place, {INPUTS[question.call]: as_stored(question.x, question.model.dtype)}, {})
    return place


def _in_words(path: Path, question: Question) -> Answer:
    """The answer of a JSON file: what the program does not do, what is wrong, or what it is."""
    match value := strict_json.read(path):
        case {"not_supported": str(reason)}:
            return Answer(not_supported=reason)
        case {"error": str(message)}:
            return Answer(refusal=message)
        case dict() if question.call == DESCRIBE and not value.keys() & {"not_supported", "error"}:
            return Answer(facts=value)
    raise ValueError(f'it is {json.dumps(value):.80}, expected {{"not_supported": "reason"}} or {{"error": "message"}}')


def _read(path: Path, question: Question) -> Answer:
    """The answer of a safetensors file; raises ValueError for other tensors than the call has, or of another dtype."""
    if question.call == DESCRIBE:
        raise ValueError("describe is answered in JSON")
    file = open_safetensors(path)
    names = RESULTS[question.call]
    if names[0] not in file:
        raise ValueError(f"it has {', '.join(file) or 'no tensor'}, expected {' and '.join(names)}")
    assert question.model
    limit = TOO_LARGE * max(1, math.prod(question.shape))
    for name in (name for name in names if name in file):
        if file.dtype(name) not in WIDER[question.model.dtype]:
            raise ValueError(f"{name} is {file.dtype(name)}, expected {question.model.dtype} or wider")
        if math.prod(file.shape(name)) > limit:
            raise ValueError(f"{name} has the shape {file.shape(name)}, expected {question.shape}")
    tensors = {name: file[name] for name in names if name in file}
    if len({a.shape for a in tensors.values()}) > 1 or any(a.ndim != len(question.shape) for a in tensors.values()):
        shapes = " and ".join(f"{name} {a.shape}" for name, a in tensors.items())
        raise ValueError(f"it has {shapes}, expected {question.shape}")
    layers = {name.removeprefix(LAYER): name for name in file if name.startswith(LAYER)} if question.layers else {}
    return Answer(tensors, {layer: np.asarray(file[name]) for layer, name in layers.items()})


ANSWERS: dict[str, Callable[[Path, Question], Answer]] = {"safetensors": _read, "json": _in_words}
"""The file ending of an answer -> the function that reads it."""
