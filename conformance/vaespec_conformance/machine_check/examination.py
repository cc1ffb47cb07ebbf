"""The examination: predictions, the subject's results, then the reference's; and if they differ, from which size on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.architecture import ENCODER, Half, halves_among
from vaespec.errors import BackendError
from vaespec.tiling import planner
from vaespec.tiling.settings import Tiling
from vaespec_conformance.judging import budgets
from vaespec_conformance.machine_check.findings import Comparison, Finding
from vaespec_conformance.machine_check.models import Placed, Result, ask
from vaespec_conformance.machine_check.operations import WrongOperation, first_wrong_operation
from vaespec_conformance.machine_check.places import place
from vaespec_conformance.machine_check.prediction import CROP, Prediction, RoundedWeights, predict, specified
from vaespec_conformance.machine_check.question import Question
from vaespec_conformance.machine_check.samples import Scale, latents, picture

PEAK = 0.5
"""The share of the largest error from which on a number belongs to the place where an error is largest."""
STEP = 16
"""The search for a size ends when the interval is a 16th of the size, or one latent."""


class Examination:
    """Answers a question. One side is in memory at a time, and is freed before the other is loaded."""

    def __init__(self, question: Question) -> None:
        self.question, self.subject = question, question.subject
        f = question.config.downsampling_factor
        longest = max(question.height, question.width)
        self.largest, self.f = longest, f
        self.small = min(CROP, longest) if longest > CROP else max(f, longest // 2 // f * f)
        self.crop = min(CROP, longest)
        self.scale = Scale(question.config.shift_factor or 0.0, 1 / (question.config.scaling_factor or 1.0))

    def run(self) -> list[Finding]:
        """Every half: what is cheap comes first."""
        question = self.question
        question.require()
        self._take_scale()
        predictions = {half: self._predict(half) for half in question.halves}
        results = self._subject_results()
        findings = []
        for half, comparison in self._comparisons(predictions, results):
            p = predictions[half]
            finding = Finding(half.verb, self.subject.dtype, p.budget, p.error, p.overflows, comparison)
            findings.append(finding if finding.right else self._explained(half, p, finding))
        return findings

    # -- the inputs, and what to expect --------------------------------------------------------------------

    def _input(self, half: Half, size: int | None = None) -> np.ndarray:
        """The picture or the latents, cropped to `size` px a side."""
        _, channels, height, width = self.question.shape(half, size)
        return picture(channels, height, width) if half is ENCODER else latents(channels, height, width, self.scale)

    def _predict(self, half: Half) -> Prediction:
        """The budget of a half. The encoder's exact result gives the scale of the latents."""
        self.question.tell(f"{half.verb}: predicting the rounding error at {self.crop} px in float64")
        x = self._input(half, self.crop)
        prediction = predict(half, self.question.config, self.question.weights, x, self.subject.dtype)
        if half is ENCODER:
            self.scale = Scale.of(prediction.exact)
        return prediction

    def _take_scale(self) -> None:
        """The scale of the latents if the encoder is there, but not asked for; without one it is the config's."""
        config, weights = self.question.config, self.question.weights
        if ENCODER not in self.question.halves and ENCODER.name in halves_among(weights, config):
            self.question.tell(f"decode: encoding {self.crop} px in float64, for latents of the right scale")
            x = self._input(ENCODER, self.crop)
            self.scale = Scale.of(specified(ENCODER, config, weights, x, self.subject.dtype))

    # -- both sides ----------------------------------------------------------------------------------------

    def _subject_results(self) -> dict[Half, Result]:
        self.question.tell(f"loading the weights: {self.subject.place}")
        side = self.subject.load()
        results = {}
        for half in self.question.halves:
            self.question.tell(f"{half.verb}: {self._size()} as a whole, {self.subject.place}")
            results[half] = ask(side, half, self._input(half))
        return results

    def _comparisons(
        self, predictions: Mapping[Half, Prediction], results: Mapping[Half, Result]
    ) -> Iterator[tuple[Half, Comparison]]:
        """Each half with its comparison: the weights of the reference are freed before the last is yielded."""
        reference, compared = self._reference(), []
        for half, p in predictions.items():
            self._require_right(reference, half, p)
            self.question.tell(f"{half.verb}: {self._size()} in exact bands, the NumPy engine")
            compared.append((half, compare(results[half], self._expected(reference, half, None), p)))
        del reference
        yield from compared

    def _reference(self) -> Placed:
        ops = self.question.reference_ops
        return Placed.of(
            self.question.config, RoundedWeights(self.question.weights, self.subject.dtype, ops.dtype), ops
        )

    def _expected(self, reference: Placed, half: Half, size: int | None) -> np.ndarray:
        """The reference's result, from the input as the subject's dtype holds it."""
        ops = self.question.reference_ops
        x = rounded(self._input(half, size), self.subject.dtype).astype(ops.dtype)
        return reference.run(half, x, self.question.bands)

    def _require_right(self, reference: Placed, half: Half, p: Prediction) -> None:
        """Raises BackendError if the reference itself differs from the specification on the crop."""
        found = compare(Result(self._expected(reference, half, self.crop)), p.exact, p)
        if not found.right:
            raise BackendError(
                f"the NumPy engine, which is the reference, is wrong on this machine itself: {half.verb} of "
                f"{self.crop} px is off by {found.error:.2g}, {found.share:.3g} budgets: check memory and NumPy's BLAS."
            )

    # -- if a half is wrong --------------------------------------------------------------------------------

    def _explained(self, half: Half, p: Prediction, finding: Finding) -> Finding:
        """The finding with the size from which on it is wrong, the first wrong operation, and whether bands help."""
        good, bad = self._search(half, p)
        finding = replace(finding, right_up_to=good, wrong_from=bad)
        finding = replace(finding, operation=self._operation(half, bad))
        if good is None or self.subject.ops is None:
            return finding
        bands = self._small_bands(good)
        self.question.tell(f"{half.verb}: {self._size()} in exact bands, {self.subject.place}")
        result = ask(self.subject.load(), half, self._input(half), bands)
        right = compare(result, self._expected(self._reference(), half, None), p).right
        return replace(finding, band_rows=bands.bands["band_rows"], bands_right=right)

    def _search(self, half: Half, p: Prediction) -> tuple[int | None, int]:
        """The greatest size known to be right, if any, and the least size known to be wrong: both in px."""
        good, bad = self.small, self.largest
        if good >= bad or not self._right_at(half, p, good):
            return None, min(good, bad)
        while bad - good > max(self.f, bad // STEP):
            middle = (good + bad) // 2 // self.f * self.f
            if middle <= good:
                break
            good, bad = (middle, bad) if self._right_at(half, p, middle) else (good, middle)
        return good, bad

    def _right_at(self, half: Half, p: Prediction, size: int) -> bool:
        self.question.tell(f"{half.verb}: trying {size} px")
        result = ask(self.subject.load(), half, self._input(half, size))
        return compare(result, self._expected(self._reference(), half, size), p).right

    def _operation(self, half: Half, size: int) -> WrongOperation | None:
        """The first wrong operation at a size; None if the subject has none, or if memory is short for both sides."""
        if self.subject.ops is None:
            return None
        side = self.subject.load()
        assert isinstance(side, Placed)
        x = self._input(half, size)
        need = planner.estimate(side.model, half, x.shape, planner.MemoryPlan())
        if self.subject.on_host and need.before + 3 * need.run > self.question.max_memory:
            return None
        self.question.tell(f"{half.verb}: comparing operation by operation at {size} px")
        return first_wrong_operation(side.model, half, x, self.question.reference_ops)

    def _small_bands(self, good: int) -> Tiling:
        """Bands that hold no more pixels, and attention with no more pairs, than a size that is right."""
        rows = max(1, good * good // (2 * max(self.question.width, 1)))
        chunk = max(1, min(1024, (good // self.f) ** 2 // 2))
        return Tiling(enabled=True, mode="exact", bands={"band_rows": rows, "chunk": chunk})

    def _size(self) -> str:
        return f"{self.question.height} x {self.question.width} px"


def compare(result: Result, expected: np.ndarray, p: Prediction) -> Comparison:
    """A subject's result beside the reference's, within the predicted budget."""
    if result.array is None:
        return Comparison(math.inf, math.inf, result.problem, result.culprit, result.note)
    if result.array.shape != expected.shape:
        problem = f"a result of shape {result.array.shape}: expected {expected.shape}"
        return Comparison(math.inf, math.inf, problem, result.culprit, result.note)
    rms = float(np.linalg.norm(expected)) / expected.size**0.5 or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.asarray(result.array).astype(np.float64) - expected
    error = float(np.linalg.norm(difference)) / (rms * expected.size**0.5)
    if result.problem or not math.isfinite(error):
        where = place(result.array, expected, math.inf)
        return Comparison(math.inf, math.inf, result.problem or "NaN or infinity", "", result.note, where)
    bound = budgets.WORST_ELEMENT * p.budget * rms
    share = max(error / p.budget, float(abs(difference).max()) / bound)
    where = place(result.array, expected, bound) if share > 1 else None
    peak = place(result.array, expected, PEAK * float(abs(difference).max())) if where and where.spread else None
    return Comparison(error, share, "", "", result.note, where, None if peak and peak.spread else peak)
