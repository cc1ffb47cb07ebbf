"""Measures a picture of a diffusers pipeline on the CPU: with its own VAE code, and with vaespec installed.

    python -m benchmarks.in_diffusers [--size 1024] [--runs 2]

The VAE has the widths of Stable Diffusion and random weights, in float32; the denoiser is a small one and takes one
step, so that the call is its decode. Each run has its own process, in turns; its peak is the highest resident memory
of the process, with frameworks and weights. "CPU seconds" add up the cores, and vary less on a machine that is busy.
Figures are medians. Needs the `test` extra.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

CASES = {"diffusers": None, "vaespec installed": {}, "vaespec installed, whole images": {"tiling": False}}
"""The options of `install`; None for a pipeline as it is."""


def pipeline():
    """A StableDiffusionPipeline whose VAE has the widths of Stable Diffusion."""
    import diffusers
    import torch

    from vaespec import families

    torch.manual_seed(0)  # each process draws the same model
    fields = {name: value for name, value in families.config("sd1").to_dict().items() if not name.startswith("_")}
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
    )
    with warnings.catch_warnings(action="ignore"):
        pipe = diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(**fields).eval(),
            unet=unet.eval(),
            scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
            **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(case, size, result):
    """Makes one picture, prints {seconds, CPU seconds, peak GiB} and writes the picture to the file `result`."""
    import torch

    pipe, options = pipeline(), CASES[case]
    if options is not None:
        import vaespec_diffusers

        vaespec_diffusers.install(pipe, **options)

    def picture(size):
        texts = {"prompt_embeds": torch.zeros(1, 4, 8), "guidance_scale": 1.0, "num_inference_steps": 1}
        seeded = torch.Generator().manual_seed(0)
        return pipe(height=size, width=size, output_type="np", generator=seeded, **texts).images

    picture(64)  # a first call imports and allocates
    before, worked = time.perf_counter(), time.process_time()
    image = picture(size)
    seconds, worked = time.perf_counter() - before, time.process_time() - worked
    np.save(result, image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds, "CPU seconds": worked, "peak GiB": peak / 2**30}))


def run(case, size, result):
    """The figures of one run in its own process."""
    command = [sys.executable, "-m", "benchmarks.in_diffusers", "--measure", case, "--size", str(size)]
    done = subprocess.run([*command, "--result", result], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(size, runs):
    """Prints a row for each case."""
    rows, images = {case: [] for case in CASES}, {}
    with tempfile.TemporaryDirectory() as folder:
        result = str(Path(folder, "image.npy"))
        for _ in range(runs):
            for case in CASES:
                rows[case].append(run(case, size, result))
                images[case] = np.load(result)
    figures = list(rows["diffusers"][0])
    print(f"| {size} px | {' | of diffusers | '.join(figures)} | of diffusers | error |")
    print("|---" * (2 * len(figures) + 2) + "|")
    medians = {case: [statistics.median(row[figure] for row in rows[case]) for figure in figures] for case in CASES}
    for case, values in medians.items():
        pairs = (f"{ours:.2f} | {ours / theirs:.2f}" for ours, theirs in zip(values, medians["diffusers"], strict=True))
        gap = np.linalg.norm(images[case] - images["diffusers"]) / np.linalg.norm(images["diffusers"])
        print(f"| {case} | {' | '.join(pairs)} | {gap:.1e} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="of the picture, in px")
    parser.add_argument("--runs", type=int, default=2, help="of each case, in turns")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.size, arguments.result)
    else:
        compare(arguments.size, arguments.runs)
