"""What a backend inherits: hooks under their old names too, for one release, and parts of maps."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from support.configs import uniform
from support.models import BACKENDS

from vaespec import ReferenceOps
from vaespec.reference import OLD_NAMES
from vaespec.registry import get_backend, make_ops
from vaespec_conformance import BackendSubject, Selection, run_conformance


def test_a_hook_overridden_by_its_old_name_is_called_and_warns_with_the_new():
    with pytest.warns(DeprecationWarning, match=r"Toy\.settle is now materialize; the old name goes with") as warned:

        class Toy(ReferenceOps):
            def settle(self, x):
                return super().settle(x) + 1

    assert warned[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="settle is now materialize"):
        assert Toy(np).materialize(1) == 2


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_a_hook_called_by_its_old_name_is_the_new_one_and_warns(old, new):
    toy = type("Toy", (ReferenceOps,), {new: lambda self, x: (new, x)})
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(toy(np), old)(3) == (new, 3)


def test_a_hook_of_the_reference_called_by_its_old_name_warns():
    x = uniform("x", (1, 2, 3, 4))
    with pytest.warns(DeprecationWarning, match="moments is now channel_statistics") as warned:
        mean, _ = ReferenceOps(np).moments(x)
    assert warned[0].filename == __file__
    np.testing.assert_allclose(mean, x.mean((2, 3)))


def test_a_class_with_both_names_uses_the_new_one(recwarn):
    class Toy(ReferenceOps):
        def settle(self, x):
            return "old"

        def materialize(self, x):
            return "new"

    assert Toy(np).materialize(0) == "new"
    assert not recwarn.list


@pytest.mark.parametrize("precision", ["default", "highest"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_map_that_was_upsampled_are_rows_of_the_array(backend, precision):
    """Also if the ops of a run defer the upsampling."""
    outer = make_ops(get_backend(backend), "cpu", "float32", precision)
    ops, _ = outer.inference_ops({})
    x = uniform("map", (2, 3, 4, 5)).astype(np.float32)
    upsampled = ops.upsample_nearest2x(ops.from_nchw(outer.from_numpy(x)))
    expected = x.repeat(2, axis=2).repeat(2, axis=3)
    for start, stop in (0, 8), (3, 6), (7, 8):
        part = ops.to_nchw(ops.to_array(ops.rows(upsampled, start, stop)))
        np.testing.assert_array_equal(outer.to_numpy(part), expected[:, :, start:stop])
    twice = [ops.rows(ops.rows(upsampled, 1, 7), 2, 4), ops.zeros_like(ops.to_array(ops.rows(upsampled, 0, 1)))]
    joined = ops.concat([ops.to_array(part) for part in twice], axis=ops.map_layout.index("H"))
    assert ops.concat([joined], axis=0) is joined
    rows = np.concatenate([expected[:, :, 3:5], 0 * expected[:, :, :1]], axis=2)
    np.testing.assert_array_equal(outer.to_numpy(ops.to_nchw(joined)), rows)


class Watching(ReferenceOps):
    """Overrides `run` as its docstring says: it looks at each layer, and at what it returns."""

    seen: ClassVar[list[tuple[str, tuple[int, ...]]]] = []

    def run(self, layer, x, params):
        y = super().run(layer, x, params)
        assert dict(layer.parameters()).keys() <= params.keys()
        assert self.to_numpy(self.to_nchw(x)).ndim == self.to_numpy(self.to_nchw(y)).ndim == 4
        self.seen.append((layer.name, y.shape))
        return y


class WatchingBackend:
    name = "watching"
    framework = "numpy"
    dtypes = ("float32",)

    def devices(self):
        return ("cpu",)

    def ops(self, device, dtype, precision):
        return Watching(np, dtype)


def test_a_backend_that_overrides_run_to_look_at_layers_passes_the_suite():
    """Whatever is not a layer of a model (a single operation, a band of rows) is computed by `apply`."""
    Watching.seen.clear()
    checks = ("structure.conv2d", "structure.split", "ops.group_norm", "interop.dtype", "interop.arguments")
    checks += ("blocks.attention", "model.decode", "tiling.banded_decode")
    report = run_conformance(BackendSubject(WatchingBackend()), profile="quick", selection=Selection(checks=checks))
    assert {result.status for result in report.results} <= {"pass", "undeclared"}
    assert {"decoder.conv_in", "decoder.conv_act", "decoder.mid_block.attentions.0"} <= {
        name for name, _ in Watching.seen
    }
