"""Compiled CPU kernels: right where they answer, and absent without a word where they cannot be had."""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import logging
import os
import platform
import signal
import stat
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from compiled_cases import ROUNDINGS, SHAPES, SHARED, double, matrices, needs_compiler, relative

import neural_expm
from neural_expm import kernels
from neural_expm.kernels import compiled
from neural_expm.kernels.compiled import builtin, toolchain


@needs_compiler
@pytest.mark.parametrize(("n", "dtype"), SHAPES)
@pytest.mark.parametrize("count", [1, 2, 17, 700])
def test_values_and_gradients_agree_with_torch(ready, n, dtype, count):
    A = matrices(count, n, dtype)
    G = matrices(count, n, dtype, seed=1)
    wide = double(A).requires_grad_()
    expected = torch.linalg.matrix_exp(wide)
    (gradient,) = torch.autograd.grad(expected, wide, double(G))
    A.requires_grad_()
    value, report = neural_expm.expm(A, return_report=True)
    assert report.kernel == "compiled"
    assert bool(report.inside.all())
    assert relative(value.detach(), expected.detach()) < ROUNDINGS
    # The gradient of e^A grows as e^‖A‖; roundings are relative to that.
    assert relative(torch.autograd.grad(value, A, G)[0], gradient) < 10 * ROUNDINGS


@needs_compiler
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="these are flags of x86")
@pytest.mark.parametrize(("flag", "n"), [("-mno-avx512f", 13), ("-mno-avx", 3)])
def test_processors_with_narrower_registers(fresh, tmp_path, flag, n):
    fresh.setenv("NEURAL_EXPM_COMPILE", "1")
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path))
    fresh.setenv("CXX", f"{toolchain.compiler()[0]} {flag}")
    A = matrices(30, n, torch.float64)
    value, report = neural_expm.expm(A, return_report=True)
    assert report.kernel == "compiled"
    assert relative(value, torch.linalg.matrix_exp(A)) < 4 * ROUNDINGS


@needs_compiler
def test_threads_share_a_large_matrix(ready):
    """They fetch from each other after every product; a product does not depend on how many they are."""
    A = matrices(2, *SHARED).requires_grad_()
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, *[3] * 20):  # nor on who comes first
            torch.set_num_threads(number)
            value = neural_expm.expm(A * 3)
            found.append((value, *torch.autograd.grad(value.abs().sum(), A)))
    finally:
        torch.set_num_threads(threads)
    assert neural_expm.explain("expm", A * 3).kernel == "compiled"
    expected = torch.linalg.matrix_exp(double(A) * 3)
    assert relative(found[0][0].detach(), expected.detach()) < ROUNDINGS
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


WRITES_MEANWHILE = """
import threading, torch, neural_expm
torch.set_num_threads(2)
base = torch.eye(56, dtype=torch.complex64)
A, over = base.clone(), threading.Event()
def write():
    torch.set_num_threads(1)
    while not over.is_set():
        A.copy_(base * 1e-3)
        A.copy_(base * 8)
writer = threading.Thread(target=write)
writer.start()
for _ in range(3000):
    neural_expm.expm(A)
over.set()
writer.join()
print(neural_expm.explain("expm", A).kernel)
"""


