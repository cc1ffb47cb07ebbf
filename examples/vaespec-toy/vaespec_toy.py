"""A backend on array_api_strict: the reference's formulas, and two operations of its own."""

from __future__ import annotations

from typing import Any

from vaespec import ReferenceOps

Padding = tuple[tuple[int, int], tuple[int, int]]


class ToyOps(ReferenceOps):
    """Operations in the reference's layouts: maps (B, C, H, W), kernels (O, C, kh, kw)."""

    def conv2d(self, x: Any, w: Any, b: Any, *, stride: int, padding: Padding) -> Any:
        """One product of matrices, O × C·kh·kw and C·kh·kw × pixels, where the reference has one for each tap."""
        xp, x = self.xp, self._pad(x, padding)
        (B, C, H, W), (O, _, kh, kw) = x.shape, w.shape
        h, wd = (H - kh) // stride + 1, (W - kw) // stride + 1
        rows, columns = stride * (h - 1) + 1, stride * (wd - 1) + 1
        taps = [x[:, :, u : u + rows : stride, v : v + columns : stride] for u in range(kh) for v in range(kw)]
        patches = xp.reshape(xp.stack(taps, axis=2), (B, C * kh * kw, h * wd))
        y = xp.matmul(xp.reshape(w, (O, C * kh * kw)), patches) + xp.reshape(b, (1, O, 1))
        return xp.reshape(y, (B, O, h, wd))

    def upsample_nearest2x(self, x: Any) -> Any:
        """Repeats every pixel, along both axes."""
        return self.xp.repeat(self.xp.repeat(x, 2, axis=2), 2, axis=3)


class ToyBackend:
    """The backend of `backend="toy"`, with the members of `vaespec.backend.Backend`."""

    name = "toy"
    framework = "array-api-strict"
    dtypes = ("float32", "float64")
    native = ("conv2d", "upsample_nearest2x")

    def devices(self) -> tuple[str, ...]:
        """Returns the devices of this machine, best first."""
        return ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> ToyOps:
        """Returns operations in true float32 or float64: "default" precision equals "highest"."""
        import array_api_strict as xp  # here, so that listing the backends imports no framework

        return ToyOps(xp, dtype, xp.Device("CPU_DEVICE"))


backend = ToyBackend()
