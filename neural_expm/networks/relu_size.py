"""Depth, width and parameters of the constructed networks, known before anything is built.

One matrix-product stage with m sawteeth, p products of n×n matrices side by side and c carried matrices has,
after its collector layer, m + 1 hidden layers: 4pn³ + cn² neurons, then m times 4pn³ + (p + c)n². Each
sawtooth neuron reads 2 neurons, each accumulator 4n + 1, each carried signal 1. With S stages (S = products +
squarings for the exponential, 2·steps − 1 for the square root) and no collector before the first,

    hidden layers = S(m + 2) − 1          exponential: width ≤ 4n³ + 5n² ≤ 6n³ + 4n² for n ≥ 1
    parameters ≈ S·m·14pn³                square root: width ≤ 8n³ + 2n²

so depth is O(log 1/ε) at fixed (n, R): 4^{−m}, the doubling of squarings and the Taylor remainder all are
geometric.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .relu_bounds import SCHEMES


@dataclass(frozen=True)
class LayerSize:
    """Neurons of a layer, its nonzero weights and its nonzero biases."""

    neurons: int
    weights: int
    biases: int


@dataclass(frozen=True)
class NetworkSize:
    """What a constructed network costs; the last layer is the output."""

    inputs: int
    layers: tuple[LayerSize, ...]

    @property
    def depth(self) -> int:
        """Hidden (ReLU) layers."""
        return len(self.layers) - 1

    @property
    def width(self) -> int:
        """Neurons of the widest hidden layer."""
        return max(layer.neurons for layer in self.layers[:-1])

    @property
    def parameters(self) -> int:
        """Nonzero weights and biases."""
        return sum(layer.weights + layer.biases for layer in self.layers)

    @property
    def dense_parameters(self) -> int:
        """Weights and biases of the same layers stored without sparsity."""
        widths = [self.inputs, *(layer.neurons for layer in self.layers)]
        return sum(outputs * (inputs + 1) for inputs, outputs in pairwise(widths))


def _collector(n: int, fan_ins: list[tuple[int, bool]]) -> LayerSize:
    """Matrices given a neuron an entry: (neurons that an entry reads, whether it has a bias)."""
    return LayerSize(
        n * n * len(fan_ins),
        n * n * sum(fan_in for fan_in, _ in fan_ins),
        n * n * sum(bias for _, bias in fan_ins),
    )


def _stage(n: int, sawteeth: int, pairs: int, carried: int, first: LayerSize) -> list[LayerSize]:
    """The layers of a product stage; `first` is its layer of ρ(±u), ρ(±v)."""
    cube, cells = n**3 * pairs, n * n * pairs
    neurons = 4 * cube + cells + carried * n * n
    weights = 8 * cube + (4 * n + 1) * cells + carried * n * n
    # Nothing has been accumulated before the first tooth: one input less, and the accumulator's offset.
    opening = LayerSize(neurons, weights - cells, 2 * cube + cells)
    return [first, opening] + [LayerSize(neurons, weights, 2 * cube)] * (sawteeth - 1)


def _first_layer(n: int, pairs: int, carried: int, squared: bool = False) -> LayerSize:
    """ρ(±u), ρ(±v) behind a collector. In a squared matrix the factors of x_ii·x_ii share a neuron; v = 0."""
    cube = n**3 * pairs
    shared = 6 * n if squared else 0
    return LayerSize(4 * cube + carried * n * n, 8 * cube - shared + carried * n * n, 2 * cube)


def exp_size(n: int, degree: int, squarings: int, sawteeth: int) -> NetworkSize:
    """Size of the constructed exponential."""
    powers, blocks = SCHEMES[degree]
    cells, result = n * n, 4 * n + 1
    # A² from the input itself: no collector, no bias but those of the carried A.
    first = LayerSize(4 * n**3 + cells, 8 * n**3 - 6 * n + cells, cells)
    layers = _stage(n, sawteeth, 1, 1, first)
    for power in range(2, powers):  # A^{power + 1}
        layers.append(_collector(n, [(result, True)] + [(1, False)] * (power - 1)))
        layers += _stage(n, sawteeth, 1, power, _first_layer(n, 1, power))
    polynomial = result + powers - 1  # fan-in of a block that holds A^q
    for step in range(1, blocks):
        left = blocks - 1 - step  # Horner steps after this one
        carried = left + 1 + (1 if left else 0)
        if step == 1:
            lower = [(powers - 1, True)] * (blocks - 1)
            layers.append(_collector(n, [(result, True), (polynomial, True), *lower]))
        else:
            layers.append(_collector(n, [(1, False), (result + 1, True)] + [(1, False)] * (left + 1)))
        layers += _stage(n, sawteeth, 1, carried, _first_layer(n, 1, carried))
        polynomial = result + 1
    for _ in range(squarings):
        layers.append(_collector(n, [(polynomial, True)]))
        layers += _stage(n, sawteeth, 1, 0, _first_layer(n, 1, 0, squared=True))
        polynomial = result
    return NetworkSize(cells, (*layers, LayerSize(cells, cells * polynomial, cells)))


def sqrt_size(n: int, steps: int, sawteeth: int) -> NetworkSize:
    """Size of the constructed square root."""
    cells, result = n * n, 4 * n + 1
    carried = 1 if steps > 1 else 0
    # A·T₀ with T₀ = aI − bA: no collector; the diagonal of T₀ gives biases, a_ii·t_ii reads one neuron.
    first = LayerSize(
        4 * n**3 + carried * cells, 8 * n**3 - 4 * n + carried * cells, 4 * cells + carried * cells
    )
    layers = _stage(n, sawteeth, 1, carried, first)
    for step in range(1, steps):
        last = step == steps - 1
        z = (1, False) if step == 1 else (result, True)
        layers.append(_collector(n, [z, (result, True)]))
        carried = 1 if last else 2
        layers += _stage(n, sawteeth, 1, carried, _first_layer(n, 1, carried))
        pairs = 1 if last else 2
        layers.append(_collector(n, [(1, False), (result, True)] + [(1, False)] * (pairs - 1)))
        layers += _stage(n, sawteeth, pairs, 0, _first_layer(n, pairs, 0))
    return NetworkSize(cells, (*layers, LayerSize(cells, cells * result, cells)))
