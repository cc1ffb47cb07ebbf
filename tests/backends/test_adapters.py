"""The adapters can be read side by side."""

from __future__ import annotations

from itertools import combinations

import pytest

from vaespec_cpu.ops import CpuOps
from vaespec_jax.ops import JaxOps
from vaespec_mlx.ops import MlxOps
from vaespec_torch.ops import TorchOps


@pytest.mark.parametrize(("one", "other"), [*combinations([CpuOps, TorchOps, JaxOps, MlxOps], 2)])
def test_two_adapters_define_their_common_methods_in_one_order(one, other):
    names, others = ([name for name in vars(ops) if not name.startswith("__")] for ops in (one, other))
    assert [name for name in names if name in others] == [name for name in others if name in names]
