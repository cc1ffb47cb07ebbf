"""Names that wrapper modules put inside the names of tensors, and a view of a file without them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vaespec.errors import WeightMapError
from vaespec.trained import WRAPPERS, without
from vaespec.weights.beside import without_copies
from vaespec.weights.containers import TensorFile
from vaespec.weights.dialects import EMA, OWN

_ANY = "|".join(WRAPPERS)
FIRST_LAYER = re.compile(rf"(.*\.|)(?:encoder|decoder)\.(?:(?:{_ANY})\.)*conv_in\.")


class Renamed(TensorFile):
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


def unwrapped(file: TensorFile, request: str | None) -> TensorFile:
    """The file itself, or a view of it in which the names of its VAE are without wrappers, wherever they were.

    `request` is the prefix that the user gave, if any. A wrapper that is before all of a VAE stays, as a part of its
    prefix. Other names stay as they are, and so do all if the file has several VAEs and none is chosen. Raises
    WeightMapError if two tensors of the VAE have the same name without wrappers.
    """
    prefixes = _prefixes(file, request) if any(bare(name) != name for name in file) else []
    if not prefixes:
        return file
    own = _own_anywhere(file, prefixes[0])
    if len(prefixes) > 1 and _twins(own):
        own = _own_under(file, request, prefixes)
    if twins := _twins(own):
        raise WeightMapError(
            f"{file.path}: {twins[0]} and {twins[1]} are both {own[twins[1]]} without the names of wrappers "
            "(torch.compile, FSDP, DDP): save the model once."
        )
    return Renamed(file, {own.get(name, name): name for name in file})


def bare(name: str) -> str:
    """A name without the parts that are wrappers' names; LDM's moving averages have no dots between the parts."""
    kept = without(WRAPPERS, name)
    return re.sub(_ANY, "", kept) if EMA in name.split(".")[:-1] else kept


def _prefixes(file: TensorFile, request: str | None) -> list[str]:
    """The texts before the first layers of the chosen or only VAE, with their wrappers; empty if there is no such VAE.

    They are several if wrappers are at different places, or if the VAE is in the file twice.
    """
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for match in filter(None, map(FIRST_LAYER.match, file)):
        groups[bare(match[1])].add(match[1])
    chosen = without_copies(groups) if request is None else [bare(request)]
    return sorted(groups[chosen[0]]) if len(chosen) == 1 else []


def _own_anywhere(file: TensorFile, prefix: str) -> dict[str, str]:
    """Maps the names of the VAE to new ones with this prefix, if wrappers may also be before and in the prefix."""
    plain = bare(prefix)
    return {name: prefix + rest for name in file if (rest := _own(bare(name), plain))}


def _own_under(file: TensorFile, prefix: str | None, prefixes: Iterable[str]) -> dict[str, str]:
    """Maps the names that begin with this prefix, and with no longer one of `prefixes`, to new ones."""
    if prefix is None:
        return {}
    inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    return {name: prefix + rest for name in file if not name.startswith(inner) and (rest := _own(name, prefix))}


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
