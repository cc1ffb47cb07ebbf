"""How far from the specification a result may be, and why. u is half of eps, the most that one rounding is off.

Two measures, both relative to the specification's result r: η₂ = ‖a - r‖ / ‖r‖, which a budget B bounds, and
η∞ = max |a - r| / rms(r), which may be 30 B: one wrong pixel at a border is lost in η₂. Budgets are for the numbers
that a dtype holds: inputs are rounded to it first, and the specification is given the same.
"""

from __future__ import annotations

import numpy as np

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
U32 = 2.0**-24
WORST_ELEMENT = 30.0


def wide_eps(dtype: str) -> float:
    """eps of what sums and statistics are computed in: float32, or float64 where that is stored."""
    return EPS["float64"] if dtype == "float64" else EPS["float32"]


def storage_eps(dtype: str) -> float:
    """eps of what 16-bit results are rounded to; 0 where storing rounds no more than computing did."""
    return EPS[dtype] if dtype in ("float16", "bfloat16") else 0.0


def contraction(dtype: str) -> float:
    """Of a convolution or linear map: B = 2e-5 in float32, one eps of storage more in 16 bits, 1e-12 in float64.

    Honest float32 sums of up to 4608 products are off by 1e-7 to 1.2e-6 (one by one), 3.7e-6 (Winograd's F6) or 4.7e-6
    (three bfloat16 products); TF32 is off by 2e-4, bfloat16 by 2e-3. 2e-5 is four times from the one and ten times from
    the other. Storing rounds each result by at most u = eps / 2.
    """
    return 1e-12 if dtype == "float64" else 2e-5 + storage_eps(dtype)


MODEL = {"float32": 128.0, "bfloat16": 4.0, "float16": 4.0, "float64": 128.0}


def model(dtype: str, predicted: float) -> float:
    """Of blocks and whole models: what rounding costs the specification, times 4 in 16 bits and 128 in float32.

    Correct backends are off by up to 2.6 times the prediction in 16 bits, where the rounding of results rules (PyTorch
    and MLX, 200 seeds), and by 1.2 to 2.6 in float32, where sums do; three bfloat16 products for one of float32 are off
    by up to 56 times of it, and TF32's by 1700. `grade` tells them apart.
    """
    return MODEL[dtype] * max(predicted, EPS[dtype])


def grade(dtype: str, eta2: float) -> str:
    """Of the share of the budget of a model that is used: A to twice the prediction, B to four times, C beyond."""
    times = eta2 * MODEL[dtype]
    return "A" if times <= 2 else "B" if times <= 4 else "C"


def group_norm(dtype: str, conditioning: float) -> float:
    """Of a normalisation: B = eps of storage + 16 u κ, κ = max (|μ| + σ) / √(σ² + ε) over samples and groups.

    The mean of n numbers is off by a few u |μ|, whatever n where sums are merged; x - μ is off by as much, and is
    divided by √(σ² + ε). E[x²] - E[x]² is off by u (μ / σ)² instead: 60 times the budget where μ / σ is 1000.
    """
    return storage_eps(dtype) + 16 * wide_eps(dtype) / 2 * conditioning


def moments(dtype: str, ratio: float) -> float:
    """Of a mean, in deviations, and of a variance, relative: 16 u (1 + |μ| / σ). Both are of float32 or wider.

    The mean is off by a few u |μ|; a variance of deviations from it by a few u, and by the square of that.
    """
    return 16 * wide_eps(dtype) / 2 * (1 + ratio)


TINIEST = {"float32": 2.0**-126, "float64": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}


def activation(dtype: str, expected: np.ndarray, cancelled: np.ndarray) -> np.ndarray:
    """Of each element: 16 eps of float32 of |f(x)| + c, 2 eps of storage of |f(x)|, and the smallest number there is.

    c, `cancelled`, is the size of what f(x) may be the small rest of: x itself in ½ x (1 + erf(x / √2)), and in
    ½ x (1 + tanh(x / 2)) as well, as long as tanh is not -1; a good exponential does better.
    """
    computed = 16 * wide_eps(dtype) * (abs(expected) + cancelled)
    return computed + 2 * storage_eps(dtype) * abs(expected) + TINIEST[dtype]


def attention(dtype: str, largest: float, steepness: float) -> float:
    """B = 2e-5 + 2 eps of storage + 16 u L∞ + ½ eps of storage · min(L, 12); L∞ = scale · max Σ |q| |k|.

    L, `steepness`, is the deviation of the logits.

    An exponential of a logit that is off by δ is off by δ: a few u L∞ in float32, and, where a backend rounds logits to
    16 bits, about ½ eps L. Below L = 10 the budget of float32 is 4e-5 at most, or TF32's 3e-4 would be lost in it.
    """
    if dtype == "float64":
        return 1e-12
    exponentials = 16 * U32 * largest
    if dtype == "float32":
        return min(2e-5 + exponentials, 4e-5) if steepness < 10 else 2e-5 + exponentials
    return 2e-5 + exponentials + (2 + min(steepness, 12) / 2) * EPS[dtype]
