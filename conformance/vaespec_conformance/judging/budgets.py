"""Budgets: how far from the specification a result may be, and why. u = eps / 2 is the largest error of one rounding.

There are two measures, both relative to the specification's result r: η₂ = ‖a - r‖ / ‖r‖, which a budget B bounds, and
η∞ = max |a - r| / rms(r), which may be 30 B, since one wrong pixel at a border is lost in η₂. Inputs are rounded to the
dtype first, and the specification gets the same rounded inputs.
"""

from __future__ import annotations

import numpy as np

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
U32 = 2.0**-24
WORST_ELEMENT = 30.0


def wide_eps(dtype: str) -> float:
    """eps of the dtype of sums and statistics: float64 for float64, float32 for any other."""
    return EPS["float64"] if dtype == "float64" else EPS["float32"]


def storage_eps(dtype: str) -> float:
    """eps of the rounding when 16-bit results are stored; 0 for float32 and float64, which are stored as computed."""
    return EPS[dtype] if dtype in ("float16", "bfloat16") else 0.0


def contraction(dtype: str) -> float:
    """Budget of a convolution or linear map: 2e-5 in float32, plus eps of storage in 16 bits; 1e-12 in float64.

    Errors of correct float32 sums of up to 4608 products are 1e-7 to 1.2e-6 (added one by one), 3.7e-6 (Winograd's F6)
    or 4.7e-6 (three bfloat16 products); TF32's error is 2e-4, bfloat16's 2e-3. 2e-5 is four times the largest correct
    error, and a tenth of TF32's. Storing rounds each result by at most u = eps / 2.
    """
    return 1e-12 if dtype == "float64" else 2e-5 + storage_eps(dtype)


PRODUCT_CLASSES = {"float32": 2e-5, "tf32": 1.5e-3, "bfloat16": 1.2e-2}
"""The class of products of float32 numbers -> the greatest relative L2 of a sum of them: see `contraction`."""


def product_class(error: float) -> str | None:
    """The class of products whose sums are off by so much at most; None for more than bfloat16's."""
    return next((name for name, greatest in PRODUCT_CLASSES.items() if error <= greatest), None)


MODEL = {"float32": 128.0, "bfloat16": 4.0, "float16": 4.0, "float64": 128.0}


def model(dtype: str, predicted: float) -> float:
    """Budget of a block or model: the predicted error of rounding, times 4 in 16 bits and 128 in float32.

    Errors of correct backends are up to 2.6 times the prediction in 16 bits, where the rounding of results dominates
    (PyTorch and MLX, 200 seeds), and 1.2 to 2.6 times in float32, where sums dominate; with three bfloat16 products for
    one float32 product the error is up to 56 times the prediction, with TF32 1700 times. A report gives the multiple
    beside the grade (`times_rounding`), and the measured class of float32 products.
    """
    return MODEL[dtype] * max(predicted, EPS[dtype])


def grade(share: float) -> str:
    """Grade by the used share of a budget: A to a half, B to three quarters, C to all of it.

    The rule is one for operations and models. Correct results stored in 16 bits use half of the budget of an operation,
    and correct models on any framework at most three quarters; C is a pass with little room.
    """
    return "A" if share <= 0.5 else "B" if share <= 0.75 else "C"


def times_rounding(dtype: str, share: float) -> float:
    """How many times the predicted error of rounding a block or model was wrong by, if it used this share."""
    return share * MODEL[dtype]


def group_norm(dtype: str, conditioning: float) -> float:
    """Budget of a normalization: eps of storage + 16 u κ, κ = max (|μ| + σ) / √(σ² + ε) over samples and groups.

    The error of a mean is a few u |μ|, for any number of values if partial sums are merged; x - μ has the same error,
    and is divided by √(σ² + ε). The error of E[x²] - E[x]² is u (μ / σ)² instead: 60 times the budget if μ / σ is 1000.
    """
    return storage_eps(dtype) + 16 * wide_eps(dtype) / 2 * conditioning


def moments(dtype: str, ratio: float) -> float:
    """Budget of a mean, in deviations, and of a variance, relative: 16 u (1 + |μ| / σ). Both are float32 or wider.

    The error of the mean is a few u |μ|; the error of the centered variance is a few u, plus the square of the mean's.
    """
    return 16 * wide_eps(dtype) / 2 * (1 + ratio)


TINIEST = {"float32": 2.0**-126, "float64": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}


def activation(dtype: str, expected: np.ndarray, cancelled: np.ndarray) -> np.ndarray:
    """Bound of each element: 16 eps of float32 · (|f(x)| + c) + 2 eps of storage · |f(x)| + the smallest number.

    c, `cancelled`, is the size of the terms whose difference f(x) may be: x itself in ½ x (1 + erf(x / √2)), and in
    ½ x (1 + tanh(x / 2)) as well, unless tanh is -1; a good exponential has a smaller error.
    """
    computed = 16 * wide_eps(dtype) * (abs(expected) + cancelled)
    return computed + 2 * storage_eps(dtype) * abs(expected) + TINIEST[dtype]


def attention(dtype: str, largest: float, steepness: float) -> float:
    """Budget of attention: 2e-5 + 2 eps of storage + 16 u L∞ + ½ eps of storage · min(L, 12).

    L∞ = scale · max Σ |q| |k| is `largest`; L, the standard deviation of the logits, is `steepness`.

    An error δ of a logit is a relative error δ of its exponential: a few u L∞ in float32, and about ½ eps L if a
    backend rounds logits to 16 bits. Below L = 10 the float32 budget is at most 4e-5, so that TF32's 3e-4 is seen.
    """
    if dtype == "float64":
        return 1e-12
    exponentials = 16 * U32 * largest
    if dtype == "float32":
        return min(2e-5 + exponentials, 4e-5) if steepness < 10 else 2e-5 + exponentials
    return 2e-5 + exponentials + (2 + min(steepness, 12) / 2) * EPS[dtype]
