"""Tapes: what is recorded for a chunk, in every layout, and which recording a batch is played to."""

from __future__ import annotations

import ctypes
import gc
import weakref

import cases
import pytest
import torch
from cases import both

import neural_expm
from neural_expm.bench import workloads
from neural_expm.kernels import reference, tape, tape_layouts
from neural_expm.kernels.tape import BorrowedTape, Form, Recording
from neural_expm.networks import at_once

# A lone matrix, batched GEMMs, one lane, two of them, all terms of complex products at once.
SHAPES = [
    (1, 3, torch.float64),
    (1, 20, torch.complex64),
    (40, 9, torch.float32),
    (40, 12, torch.complex128),
    (900, 3, torch.float64),
    (4099, 3, torch.float32),
    (2100, 4, torch.float64),
    (1000, 4, torch.complex64),
]
# And such that a plan for each matrix would be made of norms of squares.
SEVERAL = [(17, 16, torch.complex64), (60, 20, torch.float32), (3, 40, torch.float64)]
ROUNDINGS = 200  # of products, and of sums of n³ terms in another order


def drawn(count: int, n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, n, n, dtype=dtype, generator=cases.generator(seed)) / n**0.5


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[tape_layouts.CHUNK_BYTES, tape_layouts.CHUNK_BYTES // 2], ids=["small", "large"])
def cache(request, monkeypatch):
    """Of the second level: it decides how long chunks are, and whether products of float32 are added."""
    monkeypatch.setattr(tape_layouts, "TAPE_BYTES", request.param)
    tape_layouts._tape_layout.cache_clear()
    yield
    tape_layouts._tape_layout.cache_clear()


@pytest.mark.parametrize(("count", "n", "dtype"), SHAPES)
@pytest.mark.parametrize("products", [1, 2, 4])
@pytest.mark.parametrize("squarings", [0, 1, 2])
def test_what_is_recorded_is_the_polynomial(threads, cache, count, n, dtype, products, squarings):
    """Its value, its derivative, and the adjoint, at a transposed view."""
    g, real = cases.generator(products), dtype.to_real()
    heads = [torch.rand(2, h, dtype=real, generator=g) for h in range(2, products + 1)]
    readout = torch.rand(1, products + 1, dtype=real, generator=g)
    A, E = drawn(count, n, dtype), drawn(count, n, dtype, seed=1)
    weights, identity = [*heads, readout], 0.7

    def polynomial(X: torch.Tensor) -> torch.Tensor:
        plain = [torch.ones(2, 1, dtype=torch.float64), *(head.double() for head in heads)]
        whole = torch.cat([torch.tensor([identity], dtype=torch.float64), readout[0].double()])
        return reference.exponential(X, plain, whole, squarings)

    for at in (A, A.mT):
        layout, length = tape_layouts.tape_layout(at, count, 1)
        if length < count:
            continue  # several chunks
        exact = polynomial(at.to(torch.complex128))
        with BorrowedTape(
            at, Recording(Form(layout, count, n, n), weights, identity, squarings, dtype)
        ) as played:
            played.load(at)
            norms = torch.linalg.matrix_norm(at) ** 2 * 4.0**-squarings
            for got in (played.norms().max(), played.norms().max()):
                torch.testing.assert_close(got, norms.max())
            torch.testing.assert_close(played.norms().min(), norms.min())
            squares = torch.linalg.matrix_norm(at @ at) ** 2 * 16.0**-squarings
            torch.testing.assert_close(played.norms_of_squares().max(), squares.max())
            value = torch.empty_like(A)
            played.replay(square_known=True, out=value)
        assert cases.relative(value, exact).max() < ROUNDINGS * torch.finfo(dtype).eps
        layout, length = tape_layouts.tape_layout(at, count, 2)
        if length < count:
            continue
        recording = Recording(Form(layout, count, n, n, 2), weights, identity, squarings, dtype)
        with BorrowedTape(at, recording) as played:
            played.load(at, E)
            derivative = torch.empty_like(A)
            played.replay(out=derivative)
        block = reference.block_triangular(*(X.to(torch.complex128) for X in (at, E, at)))
        slope = polynomial(block)[:, :n, n:]
        assert cases.relative(derivative, slope).max() < ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("count", "n", "dtype"), [*SHAPES, (5, 6, torch.float64), (200, 14, torch.float64), *SEVERAL]
)
def test_a_batch_of_any_norms_after_any_other(eager, threads, count, n, dtype):
    """The rung that served the last batch is no more than a guess."""
    A, G = drawn(count, n, dtype), drawn(count, n, dtype, seed=1)
    truth = A.to(torch.complex128)
    for scale in (0.3, 3.0, 0.3, 1e-4, 0.9, 6.0, 0.0, 1.5, 1e30, 0.05):
        value, gradient = both(A * scale, G)
        if scale == 1e30:
            continue  # outside, for the exact algorithm
        leaf = (truth * scale).requires_grad_()
        exact = torch.linalg.matrix_exp(leaf)
        (slope,) = torch.autograd.grad(exact, leaf, G.to(torch.complex128))
        allowed = (1 + 8 * scale) * cases.VALUE[dtype]
        assert cases.relative(value, exact.detach()).max() < allowed
        assert cases.relative(gradient, slope).max() < allowed * 4
    if count > 1:
        A[count // 2] = torch.nan
        value = both(A, G)[0]
        assert torch.isnan(value[count // 2]).all()
        rest = torch.arange(count) != count // 2
        assert (
            cases.relative(value[rest], torch.linalg.matrix_exp(truth)[rest]).max() < 4 * cases.VALUE[dtype]
        )


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_norms_of_squares_spare_a_product(eager, threads):
    """Where products cost more than norms: sampled dynamics are far from normal."""
    (workload,) = (each for each in workloads.APPS if each.name == "control-zoh")
    A = workload.matrices()
    network = neural_expm.load("expm-equivariant-float64")
    ladder, levels = network.ladder, (ctypes.c_uint8 * len(A))()
    largest = float(torch.linalg.matrix_norm(A).max())
    value = at_once.bound_operations(network, *A.shape[:2]).value(A, ctypes.addressof(levels))
    assert set(levels) == {ladder.level(largest) - 1}
    assert cases.relative(value, torch.linalg.matrix_exp(A)).max() < cases.VALUE[A.dtype]
    # One with ‖A‖ too many times ‖A²‖^{1/2}: the bound does not speak of it, and all take the rung of the norm.
    A[7] = 0
    A[7, 0, 1] = largest
    at_once.bound_operations(network, *A.shape[:2]).value(A, ctypes.addressof(levels))
    assert max(levels) == ladder.level(largest)


def test_a_tape_is_kept_for_its_weights_alone(eager):
    """Two networks of one shape, evaluated in turns in the same memory."""
    A = torch.randn(500, 3, 3, dtype=torch.float64, generator=cases.generator(0)) / 3
    coarse, fine = (lambda: neural_expm.expm(A, rtol=1e-2)), (lambda: neural_expm.expm(A))
    first = coarse(), fine()
    for _ in range(2):
        assert torch.equal(coarse(), first[0])
        assert torch.equal(fine(), first[1])
    assert not torch.equal(*first)


def test_uninitialised_memory_is_never_read(eager):
    """Tapes work in memory that still holds what was there before: poison it."""
    A = torch.randn(400, 4, 4, generator=cases.generator(0)) / 2
    expected = both(A, A)
    tape._kept.memory.fill_(255)  # NaN in every precision
    for got, wanted in zip(both(A, A), expected, strict=True):
        assert torch.equal(got, wanted)


def test_memory_goes_with_its_tape():
    """Not when the collector of cycles comes by: a larger tape is made after the smaller has let go."""
    A = drawn(1, 20, torch.float64)
    weights = [torch.ones(2, 2, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)]
    for squarings in (0, 2):
        recording = Recording(Form(tape_layouts.Alone, 1, 20, 20), weights, 1.0, squarings, torch.float64)
        memory = torch.zeros(recording.size, dtype=torch.float64)
        played = tape.Tape(recording, memory)
        played.load(A)
        played.norms()
        played.replay(out=torch.empty_like(A))
        gone = weakref.ref(played)
        gc.disable()
        del played
        gc.enable()
        assert gone() is None
