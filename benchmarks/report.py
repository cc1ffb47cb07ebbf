"""Writes the results of `python -m benchmarks.run` as JSON, as a table, and as a plot of seconds and memory.

    python -m benchmarks.report speed-256.json speed-1024.json --output docs/speed

joins several reports into one, for example if large images were run less often.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker


def write(report, output):
    """Writes OUTPUT.json, OUTPUT.md and OUTPUT.png."""
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(markdown(report))
    plot(report, output.with_suffix(".png"))


def join(reports):
    """Joins several reports of one machine and the same versions."""
    first = reports[0]
    for other in reports[1:]:
        for field in ("machine", "device", "versions"):
            if other[field] != first[field]:
                raise SystemExit(f"{field} of two reports: {first[field]} and {other[field]}; join reports that agree.")
    left_out = {name: reason for report in reports for name, reason in report["left out"].items()}
    rows = sorted((row for report in reports for row in report["rows"]), key=lambda row: (row["size"], row["batch"]))
    return first | {"rows": rows, "left out": left_out}


def markdown(report):
    """A table for each case: seconds, and every figure as a ratio to the fastest peer and to diffusers."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    machine = report["machine"]
    context = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}; Python {machine['python']}, {versions}"
    lines = ["# Speed", "", f"Written by `python -m benchmarks.run`, on {context}.", ""]
    for case in cases(report):
        lines += _table(case, [row for row in report["rows"] if _case(row) == case])
    lines += [f"Left out: {name} ({reason})." for name, reason in report["left out"].items()]
    return "\n".join(lines).rstrip() + "\n"


def cases(report):
    """The (direction, size, batch) of all rows, in order."""
    return list(dict.fromkeys(map(_case, report["rows"])))


def _case(row):
    return row["direction"], row["size"], row["batch"]


def ours(row):
    """Whether a row is ours, not a peer's."""
    return row["subject"].startswith("vaespec")


def fastest_peer(rows, precision):
    """Seconds of the fastest peer in a precision; None if there is none."""
    return min((r["seconds"] for r in rows if not ours(r) and r["precision"] == precision), default=None)


def _table(case, rows):
    direction, size, batch = case
    done, failed = [row for row in rows if "failed" not in row], [row for row in rows if "failed" in row]
    flops, ceiling = rows[0]["flops"], rows[0]["ceiling"]
    baseline = next((row for row in done if row["subject"] == "diffusers"), None)
    yield f"## {direction.capitalize()}, {size} px, batch {batch}"
    yield ""
    yield (
        f"{flops / 1e9:.0f} GFLOP as the model is written; a matrix product made {ceiling:.0f} GFLOP/s in this run. "
        f"Medians of {rows[0]['runs']} runs, subjects in turns."
    )
    yield ""
    columns = "subject, seconds, spread, x diffusers, x fastest peer, GFLOP/s, x product, MiB, x diffusers, error"
    yield "| " + columns.replace(",", " |") + " |"
    yield "|" + "---|" * 10
    for row in sorted(done, key=lambda row: row["seconds"]):
        rate = flops / row["seconds"] / 1e9
        peer = fastest_peer(done, row["precision"])
        figures = (
            f"{row['seconds']:.2f}",
            f"{row['least']:.2f} to {row['most']:.2f}",
            f"{baseline['seconds'] / row['seconds']:.2f}" if baseline else "",
            f"{peer / row['seconds']:.2f}" if peer else "",
            f"{rate:.0f}",
            f"{rate / ceiling:.2f}",
            f"{row['memory'] / 2**20:.0f}",
            f"{row['memory'] / baseline['memory']:.2f}" if baseline else "",
            "" if row["error"] is None else f"{row['error']:.1e}",
        )
        name = f"**{row['subject']}**" if ours(row) else row["subject"]
        yield f"| {name} | {' | '.join(figures)} |"
    yield ""
    for row in failed:
        yield f"{row['subject']} failed: {row['failed']}"
        yield ""


def plot(report, path):
    """Plots seconds and memory against pixels, on logarithmic axes: batch 1, decode and encode."""
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True)
    names = list(dict.fromkeys(row["subject"] for row in report["rows"]))
    for column, direction in enumerate(("decode", "encode")):
        rows = [r for r in report["rows"] if r["direction"] == direction and r["batch"] == 1 and "failed" not in r]
        for line, (figure_name, unit) in enumerate((("seconds", 1), ("memory", 2**20))):
            axis = axes[line][column]
            axis.set(xscale="log", yscale="log")
            for name in dict.fromkeys(row["subject"] for row in rows):
                points = sorted((row["size"] ** 2, row[figure_name] / unit) for row in rows if row["subject"] == name)
                style = {"linewidth": 2.5, "zorder": 3} if name.startswith("vaespec") else {"linewidth": 1}
                colour = matplotlib.colormaps["tab20"](names.index(name))  # the same in all four plots
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=colour, **style)
            axis.set_title(f"{direction}: {'seconds' if figure_name == 'seconds' else 'MiB at most'}")
            axis.grid(which="both", alpha=0.2)
            axis.set_xticks([size**2 for size in sorted({row["size"] for row in rows})])
            axis.set_xticklabels([f"{size}²" for size in sorted({row["size"] for row in rows})])
            axis.minorticks_off()
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    for axis in axes[1]:
        axis.set_xlabel("pixels")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize="small", frameon=False)
    figure.tight_layout(rect=(0, 0.02 + 0.025 * math.ceil(len(labels) / 5), 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Joins several reports into one.")
    parser.add_argument("reports", type=Path, nargs="+", help="JSON files of `python -m benchmarks.run`")
    parser.add_argument("--output", type=Path, required=True, help="files to write, without their ending")
    arguments = parser.parse_args()
    write(join([json.loads(path.read_text()) for path in arguments.reports]), arguments.output)
