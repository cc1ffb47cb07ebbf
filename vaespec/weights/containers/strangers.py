"""Files that hold no weights, or none that can be read: what each is, by its first bytes, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vaespec.errors import WeightFileError

MIN_TEXT, MAX_WORDS = 4, 80  # characters: of a text, since fewer may be any bytes, and of those that an error repeats

LOGIN = "check its address, log in if it needs that, and download it again"
PROGRAM = "give the weights that it was made from, as .safetensors"
ARCHIVE = "unpack it, and give the file of weights in it"
SAVE = "save the weights as .safetensors or .npz"

# Texts that an error repeats, since servers answer so. Others may be private: a stranger's folder may link to any file.
ERROR_PAGE = re.compile(
    r"""[{\[].*"(?:errors?|message|detail)"\s*:  # JSON
    | (?:<\?xml[^>]*>\s*)?<error\b  # XML
    | (?:(?:http\s|error\s)?[45]\d\d:?\s)?(?:
        (?:\w+\s)?not\sfound | access\s(?:to|denied) | invalid\s(?:username|credentials|token)
        | unauthorized | forbidden | authentication\srequired | bad\s(?:request|gateway) | gateway\stime-?out
        | internal\s(?:server\s)?error | too\smany\srequests | service\sunavailable
      )\b""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

# The first bytes, as a regular expression -> what the file is: what to do. The first row that matches is used.
STRANGERS = {
    rb"version https://git-lfs": "a git-lfs pointer, not the file itself: run `git lfs pull`",
    rb"\x89HDF\r\n\x1a\n": f"an HDF5 file, as Keras and TensorFlow write it: {SAVE}",
    rb"\x08[\x01-\x20](?:[\x12\x1a][\x01-\x7f][ -~]|[\x3a\x42])": f"an ONNX program: {PROGRAM}",
    rb"\x08\x01\x12": f"a TensorFlow SavedModel: {SAVE}",
    rb"\x08[\x02-\x20]\x12": f"a Core ML program: {PROGRAM}",
    rb"\n[\x01-\x7f]\n[\x01-\x7f][ -~]{2}": f"a TensorFlow graph: {SAVE}",
    rb".{4}TFL3": f"a TFLite program: {PROGRAM}",
    rb".{4}ORTM": f"an ONNX Runtime program: {PROGRAM}",
    rb"[fp]trt": f"a TensorRT engine: {PROGRAM}",
    rb"\s*<\?xml[^>]*>\s*<net\b": f"an OpenVINO program: {PROGRAM}",
    rb"lmgg|fmgg|tjgg|algg": "a GGML file, which is older than GGUF: convert it to .gguf",
    rb"\x93NUMPY": "one NumPy array without a name: save all weights by name, numpy.savez(path, **weights)",
    rb"\x1f\x8b": f"a gzip archive: {ARCHIVE}",
    rb"7z\xbc\xaf\x27\x1c": f"a 7-Zip archive: {ARCHIVE}",
    rb"Rar!\x1a\x07": f"a RAR archive: {ARCHIVE}",
    rb".{257}ustar": f"a tar archive: {ARCHIVE}",
    rb"BZh\d|\xfd7zXZ\0|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18": f"a compressed file: {ARCHIVE}",
    rb"PK": f"a zip archive: {ARCHIVE}",
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP": "a picture, and does not begin like a file of weights: name another",
    rb"%PDF": "a PDF document: give a file of weights",
}

# The name of a file in a folder, as a regular expression -> what the folder is: what to do.
STRANGE_FOLDERS = {
    r"Manifest\.json|.*\.mlmodel": f"a Core ML package: {PROGRAM}",
    r"saved_model\.pb": f"a TensorFlow SavedModel: {SAVE}",
    r".*\.onnx": f"an ONNX program: {PROGRAM}",
    r"openvino_model\.xml": f"an OpenVINO program: {PROGRAM}",
    r".*\.(?:engine|plan)": f"a TensorRT engine: {PROGRAM}",
    r".*\.tflite": f"a TFLite program: {PROGRAM}",
    r".*\.(?:h5|keras)": f"a Keras model: {SAVE}",
    r"_CHECKPOINT_METADATA|manifest\.ocdbt": f"a checkpoint of Orbax: {SAVE}",
}


def stranger(path: Path, start: bytes, size: int, known: Collection[str]) -> WeightFileError:
    """The error for a file of `size` bytes that begins like no container; `known` are the suffixes of containers."""
    if not size:
        return WeightFileError(f"{path} is empty and does not begin like a file of weights: download or save it again.")
    for pattern, description in STRANGERS.items():
        if re.match(pattern, start, re.DOTALL):
            return WeightFileError(f"{path} is {description}.")
    if words := _text(start):
        return page(path, words)
    begins = f"{path} ({size} bytes) does not begin like a file of weights"
    if not any(start):
        return WeightFileError(f"{begins} but with zeros: the download is incomplete, repeat it.")
    return WeightFileError(f"{begins}: expected the content of {', '.join(known)}.")


def page(path: Path, text: str, instead: str = "weights") -> WeightFileError:
    """The error for a text, most often an answer of a server that was saved as if it were the file."""
    start = text[: 4 * MAX_WORDS]
    words = " ".join(start.split())
    words = words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}..."
    if re.match(r"<(?:!doctype|html)", start, re.IGNORECASE):
        return WeightFileError(
            f"{path} is a web page of a server, not {instead}; it begins with {words!r}: the download probably needs a "
            "login, so log in and download it again."
        )
    shown = f"; it begins with {words!r}" if ERROR_PAGE.match(start) else ""
    return WeightFileError(f"{path} is a page of a server or another text, not {instead}{shown}: {LOGIN}.")


def not_an_index(path: Path, content: Any, text: str) -> WeightFileError:
    """The error for JSON that is no index of shards."""
    if isinstance(content, dict) and "weight_map" in content:
        return WeightFileError(f"{path} is JSON, but no index of shards: it has no weight_map of tensors and files.")
    if isinstance(content, dict) and ("_class_name" in content or "_diffusers_version" in content):
        return WeightFileError(f"{path} is a config, not weights: give the file of weights, or the folder of both.")
    return page(path, text, "weights or an index of shards")


def strange_folder(names: Collection[str]) -> str | None:
    """What a folder with files of these names is, and what to do; None if nothing shows it."""
    rows = STRANGE_FOLDERS.items()
    return next((words for pattern, words in rows if any(re.fullmatch(pattern, name) for name in names)), None)


def _text(start: bytes) -> str | None:
    """The beginning of a file as text; None if it is none. A character may be cut off at the end."""
    for cut in range(4):
        try:
            text = start[: len(start) - cut].decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            continue
        readable = sum(c.isprintable() or c.isspace() for c in text)
        return text if len(text) >= MIN_TEXT and "\0" not in text and readable >= 0.75 * len(text) else None
    return None
