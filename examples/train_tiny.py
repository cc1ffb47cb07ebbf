"""Train a tiny VAE (8 x smaller latents, 16 channels) in about an hour on two CPU cores, or on a GPU if there is one.

    pip install -e ".[test]"                                   # PyTorch >= 2.9, scikit-image, matplotlib
    python examples/train_tiny.py --export runs/tiny/export

Stop it at any time: the same command continues from `runs/tiny/checkpoint.pt`, on the same schedule.
Nothing is downloaded. The data are in `pictures.py`; astronaut, coffee and chelsea are measured, never trained on.
The log is `runs/tiny/training.csv`; its curve, and the weights, are written at the end.
"""

import argparse
import csv
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from pictures import crops, test_pictures
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

import vaespec

CONFIG = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 104],
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": False,
    "sample_size": 256,
    "scaling_factor": 1.0,  # measured after training
    "shift_factor": 0.0,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Crops (count, side) of a step: each step draws one of the three, which are equal in work. GroupNorm averages over the
# whole picture: a model that was trained on 64-pixel crops only is 4 dB worse on 256-pixel pictures.
CROPS = ((16, 64), (4, 128), (1, 256))
SMALL, LARGE = 0.04, 0.8  # of the schedule: before SMALL only the first of CROPS (the fastest), after LARGE the last
ADAM_RATE, MUON_RATE = 3e-3, 5e-3
WARM_UP = 200  # steps
KL_WEIGHT = 1e-5  # for the KL divergence per latent element: bounds the latents, and costs no visible detail
TRIAL = 100  # steps that are timed to turn --minutes into steps
COLUMNS = ("step", "seconds", "loss", "kl", *(f"psnr_{name}" for name in test_pictures()))


class Run:
    """The model, its moving average, the optimizers and the log: everything a checkpoint holds."""

    stateful = ("module", "average", "adam", "muon")
    counters = ("steps", "step", "seconds", "log")

    def __init__(self, steps):
        self.steps, self.step, self.seconds, self.log = steps, 0, 0.0, []
        self.module, self.average = new_vae(CONFIG).module(), new_vae(CONFIG).module()
        start_as_identity(self.module)
        self.matrices = [p for name, p in self.module.named_parameters() if is_matrix(name, p)]
        rest = [p for name, p in self.module.named_parameters() if not is_matrix(name, p)]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        # Muon takes matrices only: a convolution is one with a row per output channel. The views share its memory.
        self.views = [torch.nn.Parameter(p.data.view(len(p), -1)) for p in self.matrices]
        self.muon = torch.optim.Muon(self.views, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")

    def update(self, loss, rate):
        """Steps both optimizers at `rate` (0 to 1) of their full learning rates, then updates the average."""
        self.module.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for view, matrix in zip(self.views, self.matrices, strict=True):
            view.grad = matrix.grad.flatten(1)
        for optimizer, full_rate in ((self.adam, ADAM_RATE), (self.muon, MUON_RATE)):
            optimizer.param_groups[0]["lr"] = full_rate * rate
            optimizer.step()
        self.step += 1
        decay = min(0.999, self.step / (self.step + 10))  # a young average forgets the random start quickly
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.module.parameters()), 1 - decay)

    def save(self, path):
        """Writes a new file and renames it, so that an interruption leaves the old checkpoint intact."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in self.stateful}
        counters = {name: getattr(self, name) for name in self.counters}
        torch.save(parts | counters, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def load(self, path):
        """Continues from a file of `save`, with its number of steps."""
        saved = torch.load(path, map_location=DEVICE)
        for name in self.stateful:
            getattr(self, name).load_state_dict(saved.pop(name))
        vars(self).update(saved)


def new_vae(config):
    """A fresh model on the device."""
    return vaespec.AutoencoderKL.from_config(config, seed=0, backend="torch", device=DEVICE)


@torch.no_grad()
def start_as_identity(module):
    """Sets the last layer of each residual branch to zero, so that the signal passes from the first step on."""
    for name, p in module.named_parameters():
        if ".conv2." in name or ".to_out." in name:
            p.zero_()


def is_matrix(name, p):
    """Whether Muon trains the weight: all but the first and last layers, as its authors advise."""
    return p.ndim > 1 and "conv_in" not in name and "conv_out" not in name


def batch(rng, count, side):
    """Training pictures (count, 3, side, side) in [-1, 1], on the device."""
    return torch.from_numpy(crops(rng, count, side)).to(DEVICE, memory_format=torch.channels_last)


def train_step(run):
    """Updates once; returns (loss, KL per latent element)."""
    done = run.step / run.steps
    rng = np.random.default_rng([0, run.step])  # seeded by the step, so that a resumed run draws the same crops
    choices = CROPS[:1] if done < SMALL else CROPS if done < LARGE else CROPS[-1:]
    x = batch(rng, *choices[rng.integers(len(choices))])
    posterior = run.module.encode(x).latent_dist
    z = posterior.sample(noise=torch.randn_like(posterior.mean))
    error = run.module.decode(z).sample - x
    kl = posterior.kl().sum() / z.numel()
    # L1 steadies the start; the measure is PSNR, so the end is pure MSE.
    loss = error.square().mean() + 0.1 * (1 - done) * error.abs().mean() + KL_WEIGHT * kl
    run.update(loss, rate=min(1, (run.step + 1) / WARM_UP) * (1 + math.cos(math.pi * done)) / 2)
    return loss.item(), kl.item()


@torch.no_grad()
def measure(module):
    """PSNR in dB of decode(posterior mode) for each test picture, on uint8 values."""
    psnr = []
    for picture in test_pictures().values():
        x = torch.tensor(picture, dtype=torch.float32, device=DEVICE).permute(2, 0, 1)[None]
        y = module.decode(module.encode(x / 127.5 - 1).latent_dist.mean).sample.clamp(-1, 1)
        error = ((y + 1) * 127.5).round() - x
        psnr.append(10 * math.log10(255**2 / error.square().mean().item()))
    return psnr


def train(run, options):
    """Trains until the schedule ends, with a log row every `options.every` steps and a checkpoint every minute."""
    started, saved = time.monotonic() - run.seconds, time.monotonic()
    torch.manual_seed(run.step)
    recent = []
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("training", total=run.steps, completed=run.step)
        while run.step < run.steps:
            recent.append(train_step(run))
            run.seconds = time.monotonic() - started
            if run.step % options.every == 0 or run.step == run.steps:
                run.log.append((run.step, run.seconds, *np.mean(recent, axis=0).tolist(), *measure(run.average)))
                recent.clear()
                write_log(run.log, options.log)
            if time.monotonic() - saved > 60 or run.step == run.steps:
                run.save(options.checkpoint)
                saved = time.monotonic()
            psnr = f"PSNR {np.mean(run.log[-1][4:]):.2f} dB" if run.log else "training"
            progress.update(bar, completed=run.step, description=psnr)


def steps_for(minutes):
    """Computes how many steps fit, from the time of a trial run of TRIAL steps."""
    run = Run(TRIAL)
    train_step(run)  # draws the pool of pictures, once
    started = time.monotonic()
    while run.step < run.steps:
        train_step(run)
    return int(60 * minutes * (TRIAL - 1) / (time.monotonic() - started))


def write_log(rows, path):
    """Writes the whole log as CSV, so that a resumed run repeats no row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([row[0], *(f"{value:.5g}" for value in row[1:])] for row in rows)


