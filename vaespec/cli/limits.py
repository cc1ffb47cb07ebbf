"""Memory and the place of temporary files: what a command may use, asked before weights and pixels are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vaespec.architecture import DECODER, Half
from vaespec.autoencoder import AutoencoderKL
from vaespec.cli.console import Steps
from vaespec.cli.failures import Failures
from vaespec.cli.latents_file import Latents
from vaespec.cli.picture_files import Pad, PictureFile, framed_size
from vaespec.dtypes import storage_dtype
from vaespec.errors import InputError, MemoryLimitError
from vaespec.model import Model
from vaespec.tiling import planner
from vaespec.tiling.planner import Allowance, MemoryPlan, as_bytes
from vaespec.tiling.settings import Tiling


@dataclass(frozen=True)
class Task:
    """A half to run on an input of `shape` for the file at `path`, while `held` bytes of pictures are in memory."""

    path: Path
    half: Half
    shape: tuple[int, ...]
    held: int = 0


@dataclass(frozen=True)
class Limits:
    """The options --max-memory and --offload-folder."""

    max_memory: str | None
    offload_folder: Path | None

    def apply(self, vae: AutoencoderKL, step: Steps) -> None:
        """Makes the model keep the limits, show its progress, and say when maps go to files."""

        def say(plan: MemoryPlan) -> None:
            if plan.folder is not None:
                step.say(f"memory is short: {plan}")

        vae.enable_tiling(
            "auto", max_memory=self.max_memory, offload_folder=self.offload_folder, progress=step.part, on_plan=say
        )

    def require(self, model: Model, tasks: Iterable[Task]) -> None:
        """Raises the MemoryLimitError with the greatest need of the tasks. `model` has no params.

        It is a forecast: what the process holds later cannot be known exactly, and the runs check it again. Tasks whose
        input is too small for the padding are left out: their runs say so.
        """
        if refusals := self._refusals(model, [], [task for task in tasks if not _too_small(model, task)]):
            raise max(refusals.values(), key=_need)

    def affordable(
        self, model: Model, pictures: Sequence[PictureFile], tasks: Iterable[Task], failures: Failures
    ) -> list[PictureFile]:
        """The pictures that the padding allows, and for whose reading and tasks the memory suffices (see `require`).

        The others are noted as failures. Raises the MemoryLimitError with the greatest need if no picture is left.
        """
        tasks = list(tasks)
        small: dict[Path, InputError] = {}
        for task in tasks:
            if error := _too_small(model, task):
                small.setdefault(task.path, error)
        for path, error in small.items():
            with failures.caught(str(path)):
                raise error
        pictures = [picture for picture in pictures if picture.path not in small]
        failures.require_any(pictures)
        refusals = self._refusals(model, pictures, [task for task in tasks if task.path not in small])
        left = [picture for picture in pictures if picture.path not in refusals]
        if not left and not failures.found:
            raise max(refusals.values(), key=_need)
        for path, refusal in refusals.items():
            with failures.caught(str(path)):
                raise refusal
        failures.require_any(left)
        return left

    def _refusals(
        self, model: Model, pictures: Sequence[PictureFile], tasks: Iterable[Task]
    ) -> dict[Path, MemoryLimitError]:
        """The MemoryLimitError with the greatest need of each file that has one; its message names the file."""
        limit = None if self.max_memory is None else as_bytes(self.max_memory)
        tiling = Tiling(enabled=True, mode="auto", max_memory=limit, offload_folder=self.offload_folder)
        weights = sum(math.prod(row.shape) for row in model.table().values()) * storage_dtype(model.ops.dtype).itemsize
        found = list(_too_large_to_read(model, tiling, weights, pictures) if model.ops.on_host else ())
        answers: dict[tuple[Half, tuple[int, ...], int], MemoryLimitError | None] = {}
        for task in tasks:
            question = task.half, task.shape, task.held
            if question not in answers:
                answers[question] = _refusal(model, task, tiling, weights + task.held * model.ops.on_host)
            if refusal := answers[question]:
                found.append((task.path, refusal))
        greatest = dict(sorted(found, key=lambda pair: _need(pair[1])))  # the last one of a path stays
        return {path: MemoryLimitError(f"{path}: {error}", error.enough) for path, error in greatest.items()}


def _refusal(model: Model, task: Task, tiling: Tiling, held: int) -> MemoryLimitError | None:
    try:
        planner.choose(model, task.half, task.shape, tiling, held)
    except MemoryLimitError as error:
        return error
    return None


def _too_small(model: Model, task: Task) -> InputError | None:
    """The error of a task whose input is too small for the padding."""
    try:
        model.require_size(task.half, task.shape)
    except InputError as error:
        return error
    return None


def _need(refusal: MemoryLimitError) -> int:
    return refusal.enough


def picture_tasks(model: Model, pictures: Sequence[PictureFile], pad: Pad, halves: Sequence[Half]) -> Iterable[Task]:
    """The tasks of pictures to encode, and to decode again if that half is named."""
    for picture in pictures:
        height, width = framed_size(picture.height, picture.width, model.config, pad)
        pixel = model.config.in_channels * picture.value_bytes
        held = pixel * picture.height * picture.width
        if (height, width) != (picture.height, picture.width):
            held += pixel * height * width
        if DECODER in halves and model.config.out_channels != model.config.in_channels:  # read again, to compare
            held += model.config.out_channels * picture.value_bytes * picture.height * picture.width
        for half in halves:
            yield Task(picture.path, half, half.input_shape(model.config, 1, height, width), held)


def latent_tasks(model: Model, path: Path, latents: Latents) -> Iterable[Task]:
    """The tasks of decoding the pictures in a file of latents; none if the model cannot, which is refused elsewhere."""
    if latents.config.downsampling_factor != model.config.downsampling_factor:
        return
    for entry in latents.entries:
        height, width = framed_size(entry.height, entry.width, latents.config, entry.pad)
        yield Task(path, DECODER, DECODER.input_shape(model.config, 1, height, width))


def _too_large_to_read(
    model: Model, tiling: Tiling, weights: int, pictures: Sequence[PictureFile]
) -> Iterable[tuple[Path, MemoryLimitError]]:
    allowance = Allowance.of(model, tiling, weights)
    for picture in pictures:
        need = allowance.held + picture.reading_bytes[model.config.in_channels]
        if need > allowance.most:
            size = f"{picture.width} x {picture.height} px"
            yield picture.path, allowance.refusal(need, "to read the picture", f"all of its {size} decoded")