@needs_compiler
def test_threads_that_share_a_matrix_end_though_it_is_written_to_meanwhile(libraries):
    """What they find may differ: they agree on how often they meet."""
    environment = {
        **os.environ,
        "NEURAL_EXPM_COMPILE": "1",
        "NEURAL_EXPM_KERNEL_CACHE": str(libraries),
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", WRITES_MEANWHILE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.strip() == "compiled"


@needs_compiler
@pytest.mark.parametrize(("n", "dtype"), SHAPES)
def test_any_strides(ready, n, dtype):
    A = matrices(40, n, dtype)
    expected = neural_expm.expm(A)
    spread = torch.zeros(80, n, 2 * n, dtype=dtype)[::2, :, ::2].copy_(A)
    torch.testing.assert_close(neural_expm.expm(spread), expected)
    torch.testing.assert_close(neural_expm.expm(A.mT.contiguous().mT), expected)
    torch.testing.assert_close(neural_expm.expm(A.mH), expected.mH, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(neural_expm.expm(A.conj()), expected.conj(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(neural_expm.expm(A[7].expand(9, n, n)), expected[7].expand(9, n, n))
    torch.testing.assert_close(neural_expm.expm(A.reshape(2, 4, 5, n, n)), expected.reshape(2, 4, 5, n, n))


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4, 3e30])
def test_rows_outside_are_found_and_no_other_is_touched(ready, bad):
    A = matrices(50, 3, torch.float32)
    A[31, 1, 2] = bad
    value, report = neural_expm.expm(A, outside="nan", return_report=True)
    assert report.kernel == "compiled"
    others = torch.arange(50) != 31
    assert bool(report.inside[others].all())
    assert not bool(report.inside[31])
    assert bool(value[31].isnan().all())
    assert relative(value[others], torch.linalg.matrix_exp(double(A[others]))) < ROUNDINGS
    assert ("NaN" in report.reason[31]) == (not abs(bad) < 1e38)


@needs_compiler
def test_the_report_is_the_same_without_computing(ready):
    A = matrices(300, 3, torch.float32)
    _, report = neural_expm.expm(A, return_report=True)
    explained = neural_expm.explain("expm", A)
    assert explained.kernel == "compiled"
    for name in ("inside", "bound", "products", "squarings"):
        torch.testing.assert_close(getattr(explained, name), getattr(report, name))
    # Each matrix has its own depth: small norms cost less.
    assert int(report.products.min()) < int(report.products.max())


@needs_compiler
def test_a_plan_made_by_one_kernel_serves_the_other(ready):
    A = matrices(300, 3, torch.float32).requires_grad_()
    value = neural_expm.expm(A)
    ready.setenv("NEURAL_EXPM_COMPILE", "0")
    compiled.forget()
    (by_eager,) = torch.autograd.grad(value.sum(), A)
    value = neural_expm.expm(A)
    ready.setenv("NEURAL_EXPM_COMPILE", "auto")
    compiled.forget()
    (by_compiled,) = torch.autograd.grad(value.sum(), A)
    torch.testing.assert_close(by_eager, by_compiled, rtol=1e-4, atol=1e-4)


# --- whether and when -------------------------------------------------------------------------------------------------


def script(folder: Path, body: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\necho called >> {folder}/calls\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def answers(caplog, messages: int) -> None:
    """The eager kernel answers rightly, and says so ``messages`` times."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="neural_expm"):
        for n in (3, 4, 3):
            A = matrices(2, n, torch.float32)
            value, report = neural_expm.expm(A, return_report=True)
            assert report.kernel == "eager"
            assert relative(value, torch.linalg.matrix_exp(double(A))) < ROUNDINGS
    said = [record for record in caplog.records if "another kernel answers" in record.getMessage()]
    assert len(said) == messages


def test_no_compiler(fresh, tmp_path, caplog):
    fresh.setenv("NEURAL_EXPM_COMPILE", "1")
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path))
    fresh.setenv("CXX", "no-such-compiler")
    answers(caplog, 1)
    assert "no C++ compiler" in kernels.available()["compiled"]
    assert "eager kernel (no compiled kernel of expm for n = 3" in str(
        neural_expm.explain("expm", torch.eye(3))
    )
    assert compiled.state()["expm", 3, torch.float32] == "failed"


def test_a_compiler_from_pip_where_the_system_has_none(fresh):
    fresh.setattr(toolchain.shutil, "which", lambda name: None)
    fresh.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(toolchain.ToolchainError, match=r"pip install neural-expm\[compiler\]"):
        toolchain.compiler()
    fresh.setattr(toolchain, "find_spec", lambda name: name == "ziglang" or None)
    assert toolchain.compiler()[1:] == ["-m", "ziglang", "c++"]
    fresh.setenv("CXX", "chosen")
    with pytest.raises(toolchain.ToolchainError, match="chosen not found"):  # a choice is a choice
        toolchain.compiler()


@pytest.mark.parametrize(
    "body",
    ["echo 'error: internal compiler error' >&2; exit 1", "echo 'No space left on device'; exit 1", "exit 0"],
)
def test_a_compiler_that_fails(fresh, tmp_path, caplog, body):
    fresh.setenv("NEURAL_EXPM_COMPILE", "1")
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path / "cache"))
    fresh.setenv("CXX", script(tmp_path, body))
    answers(caplog, 1)
    assert not list((tmp_path / "cache").iterdir()), "a failure leaves nothing behind"


def test_a_compiler_that_produces_rubbish(fresh, tmp_path, caplog):
    fresh.setenv("NEURAL_EXPM_COMPILE", "1")
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path / "cache"))
    fresh.setenv("CXX", script(tmp_path, 'for last; do :; done; echo rubbish > "$last"'))
    answers(caplog, 1)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_cannot_be_written(fresh, tmp_path, caplog, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    fresh.setenv("NEURAL_EXPM_COMPILE", "1")
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path))
    fresh.setenv("CXX", script(tmp_path, "exit 0"))
    fresh.setattr(toolchain.tempfile, "mkdtemp", refuse)
    answers(caplog, 1)


def test_a_cache_folder_that_is_a_file(fresh, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    fresh.setenv("NEURAL_EXPM_COMPILE", "1")
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path / "file" / "cache"))
    fresh.setenv("CXX", script(tmp_path, "exit 0"))
    answers(caplog, 1)


@needs_compiler
def test_a_truncated_library_is_not_loaded(ready, libraries, tmp_path):
    for file in libraries.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".so" else data)
    ready.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path))
    _, report = neural_expm.expm(matrices(2, 3, torch.float32), return_report=True)
    assert report.kernel == "eager"


def test_switched_off(fresh, tmp_path):
    fresh.setenv("NEURAL_EXPM_COMPILE", "0")
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path / "cache"))
    fresh.setenv("CXX", script(tmp_path, "exit 1"))
    for _ in range(compiled.WORTH_CALLS + 1):
        neural_expm.expm(matrices(2, 3, torch.float32))
    assert not (tmp_path / "calls").exists()


def test_nothing_is_compiled_before_it_pays_and_nobody_waits(fresh, tmp_path):
    fresh.setenv("NEURAL_EXPM_KERNEL_CACHE", str(tmp_path / "cache"))
    fresh.setenv("CXX", script(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 1"))
    A = matrices(2, 3, torch.float32)
    for _ in range(compiled.WORTH_CALLS - 1):
        neural_expm.expm(A)
    assert compiled.state()["expm", 3, torch.float32] == "waiting"
    # Two threads reach the threshold together; neither waits for the compiler, and only one starts it.
    threads = [threading.Thread(target=neural_expm.expm, args=(A,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled.state()["expm", 3, torch.float32] == "building"
    (tmp_path / "go").touch()
    for thread in threading.enumerate():
        if thread.name == "neural_expm compiler":
            thread.join()
    assert compiled.state()["expm", 3, torch.float32] == "failed"
    assert (tmp_path / "calls").read_text().count("called") == 1


@needs_compiler
def test_two_threads_at_the_first_call(ready):
    A = matrices(64, 3, torch.float32)
    results = []

    def call():
        results.append(neural_expm.expm(A))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        torch.testing.assert_close(result, results[0])


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_after_fork(ready):
    A = matrices(5000, 3, torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = neural_expm.expm(A)  # wakes a pool of OpenMP threads, which does not survive a fork
    compiled._shapes.setdefault(("expm", 7, torch.float32), compiled._Shape()).state = "building"
    child = os.fork()
    if not child:
        signal.alarm(60)
        value = neural_expm.expm(A)
        torch.set_num_threads(1)  # torch's own operations would wait for the pool for ever
        # Which matrices share a register, and so a rung, depends on the number of threads.
        good = relative(value, expected) < ROUNDINGS
        good &= compiled.state()["expm", 7, torch.float32] == "waiting"
        os._exit(0 if good else 1)
    torch.set_num_threads(before)
    assert os.waitpid(child, 0)[1] == 0


@needs_compiler
def test_a_wrong_library_is_refused(ready, caplog):
    ready.setattr(compiled.KINDS["expm"], "discrepancy", lambda kernel: float("nan"))
    with caplog.at_level(logging.WARNING, logger="neural_expm"):
        _, report = neural_expm.expm(matrices(2, 3, torch.float32), return_report=True)
    assert report.kernel == "eager"
    assert "wrong" in caplog.text


@needs_compiler
def test_the_check_of_a_library_does_not_depend_on_threads(ready):
    A = matrices(40, 5, torch.complex128)
    neural_expm.expm(A)
    kernel = compiled.find(A)
    for first, second in ((1, 1), (1, 2), (2, 3)):
        counts = iter((first, second))
        ready.setattr(kernel, "_threads", lambda count, products, counts=counts: next(counts), raising=False)
        assert kernel.discrepancy() < compiled.CHECK[torch.float64]


@needs_compiler
def test_where_python_has_no_built_in_functions_of_ours_ctypes_calls(ready, monkeypatch):
    A = matrices(1, 3, torch.float32)[0]
    values = []
    for name in ("cpython", "another"):
        compiled.forget()
        monkeypatch.setattr(sys.implementation, "name", name)
        values.append(neural_expm.expm(A))
        kind = type(compiled.find(A[None], "expm")._value_at_once)
        assert (kind is types.BuiltinFunctionType) == (name == "cpython")
    assert torch.equal(*values)
    torch.testing.assert_close(values[0], torch.linalg.matrix_exp(A), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_a_built_in_outlives_the_module_that_made_it(ready):
    """As when an interactive session loads its modules again."""
    A = matrices(1, 3, torch.float32)[0]
    expected = neural_expm.expm(A)
    importlib.reload(builtin)
    gc.collect()
    rubble = [ctypes.create_string_buffer(b"\xff" * 31) for _ in range(2000)]
    assert torch.equal(neural_expm.expm(A), expected)
    assert len(rubble) == 2000
