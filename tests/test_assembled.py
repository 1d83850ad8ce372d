"""Machine code made without a compiler: right on AVX2 and AVX-512, and absent without a word where it cannot be had."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import sys
import threading

import cases
import pytest
import torch
from assembled_cases import DTYPES, WIDTHS, before_a_wall, needs_code

import neural_expm
from neural_expm import kernels
from neural_expm.domain import Reason, norm_bound
from neural_expm.kernels import assembled, eager
from neural_expm.kernels.assembled import kernel as assembled_kernel
from neural_expm.kernels.assembled import memory as assembled_memory
from neural_expm.kernels.assembled.exponential_code import Program
from neural_expm.kernels.exponential_kernel import Rungs

SIZES = [2, 3, 4, 5, 7, 8, 13, 16, 20, 32]


@pytest.fixture
def kernel(monkeypatch, wide, n, dtype):
    """Of the parameters of a test."""
    monkeypatch.setattr(assembled_kernel, "wide", lambda: wide)
    return assembled.Kernel(n, dtype)


def double(A: torch.Tensor) -> torch.Tensor:
    return A.to(torch.complex128 if A.is_complex() else torch.float64)


def matrices(count: int, n: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Norms from tiny to a few squarings."""
    A = torch.randn(count, n, n, dtype=dtype, generator=cases.generator(seed)) / n**0.5
    norms = torch.logspace(-3, 0.7, count, dtype=dtype.to_real())
    return A * norms[torch.randperm(count, generator=cases.generator(seed + 1)), None, None]


def rungs(dtype: torch.dtype) -> tuple[Rungs, list[list[torch.Tensor]]]:
    """Arbitrary weights, and them as the eager kernel takes them: whatever they are, kernels compute the same."""
    g, real, packed, networks = cases.generator(5), dtype.to_real(), [], []
    for products, squarings in ((1, 0), (3, 0), (4, 2)):
        weights = [torch.rand(2, h, dtype=real, generator=g) / h for h in range(2, products + 1)]
        packed.append([*weights, torch.rand(1, products + 1, dtype=real, generator=g)])
        networks.append((torch.cat([w.reshape(-1) for w in packed[-1]]), 0.7, squarings))
    radii = torch.tensor([0.5, 1.0, 2.0], dtype=real)
    return Rungs(radii, radii, 1.0, networks, derivative_level=1), packed


def expected_for(rungs, packed, A, E, level) -> torch.Tensor:
    """By the eager kernel, NaN for those outside."""
    out = torch.full_like(A, torch.nan)
    for at, (_, identity, squarings) in enumerate(rungs.networks):
        rows = torch.nonzero(level == at)[:, 0]
        eager.exponential(A, E, packed[at], identity, squarings, out, rows)
    return out


