"""CanonicalWeights: the weights in a file under diffusers' names, in OIHW, read one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vaespec.dtypes import STORAGE_DTYPES
from vaespec.errors import NonFiniteError, WeightMapError
from vaespec.parameter import Parameter
from vaespec.weights.containers import memory_for
from vaespec.weights.layouts import to_canonical
from vaespec.weights.listing import shortened
from vaespec.weights.locate import VaeInFile

VARIANCE = "bn.running_var"


class CanonicalWeights(Mapping[str, np.ndarray]):
    """The weights of a VAE in a file by canonical name. Indexing reads and checks one; names and shapes are known.

    `table` maps each name to its parameter; `allow_nonfinite` accepts NaN and infinity.
    """

    def __init__(self, vae: VaeInFile, table: Mapping[str, Parameter], allow_nonfinite: bool) -> None:
        self.vae, self.table, self.allow_nonfinite = vae, table, allow_nonfinite

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor in the file's dtype, or in float32 if no backend stores that dtype (float8)."""
        row, stored, file = self.table[name], self.vae.stored(name), self.vae.file
        if row.is_counter and stored not in file:
            return np.zeros((), np.int64)  # nothing reads it, and some writers drop it
        with memory_for(file.path):
            array = to_canonical(file[stored], row, self.vae.layout)
            if not row.is_counter and array.dtype.name not in STORAGE_DTYPES:
                array = array.astype(np.float32)
        if not self.allow_nonfinite and not np.isfinite(array).all():
            self._refuse_nonfinite()
        if name == VARIANCE and not (array > 0).all():
            raise WeightMapError(
                f"{stored} of {file.path} contains {array.min()}: a variance is positive, get the file again."
            )
        return array

    def __contains__(self, name: object) -> bool:
        return name in self.table  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def _refuse_nonfinite(self) -> None:
        file = self.vae.file
        bad = [name for name in map(self.vae.stored, self.table) if name in file and not np.isfinite(file[name]).all()]
        raise NonFiniteError(
            f"NaN or infinity in {len(bad)} tensor{'s' * (len(bad) > 1)} of {file.path}: {', '.join(shortened(bad))}; "
            "allow_nonfinite=True accepts them."
        )
