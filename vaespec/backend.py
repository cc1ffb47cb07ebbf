"""The protocol of a backend: its name, its framework, its devices, and its operations."""

from __future__ import annotations

from typing import Protocol

from vaespec.reference import ReferenceOps

PRECISIONS = ("default", "highest")


class Backend(Protocol):
    """The object that an entry point of `vaespec.backends` names. Its module must not import the framework."""

    name: str
    framework: str  # the distribution that it needs

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that it stores: an attribute, or a property."""

    def devices(self) -> tuple[str, ...]:
        """The devices that can be used, best first; imports the framework."""

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """The operations on `device`, with results stored in `dtype`; imports the framework.

        With `precision` "default", the framework multiplies float32 as it likes: on some devices, as TF32 or bfloat16.
        With "highest" it multiplies float32 as float32, or this method raises BackendError.
        """

    # Optional members, which a backend may leave out:
    #
    # native: tuple[str, ...]                 the operations of ops.KERNELS for which it has kernels of its own
    # switches: dict[str, str]                environment variables that change results -> what happens if unset
    # accelerators() -> tuple[str, ...]       devices other than the CPU, listed without importing the framework
    # default_dtype: str                      the dtype of a model for which none is requested, float32 if left out
    # module(model) -> Any                    the Model as an object of the framework's module class
    # keep_programs(folder: Path) -> None     keeps compiled programs in this folder, for later processes
    # containers: tuple[Container, ...]       kinds of files that only the framework can read, as rows of the table in
    #                                         vaespec.weights.containers; made without importing the framework


MEMBERS = ("name", "framework", "dtypes", "devices", "ops")
