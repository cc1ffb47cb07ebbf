"""Compares an answer with a golden pack of vaespec: python check.py PACK ANSWER.safetensors [PREFIX]. Needs NumPy.

Exit code: 0 each output is within its budget; 1 one is not, or is missing; 2 the files cannot be compared.
PREFIX: only the outputs whose names begin with it, but all of them.
"""

import json
import sys
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def opened(path):
    """The tensors of a safetensors file, by name: a table in JSON, its length before it, the numbers behind it."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    table = data[8:start] if start <= len(data) else b""
    rows = json.loads(table).items()
    return {name: array(data[start:], **row) for name, row in rows if name != "__metadata__"}


def array(data, dtype, shape, data_offsets):
    """One row of the table, in float64."""
    a = np.frombuffer(data[slice(*data_offsets)], DTYPES[dtype]).reshape(shape)
    return ((a.astype("<u4") << 16).view("<f4") if dtype == "BF16" else a).astype(np.float64)


def used(answer, expected, budget):
    """The share of the budget that the difference uses; NaN if there is no answer, or one of another shape."""
    d = np.abs(answer - expected) if answer is not None and answer.shape == expected.shape else np.array(np.nan)
    return max(np.sqrt(np.mean(d**2)), d.max() / 30) / np.sqrt(np.mean(expected**2)) / budget


def main(pack, path, prefix=""):
    """Prints a line for each output, and the first that is outside its budget."""
    expected, answer = opened(Path(pack, "expected.safetensors")), opened(path)
    ends = ("sample",) if "moments" in answer else ("mean", "logvar", "sample")
    names = [name for name in expected if f"budget.{name}" in expected and name.startswith(prefix)]
    names = [name for name in names if prefix or name in answer or name in ends]
    shares = {name: used(answer.get(name), expected[name], expected[f"budget.{name}"]) for name in names}
    for name, share in shares.items():
        alike = name in answer and answer[name].shape == expected[name].shape
        fault = ": missing" if name not in answer else "" if alike else ": wrong shape"
        print(f"{name:48} {share:8.3f} of its budget{fault}")
    wrong = [name for name, share in shares.items() if not share <= 1]
    if not names:
        raise ValueError(f"{path} has no output whose name begins with {prefix!r}")
    print(f"first outside its budget: {wrong[0]}" if wrong else "all within their budgets")
    return int(bool(wrong))


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"check: needs PACK ANSWER.safetensors [PREFIX], whole files with floats: {error}", file=sys.stderr)
        sys.exit(2)