# --- against the eager kernel -----------------------------------------------------------------------------------------


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("wide", WIDTHS)
@pytest.mark.parametrize("alike", [False, True])
def test_the_same_polynomial_as_the_eager_kernel(kernel, alike, n, dtype):
    """Matrices that are alike are taken as they lie, others by a table of their rungs."""
    ladder, packed = rungs(dtype)
    for count in (1, kernel.lanes - 1, kernel.lanes, kernel.lanes + 1, 3 * kernel.lanes + 2, 1100 // n):
        A, E = (torch.randn(count, n, n, dtype=dtype, generator=cases.generator(i)) for i in (0, 1))
        # Of every level, and some outside by either norm bound.
        norms = torch.linspace(0.1, 3.0, count)
        if not alike:
            norms = norms[torch.randperm(count, generator=cases.generator(2))]
        A *= (norms / torch.linalg.matrix_norm(A))[:, None, None]
        bound, norm = norm_bound(A), torch.linalg.matrix_norm(A)
        asked = torch.where(bound <= 2.0, torch.bucketize(norm, ladder.radii).clamp_max(2), 3)
        for B in (A, A.mT, A.mH, A.conj()):
            got = torch.full_like(A, torch.nan)
            if (memory := assembled_kernel._workspace.memory) is not None:
                memory.fill_(255)  # NaN in every precision: nothing is read before it is written
            level, outside = kernel.value(B, ladder, False, got)
            assert outside == bool((asked == 3).any())
            assert bool((level >= asked).all()), "never less deep than asked for"
            assert torch.equal(level > 1, asked > 1), "never two squarings more than asked for"
            assert torch.equal(level == 3, asked == 3)
            torch.testing.assert_close(got, expected_for(ladder, packed, B, None, level), equal_nan=True)
            assert torch.equal(kernel.value(B, ladder, False, None)[0], level)
            used = level.where(level == 3, level.clamp_min(1))
            # Registers of a derivative fill up anew: with one rung for all of them the eager kernel does the same.
            for same in (
                torch.full_like(level, 2),
                level.where(level == 3, torch.tensor(2, dtype=torch.uint8)),
            ):
                got = torch.full_like(A, torch.nan)
                kernel.frechet(B, E, ladder, same, got)
                torch.testing.assert_close(got, expected_for(ladder, packed, B, E, same), equal_nan=True)
            got = torch.full_like(A, torch.nan)
            kernel.frechet(B, E, ladder, torch.zeros_like(level), got)
            torch.testing.assert_close(got, expected_for(ladder, packed, B, E, torch.ones_like(used)))
        trusted, outside = kernel.value(A, ladder, True, torch.empty_like(A))
        assert not outside
        assert torch.equal(trusted, trusted.clamp_max(2))


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 4, 8])
@pytest.mark.parametrize("wide", WIDTHS)
def test_neighbours_share_a_rung_and_at_most_one_squaring(kernel, n, dtype):
    """Whatever lies beside a small matrix: it loses no digit, and what is outside stays with itself."""
    ladder, packed = rungs(dtype)
    A = torch.randn(40 * kernel.lanes, n, n, dtype=dtype, generator=cases.generator(0))
    E = torch.randn(40 * kernel.lanes, n, n, dtype=dtype, generator=cases.generator(1))
    A *= 0.95 / torch.linalg.matrix_norm(A)[:, None, None]
    A[:: 2 * kernel.lanes] *= 1e-3
    A[1 :: 2 * kernel.lanes] *= 0.9
    A[5 * kernel.lanes] *= 1.9  # two squarings
    A[9 * kernel.lanes + 1], A[17 * kernel.lanes + 3, 0, 0] = 100, torch.nan
    asked = torch.bucketize(torch.linalg.matrix_norm(A), ladder.radii).clamp_max(3)
    asked[17 * kernel.lanes + 3] = 3
    for B, D, wanted in (
        (A, E, asked),
        (A.mT, E.mT, asked),
        (A[::2], E[::2], asked[::2]),
        (A[:1].expand(90, n, n), E[:90], asked[:1].expand(90)),
    ):
        got = torch.full(B.shape, torch.nan, dtype=dtype)
        level, outside = kernel.value(B, ladder, False, got)
        assert outside == bool((wanted == 3).any())
        assert torch.equal(level == 3, wanted == 3)
        assert bool((level >= wanted).all())
        assert torch.equal(level > 1, wanted > 1)
        torch.testing.assert_close(got, expected_for(ladder, packed, B, None, level), equal_nan=True)
        assert torch.equal(kernel.value(B, ladder, False, None)[0], level), (
            "what explain says is what is done"
        )
        got = torch.full(B.shape, torch.nan, dtype=dtype)
        kernel.frechet(B, D, ladder, level, got)
        torch.testing.assert_close(
            got[level != 3], expected_for(ladder, packed, B, D, level.clamp_min(1))[level != 3]
        )


