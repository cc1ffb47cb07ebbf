"""Names in a state_dict: what torch.compile and other wrappers of a part add to them is left out, and found again."""

from __future__ import annotations

from typing import Any

from torch import nn

from vaespec.trained import WRAPPERS, without

UNNAMED = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Words of the wrappers that leave them out of a state_dict themselves, and add them when one is loaded."""


def leave_out_wrappers(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Rename the tensors of a module to diffusers' names, in their order: a hook after state_dict()."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + without(WRAPPERS, key.removeprefix(prefix))] = state_dict.pop(key)


def find_in_wrappers(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename diffusers' names to those of the module as it is wrapped now: a hook before load_state_dict()."""
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    wrapped = {without(WRAPPERS, name): without(UNNAMED, name) for name in names}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        plain = without(WRAPPERS, key.removeprefix(prefix))
        if plain in wrapped:
            state_dict[prefix + wrapped[plain]] = state_dict.pop(key)
