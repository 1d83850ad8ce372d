"""Memory of large results that is used again: whose it is, when it comes back, and what is done where it cannot."""

from __future__ import annotations

import gc
import mmap
import pickle
import threading

import pytest
import torch

import neural_expm
from neural_expm import shortcut
from neural_expm.kernels import results

pytestmark = pytest.mark.skipif(
    not results._SYSTEM_CAN, reason="a system without MADV_FREE keeps no memory of results"
)
PAGE = results.HUGE_PAGE


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    """Every result counts as large, no call takes the shortcut for a few matrices, and nothing is kept yet."""
    monkeypatch.setattr(shortcut, "FEW", 0)
    monkeypatch.setattr(shortcut, "BOUND", {})
    gc.collect()
    kept: list[mmap.mmap] = []
    monkeypatch.setattr(results, "_kept", kept)
    monkeypatch.setattr(results, "LARGE", 1)
    monkeypatch.setattr(results, "SMALL", 0)
    yield kept
    gc.collect()


def batch(seed=0, count=100, n=4, dtype=torch.float64):
    return torch.randn(count, n, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("function", ["expm", "sign", "sqrtm"])
def test_a_result_that_is_gone_serves_the_next(function, shelf):
    A = batch()
    A = A @ A.mT + torch.eye(4, dtype=A.dtype)  # a square root exists
    f = getattr(neural_expm, function)
    first = f(A)
    where, expected = first.data_ptr(), first.clone()
    del first
    assert [len(block) for block in shelf] == [PAGE]
    again = f(A)
    assert again.data_ptr() == where
    assert torch.equal(again, expected)
    assert not shelf


def test_whoever_shares_the_memory_keeps_it(shelf):
    E = neural_expm.expm(batch())
    part, array = E[50:, 1], E.numpy()
    expected = part.clone()
    del E
    assert not shelf
    other = neural_expm.expm(batch(1))
    assert torch.equal(part, expected)
    assert (array[50:, 1] == expected.numpy()).all()
    assert other.data_ptr() != part.untyped_storage().data_ptr()
    del part
    assert not shelf  # the array is left
    del array
    assert len(shelf) == 1


def test_gradients_are_results_too_and_nothing_is_mixed_up(shelf):
    values, gradients, places = [], [], []
    for seed in range(6):
        A = batch(seed).requires_grad_()
        E = neural_expm.expm(A)
        (G,) = torch.autograd.grad(E.square().sum(), A)
        places += [E.data_ptr(), G.data_ptr()]
        values.append(E.detach() if seed % 2 else E.detach().clone())  # some live on, some come back
        gradients.append(G if seed % 3 else G.clone())
    assert len(set(places)) < len(places)
    for seed, (E, G) in enumerate(zip(values, gradients, strict=True)):
        A = batch(seed).requires_grad_()
        truth = torch.linalg.matrix_exp(A)
        (expected,) = torch.autograd.grad(truth.square().sum(), A)
        torch.testing.assert_close(E, truth.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(G, expected, rtol=1e-11, atol=1e-11)


def test_a_result_is_a_tensor_like_any_other(shelf):
    A = batch().requires_grad_()
    E = neural_expm.expm(A)
    assert E.is_contiguous()
    assert not E._is_view()
    assert not E.detach()._is_view()
    E.mul_(2)  # in place, with a gradient
    E.sum().backward()
    assert A.grad is not None
    D = E.detach()
    assert torch.equal(pickle.loads(pickle.dumps(D)), D)
    assert D.resize_(10, 4, 4).shape == (10, 4, 4)
    shared = neural_expm.expm(batch())
    expected = shared.clone()
    assert torch.equal(shared.share_memory_(), expected)
    with torch.inference_mode():
        assert neural_expm.expm(batch()).is_inference()


def test_no_more_is_kept_than_the_limit_and_what_fits(shelf, monkeypatch):
    monkeypatch.setattr(results, "KEPT_BYTES", 2 * PAGE)
    alive = [neural_expm.expm(batch(seed)) for seed in range(4)]
    del alive
    assert [len(block) for block in shelf] == [PAGE, PAGE]
    wide = neural_expm.expm(batch(count=30_000))  # 3.8 MB: beyond a block
    assert len(shelf) == 2
    del wide  # and would be beyond the limit
    assert [len(block) for block in shelf] == [PAGE, PAGE]


def test_a_few_small_blocks_are_kept_without_leave(shelf, monkeypatch):
    advised = []
    monkeypatch.setattr(results, "_advise", lambda block, advice: advised.append(advice) or True)
    monkeypatch.setattr(results, "SMALL", PAGE)
    monkeypatch.setattr(results, "SMALL_BYTES", 2 * PAGE)
    alive = [neural_expm.expm(batch(seed)) for seed in range(2)] + [neural_expm.expm(batch(count=30_000))]
    advised.clear()
    del alive[:2]
    assert not advised
    assert len(shelf) == 2
    alive[0] = None  # no small one
    assert len(advised) == 1
    assert len(shelf) == 3
    alive = [neural_expm.expm(batch(seed)) for seed in range(3)]
    advised.clear()
    alive.clear()
    assert len(advised) == 1
    assert len(shelf) == 4


@pytest.mark.parametrize("broken", ["advice", "mapping", "system"])
def test_where_the_system_does_not_play_along_torch_allocates(broken, shelf, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no")

    if broken == "advice":
        monkeypatch.setattr(results, "_advise", lambda *_: False)
    elif broken == "mapping":
        monkeypatch.setattr(results.mmap, "mmap", refuse)
    else:
        monkeypatch.setattr(results, "_SYSTEM_CAN", False)
    A = batch()
    torch.testing.assert_close(neural_expm.expm(A), torch.linalg.matrix_exp(A), rtol=1e-12, atol=1e-12)
    assert not shelf


def test_small_results_and_other_devices_are_left_to_torch(shelf, monkeypatch):
    meta = torch.empty(100, 4, 4, device="meta")
    assert results.empty_result(meta).device.type == "meta"
    monkeypatch.setattr(results, "LARGE", 1 << 25)
    neural_expm.expm(batch())
    assert not shelf


def test_threads_never_get_the_same_memory(shelf):
    A = [batch(seed, count=1000) for seed in range(4)]
    truth = [torch.linalg.matrix_exp(X) for X in A]
    wrong = []

    def work(k: int) -> None:
        for _ in range(30):
            E = neural_expm.expm(A[k])
            if not torch.allclose(E, truth[k], rtol=1e-10, atol=1e-10):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 1 <= len(shelf) <= 8