@needs_code
def test_at_the_same_depth_a_matrix_is_computed_alike_whatever_shares_its_batch(machine_code):
    A = matrices(4000, 4, torch.float32)
    A *= 1.5 / torch.linalg.matrix_norm(A)[:, None, None]
    before = torch.get_num_threads()
    try:
        together = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            together.append(neural_expm.expm(A))
    finally:
        torch.set_num_threads(before)
    for other in (*together[1:], neural_expm.expm(A.flip(0)).flip(0)):
        assert torch.equal(other, together[0])


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 5, 8])
@pytest.mark.parametrize("wide", WIDTHS)
def test_nothing_beyond_a_batch_is_touched(kernel, n, dtype):
    """Otherwise the process ends here."""
    A, E, out = (
        before_a_wall(torch.randn(21, n, n, dtype=dtype, generator=cases.generator(i)) / n) for i in range(3)
    )
    ladder, _ = rungs(dtype)
    for B in (A, A.mT):
        level, _ = kernel.value(B, ladder, True, out)
        kernel.frechet(B, E, ladder, before_a_wall(level), out)


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_of_what_has_no_norm(machine_code, dtype):
    """NaN, infinity and entries whose squares overflow are outside, and no matrix but their own is."""
    A = matrices(300, 3, dtype).clamp(-0.2, 0.2) if not dtype.is_complex else matrices(300, 3, dtype) / 50
    largest = torch.finfo(dtype.to_real()).max
    A[3, 0, 1], A[50, 1, 1], A[51, 2, 2], A[299] = torch.nan, torch.inf, largest / 4, 0
    value, report = neural_expm.expm(A, outside="nan", return_report=True)
    outside = torch.zeros(300, dtype=torch.bool).index_fill(0, torch.tensor([3, 50, 51]), True)
    assert report.kernel == "assembled"
    assert torch.equal(~report.inside, outside)
    assert torch.equal(value.isnan().flatten(1).all(1), outside)
    expected = [Reason.NOT_FINITE, Reason.NOT_FINITE, Reason.NORM]
    assert report.code[[3, 50, 51]].tolist() == expected
    assert torch.equal(value[299], torch.eye(3, dtype=dtype))


# --- through the public functions -------------------------------------------------------------------------------------


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "n"), [(1, 2), (1, 12), (20, 32), (700, 3), (700, 4), (700, 9)])
def test_values_and_gradients_agree_with_torch(machine_code, count, n, dtype):
    A, G = matrices(count, n, dtype), matrices(count, n, dtype, seed=1)
    wide = double(A).requires_grad_()
    expected = torch.linalg.matrix_exp(wide)
    (gradient,) = torch.autograd.grad(expected, wide, double(G))
    A.requires_grad_()
    value, report = neural_expm.expm(A, return_report=True)
    assert report.kernel == neural_expm.explain("expm", A).kernel == "assembled"
    assert bool(report.inside.all())
    eps = torch.finfo(dtype).eps
    assert cases.relative(value.detach(), expected.detach()).max() < 40 * eps
    assert cases.relative(torch.autograd.grad(value, A, G)[0], gradient).max() < 400 * eps


@needs_code
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(machine_code, dtype):
    n = 5
    A = matrices(40, n, dtype)
    G = matrices(40, n, dtype, seed=1)
    expected = neural_expm.expm(A)
    close = {"rtol": 1e-4, "atol": 1e-4}
    spread = torch.zeros(80, n, 2 * n, dtype=dtype)[::2, :, ::2].copy_(A)
    torch.testing.assert_close(neural_expm.expm(spread), expected)
    torch.testing.assert_close(neural_expm.expm(A[::2]), expected[::2])
    torch.testing.assert_close(neural_expm.expm(A.mT.contiguous().mT), expected)
    torch.testing.assert_close(neural_expm.expm(A.mH), expected.mH, **close)
    torch.testing.assert_close(neural_expm.expm(A.conj()), expected.conj(), **close)
    torch.testing.assert_close(neural_expm.expm(A[7].expand(9, n, n)), expected[7].expand(9, n, n))
    torch.testing.assert_close(neural_expm.expm(torch._neg_view(-A)), expected, **close)
    leaf = A.clone().requires_grad_()
    value = neural_expm.expm(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, G, retain_graph=True)
    for direction in (
        spread.copy_(G),
        G.mT.contiguous().mT,
        torch._neg_view(-G),
        G.conj().resolve_conj().conj(),
    ):
        torch.testing.assert_close(
            torch.autograd.grad(value, leaf, direction, retain_graph=True)[0], gradient
        )


@needs_code
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4, 3e30])
def test_rows_outside_touch_no_other(machine_code, bad):
    A = matrices(50, 3, torch.float32)
    A[31, 1, 2] = bad
    value, report = neural_expm.expm(A, outside="nan", return_report=True)
    others = torch.arange(50) != 31
    assert report.kernel == "assembled"
    assert report.inside.tolist() == others.tolist()
    assert bool(value[31].isnan().all())
    expected = torch.linalg.matrix_exp(double(A[others]))
    assert cases.relative(value[others], expected).max() < 40 * torch.finfo(torch.float32).eps


