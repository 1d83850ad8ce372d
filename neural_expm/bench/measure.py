"""Time two ways of doing the same thing, in turns, so that whatever the machine does hits both."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

# A sample lasts at least this long: enough that the clock's grain and a lone interrupt are small beside it.
SAMPLE_SECONDS = 2e-3
MIN_PAIRS, MAX_PAIRS = 5, 400
# "cpu" counts the processor time of this process: what to ask for on a busy machine, with one thread.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Timing:
    """Seconds per call.

    Attributes:
        baseline, ours: medians.
        ratio: median over the pairs of baseline / ours; above 1 we are faster.
        spread: first and third quartile of that ratio.
        pairs: how many pairs.
    """

    baseline: float
    ours: float
    ratio: float
    spread: tuple[float, float]
    pairs: int


def compare(
    baseline: Callable[[], object], ours: Callable[[], object], budget: float, clock: str = "wall"
) -> Timing:
    """Time ``baseline`` and ``ours`` in alternation for about ``budget`` seconds, at least ``MIN_PAIRS`` pairs."""
    now = CLOCKS[clock]
    deadline = time.perf_counter() + budget
    calls = [_calls(f, now) for f in (baseline, ours)]
    first: list[float] = []
    second: list[float] = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        while len(first) < MIN_PAIRS or (len(first) < MAX_PAIRS and time.perf_counter() < deadline):
            # The order alternates: who comes second finds a warm clock, but the other's data in the cache.
            if len(first) % 2:
                b = _sample(ours, calls[1], now)
                a = _sample(baseline, calls[0], now)
            else:
                a = _sample(baseline, calls[0], now)
                b = _sample(ours, calls[1], now)
            first.append(a)
            second.append(b)
    finally:
        if was_enabled:
            gc.enable()
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return Timing(median(first), median(second), median(ratios), (low, high), len(ratios))


def single(f: Callable[[int], object], count: int, budget: float, clock: str = "wall") -> tuple[float, int]:
    """Median seconds of f(0), f(1), … f(count − 1), as many as fit ``budget``, and how many did."""
    f(0)
    deadline = time.perf_counter() + budget
    times: list[float] = []
    for i in range(count):
        times.append(_sample(partial(f, i), 1, CLOCKS[clock]))
        if time.perf_counter() > deadline:
            break
    return median(times), len(times)


def geometric_mean(values: list[float]) -> float:
    """NaN where there are none."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan


def _calls(f: Callable[[], object], now: Callable[[], float]) -> int:
    """Warm up, then choose how many calls fill a sample."""
    f()
    return max(1, min(10_000, round(SAMPLE_SECONDS / max(1e-7, min(_sample(f, 1, now), _sample(f, 1, now))))))


def _sample(f: Callable[[], object], calls: int, now: Callable[[], float]) -> float:
    start = now()
    for _ in range(calls):
        f()
    return (now() - start) / calls
