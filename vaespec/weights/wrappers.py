"""Names that wrapper modules put inside the names of tensors, and a view of a file without them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vaespec.errors import WeightMapError
from vaespec.weights.containers import TensorFile
from vaespec.weights.dialects import EMA, OWN

# torch.compile, activation checkpointing, FSDP, and DistributedDataParallel.
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")

_ANY = "|".join(WRAPPERS)
FIRST_LAYER = re.compile(rf"(.*\.|)(?:encoder|decoder)\.(?:(?:{_ANY})\.)*conv_in\.")


class Unwrapped(TensorFile):
    """A file under other names: `names` maps each name of this view to the file's own."""

    def __init__(self, file: TensorFile, names: Mapping[str, str]) -> None:
        self.path, self.kind, self.metadata, self._file, self._names = file.path, file.kind, file.metadata, file, names

    def shape(self, name: str) -> tuple[int, ...]:
        """From the file."""
        return self._file.shape(self._names[name])

    def dtype(self, name: str) -> str:
        """From the file."""
        return self._file.dtype(self._names[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def unwrapped(file: TensorFile) -> TensorFile:
    """The file itself, or a view of it in which the names of its VAEs are without wrappers, wherever they were.

    A wrapper that is before all of a VAE stays, as a part of its prefix. Other names stay as they are. Raises
    WeightMapError if two tensors of one VAE have the same name without wrappers.
    """
    if not any(bare(name) != name for name in file):
        return file
    new: dict[str, str] = {}
    for prefixes in _prefixes(file):
        own = _own_anywhere(file, prefixes[0])
        if _twins(own) and len(prefixes) > 1:
            own = _own_under(file, prefixes)
        if twins := _twins(own):
            raise WeightMapError(
                f"{file.path}: {twins[0]} and {twins[1]} are both {own[twins[1]]} without the names of wrappers "
                "(torch.compile, FSDP, DDP): save the model once."
            )
        new |= own
    return Unwrapped(file, {new.get(name, name): name for name in file})


def bare(name: str) -> str:
    """A name without the parts that are wrappers' names; LDM's moving averages have no dots between the parts."""
    parts = name.split(".")
    kept = ".".join(part for part in parts if part not in WRAPPERS)
    return re.sub(_ANY, "", kept) if EMA in parts[:-1] else kept


def _prefixes(file: TensorFile) -> Iterator[list[str]]:
    """Yields the text before the first layers, with its wrappers; texts that are equal without them together."""
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for match in filter(None, map(FIRST_LAYER.match, file)):
        groups[bare(match[1])].add(match[1])
    return (sorted(group) for group in groups.values())


def _own_anywhere(file: TensorFile, prefix: str) -> dict[str, str]:
    """Maps the names of the VAE to new ones with this prefix, if wrappers may also be before and in the prefix."""
    plain = bare(prefix)
    return {name: prefix + rest for name in file if (rest := _own(bare(name), plain))}


def _own_under(file: TensorFile, prefixes: Iterable[str]) -> dict[str, str]:
    """Maps the names of several VAEs to new ones; each name belongs to the longest prefix that it begins with."""
    new: dict[str, str] = {}
    for prefix in sorted(prefixes, key=len):
        new |= {name: prefix + rest for name in file if (rest := _own(name, prefix))}
    return new


def _own(name: str, prefix: str) -> str | None:
    """The part of a name after the prefix, without wrappers; None if it is no name of the model."""
    rest = bare(name[len(prefix) :]) if name.startswith(prefix) else ""
    return rest if rest.split(".")[0] in (*OWN, EMA) else None


def _twins(new: Mapping[str, str]) -> tuple[str, str] | None:
    """Two names that become one, if there are any."""
    names: dict[str, str] = {}
    for old, name in new.items():
        if (other := names.setdefault(name, old)) != old:
            return other, old
    return None
