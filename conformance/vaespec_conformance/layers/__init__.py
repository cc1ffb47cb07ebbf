"""The first wrong layer of a VAE that fails: seen from inside if that is possible, or found by bisection."""

from vaespec_conformance.layers.finding import LayerFinding
from vaespec_conformance.layers.search import first_wrong_layer

__all__ = ["LayerFinding", "first_wrong_layer"]
