"""How every benchmark measures: the result is checked first, inputs are cold on a GPU, every sample is kept.

A benchmark is one contestant (``fastgan``, ``eager``, ``compile``, ``numpy``, …) on one case; the contestants of a case
share a pytest-benchmark group, so ``pytest benchmarks --benchmark-only`` prints them side by side.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep freed memory instead of handing it back to the kernel; False with another C library.

    By default every tensor of more than 32 MiB, and many smaller ones, is mapped anew, and its first write faults on
    each page: that would dominate large cases for all contestants alike. A training process that has run for a while,
    or uses jemalloc or tcmalloc, does not pay it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(m_mmap_threshold, 1 << 30)) and bool(mallopt(m_trim_threshold, 2**31 - 1))


# Before any tensor is made.
MEMORY_KEPT = keep_freed_memory()
# Seconds of samples for each contestant of each case.
BUDGET = float(os.environ.get("FASTGAN_BENCH_SECONDS", "0.3"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` at its defaults, with static shapes."""
    return torch.compile(function, dynamic=False)


def copies(make: Callable[[], Any], bytes_each: int) -> list[Any]:
    """As many sets of inputs as make a GPU's L2 cold when they are used in turn; one on the CPU."""
    if DEVICE == "cpu":
        return [make()]
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return [make() for _ in range(max(2, min(64, -(-3 * l2 // max(bytes_each, 1)))))]


def measure(
    benchmark: Any,
    run: Callable[[Any], Any],
    inputs: list[Any],
    *,
    operator: str,
    case: str,
    contestant: str,
    bytes_moved: int | None = None,
    check: Callable[[Any], None] | None = None,
) -> None:
    """Measures ``run(inputs[i])`` under the group ``operator case``.

    Args:
        benchmark: the fixture of pytest-benchmark.
        inputs: sets of inputs, used in turn (see :func:`copies`).
        bytes_moved: what the operation must at least read and write: gives GB/s and, on a GPU, the percentage of the
            bandwidth of a large copy measured on the same device.
        check: gets the first result and raises if it is wrong. No speed of a wrong answer.
    """
    result = run(inputs[0])
    if check is not None:
        check(result)
    del result
    benchmark.group = f"{operator} | {case}"
    benchmark.extra_info.update(operator=operator, case=case, contestant=contestant, device=device_name())
    turn = iter(_turns(inputs))
    if DEVICE == "cuda":
        _measure_cuda(benchmark, run, turn, bytes_moved)
        return
    single = _seconds(lambda: run(next(turn)))
    loops = max(1, int(2e-3 / max(single, 1e-9)))
    slow = single > 0.2
    rounds = max(3 if slow else 5, min(200, int(BUDGET / max(single * loops, 1e-9))))
    benchmark.pedantic(lambda: run(next(turn)), rounds=rounds, iterations=loops, warmup_rounds=0 if slow else 2)
    if bytes_moved is not None and benchmark.stats is not None:
        benchmark.extra_info["gb_per_s"] = bytes_moved / benchmark.stats.stats.median / 1e9


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _turns(inputs: list[Any]) -> Any:
    while True:
        yield from inputs


def _seconds(call: Callable[[], Any]) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _measure_cuda(benchmark: Any, run: Callable[[Any], Any], turn: Any, bytes_moved: int | None) -> None:
    for _ in range(5):
        run(next(turn))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    samples: list[float] = []
    end_at = time.perf_counter() + BUDGET
    while len(samples) < 20 or (time.perf_counter() < end_at and len(samples) < 500):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(200_000)  # lets the host run ahead, so that launches do not show as device time
        start.record()
        run(next(turn))
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e-3)
    samples.sort()
    p20, p50, p80 = (samples[int(q * (len(samples) - 1))] for q in (0.2, 0.5, 0.8))
    benchmark.extra_info.update(
        device_p20=p20, device_p50=p50, device_p80=p80, peak_bytes=torch.cuda.max_memory_allocated()
    )
    if bytes_moved is not None:
        benchmark.extra_info["gb_per_s"] = bytes_moved / p50 / 1e9
        benchmark.extra_info["copy_percent"] = 100 * bytes_moved / p50 / _copy_bandwidth()
    benchmark.pedantic(lambda: (run(next(turn)), torch.cuda.synchronize()), rounds=10, warmup_rounds=1)


_bandwidth: list[float] = []


def _copy_bandwidth() -> float:
    """Bytes per second, read and written, of a 1 GiB device copy."""
    if not _bandwidth:
        source = torch.randn(2**28, device="cuda")
        target = torch.empty_like(source)
        times = []
        for _ in range(20):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            target.copy_(source)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e-3)
        _bandwidth.append(2 * source.nbytes / sorted(times)[len(times) // 2])
    return _bandwidth[0]
