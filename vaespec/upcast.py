"""UpcastOps: float16 weights and float32 feature maps, so that what overflows in float16 is computed in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from vaespec.analysis.memory import MemoryOps
from vaespec.dtypes import dtype_name, widen
from vaespec.ops import Array, Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps


def upcast(ops: Any) -> Any:
    """`ops` with float32 maps: the same if they have such maps whatever the dtype of the weights, else UpcastOps."""
    return ops if ops.wide_maps else UpcastOps(ops)


def unchecked(
    ops: ReferenceOps, layers: Layer, params: Mapping[str, Any], force_upcast: bool | None, *, wide: bool = False
) -> Any:
    """The ops for layers whose result nobody checks, such as a function that is traced: an overflow is not seen.

    So they are upcast if the params are float16, unless `force_upcast`, the field of the config, is False; then the
    result is float16, or float32 if `wide`, for other layers to go on with.
    """
    first, _ = next(layers.parameters())
    if force_upcast is False or dtype_name(params[first].dtype) != "float16":
        return ops
    return UpcastOps(ops, wide) if wide else upcast(ops)


@dataclass(frozen=True)
class UpcastOps:
    """The operations of `ops`, which store float16, but feature maps are float32 from `from_nchw` to `to_nchw`.

    Weights stay as they are. Each is widened when an operation uses it, and the wide copy is freed after that. An
    operation of `ops` computes in the dtype of the maps and weights that it is given. The result of the model is
    float16 again, unless `wide_result`.
    """

    ops: ReferenceOps
    wide_result: bool = False

    wide_maps = True

    def __getattr__(self, name: str) -> Any:
        if name == "ops":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.ops, name)

    def compile(self, model: Layer) -> Callable[[Array, Mapping[str, Array]], Array]:
        """A function (x, params) -> model(x, params, self), compiled as `ops` compiles."""
        return self.ops.compile(_UpcastLayer(model))

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[Any, Mapping[str, Array]]:
        """(ops, params) that compute one run: the inference ops of `ops`, upcast."""
        ops, params = self.ops.inference_ops(params)
        return upcast(ops), params

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self), in the way that `ops` runs a layer."""
        return self.ops.run(_UpcastLayer(layer), x, params)

    def from_nchw(self, x: Array) -> Array:
        return self.ops.from_nchw(widen(x, self.ops.xp))

    def to_nchw(self, x: Array) -> Array:
        y, xp = self.ops.to_nchw(x), self.ops.xp
        return y if self.wide_result or y.dtype == xp.float16 else xp.astype(y, xp.float16)

    def conv2d(self, x: Array, w: Array, b: Array, *, stride: int, padding: Padding) -> Array:
        return self._widened(partial(self.ops.conv2d, stride=stride, padding=padding), x, w, b)

    def group_norm(self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float) -> Array:
        return self._widened(partial(self.ops.group_norm, groups=groups, eps=eps), x, scale, shift)

    def linear(self, t: Array, w: Array, b: Array | None) -> Array:
        return self._widened(self.ops.linear, t, w, b)

    def normalize(self, x: Array, mean: Array, sigma2: Array, scale: Array, shift: Array, *, eps: float) -> Array:
        op = self.ops.normalize
        return self._widened(lambda x, scale, shift: op(x, mean, sigma2, scale, shift, eps=eps), x, scale, shift)

    def _widened(self, op: Callable[..., Array], x: Array, w: Array, b: Array | None) -> Array:
        return op(x, self.ops.widen(w), None if b is None else self.ops.widen(b))

    # -- memory, for plans ---------------------------------------------------------------------------------------

    def workspace(self, op: str, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...] = ()) -> int:
        """Bytes that `op` holds besides its input and result: twice what `ops` hold in 16 bits."""
        return 2 * self.ops.workspace(op, x, y, kernel)

    def shape_ops(self) -> MemoryOps:
        """Ops that count the memory of a run."""
        return MemoryOps(self, itemsize=4)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _UpcastLayer:
    """A layer that puts UpcastOps on top of the ops that it is given, so that a backend can compile or run it."""

    layer: Layer

    @property
    def name(self) -> Any:
        """The name of the layer inside, for ops that look at layers."""
        return getattr(self.layer, "name", "")

    def __call__(self, x: Array, params: Mapping[str, Array], ops: Any) -> Array:
        return self.layer(x, params, upcast(ops))

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self.layer.parameters()
