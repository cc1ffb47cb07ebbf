"""Convolutions with fewer multiplications: a tile of outputs at a time, as products of sums. The mathematics alone.

In one dimension, the m outputs that a filter g of 3 taps gives on a tile of inputs d are computed as

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]

with one multiplication for each row of G; along rows and columns in turn, in two dimensions. In a layer each of these
multiplications is a matrix product over the channels, and the sums around it are shared by all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TAPS = 3


@dataclass(frozen=True, eq=False)
class Algorithm:
    """The three matrices, float64, and where the tiles begin: each `step` inputs after the one before it.

    The first tile begins with the first input; `lead` of its outputs come before the first output.
    """

    name: str
    A: np.ndarray  # (n, m)
    B: np.ndarray  # (span, n)
    G: np.ndarray  # (n, TAPS)
    step: int
    lead: int = 0

    @property
    def products(self) -> int:
        """n, the multiplications of a tile."""
        return self.A.shape[0]

    @property
    def outputs(self) -> int:
        """m, the outputs of a tile."""
        return self.A.shape[1]

    @property
    def span(self) -> int:
        """The inputs that a tile reads."""
        return self.B.shape[0]

    def tiles(self, length: int) -> int:
        """How many tiles give `length` outputs."""
        return -(-(length + self.lead) // self.outputs)


def winograd(outputs: int, points: Sequence[float]) -> Algorithm:
    """F(m, 3) of Winograd 1980, by Toom and Cook, on m + 1 finite points and infinity.

    The product of polynomials a (m coefficients) and g (3 coefficients) has n = m + 2 coefficients, and is known from
    its values at n points: V_n⁻¹ [(V_m a) ⊙ (V_3 g)], where V_k evaluates k coefficients at the points. A filter is
    that map transposed in a (Lavin & Gray 2015, arXiv:1509.09308): y = V_mᵀ [(V_3 g) ⊙ (V_n⁻ᵀ d)].

    Row p of V_n⁻ᵀ holds the coefficients of Π (x - q) / (p - q) over the other finite points q, that of infinity those
    of Π (x - q) over all. The denominators go to G, so that A and B are exact in float32 where the points are.
    """
    n, roots = outputs + TAPS - 1, np.array(points, np.float64)
    others = [np.delete(roots, i) for i in range(n - 1)]
    denominators = np.array([np.prod(p - q) for p, q in zip(roots, others, strict=True)] + [1.0])
    coefficients = [np.pad(np.poly(q)[::-1], (0, n - 1 - len(q))) for q in [*others, roots]]
    return Algorithm(
        f"F({outputs}, {TAPS})",
        A=_evaluation(roots, outputs),
        B=np.stack(coefficients, axis=1),
        G=_evaluation(roots, TAPS) / denominators[:, None],
        step=outputs,
    )


def _evaluation(points: np.ndarray, k: int) -> np.ndarray:
    """V_k: a polynomial's k coefficients, from the lowest, -> its values at the points and at infinity."""
    return np.vstack((np.vander(points, k, increasing=True), np.eye(k)[-1:]))


F2 = winograd(2, (0, 1, -1))
# Of all ±a, ±b in eighths, these round least: less than half as much as the usual ±1, ±2 in float32.
F4 = winograd(4, (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2))


def doubled() -> Algorithm:
    """A filter on a signal in which every number stands twice, …, s₀, s₀, s₁, s₁, …: 5 products for 4 outputs.

    Around s₀, and with W = g₀ + g₁ + g₂, the outputs are

        (g₀ + g₁) s₋₁ + g₂ s₀  = W s₀ + (g₀ + g₁) (s₋₁ - s₀)
        g₀ s₋₁ + (g₁ + g₂) s₀  = W s₀ + g₀ (s₋₁ - s₀)
        (g₀ + g₁) s₀ + g₂ s₁   = W s₀ + g₂ (s₁ - s₀)
        g₀ s₀ + (g₁ + g₂) s₁   = W s₀ + (g₁ + g₂) (s₁ - s₀)

    The two in the middle stand where s₀ stands, so the first tile's first output comes before the signal.
    """
    before, centre, after = (1, -1, 0), (0, 1, 0), (0, -1, 1)
    return Algorithm(
        "doubled",
        A=np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64),
        B=np.array([before, before, centre, after, after], np.float64).T,
        G=np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1], [0, 1, 1]], np.float64),
        step=2,
        lead=1,
    )


def halved() -> Algorithm:
    """Every second output of a filter: 5 products for 2 of them.

    Inputs d₀, d₂, d₄ meet the taps g₀ and g₂, as in F(2, 2), and d₁, d₃ meet g₁. With W = g₀ + g₂ the outputs are

        g₀ d₀ + g₁ d₁ + g₂ d₂ = g₀ (d₀ - d₂) + W d₂ + g₁ d₁
        g₀ d₂ + g₁ d₃ + g₂ d₄ = W d₂ + g₂ (d₄ - d₂) + g₁ d₃
    """
    before, centre, after = (1, 0, -1, 0, 0), (0, 0, 1, 0, 0), (0, 0, -1, 0, 1)
    return Algorithm(
        "halved",
        A=np.array([[1, 0], [1, 1], [0, 1], [1, 0], [0, 1]], np.float64),
        B=np.array([before, centre, after, (0, 1, 0, 0, 0), (0, 0, 0, 1, 0)], np.float64).T,
        G=np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0]], np.float64),
        step=4,
    )


DOUBLED, HALVED = doubled(), halved()
