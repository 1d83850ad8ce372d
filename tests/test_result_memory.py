"""Results are written to memory of their own, in large pages where there is much of it."""

from __future__ import annotations

import pytest
import torch

from neural_expm.kernels import memory


@pytest.fixture
def advised(monkeypatch):
    """What the system was told."""
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *told: seen.append(told))
    monkeypatch.setattr(memory, "LARGE_BYTES", 1 << 16)
    return seen


@pytest.mark.skipif(not hasattr(memory.mmap, "MADV_HUGEPAGE"), reason="no such pages on this system")
def test_only_whole_pages_inside_a_large_result(advised):
    for count in (8, 2048, 2049):
        A = torch.zeros(3, 4).expand(count, 3, 4).mT
        advised.clear()
        result = memory.result_like(A)
        assert (result.shape, result.dtype, result.is_contiguous()) == (A.shape, A.dtype, True)
        if count == 8:
            assert not advised
            continue
        ((begin, length, _),) = advised
        assert begin % memory.mmap.PAGESIZE == length % memory.mmap.PAGESIZE == 0
        assert result.data_ptr() <= begin
        assert begin + length <= result.data_ptr() + result.numel() * 4


def test_without_such_advice_nothing_changes(advised, monkeypatch):
    monkeypatch.setattr(memory, "_madvise", lambda: None)
    assert memory.result_like(torch.zeros(2000, 4, 4)).shape == (2000, 4, 4)


def test_advice_is_only_advice():
    """The real call, on a real result."""
    A = torch.randn(memory.LARGE_BYTES // 4 // 16, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(memory.result_like(A).copy_(A), A)
