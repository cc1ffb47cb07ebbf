"""What is not a file of weights is called by its name, with what to do; the words of a text are shown escaped."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vaespec import WeightFileError
from vaespec.weights.containers import open_tensors
from vaespec.weights.folders import choose


def error_of(path: Path) -> str:
    with pytest.raises(WeightFileError) as caught:
        open_tensors(path)
    words = str(caught.value)
    assert str(path) in words
    assert words.isprintable()
    assert len(words) < 500
    return words


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b'{"error": "Repository not found"}', '{"error": "Repository not found"}'),
        (b'{"error": "\\u001b[31m \x1b[31m"', None),
        (b"Invalid username or password.", "'Invalid username or password.'"),
        (b"Entry not found\n", "'Entry not found'"),
        (b"\xef\xbb\xbfAccess denied: \x1b[31m", r"'Access denied: \x1b[31m'"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "<Error><Code>AccessDenied"),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "<title>Sign in"),
        (b"\n\n <html>", "'<html>'"),
        (b"403 Forbidden: " + "ü".encode() * 5000, "'403 Forbidden: üü"),
        (b"HTTP 404: Page not found", "'HTTP 404: Page not found'"),
        (b'[{"message": "rate limit"}]', "rate limit"),
    ],
)
def test_a_page_of_a_server_is_called_so_and_its_first_words_are_shown(tmp_path, content, shown):
    (tmp_path / "m.safetensors").write_bytes(content)
    words = error_of(tmp_path / "m.safetensors")
    if shown is None:
        assert "damaged shard index" in words
    else:
        assert "page of a server" in words
        assert "not weights" in words
        assert "but a web page" not in words
        assert "download it again" in words
        assert shown in words


def test_a_config_given_as_weights_is_called_so(tmp_path):
    (tmp_path / "m").write_text('{"_class_name": "AutoencoderKL", "latent_channels": 4}')
    assert "is a config, not weights: give the file of weights, or the folder of both" in error_of(tmp_path / "m")


def tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.bin"), io.BytesIO())
    return content.getvalue()


def npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.ones(3))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty and does not begin like a file of weights: download or save it again"),
        (bytes(4096), r"begin like a file of weights but with zeros: the download is incomplete"),
        (b"\x89HDF\r\n\x1a\n" + bytes(88), "an HDF5 file, as Keras and TensorFlow write it: save the weights as"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:", "an ONNX program: give the weights that it was made from"),
        (b"\x08\x08:\xc3\x1f\n", "an ONNX program"),
        (b"\x08\x01\x12\xc3\x99\x01\n\x8c", "a TensorFlow SavedModel"),
        (b"\x08\x05\x12\x9a\x01\n\x12", "a Core ML program"),
        (b"\nD\n\x05input\x12", "a TensorFlow graph"),
        (b"\x1c\0\0\0TFL3\x14\0", "a TFLite program"),
        (b"ftrt\0\0\0\0\x01", "a TensorRT engine"),
        (b'<?xml version="1.0"?>\n<net name="Model0" version="11">', "an OpenVINO program"),
        (b"lmgg\x01\0\0\0", "older than GGUF"),
        (npy(), "one NumPy array without a name"),
        (b"\x1f\x8b\x08\0", "a gzip archive: unpack it"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "a 7-Zip archive: unpack it"),
        (b"Rar!\x1a\x07\x01\0", "a RAR archive: unpack it"),
        (tar(), "a tar archive: unpack it"),
        (b"\x28\xb5\x2f\xfd\0", "a compressed file: unpack it"),
        (b"PK\5\6" + bytes(18), "a zip archive"),
        (b"\x89PNG\r\n\x1a\n", "a picture, and does not begin like a file of weights: name another"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\xff" * 4096, r"does not begin like a file of weights: expected the content of \.safetensors"),
    ],
)
def test_other_programs_files_are_called_by_their_names(tmp_path, content, words):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(WeightFileError, match=words):
        open_tensors(tmp_path / "m.safetensors")
    error_of(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Manifest.json", "a Core ML package"),
        ("saved_model.pb", "a TensorFlow SavedModel"),
        ("model.onnx", "an ONNX program"),
        ("model.tflite", "a TFLite program"),
        ("vae.engine", "a TensorRT engine"),
        ("model.h5", "a Keras model"),
        ("_CHECKPOINT_METADATA", "a checkpoint of Orbax"),
    ],
)
def test_a_folder_of_another_program_is_called_by_its_name(tmp_path, name, words):
    (tmp_path / name).touch()
    with pytest.raises(WeightFileError, match=rf"no weights in .*: it is {words}: "):
        choose(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"root:SECRET:0:0:root:/root:/bin/bash",
        b"access_key = SECRET",
        b'{"auths": {"registry": {"auth": "SECRET"}}}',
        b"[SECRET, 2]",
        b'<?xml version="1.0"?><settings><password>SECRET</password></settings>',
        b"-----BEGIN SECRET PRIVATE KEY-----",
    ],
)
def test_a_text_that_no_server_answers_is_not_shown(tmp_path, content):
    """A link in a stranger's folder may lead to any file of the user."""
    (tmp_path / "private").write_bytes(content)
    (tmp_path / "m.safetensors").symlink_to(tmp_path / "private")
    words = error_of(tmp_path / "m.safetensors")
    assert "is a page of a server or another text, not weights" in words
    assert "SECRET" not in words
