"""The smallest backend: everything the Array API standard has, and no operation of its own."""

from vaespec import ReferenceOps


class ToyBackend:
    """What `backend="toy"` stands for. The members are those of `vaespec.backend.Backend`."""

    name = "toy"
    framework = "array-api-strict"
    dtypes = ("float32", "float64")

    def devices(self) -> tuple[str, ...]:
        """The devices at hand, best first."""
        return ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """The reference, in plain float32 or float64: the "default" precision is the "highest"."""
        import array_api_strict as xp  # here, so that listing the backends imports no framework

        return ReferenceOps(xp, dtype, xp.Device("CPU_DEVICE"))


backend = ToyBackend()