def draw_curve(log, path):
    """Draws PSNR over time, one line for each test picture."""
    import matplotlib.pyplot as plt

    table = np.array(log)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, psnr in zip(test_pictures(), table[:, 4:].T, strict=True):
        axes.plot(table[:, 1] / 60, psnr, label=f"{name} ({psnr[-1]:.1f} dB)")
    axes.set(xlabel="minutes", ylabel="PSNR (dB)", title="Reconstruction of pictures not in the training set")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


@torch.no_grad()
def export(run, folder):
    """Writes the averaged weights as float16, with the shift and scale that normalize the latents (mean 0, std 1)."""
    rng = np.random.default_rng([1, 0])
    z = torch.cat([run.average.encode(batch(rng, 8, 256)).latent_dist.mean for _ in range(16)])
    config = CONFIG | {"scaling_factor": 1 / z.std().item(), "shift_factor": z.mean().item()}
    new_vae(config).with_params(run.average.state_dict()).save_pretrained(folder, dtype="float16")


def main():
    """Reads the command line; trains or continues; draws and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, default=10_000)
    budget.add_argument("--minutes", type=float, help="time a few steps first, then do as many as fit")
    parser.add_argument("--every", type=int, default=500, help="steps between two rows of the log")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/tiny/checkpoint.pt"))
    parser.add_argument("--log", type=Path, default=Path("runs/tiny/training.csv"))
    parser.add_argument("--export", type=Path, metavar="DIR", help="write config.json and float16 safetensors here")
    options = parser.parse_args()
    resuming = options.checkpoint.exists()
    run = Run(steps_for(options.minutes) if options.minutes and not resuming else options.steps)
    if resuming:
        run.load(options.checkpoint)
    train(run, options)
    draw_curve(run.log, options.log.with_suffix(".png"))
    if options.export:
        export(run, options.export)


if __name__ == "__main__":
    main()
