"""The eager kernel: chunks, lanes and groups change nothing but the speed."""

from __future__ import annotations

import itertools
import random

import cases
import pytest
import torch
from cases import both

import neural_expm
from neural_expm.kernels import complex_step, layout, results, tape_layouts
from neural_expm.networks import ladder, plan


@pytest.fixture
def threads():
    """Sets their number, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("count", [4099, 12_000, 30_001])
def test_threads_share_a_batch_in_lanes(eager, threads, dtype, count):
    """Lanes overlap within a chunk, and the last chunk of 30 001 reaches back."""
    A, G = (torch.randn(count, 3, 3, dtype=dtype, generator=cases.generator(i)) / 2 for i in (0, 1))
    A[::7] *= 1e-2  # groups
    A[5] = torch.nan
    threads(1)
    expected = both(A, G)
    for number in (2, 3):
        threads(number)
        assert tape_layouts.tape_layout(A, count, 1)[0].lanes == (
            number if count * 9 > tape_layouts.SHARED_FROM else 1
        )
        for got, wanted in zip(both(A, G), expected, strict=True):
            torch.testing.assert_close(got, wanted, equal_nan=True)


def test_chunks_where_the_cache_is_not_told(monkeypatch):
    def silent():
        raise RuntimeError("cpuinfo")

    monkeypatch.setattr(torch.cpu, "get_capabilities", silent, raising=False)
    assert tape_layouts._chunk_bytes() == layout.CHUNK_BYTES
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"l2_cache_size": 1 << 21})
    assert tape_layouts._chunk_bytes() < layout.CHUNK_BYTES
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert tape_layouts._chunk_bytes() == layout.CHUNK_BYTES


def test_an_odd_batch_takes_no_chunk_more(threads):
    threads(2)
    A = torch.zeros(2051, 4, 4, dtype=torch.float64)
    layout, length = tape_layouts.tape_layout(A, 2051, 1)
    assert (layout.lanes, length) == (2, 2051)
    assert layout.span(2051) == (1032, 1019)  # whole lines of the cache


@pytest.mark.parametrize("n", [3, 6, 9, 20])
def test_chunks_of_any_length_give_the_same(eager, n):
    A, G = (torch.randn(300, n, n, generator=cases.generator(i)) / n for i in (0, 1))
    A[::5] *= 20
    expected = both(A, G)
    # Another length may take another product of the BLAS; squarings double its roundings (two of them were measured).
    tolerance = 8 * torch.finfo(A.dtype).eps
    for size in (1 << 12, 1 << 15):
        eager.setattr(layout, "CHUNK_BYTES", size)
        eager.setattr(tape_layouts, "TAPE_BYTES", size)
        for got, wanted in zip(both(A, G), expected, strict=True):
            assert (cases.relative(got, wanted) < tolerance).all()


@pytest.mark.parametrize(("n", "dtype", "count"), [(4, torch.complex64, 1000), (3, torch.complex128, 1300)])
def test_terms_of_short_complex_batches(eager, threads, n, dtype, count):
    """The terms of a product in one call are those of the calls one by one."""
    A, G = (torch.randn(count, n, n, dtype=dtype, generator=cases.generator(i)) / n for i in (0, 1))
    A[5] = torch.nan
    threads(1)
    expected = both(A, G)
    threads(2)
    assert isinstance(tape_layouts.tape_layout(A, count, 2)[0], tape_layouts.Outer)
    for got, wanted in zip(both(A, G), expected, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "far"), [(torch.float32, 5), (torch.float32, 30), (torch.float64, 5), (torch.float64, 250)]
)
def test_each_direction_by_its_own_size(eager, dtype, far, transposed):
    """A derivative by a complex step is linear in a direction of any size, beside one of any other."""
    eager.setattr(complex_step, "FROM_BYTES", 0)
    A = torch.randn(40, 9, 9, dtype=dtype, generator=cases.generator(0)) / 9
    G = torch.randn(40, 9, 9, dtype=dtype, generator=cases.generator(1))
    if transposed:
        A, G = A.mT, G.mT
    expected = both(A, G)[1]
    for power in (-36, 36):  # in one step, and exactly
        assert torch.equal(both(A, G * 2.0**power)[1], expected * 2.0**power)
    scale = torch.logspace(-far, far, 40, dtype=torch.float64)[:, None, None].to(dtype)
    wide = (both(A, G * scale)[1].double() / scale.double()).to(dtype)
    # The size of a direction costs it two roundings, as does its scale here.
    assert (cases.relative(wide, expected) < 16 * torch.finfo(dtype).eps).all()
    largest = G / G.abs().amax() * 0.5 * torch.finfo(dtype).max
    most = torch.finfo(dtype).max
    assert (cases.relative(both(A * 0.01, largest)[1] / most, largest / most) < 0.1).all()
    G = G.clone()
    G[3], G[5, 2, 2], G[7, 0, 1] = 0, torch.nan, torch.inf
    got = both(A, G)[1]
    assert torch.equal(got[3], torch.zeros_like(got[3]))
    assert torch.isnan(got[[5, 7]]).any(-1).any(-1).all()
    rest = [i for i in range(40) if i not in (3, 5, 7)]
    torch.testing.assert_close(got[rest], expected[rest])


def test_the_derivative_of_a_small_exponential(eager):
    """Of log ‖e^A‖_F it is e^{2A}/‖e^A‖²; here e^A is near the least float32, and an imaginary part would be lost."""
    eager.setattr(complex_step, "FROM_BYTES", 0)
    A = (-80 * torch.eye(9)).repeat(4, 1, 1) + 0.1 * torch.randn(4, 9, 9, generator=cases.generator(0))
    A = ((A + A.mT) / 2).requires_grad_()
    torch.linalg.vector_norm(neural_expm.expm(A) * 2.0**100, dim=(-2, -1)).log().sum().backward()
    X = torch.linalg.matrix_exp(A.detach().double() + 80 * torch.eye(9))
    expected = X @ X / X.square().sum((-2, -1), keepdim=True)
    assert (cases.relative(A.grad, expected) < 1e-4).all()


@pytest.mark.parametrize("count", [1000, 12_000])
def test_what_overflows_leaves_the_rest_of_its_matrix(eager, count):
    """Also where a GEMM changes the layout, which would spread an infinity."""
    A = torch.diag(torch.tensor([95.0, -1.0, 0.0])).repeat(count, 1, 1)
    E = neural_expm.expm(A)
    assert torch.isinf(E[:, 0, 0]).all()
    torch.testing.assert_close(E[:, 1, 1], torch.full((count,), -1.0).exp(), rtol=1e-4, atol=0)


def test_the_largest_group_is_computed_in_place(eager):
    """Later groups, and the exact algorithm, put theirs over what it made of their matrices."""
    A, G = (torch.randn(2000, 3, 3, dtype=torch.float64, generator=cases.generator(i)) / 9 for i in (0, 1))
    large, outside = torch.arange(0, 2000, 40), torch.tensor([3])
    A[large] *= 30
    A[outside] = 1e6 * torch.ones(3, 3, dtype=torch.float64).triu(1)
    rest = torch.ones(2000, dtype=torch.bool)
    rest[large] = rest[outside] = False
    result = both(A, G)
    for rows in (large, outside, rest):
        for got, wanted in zip(result, both(A[rows], G[rows]), strict=True):
            torch.testing.assert_close(got[rows], wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("seed", range(40))
def test_groups_cost_the_least_of_all_ways(seed):
    """By the cost model: neighbouring levels together or not, and at most one group in place of the whole batch."""
    g = random.Random(seed)
    n, rungs = g.choice([3, 4, 8, 20]), neural_expm.load("expm-equivariant-float64").ladder.rungs[:7]
    counts = [g.choice([0, 0, 1, 50, 800, 20_000]) for _ in rungs]
    batch = sum(counts) + g.choice([0, 3])
    used = [level for level, count in enumerate(counts) if count]

    def cost(groups):
        return sum(
            ladder.GROUP_COST
            + (batch if group.whole else sum(counts[group.first : group.last + 1]))
            * (rungs[group.last].cost * ladder.product_cost(n) + (not group.whole) * ladder._gather_cost(n))
            for group in groups
        )

    def allowed(groups):
        return sum(group.whole for group in groups) < 2 and all(
            rungs[group.last].squarings <= rungs[group.first].squarings + 1 for group in groups
        )

    ways = []
    for cuts in itertools.product([False, True], repeat=max(len(used) - 1, 0)):
        ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(used)]
        runs = [(used[a], used[b - 1]) for a, b in itertools.pairwise(ends)] if used else []
        for whole in range(-1, len(runs)):
            groups = [ladder.Group(*run, i == whole) for i, run in enumerate(runs)]
            if allowed(groups):
                ways.append(cost(groups))
    found = neural_expm.load("expm-equivariant-float64").ladder.group(counts, n, batch)
    assert allowed(found)
    assert sorted(level for group in found for level in used if group.first <= level <= group.last) == used
    assert cost(found) == pytest.approx(min(ways))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize(
    ("n", "below", "count"), [(2, 1, 9000), (4, 1, 300), (6, 5, 300), (14, 4, 200), (20, 2, 60)]
)
def test_zero_rows_are_spared(eager, dtype, n, below, count):
    """Of affine maps [[A, b], [0, 0]]: the same values, beside matrices outside, and the rows of the identity."""
    A = torch.randn(count, n, n, dtype=dtype, generator=cases.generator(0)) / n
    A[::5] *= 6  # groups
    A[:, n - below :] = 0
    A[3, :-below], A[4, :-below] = torch.nan, 1e9
    from neural_expm.kernels import eager as kernel

    assert kernel.occupied_rows(A[:20]) == n  # too few to look for them
    eager.setattr(kernel, "SPARED_FROM", (0, 0))
    assert kernel.occupied_rows(A) == n - below
    inside = [i for i in range(count) if i not in (3, 4)]
    got = neural_expm.expm(A)
    eager.setattr(kernel, "occupied_rows", lambda A: None)
    expected = neural_expm.expm(A)
    torch.testing.assert_close(got, expected, equal_nan=True)
    eye = torch.eye(n, dtype=dtype)[n - below :].expand(len(inside), -1, -1)
    assert (got[inside, n - below :] - eye).abs().max() <= 4 * torch.finfo(dtype).eps


def test_rows_that_are_zero_in_some_matrices_are_computed(eager):
    A = torch.randn(2000, 4, 4, dtype=torch.float64, generator=cases.generator(0)) / 4
    A[:, 2:] = 0
    A[7, 3, 0] = 1e-3
    torch.testing.assert_close(neural_expm.expm(A), torch.linalg.matrix_exp(A), rtol=1e-12, atol=1e-12)
    A[7, 3, 0] = torch.nan
    assert torch.isnan(neural_expm.expm(A)[7]).any()


@pytest.mark.skipif(not results._SYSTEM_CAN, reason="a system without MADV_FREE keeps no memory")
def test_squares_lie_where_earlier_ones_lay(eager):
    """Fresh megabytes of memory take longer than the products that they are for."""
    eager.setattr(plan, "SQUARES_BYTES", 1)
    A = torch.randn(40, 20, 20, dtype=torch.float64, generator=cases.generator(0)) / 5
    squares = [plan._squares(A) for _ in range(2)]
    torch.testing.assert_close(squares[0], A @ A)
    places = {each.data_ptr() for each in squares}
    assert len(places) == 2
    squares.clear()
    assert plan._squares(A).data_ptr() in places


@pytest.mark.parametrize(("n", "count"), [(3, 1), (3, 300), (12, 40), (20, 40), (33, 2)])
def test_whoever_computes_while_another_does_in_the_same_thread_disturbs_nothing(eager, n, count):
    """As a signal handler does, or a mode of torch's."""
    A, B, G = torch.randn(3, count, n, n, dtype=torch.float64, generator=cases.generator(0)) / n**0.5

    def both():
        leaf = A.clone().requires_grad_()
        value = neural_expm.expm(leaf)
        return value, torch.autograd.grad(value, leaf, G)[0]

    class Interrupting(torch.overrides.TorchFunctionMode):
        calls, busy = 0, False

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if not self.busy:
                self.calls, self.busy = self.calls + 1, True
                neural_expm.expm(B * self.calls)
                self.busy = False
            return function(*args, **(kwargs or {}))

    expected = both()
    with Interrupting() as mode:
        got = both()
    assert mode.calls > 5
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
