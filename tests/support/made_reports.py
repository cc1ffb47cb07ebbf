"""Reports with every status, built without a run."""

from __future__ import annotations

import numpy as np

from vaespec_conformance.reports.picture import error_picture
from vaespec_conformance.reports.report import Report
from vaespec_conformance.reports.result import Failure, Result

HOSTILE = '<script>alert("1")</script> & | `x`\n# not a heading'
ERROR = np.zeros((1, 2, 3, 4))
ERROR[0, 1, 2, 3] = 50

ABOUT = {
    "suite": {"version": "1.0", "checks_hash": 64 * "a"},
    "subject": {"kind": "backend", "name": "mine", "distribution": "mine 1.0", "device": "cpu", "label": "native"},
    "run": {"profile": "default", "seed": 0, "selection": {}},
    "environment": {"python": "3.11", "numpy": "2.4"},
    "claims": {"dtypes": ["float32", "bfloat16"], "features": ["tiling"], "required": ["float32"]},
    "precision": {"highest": {"class": "float32", "error": 1e-7}},
    "ops": {"conv2d": "native", "gelu": "fallback"},
    "canary": {"status": "caught", "mutant": "no bias", "check": "ops.conv2d[float32]"},
}

FAILURE = Failure(
    "conv2d is off by 0.5 of its size.",
    where="worst at (0, 1, 2, 3), at the border only",
    hint="matches eps=1e-5",
    case={"shape": [1, 2, 3, 4], "seed": 1},
    snippet="import numpy as np\nprint(np.zeros(3))\n",
    command="vaespec conformance --backend mine --check 'ops.conv2d[float32]' --case '{}'",
    picture=error_picture(ERROR),
)

PASS = Result("ops.conv2d", "L1", "float32", "pass", 30, 30, 0.41, 0.2)
HALF = Result("ops.conv2d", "L1", "bfloat16", "pass", 30, 30, 0.61, 0.7)
EXACT = Result("structure.add", "L1", "float32", "pass", 30, 30, 0.0, 0.0)
FAIL = Result("ops.group_norm", "L1", "float32", "fail", 3, 30, 570.0, 2.0, failure=FAILURE)
ERROR_RESULT = Result("model.decode", "L3", "float32", "error", failure=Failure("it did not end within 120 s."))
GAP = Result("ops.gelu", "L1", "bfloat16", "gap", 1, 30, reason="bug: its tail", url="https://example.org/1")
XPASS = Result("ops.mish", "L1", "bfloat16", "xpass", 30, 30, reason="bug: it was fixed")
UNDECLARED = Result("ops.conv2d", "L1", "float64", "undeclared", 1, 1, reason="float64 not claimed", works=True)
NOT_ASKED = Result("model.logvar", "L3", "float32", "not_asked", reason="x", not_asked={"the log-variance": "x"})


def report(*results, **about):
    return Report({**ABOUT, **about}, results)


GOOD = report(PASS, HALF, EXACT, GAP, UNDECLARED)
BAD = report(PASS, HALF, EXACT, FAIL, ERROR_RESULT, GAP, XPASS, UNDECLARED, NOT_ASKED)
VACUOUS = report()
HOSTILE_REPORT = report(
    Result(
        "ops.conv2d", "L1", "float32", "fail", 1, 1, failure=Failure(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: 1}, HOSTILE)
    ),
    Result("ops.gelu", "L1", "float32", "gap", 1, 1, reason=HOSTILE, url=f"javascript:{HOSTILE}"),
    subject={**ABOUT["subject"], "name": HOSTILE, "distribution": HOSTILE},
    environment={HOSTILE: HOSTILE},
)
ALL = {"good": GOOD, "bad": BAD, "vacuous": VACUOUS, "hostile": HOSTILE_REPORT}
