"""Building blocks of constructed ReLU networks: square, product and matrix product, with their bounds.

Everything here is an honest fully connected network: affine, ReLU, affine, …, affine. A `Builder` grows one
layer at a time. An `Affine` holds signals that are *not* layers: k affine functions of the neurons of the
newest layer. Affine maps of signals cost nothing (they are multiplied into the next weight matrix); only
`Builder.relu` adds a layer. ρ(x) = max(x, 0) throughout.

**Square** (Yarotsky, Neural Networks 94, 2017, Prop. 2). On [0, 1] the hat g(x) = 2ρ(x) − 4ρ(x − ½) maps
[0, 1] to itself, so s_k = g∘…∘g (k times) is the sawtooth with 2^{k−1} teeth. Let
f_m(x) = x − Σ_{k=1}^m s_k(x)/4^k.

  *Lemma 1.* f_m interpolates x² at the multiples of 2^{−m} and is linear between them, hence
  0 ≤ f_m(x) − x² ≤ 4^{−(m+1)}.
  *Proof.* Let h = 2^{−m}. The chord of x² over [jh, (j+1)h] exceeds x² by at most h²/4 = 4^{−(m+1)}, at the
  middle, and by at least 0. Going from h to h/2 lowers the interpolant by h²/4 at each old midpoint and by 0
  at the old nodes, linearly between: this is s_{m+1}/4^{m+1}. Start: f_0(x) = x. ∎

**Product.** For |x| ≤ X, |y| ≤ Y put u = (x/X + y/Y)/2 and v = (x/X − y/Y)/2, both in [−1, 1];
xy = XY (u² − v²).

  *Lemma 2.* XY·[f_m(|u|) − f_m(|v|)] differs from xy by at most XY·4^{−(m+1)}, and is 0 where x or y is 0.
  *Proof.* Two errors in [0, 4^{−(m+1)}] are subtracted. If x = 0 or y = 0 then |u| = |v|. ∎

**Matrix product.** All n³ scalar products side by side, the accumulators Σ_k f(|u_ikj|) − f(|v_ikj|) shared.

  *Lemma 3.* In the ∞-norm, and in the Frobenius norm with X̂, Ŷ bounded in the 2-norm: if ‖X̂‖ ≤ x̄, ‖Ŷ‖ ≤ ȳ,
  then ‖mm(X̂, Ŷ) − X̂Ŷ‖ ≤ δ·x̄ȳ with δ = n²·4^{−(m+1)}.
  *Proof.* Both norms bound every entry, so X = x̄ and Y = ȳ serve in Lemma 2. An entry of the result collects
  n such errors: ≤ n·x̄ȳ·4^{−(m+1)}. A row has n entries (∞-norm); the Frobenius norm of n² entries is at most
  n times the largest. ∎

Cost of one matrix product: m + 1 hidden layers of at most 4n³ + n² + c neurons, c being the carried signals
(a signal with |x| ≤ 1 travels in one neuron: ρ(x + 1) − 1 = x). A *collector* layer before it, where the
factors are not single neurons yet, keeps the weights at O(n³ m): without it each of the 4n³ first neurons
would read the 4n + 1 neurons behind both of its factors, O(n⁴) weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse


@dataclass(frozen=True, eq=False)
class Affine:
    """k signals ``matrix @ neurons + offset``: affine functions of the neurons of one layer."""

    matrix: sparse.csr_array
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)

    def __add__(self, other: Affine | np.ndarray) -> Affine:
        if isinstance(other, Affine):
            return Affine(_canonical(self.matrix + other.matrix), self.offset + other.offset)
        return Affine(self.matrix, self.offset + other)

    def __rmul__(self, factor: float) -> Affine:
        return Affine(_canonical(factor * self.matrix), factor * self.offset)

    def __neg__(self) -> Affine:
        return -1.0 * self

    def __sub__(self, other: Affine) -> Affine:
        return self + (-other)

    def __getitem__(self, rows: slice | np.ndarray) -> Affine:
        return Affine(self.matrix[rows], self.offset[rows])

    def mapped(self, matrix: sparse.csr_array) -> Affine:
        """The signals ``matrix @ self``."""
        return Affine(_canonical(matrix @ self.matrix), matrix @ self.offset)

    @property
    def elementary(self) -> bool:
        """Whether each signal reads at most one neuron."""
        return bool(np.all(np.diff(self.matrix.indptr) <= 1))


def _canonical(matrix: sparse.csr_array) -> sparse.csr_array:
    matrix = sparse.csr_array(matrix)
    matrix.eliminate_zeros()
    return matrix


def concatenate(parts: Sequence[Affine]) -> Affine:
    """All signals, one after the other."""
    return Affine(
        sparse.csr_array(sparse.vstack([part.matrix for part in parts], format="csr")),
        np.concatenate([part.offset for part in parts]),
    )


def _split(signals: Affine, parts: Sequence[Affine]) -> list[Affine]:
    """Cut `signals` into pieces of the lengths of `parts`."""
    ends = np.cumsum([len(part) for part in parts])
    return [signals[end - len(part) : end] for part, end in zip(parts, ends, strict=True)]


@dataclass
class Builder:
    """A ReLU network under construction: hidden layers so far, as (weights, bias)."""

    inputs: int
    layers: list[tuple[sparse.csr_array, np.ndarray]] = field(default_factory=list)

    def input(self) -> Affine:
        """The network's input, as signals."""
        return _neurons(self.inputs)

    def relu(self, preactivation: Affine) -> Affine:
        """Add one hidden layer; returns its neurons ρ(preactivation)."""
        self.layers.append((preactivation.matrix, preactivation.offset))
        return _neurons(len(preactivation))

    def finish(self, output: Affine) -> list[tuple[sparse.csr_array, np.ndarray]]:
        """Add the last affine map; returns all layers."""
        return [*self.layers, (output.matrix, output.offset)]


