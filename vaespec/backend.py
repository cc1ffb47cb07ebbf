"""The protocol that a backend follows: its name, its framework, its devices, and its operations."""

from __future__ import annotations

from typing import Protocol

from vaespec.reference import ReferenceOps

PRECISIONS = ("default", "highest")


class Backend(Protocol):
    """What an entry point of `vaespec.backends` names. Importing it must not import the framework."""

    name: str
    framework: str  # the distribution it needs
    dtypes: tuple[str, ...]

    def devices(self) -> tuple[str, ...]:
        """The devices at hand, best first; imports the framework."""

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """The operations on that device, storing that dtype; imports the framework.

        `precision` is "default" (what the framework does with float32: on some devices, TF32 or bfloat16 products) or
        "highest" (true float32, or BackendError).
        """

    # Optional members, which a backend may leave out:
    #
    # native: tuple[str, ...]                 the operations of ops.KERNELS it has kernels of its own for
    # switches: dict[str, str]                environment variables that change its numbers, and what happens unset
    # accelerators() -> tuple[str, ...]       devices other than the CPU, seen without importing the framework
    # module(model) -> Any                    the Model as the framework's own module class
    # containers: tuple[Container, ...]       kinds of files that only the framework can read, as rows of the table in
    #                                         vaespec.weights.containers; made without importing the framework


MEMBERS = ("name", "framework", "dtypes", "devices", "ops")
