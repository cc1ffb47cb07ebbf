"""Mistakes in some layers only, or in the order of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vaespec.analysis.observe import WatchedParams
from vaespec.reference import ReferenceOps
from vaespec_conformance.mutants.mutant import builder, changed_ops, named, with_methods


def _eps_where(chosen: Callable[[str], bool]) -> Callable[[ReferenceOps], ReferenceOps]:
    """Changes eps in the norms whose name is chosen."""

    def change(ops: ReferenceOps) -> ReferenceOps:
        run, norm = type(ops).run, type(ops).group_norm

        def run_watched(self: Any, layer: Any, x: Any, params: Any) -> Any:
            self.reading = WatchedParams(params)
            return run(self, layer, x, self.reading)

        def group_norm(self: Any, x: Any, scale: Any, shift: Any, *, groups: int, eps: float) -> Any:
            name = self.reading.last if hasattr(self, "reading") else ""
            return norm(self, x, scale, shift, groups=groups, eps=1e-5 if chosen(name) else eps)

        return with_methods(ops, run=run_watched, group_norm=group_norm)

    return change


SOME_NORMS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "eps_1e_5_in_attention": ("the attention's norm", lambda name: ".group_norm." in name),
    "eps_1e_5_in_resnets": ("the norms of the resnets", lambda name: ".norm1." in name or ".norm2." in name),
    "eps_1e_5_in_conv_norm_out": ("conv_norm_out", lambda name: "conv_norm_out" in name),
}

for _name, (_where, _chosen) in SOME_NORMS.items():
    changed_ops("model.encode", seen_in_ports="model.encode")(
        named(_name, f"eps is 1e-5, not 1e-6, in {_where} only.", _eps_where(_chosen))
    )


@builder("model.decode")
def middle_attention_left_out(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """The attention of the middle is left out."""
    kept = {name: 0 * w if "mid_block.attentions" in name and "to_out" in name else w for name, w in weights.items()}
    return factory(config, kept, dtype)


@builder("model.decode")
def middle_resnets_swapped(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """The two resnets of the middle are swapped."""
    turn = {"mid_block.resnets.0": "mid_block.resnets.1", "mid_block.resnets.1": "mid_block.resnets.0"}

    def other(name: str) -> str:
        old = next((old for old in turn if old in name), None)
        return name.replace(old, turn[old]) if old else name

    return factory(config, {other(name): w for name, w in weights.items()}, dtype)