def _neurons(count: int) -> Affine:
    return Affine(sparse.csr_array(sparse.identity(count, format="csr")), np.zeros(count))


@dataclass(frozen=True, eq=False)
class Bounded:
    """Signals of one known size: ``scale * unit`` with |unit| ≤ 1."""

    unit: Affine
    scale: float

    @property
    def signal(self) -> Affine:
        """The signals themselves."""
        return self.scale * self.unit


def bounded(signal: Affine, bound: float) -> Bounded:
    """`signal`, of which |signal| ≤ bound is known."""
    return Bounded((1.0 / bound) * signal, bound)


def _raised(part: Affine, by: float) -> Affine:
    return part + np.full(len(part), by)


def collect(builder: Builder, parts: Sequence[Bounded]) -> list[Bounded]:
    """One layer that gives each signal a neuron of its own: ρ(x + 1) − 1 = x for |x| ≤ 1."""
    units = [part.unit for part in parts]
    neurons = _split(builder.relu(_raised(concatenate(units), 1.0)), units)
    return [Bounded(_raised(piece, -1.0), part.scale) for piece, part in zip(neurons, parts, strict=True)]


def sums_of_squares(
    builder: Builder,
    u: Affine,
    gather: sparse.csr_array,
    limit: float,
    sawteeth: int,
    carried: Sequence[Bounded] = (),
) -> tuple[Affine, list[Bounded]]:
    """``gather @ f_m(|u|)`` for |u| ≤ 1, m = `sawteeth`, in m + 1 hidden layers; `carried` travels along.

    Hidden layer 0 holds ρ(u) and ρ(−u); layer k ≥ 1 holds ρ(s_{k−1}) and ρ(s_{k−1} − ½) for each u, and the
    accumulators ``gather @ f_{k−1}(|u|)``, which stay within ±`limit` and are moved up by `limit` to fit one
    neuron.
    """

    def layer(*parts: Affine) -> list[Affine]:
        return _split(builder.relu(concatenate(parts)), parts)

    positive, negative, *kept = layer(u, -u, *(_raised(part.unit, 1.0) for part in carried))
    tooth = positive + negative  # s_0 = |u|
    accumulator = _raised(tooth.mapped(gather), limit)
    for k in range(1, sawteeth + 1):
        whole, upper, accumulator, *kept = layer(tooth, _raised(tooth, -0.5), accumulator, *kept)
        tooth = 2.0 * whole - 4.0 * upper
        accumulator = accumulator - (0.25**k * tooth).mapped(gather)
    arrived = [Bounded(_raised(piece, -1.0), part.scale) for piece, part in zip(kept, carried, strict=True)]
    return _raised(accumulator, -limit), arrived


def square(builder: Builder, x: Bounded, sawteeth: int) -> Affine:
    """x² entry by entry, too large by at most scale²·4^{−(m+1)} (Lemma 1)."""
    gather = sparse.csr_array(sparse.identity(len(x.unit), format="csr"))
    result, _ = sums_of_squares(builder, x.unit, gather, 1.0, sawteeth)
    return x.scale**2 * result


def product(builder: Builder, x: Bounded, y: Bounded, sawteeth: int) -> Affine:
    """x·y entry by entry, within XY·4^{−(m+1)} (Lemma 2)."""
    eye = sparse.identity(len(x.unit), format="csr")
    gather = sparse.csr_array(sparse.hstack([eye, -eye], format="csr"))
    result, _ = sums_of_squares(builder, _half_sum_and_difference(x.unit, y.unit), gather, 1.0, sawteeth)
    return x.scale * y.scale * result


def _half_sum_and_difference(x: Affine, y: Affine) -> Affine:
    """The u and v of Lemma 2, one after the other."""
    return concatenate([0.5 * x + 0.5 * y, 0.5 * x - 0.5 * y])


def matrix_products(
    builder: Builder,
    n: int,
    pairs: Sequence[tuple[Bounded, Bounded]],
    sawteeth: int,
    carried: Sequence[Bounded] = (),
) -> tuple[list[Affine], list[Bounded]]:
    """The matrix products X·Y of all `pairs`, side by side (Lemma 3), with `carried` signals taken along.

    Matrices are row-major vectors of n² signals. Factors that are not single neurons pass a collector layer
    first.
    """
    wires = [part for pair in pairs for part in pair] + list(carried)
    if not all(part.unit.elementary for part in wires):
        distinct = list(dict.fromkeys(wires))  # a matrix that is used twice is collected once
        collected = dict(zip(distinct, collect(builder, distinct), strict=True))
        pairs = [(collected[x], collected[y]) for x, y in pairs]
        carried = [collected[part] for part in carried]
    i, k, j = (index.ravel() for index in np.indices((n, n, n)))
    left, right, out = i * n + k, k * n + j, i * n + j
    u = concatenate([_half_sum_and_difference(x.unit[left], y.unit[right]) for x, y in pairs])
    signs = np.concatenate([np.ones(n**3), -np.ones(n**3)])  # + for u, − for v
    gather = sparse.csr_array((signs, (np.tile(out, 2), np.arange(2 * n**3))), shape=(n * n, 2 * n**3))
    gathers = sparse.csr_array(sparse.block_diag([gather] * len(pairs), format="csr"))
    sums, arrived = sums_of_squares(builder, u, gathers, float(n), sawteeth, carried)
    results = _split(sums, [x.unit for x, _ in pairs])
    return [x.scale * y.scale * result for (x, y), result in zip(pairs, results, strict=True)], arrived