@needs_code
def test_inference_mode_leaves_nothing_behind(machine_code):
    A = matrices(30, 3, torch.float64)
    with torch.inference_mode():
        neural_expm.expm(A)
    leaf = A.clone().requires_grad_()
    neural_expm.expm(leaf).sum().backward()
    assert bool(leaf.grad.isfinite().all())


@needs_code
def test_threads_side_by_side(machine_code):
    """Each with a workspace of its own, also at the first call, when each makes what the other has not made yet."""
    batches = [matrices(600 + i, 4, torch.float64, seed=i) for i in range(6)]
    results: dict[int, list[torch.Tensor]] = {}

    def call(i: int) -> None:
        results[i] = [neural_expm.expm(batches[i]) for _ in range(3)]

    expected = [neural_expm.expm(batch) for batch in batches]
    for _ in range(25):
        assembled.forget()
        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, wanted in enumerate(expected):
            assert all(torch.equal(result, wanted) for result in results[i])


@needs_code
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_after_fork(machine_code):
    A = matrices(20_000, 3, torch.float32)
    A /= torch.linalg.matrix_norm(A)[:, None, None]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = neural_expm.expm(A)
    child = os.fork()
    if not child:
        signal.alarm(60)
        torch.set_num_threads(1)  # torch's own operations would wait for the pool for ever
        os._exit(0 if torch.equal(neural_expm.expm(A), expected) else 1)
    torch.set_num_threads(before)
    assert os.waitpid(child, 0)[1] == 0


# --- where it cannot be had -------------------------------------------------------------------------------------------


def answers(caplog, messages: int) -> None:
    """The eager kernel answers rightly, and says so ``messages`` times."""
    with caplog.at_level(logging.INFO, logger="neural_expm"):
        for n in (3, 4, 3):
            A = matrices(20, n, torch.float32)
            value, report = neural_expm.expm(A, return_report=True)
            assert report.kernel == "eager"
            assert cases.relative(value, torch.linalg.matrix_exp(double(A))).max() < 1e-5
    said = [record for record in caplog.records if "another kernel answers" in record.getMessage()]
    assert len(said) == messages


@pytest.fixture
def elsewhere(machine_code):
    """Another machine: what was found out about this one is forgotten."""
    assembled.wide.cache_clear()
    yield machine_code
    machine_code.undo()
    assembled.wide.cache_clear()


def test_another_processor(elsewhere, caplog):
    elsewhere.setattr(platform, "machine", lambda: "riscv64")
    answers(caplog, 1)
    assert "no assembler for riscv64" in kernels.available()["assembled"]


def test_another_system(elsewhere, caplog):
    elsewhere.setattr(sys, "platform", "plan9")
    answers(caplog, 1)


def test_a_processor_without_avx2(elsewhere, caplog):
    elsewhere.setattr(platform, "machine", lambda: "x86_64")
    elsewhere.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    answers(caplog, 1)
    assert "AVX2" in assembled.failure()


@needs_code
def test_a_system_that_allows_no_new_code(machine_code, caplog):
    machine_code.setattr(
        assembled_memory.mmap, "PROT_EXEC", 1 << 20
    )  # which the system refuses, as a strict one refuses the right
    answers(caplog, 1)
    assert "the system allows no new machine code" in assembled.failure()


@needs_code
def test_wrong_code_is_refused(machine_code, caplog):
    machine_code.setattr(assembled.Kernel, "discrepancy", lambda kernel: float("nan"))
    answers(caplog, 1)
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_switched_off(machine_code, caplog):
    machine_code.setenv("NEURAL_EXPM_ASSEMBLE", "0")
    answers(caplog, 0)


@needs_code
def test_what_is_asked_for_can_be_asked(machine_code):
    neural_expm.expm(matrices(3, 6, torch.float64))
    assert "n = 6 float64" in kernels.available()["assembled"]
    assert "assembled kernel" in str(neural_expm.explain("expm", matrices(3, 6, torch.float64)))


@needs_code
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc")
def test_code_cannot_be_written_to(machine_code):
    kernel = assembled.Kernel(3, torch.float32)
    _, function = kernel._program(Program, "code")
    address = ctypes.cast(function, ctypes.c_void_p).value
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            if first <= address < last:
                assert line.split()[1] == "r-xp"
                return
    pytest.fail("the code is nowhere")
