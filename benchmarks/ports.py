"""Puts public ports of this VAE under the conformance suite, and writes docs/who-computes-the-same-vae.md.

    python -m benchmarks.ports [--folder FOLDER] [--table] [NAME ...]

Each port is an adapter in examples/ports and an environment of its own in FOLDER, which is created once, with pinned
versions from PyPI. `vaespec conformance --profile quick` examines it there, and its report stays in FOLDER/reports.
The page is written from all reports that are there; --table writes it without a run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from vaespec_conformance.reports.report import Report
from vaespec_conformance.reports.result import Result
from vaespec_conformance.reports.text import grade_text, margin

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "who-computes-the-same-vae.md"
COLOURS = re.compile("\x1b\\[[0-9;]*m")
"""What a terminal takes for a colour; some frameworks put it into their messages."""
FOLDER = Path(tempfile.gettempdir()) / "vaespec-ports"


@dataclass(frozen=True)
class Port:
    """A port: its adapter and builder, what pip installs, and what the page says of it.

    `alone` is installed without its requirements, of which the VAE does not need most. `known` is the line of the
    port's source that explains a difference.
    """

    title: str
    adapter: str
    requires: tuple[str, ...]
    alone: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    known: str = ""

    @property
    def package(self) -> str:
        """The first pinned package, which gives the environment its name: "keras-hub==0.32.0"."""
        return (*self.alone, *self.requires)[0]

    @property
    def command(self) -> str:
        """The command that examines the port, from the root of the repository."""
        variables = "".join(f"{name}={value} " for name, value in self.variables.items())
        return f"{variables}vaespec conformance --port examples/ports/{self.adapter} --profile quick"


KERAS = ("keras==3.15.1", "jax==0.10.2", "absl-py", "kagglehub", "packaging", "regex", "rich", "sentencepiece")
FLAX = ("diffusers==0.35.2", "flax==0.10.7", "jax==0.6.2", "transformers==4.57.6")
MFLUX = ("mlx[cpu]==0.32.2", "transformers>=5.5,<6", "huggingface-hub<2", "platformdirs", "piexif", "toml", "tqdm")
JAX = {"KERAS_BACKEND": "jax"}
PORTS = {
    "keras-hub": Port(
        "KerasHub, channels_last", "keras_hub_sd3.py:build", (*KERAS, "tokenizers"), ("keras-hub==0.32.0",), JAX
    ),
    "keras-hub-first": Port(
        "KerasHub, channels_first",
        "keras_hub_sd3.py:build_first",
        (*KERAS, "tokenizers"),
        ("keras-hub==0.32.0",),
        JAX,
        "keras_hub/src/models/vae/vae_layers.py:113, 117: tokens are reshaped to (B, C, H, W), then transposed.",
    ),
    "mflux": Port("mflux, FLUX.2", "mflux_flux2.py:build", MFLUX, ("mflux==0.24.0",)),
    "onnxruntime": Port(
        "ONNX Runtime, exported from diffusers",
        "onnxruntime_diffusers.py:build",
        ("onnxruntime==1.32.0", "onnx==1.23.2", "torch==2.13.0", "diffusers==0.42.1"),
    ),
    "flax": Port(
        "diffusers' Flax",
        "flax_diffusers.py:build",
        FLAX,
        known="flax/linen/normalization.py:67 (0.10.7): `use_fast_variance=True` by default, a variance E[x²] - E[x]².",
    ),
    "flax-centred": Port("diffusers' Flax, use_fast_variance=False", "flax_diffusers.py:build_centred", FLAX),
    "tinygrad": Port(
        "tinygrad, examples/stable_diffusion.py",
        "tinygrad_sd1.py:build",
        ("tinygrad==0.14.0",),
        variables={"TINYGRAD": "CHECKOUT"},
        known="examples/stable_diffusion.py:22, 41, 43, 76, 109 (a9069c1): GroupNorm's default epsilon is 1e-5.",
    ),
}


def main() -> None:
    """Examines the named ports, or all, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PORTS), metavar="NAME", help=", ".join(PORTS))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--table", action="store_true", help="write the page from the reports that are there")
    arguments = parser.parse_args()
    reports = arguments.folder / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    for name in () if arguments.table else arguments.names:
        if name == "tinygrad" and "TINYGRAD" not in os.environ:
            print("tinygrad: its wheel has no examples: set TINYGRAD to a checkout of its repository.")
            continue
        examine(PORTS[name], arguments.folder, reports / f"{name}.json")
    PAGE.write_text("\n".join(page(reports)) + "\n", encoding="utf-8")


