"""The example programs, built as they are or with a planted defect, and the same Python file as a port."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vaespec_conformance import PortSubject

PROGRAMS = Path(__file__).parents[2] / "examples" / "programs"
SOURCES = {name: PROGRAMS / name / f"vae.{end}" for name, end in (("c", "c"), ("rust", "rs"), ("javascript", "mjs"))}
TWIN = PROGRAMS / "python" / "vae.py"

DEFECTS = {
    "eps_1e_5": {
        "c": ("EPS = 1e-6", "EPS = 1e-5"),
        "javascript": ("EPS = 1e-6", "EPS = 1e-5"),
        "python": ("EPS = 1e-6", "EPS = 1e-5"),
    },
    "zeros_on_all_sides_of_downsampling": {
        "c": ("DOWN = {3, 2, 0, 1, 4}", "DOWN = {3, 2, 1, 1, 4}"),
        "javascript": ("stride: 2, before: 0", "stride: 2, before: 1"),
        "python": ("SAME, DOWN, NONE = (1, 1), (0, 1)", "SAME, DOWN, NONE = (1, 1), (1, 1)"),
    },
    "no_clamp": {
        "c": ("fminf(fmaxf(logvar.x[i], -30), 20)", "logvar.x[i]"),
        "javascript": ("Math.min(Math.max(n, -30), 20)", "n"),
        "python": ("np.clip(logvar, -30, 20)", "logvar"),
    },
    "attention_without_scale": {
        "c": ("scale = 1 / sqrt((double)q.c)", "scale = 1"),
        "javascript": ("scale = 1 / Math.sqrt(q.channels)", "scale = 1"),
        "python": ("scale = 1 / np.sqrt(q.shape[2])", "scale = 1"),
    },
    "bilinear_upsampling": {
        "c": (
            "y.x[(c * y.h + i) * y.w + j] = x.x[(c * x.h + i / 2) * x.w + j / 2];",
            "for (int k = 0; k < 4; k++) { long u = i / 2 + k / 2 * (i % 2 * 2 - 1), "
            " v = j / 2 + k % 2 * (j % 2 * 2 - 1);"
            " u = u < 0 ? 0 : u < x.h ? u : x.h - 1; v = v < 0 ? 0 : v < x.w ? v : x.w - 1;"
            " float *to = &y.x[(c * y.h + i) * y.w + j]; if (!k) *to = 0;"
            " *to += (k ? k < 3 ? 3 : 1 : 9) / 16.0f * x.x[(c * x.h + u) * x.w + v]; }",
        ),
        "javascript": (
            "x.numbers[plane * x.pixels + (row >> 1) * x.width + (column >> 1)];",
            "[[0, 0, 9], [1, 0, 3], [0, 1, 3], [1, 1, 1]].reduce((sum, [u, v, w]) => {"
            " const near = (n, far, end) => Math.min(Math.max((n >> 1) + far * (n % 2 ? 1 : -1), 0), end - 1);"
            " return sum + w / 16 * x.numbers[plane * x.pixels + near(row, u, x.height) * x.width"
            " + near(column, v, x.width)]; }, 0);",
        ),
        "python": (
            "return x.repeat(2, axis=2).repeat(2, axis=3)",
            "x = x.repeat(2, axis=2).repeat(2, axis=3)\n"
            "    for axis in (2, 3):\n"
            "        i = np.arange(x.shape[axis])\n"
            "        x = 0.75 * x + 0.25 * x.take(np.clip(i + 2 * (i % 2) - 1, 0, len(i) - 1), axis)\n"
            "    return x.astype(np.float32)",
        ),
    },
    "attention_without_residual": {
        "c": ("v), x.c, LINEAR);\n    return noted(model, name, add(x, h))", "v), x.c, LINEAR);\n    return h"),
        "javascript": (
            "v), x.channels, LINEAR);\n  return model.noted(name, add(x, h))",
            "v), x.channels, LINEAR);\n  return h",
        ),
        "python": ("reshape(x.shape)\n    return model.noted(name, add(x, h))", "reshape(x.shape)\n    return h"),
    },
    "one_group": {
        "c": ('groups = number_of(model->config, "norm_num_groups")', "groups = 1"),
        "javascript": ("groups = model.config.norm_num_groups", "groups = 1"),
        "python": ('groups = model.config["norm_num_groups"]', "groups = 1"),
    },
    "mean_and_logvar_swapped": {
        "c": (
            "mean = channels(moments, 0, moments.c / 2), logvar",
            "logvar = channels(moments, 0, moments.c / 2), mean",
        ),
        "javascript": ('["mean", moments.part(0, half)], ["logvar"', '["logvar", moments.part(0, half)], ["mean"'),
        "python": ('"mean": mean, "logvar": np.clip', '"logvar": mean, "mean": np.clip'),
    },
    "relu": {
        "c": ("(float)(x.x[i] / (1 + exp(-(double)x.x[i])))", "fmaxf(x.x[i], 0)"),
        "javascript": ("n / (1 + Math.exp(-n))", "Math.max(n, 0)"),
        "python": ("(x / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)", "np.maximum(x, 0)"),
    },
    "convolutions_without_bias": {
        "c": ("sums[c] = bias[o]", "sums[c] = g.axes == 4 ? 0 : bias[o]"),
        "javascript": ("sums.fill(bias[o])", "sums.fill(axes === 4 ? 0 : bias[o])"),
        "python": ("width)) + bias[:, None, None]", "width))"),
    },
}


def planted(source: str, language: str, defect: str | None) -> str:
    """The text of a program with a defect."""
    if defect is None:
        return source
    old, new = DEFECTS[defect][language]
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in the program in {language}"
    return source.replace(old, new)


def command_of(language: str, folder: Path, defect: str | None = None) -> list[str]:
    """The words that run a program, built in the folder; skips the test if there is no compiler."""
    tool = shutil.which({"c": "cc", "rust": "rustc", "javascript": "node"}[language])
    if tool is None:
        pytest.skip(f"there is nothing here that runs {language}")
    source, program = folder / SOURCES[language].name, folder / "vae"
    source.write_text(planted(SOURCES[language].read_text(encoding="utf-8"), language, defect), encoding="utf-8")
    if language == "javascript":
        return [tool, str(source)]
    flags = {"c": ["-O1", "-std=c99"], "rust": ["-O", "--edition", "2021"]}[language]
    subprocess.run([tool, *flags, "-o", program, source, *["-lm"] * (language == "c")], check=True)
    return [str(program)]


class TwinVae:
    """The model of the Python file, as a port."""

    def __init__(self, module, config, weights):
        weights = {name: w.astype(np.float32) for name, w in weights.items()}
        self.module, self.model = module, module["Model"](config.to_dict(), weights)

    def encode(self, x):
        answer = self.module["encode"](self.model, x.astype(np.float32))
        return answer["mean"], answer["logvar"]

    def decode(self, z):
        return self.module["decode"](self.model, z.astype(np.float32))["sample"]


def twin(defect: str | None = None) -> PortSubject:
    """The Python program as a port in this process."""
    module: dict = {"__name__": "twin"}
    exec(compile(planted(TWIN.read_text(encoding="utf-8"), "python", defect), str(TWIN), "exec"), module)

    def build(config, weights):
        try:
            return TwinVae(module, config, weights)
        except module["NotSupportedError"] as reason:
            raise NotImplementedError(str(reason)) from None

    return PortSubject(build, "twin")
