"""The check: predictions, the setup's results, then the reference's; and if they differ, from which size on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.architecture import ENCODER, Half, halves_among
from vaespec.errors import BackendError, MemoryLimitError
from vaespec.tiling import planner
from vaespec.tiling.settings import Tiling
from vaespec_conformance.judging.comparison import within
from vaespec_conformance.machine_check.findings import Comparison, Finding
from vaespec_conformance.machine_check.operations import WrongOperation, first_wrong_operation
from vaespec_conformance.machine_check.prediction import CROP, Prediction, RoundedWeights, predict, specified
from vaespec_conformance.machine_check.sample_inputs import Scale, latents, picture
from vaespec_conformance.machine_check.settings import CheckSettings
from vaespec_conformance.machine_check.sides import Computed, LoadedModel, computed_by
from vaespec_conformance.subjects.errors import ConformanceError

STEP = 16
"""The search for a size ends when the interval is a 16th of the size, or one latent."""
COMPARED = 5
"""How many times the memory of a run its comparison operation by operation takes."""


class MachineCheck:
    """Checks every half. One side is in memory at a time, and is freed before the other is loaded."""

    def __init__(self, settings: CheckSettings) -> None:
        self.settings, self.setup = settings, settings.setup
        f = settings.config.downsampling_factor
        longest = max(settings.height, settings.width)
        self.largest, self.f = longest, f
        self.small = min(CROP, longest) if longest > CROP else max(f, longest // 2 // f * f)
        self.crop = min(CROP, longest)
        self.scale = Scale(settings.config.shift_factor or 0.0, 1 / (settings.config.scaling_factor or 1.0))

    def run(self) -> list[Finding]:
        """The finding of every half: what is cheap comes first. Raises InputError if the memory is too little."""
        settings = self.settings
        settings.require()
        self._take_scale()
        predictions = {half: self._predict(half) for half in settings.halves}
        results = self._results()
        findings = []
        for half, comparison in self._comparisons(predictions, results):
            p = predictions[half]
            finding = Finding(half.verb, self.setup.dtype, p.budget, p.error, p.overflows, comparison)
            findings.append(finding if finding.right else self._explained(half, p, finding))
        return findings

    # -- the inputs, and what to expect --------------------------------------------------------------------

    def _input(self, half: Half, size: int | None = None) -> np.ndarray:
        """The picture or the latents, cropped to `size` px a side."""
        _, channels, height, width = self.settings.shape(half, size)
        return picture(channels, height, width) if half is ENCODER else latents(channels, height, width, self.scale)

    def _predict(self, half: Half) -> Prediction:
        """The budget of a half. The encoder's exact result gives the scale of the latents."""
        self.settings.tell(f"{half.verb}: predicting the rounding error at {self.crop} px in float64")
        x = self._input(half, self.crop)
        prediction = predict(half, self.settings.config, self.settings.weights, x, self.setup.dtype)
        if half is ENCODER:
            self.scale = Scale.of(prediction.exact)
        return prediction

    def _take_scale(self) -> None:
        """The scale of the latents if the encoder is there, but not asked for; without one it is the config's."""
        config, weights = self.settings.config, self.settings.weights
        if ENCODER not in self.settings.halves and ENCODER.name in halves_among(weights, config):
            self.settings.tell(f"decode: encoding {self.crop} px in float64, for latents of the right scale")
            x = self._input(ENCODER, self.crop)
            self.scale = Scale.of(specified(ENCODER, config, weights, x, self.setup.dtype))

    # -- both sides ----------------------------------------------------------------------------------------

    def _results(self) -> dict[Half, Computed]:
        """What the setup computes, at the size that was asked for."""
        self.settings.tell(f"loading the weights: {self.setup.words}")
        side = self.setup.load()
        results = {}
        for half in self.settings.halves:
            self.settings.tell(f"{half.verb}: {self._size()} as a whole, {self.setup.words}")
            results[half] = computed_by(side, half, self._input(half))
        return results

    def _comparisons(
        self, predictions: Mapping[Half, Prediction], results: Mapping[Half, Computed]
    ) -> Iterator[tuple[Half, Comparison]]:
        """Each half with its comparison: the weights of the reference are freed before the first is yielded."""
        reference, compared = self._reference(), []
        for half, p in predictions.items():
            self._require_right(reference, half, p)
            self.settings.tell(f"{half.verb}: {self._size()} in exact bands, the NumPy engine")
            compared.append((half, compare(results[half], self._expected(reference, half, None), p.budget)))
        del reference
        yield from compared

    def _reference(self) -> LoadedModel:
        ops = self.settings.reference_ops
        weights = RoundedWeights(self.settings.weights, self.setup.dtype, ops.dtype)
        return LoadedModel.of(self.settings.config, weights, ops)

    def _expected(self, reference: LoadedModel, half: Half, size: int | None) -> np.ndarray:
        """The reference's result, from the input as the setup's dtype holds it."""
        ops = self.settings.reference_ops
        x = rounded(self._input(half, size), self.setup.dtype).astype(ops.dtype)
        return reference.run(half, x, self.settings.bands)

    def _require_right(self, reference: LoadedModel, half: Half, p: Prediction) -> None:
        """Raises BackendError if the reference itself differs from the specification on the crop."""
        found = compare(Computed(self._expected(reference, half, self.crop)), p.exact, p.budget)
        if not found.right:
            raise BackendError(
                f"the NumPy engine, which is the reference, is wrong on this machine itself: {half.verb} of "
                f"{self.crop} px is off by {found.error:.2g}, {found.share:.3g} budgets: check memory and NumPy's BLAS."
            )

    # -- if a half is wrong --------------------------------------------------------------------------------

    def _explained(self, half: Half, p: Prediction, finding: Finding) -> Finding:
        """The finding with the size from which on it is wrong, the first wrong operation, and whether bands help.

        If the memory does not suffice to find these out, it is still a finding.
        """
        for step in (self._with_size, self._with_operation, self._with_bands):
            try:
                finding = step(half, p, finding)
            except (MemoryError, MemoryLimitError):
                self.settings.tell(f"{half.verb}: the memory is too little to find out more")
                break
        return finding

    def _with_size(self, half: Half, p: Prediction, finding: Finding) -> Finding:
        """The greatest size known to be right, if any, and the least size known to be wrong: both in px."""
        good, bad = self.small, self.largest
        if good >= bad or not self._right_at(half, p, good):
            return replace(finding, wrong_from=min(good, bad))
        while bad - good > max(self.f, bad // STEP):
            middle = (good + bad) // 2 // self.f * self.f
            if middle <= good:
                break
            good, bad = (middle, bad) if self._right_at(half, p, middle) else (good, middle)
        return replace(finding, right_up_to=good, wrong_from=bad)

    def _right_at(self, half: Half, p: Prediction, size: int) -> bool:
        self.settings.tell(f"{half.verb}: trying {size} px")
        result = computed_by(self.setup.load(), half, self._input(half, size))
        return compare(result, self._expected(self._reference(), half, size), p.budget).right

    def _with_operation(self, half: Half, p: Prediction, finding: Finding) -> Finding:
        """The first wrong operation at the least wrong size, unless the setup has none to watch."""
        assert finding.wrong_from is not None
        return replace(finding, operation=self._operation(half, finding.wrong_from))

    def _operation(self, half: Half, size: int) -> WrongOperation | None:
        """The first wrong operation at a size; None if the setup has none, or if memory is short for both sides."""
        if self.setup.ops is None:
            return None
        side = self.setup.load()
        assert isinstance(side, LoadedModel)
        x = self._input(half, size)
        need = planner.estimate(side.model, half, x.shape, planner.MemoryPlan())
        if self.setup.on_host and need.before + COMPARED * need.run > self.settings.max_memory:
            return None
        self.settings.tell(f"{half.verb}: comparing operation by operation at {size} px")
        return first_wrong_operation(side.model, half, x, self.settings.reference_ops)

    def _with_bands(self, half: Half, p: Prediction, finding: Finding) -> Finding:
        """Whether exact bands with small maps are right at the whole size, if small maps are."""
        if finding.right_up_to is None or self.setup.ops is None:
            return finding
        bands = self._small_bands(finding.right_up_to)
        self.settings.tell(f"{half.verb}: {self._size()} in exact bands, {self.setup.words}")
        result = computed_by(self.setup.load(), half, self._input(half), bands)
        right = compare(result, self._expected(self._reference(), half, None), p.budget).right
        return replace(finding, band_rows=bands.bands["band_rows"], bands_right=right)

    def _small_bands(self, good: int) -> Tiling:
        """Bands that hold no more pixels, and attention with no more pairs, than a size that is right."""
        rows = max(1, good * good // (2 * max(self.settings.width, 1)))
        chunk = max(1, min(1024, (good // self.f) ** 2 // 2))
        return Tiling(enabled=True, mode="exact", bands={"band_rows": rows, "chunk": chunk})

    def _size(self) -> str:
        return f"{self.settings.height} x {self.settings.width} px"


def compare(result: Computed, expected: np.ndarray, budget: float) -> Comparison:
    """A setup's result beside the reference's, within a budget."""
    if result.array is None:
        return Comparison(math.inf, math.inf, result.problem, result.culprit, result.note)
    try:
        margin = within(result.array, expected, budget, "the result")
    except ConformanceError as error:
        share = max(error.eta2, error.etainf)
        problem = result.problem or ("" if math.isfinite(share) else str(error).removesuffix("."))
        return Comparison(error.eta2 * budget, share, problem, "", result.note, error.region)
    return Comparison(margin.eta2 * budget, max(margin), "", "", result.note)
