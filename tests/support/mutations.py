"""Changes small files at random and opens them: `python -m support.mutations CONTAINER COUNT` prints a tally as JSON.

In a process of its own, so that a crash is a failed test; every file has a time and, by tracemalloc, a memory limit.
"""

from __future__ import annotations

import functools
import json
import resource
import signal
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
from support.weight_files import WRITERS, tensors

from vaespec import WeightFileError
from vaespec.weights.containers import open_tensors, opening

SECONDS = 5  # for one file
SLACK = 200_000  # bytes that reading any file takes: buffers, the objects of a header


def mutant(rng: np.random.Generator, content: bytes) -> bytes:
    """Some bytes changed, or the end cut off; half of the changes are where headers are."""
    if rng.random() < 0.2:
        return content[: rng.integers(len(content))]
    changed = np.frombuffer(content, np.uint8).copy()
    span = int(rng.choice([16, 128, 1024, len(content)]))
    places = rng.integers(min(span, len(content)), size=rng.integers(1, 4))
    if rng.random() < 0.3:
        places = len(content) - 1 - places  # a zip's directory is at its end
    changed[places] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))], size=len(places))
    return changed.tobytes()


def require_good_words(error: WeightFileError, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


def outcome(path: Path) -> str:
    try:
        file = open_tensors(path)
        for name in file:
            assert (file[name].shape, file[name].dtype.name) == (file.shape(name), file.dtype(name))
    except WeightFileError as error:
        require_good_words(error, path)
        return "refused"
    return "loaded"


def main(container: str, count: int) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp())
    path = WRITERS[container](folder, tensors())
    whole, rng = path.read_bytes(), np.random.default_rng(list(container.encode()))
    # Which backends are installed is looked up once: it takes 30 ms and 200 kB, whatever the file.
    opening.backends, opening.get_backend = map(functools.cache, (opening.backends, opening.get_backend))
    tally: dict[str, float] = {"loaded": 0, "refused": 0, "hungriest": 0}
    assert outcome(path) == "loaded"
    path.write_bytes(b"PK")
    assert outcome(path) == "refused"  # and all is imported that opening any file may need
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    for i in range(count):
        path.write_bytes(content := mutant(rng, whole))
        (folder / "last").write_text(str(i))
        signal.alarm(SECONDS)
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        try:
            tally[outcome(path)] += 1
        except BaseException:
            print(f"mutation {i} of {path}: {content[:200]!r}", file=sys.stderr)
            raise
        taken = tracemalloc.get_traced_memory()[1] - start
        assert taken <= 2 * len(content) + SLACK, f"mutation {i} took {taken} bytes"
        tally["hungriest"] = max(tally["hungriest"], taken)
    signal.alarm(0)
    tally["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return tally


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
