"""Parameters as users return them to a model: flat or nested, of any framework -> arrays that the model owns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vaespec.errors import InputError
from vaespec.inputs import as_array, is_floating
from vaespec.layouts import OIHW
from vaespec.ops import Array
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps

WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")
"""Words that wrappers of a module put into the names of its parameters; no name of the model has them.

They are those of torch.compile, activation checkpointing, FSDP, and DistributedDataParallel.
"""

DEEPEST = 16
"""How many words a name may have; a model's have at most 8."""


def adopt(given: Any, table: Mapping[str, Parameter], like: Mapping[str, Array], ops: ReferenceOps) -> dict[str, Array]:
    """Copies of the given parameters on the device of `ops`, in its dtype, by the names of `table`.

    `given` is a mapping or pairs of names and arrays, or a nested tree whose words are joined by dots. Shapes are those
    of `like`, arrays of `ops`. What is not trained (FLUX.2's statistics) may be left out. Raises InputError for other
    names or shapes, and for what is no array of floats.
    """
    params = flattened(given)
    _require_same_shapes(params, {name: _shape(x) for name, x in like.items()}, table)
    return {name: _placed(name, x, table[name], ops) for name, x in params.items()}


def without(words: Collection[str], name: str) -> str:
    """A dotted name without these words."""
    return ".".join(word for word in name.split(".") if word not in words)


def flattened(given: Any) -> dict[str, Any]:
    """The leaves by name, without the words of wrappers. Raises InputError for two of one name."""
    try:
        pairs = dict(given)
    except Exception:  # somebody's mapping can raise anything: a closed NpzFile does
        raise InputError(
            f"parameters as a {type(given).__name__}: expected arrays by name, such as the params of functional() or a "
            "module's state_dict()."
        ) from None
    params: dict[str, Any] = {}
    for name, leaf in _leaves(pairs, "", DEEPEST):
        if (plain := without(WRAPPERS, name)) in params:
            raise InputError(f"parameter {plain} is given twice, once as {name}: give each once.")
        params[plain] = leaf
    return params


def _leaves(tree: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping | list | tuple):
        yield name, tree
        return
    if not depth:
        raise InputError(f"parameters nested in {DEEPEST} levels, at {name}: expected a tree of the model's names.")
    for word, child in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from _leaves(child, f"{name}.{word}" if name else str(word), depth - 1)


def _require_same_shapes(
    given: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], table: Mapping[str, Parameter]
) -> None:
    """Raises InputError with the first parameter that is missing, unknown, no array, or of another shape."""
    for name, x in given.items():
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise InputError(f"parameter {name} is a {type(x).__name__}: expected an array.")
    optional = {name for name, row in table.items() if not row.trained}
    shapes = {name: _shape(x) for name, x in given.items()}
    names = expected.keys() - (optional - shapes.keys()) | shapes.keys()
    wrong = sorted(name for name in names if shapes.get(name) != expected.get(name))
    if not wrong:
        return
    name, others = wrong[0], f" ({len(wrong) - 1} more do not fit)" if wrong[1:] else ""
    if name not in shapes:
        problem = "is missing"
    elif name not in expected:
        problem = "is none of this model's"
    else:
        problem = f"has the shape {shapes[name]} instead of {expected[name]}"
    raise InputError(
        f"parameter {name} {problem}{others}: give all parameters of functional(), by name, in the layouts of this "
        "backend."
    )


def _placed(name: str, x: Any, row: Parameter, ops: ReferenceOps) -> Array:
    """A copy of x as the operations read it; gradients pass if x is an array of the backend."""
    try:
        own = as_array(x, f"parameter {name}", ops)
        if not row.is_counter and not is_floating(own):
            raise InputError(f"parameter {name} of dtype {x.dtype}: expected floats, in any precision.")
        if ops.is_array(own) and not row.is_counter:
            return ops.store(own)
        host = ops.to_numpy(own) if ops.is_array(own) else own
        return ops.load_params({name: ops.layout.convert(host, OIHW)}, {name: row})[name]
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # deleted, without values: frameworks raise different errors
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(f"parameter {name} cannot be read ({reason}): give arrays with values.") from None


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape)