def examine(port: Port, folder: Path, report: Path) -> None:
    """Runs the suite on a port in its own environment, which is created if it is missing."""
    suite = environment(port, folder).with_name("vaespec")
    command = [suite, "conformance", "--port", f"examples/ports/{port.adapter}"]
    given = {name: os.environ.get(name, value) for name, value in port.variables.items()}
    print(f"-- {port.title}", flush=True)
    subprocess.run(
        [*command, "--profile", "quick", "--jobs", "1", "--time-limit", "600", "--report", report],
        cwd=ROOT,
        env={**os.environ, **given},
        check=False,
    )


def environment(port: Port, folder: Path) -> Path:
    """The Python of the port's environment."""
    place = folder / port.package.replace("==", "-")
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *port.requires, "-e", f"{ROOT}[conformance]"], check=True)
        if port.alone:
            subprocess.run([*pip, "--no-deps", *port.alone], check=True)
    return python


# -- the page ----------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Who computes the same VAE

Written by `python -m benchmarks.ports`, from reports of the conformance suite. Each port is run as it is, behind an
adapter of at most 40 lines in [examples/ports](../examples/ports), with its own loader where it has one. The adapter
declares what the port takes; what it does not take is not asked of it, and does not count. A budget is the error that
the specification allows in a case, computed from what rounding must cause; "used" is the largest share of it in any
check. A difference is one of these versions, on this machine, on weights that the suite draws so that differences show:
on trained weights it may be smaller."""
HEADER = "| port | version | date | verdict | conformant for | used | likely cause, as the suite names it |"


def page(reports: Path) -> Iterator[str]:
    """The lines of the page: a table, and for each port how it was run and what differed."""
    found = {name: path for name in PORTS if (path := reports / f"{name}.json").exists()}
    read = {name: (Report.read(path), _date(path)) for name, path in found.items()}
    yield from (INTRODUCTION, "", HEADER, "|" + " --- |" * (HEADER.count("|") - 1))
    for name, (report, date) in read.items():
        yield _row(PORTS[name], report, date)
    for name, (report, date) in read.items():
        yield from ("", f"## {PORTS[name].title}", "", *_section(PORTS[name], report, date))


def _row(port: Port, report: Report, date: str) -> str:
    known = report.about["claims"]["families"]
    families = ", ".join(label for label in report.taken if label in known) if report.exit_code == 0 else "–"
    causes = dict.fromkeys(result.failure.hint or "none named" for result in report.bad if result.failure)
    used = f"{margin(report.worst.margin)} (`{report.worst.id}`)" if report.worst else "–"
    cells = (port.title, port.package, date, report.verdict, families, used)
    return "| " + " | ".join((*cells, "; ".join(causes) or "–")) + " |"


def _section(port: Port, report: Report, date: str) -> Iterator[str]:
    facts = report.about["environment"].items()
    machine = ", ".join(f"{name} {value}" for name, value in facts if not value.startswith("not "))
    yield f"Run on {date} with {', '.join((*port.alone, *port.requires))}; {machine}."
    yield from ("", "```", port.command, "```", "", f"{report.headline.split('. ')[-1]}")
    for dtype in filter(report.grade, report.dtypes):
        yield from ("", f"Grade in {dtype}: {grade_text(report, dtype)}.")
    for why, parts in _grouped((why, what) for what, why in report.left_out.items()):
        yield from ("", f"Not asked ({why}): {'; '.join(parts)}.")
    for words, checks in _grouped((_failure(result), f"`{result.id}`") for result in report.bad):
        yield from ("", f"- {', '.join(checks)}: {words}")
    if report.bad and port.known:
        yield from ("", f"In the source: {port.known}")


def _failure(result: Result) -> str:
    """What a failure says, and its likely cause."""
    failure = result.failure
    if failure is None:
        return result.reason or ""
    words = " ".join(COLOURS.sub("", failure.message.partition("Arguments received")[0]).split())
    return f"{words} Likely: {failure.hint}" if failure.hint else words


def _grouped(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """(key, the values that have it), in the order of the keys."""
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    yield from found.items()


def _date(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d")


if __name__ == "__main__":
    sys.exit(main())
